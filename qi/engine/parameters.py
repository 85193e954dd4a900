"""Parameters of a `Quantizer` as plain values, and back.

========================= ===============================================================================
key                       value
========================= ===============================================================================
global_scale              float: scale of the tensor, or of the whole range where channels differ
global_zero_point         float: its integer code of 0
per_channel_scales        {index: float}: scales of the channels; {} without channels
per_channel_zero_points   {index: float}: their codes of 0
channel_dim               dimension of the channels, or null
quantization_type         lower-case name
quantization_mode         lower-case name
num_bits, symmetric       as in the configuration
is_calibrated             whether the parameters are fixed
calibrated_min            float, or [float] of channels: lower ends of the range that calibration found, or null
calibrated_max            their upper ends
qmin, qmax                lowest and highest code
layers                    {name: {"scale", "zero_point", "channel_dim"}}: of the latest call of each layer, 4,096 at most
========================= ===============================================================================

JSON turns the indices of channels into strings; both are read. Keys that another exporter left out have the defaults of
the quantizer that reads them; ``global_scale`` is required.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from qi.core import Granularity, PerChannel, PerTensor, QParams
from qi.engine.config import QuantizationConfig
from qi.engine.state import Fixed, State
from qi.errors import ConfigError, QiError, UnsupportedError
from qi.registry import suggest

__all__ = ["MAX_LAYERS", "exported", "imported"]

MAX_LAYERS = 4096
"""Layers whose latest parameters are kept."""

_MAX_CHANNELS = 1 << 20
_GREATEST = float(np.finfo(np.float64).max)
_SINGLE = float(np.finfo(np.float32).max)
_KEYS = (
    "global_scale",
    "global_zero_point",
    "per_channel_scales",
    "per_channel_zero_points",
    "channel_dim",
    "quantization_type",
    "quantization_mode",
    "num_bits",
    "symmetric",
    "is_calibrated",
    "calibrated_min",
    "calibrated_max",
    "qmin",
    "qmax",
    "layers",
)

Last = Mapping[str | None, QParams]
"""Parameters of the latest call of each layer; None: of the latest call."""


def exported(state: State, last: Last, pair: tuple[float, float]) -> dict[str, Any]:
    """All parameters of a quantizer, independent of it.

    Raises:
        ConfigError: The latest array had groups, whose scales belong to its shape.
    """
    config = state.config
    params = last.get(None)
    if params is not None and not _plain(params):
        raise ConfigError(
            "expected one scale per tensor or per channel to export; received groups; do: keep the QuantizedTensor"
        )
    if params is None and state.fixed is not None:
        params = state.fixed.params_of_channels(config)
    plain: dict[str, Any] = {"global_scale": pair[0], "global_zero_point": pair[1]}
    channels = _channels(params)
    for key, name in (("scale", "per_channel_scales"), ("zero_point", "per_channel_zero_points")):
        plain[name] = dict(enumerate(channels[key])) if channels["channel_dim"] is not None else {}
    integer = config.quantization_type.integer
    fixed = None if config.quantization_mode.dynamic else state.fixed
    return plain | {
        "channel_dim": channels["channel_dim"],
        "quantization_type": config.quantization_type.value,
        "quantization_mode": config.quantization_mode.value,
        "num_bits": config.num_bits,
        "symmetric": config.symmetric,
        "is_calibrated": fixed is not None,
        "calibrated_min": None if fixed is None else fixed.lo.tolist(),
        "calibrated_max": None if fixed is None else fixed.hi.tolist(),
        "qmin": config.grid.qmin if integer else None,
        "qmax": config.grid.qmax if integer else None,
        "layers": {name: _channels(own) for name, own in last.items() if name is not None and _plain(own)},
    }


def imported(params: Any, state: State) -> tuple[QuantizationConfig, Fixed | None, dict[str | None, QParams]]:
    """What `exported` gave, checked as a whole: (configuration, fixed parameters, parameters of the latest calls).

    Raises:
        UnsupportedError: It is no dict.
        ConfigError: A key is missing or unknown, a value impossible.
    """
    if not isinstance(params, Mapping):
        raise UnsupportedError(f"expected a dict from export_import_parameters; received {type(params).__name__}")
    for key in params:
        if key not in _KEYS:
            raise ConfigError(f"expected keys among {list(_KEYS)}; received {key!r}.{suggest(str(key), _KEYS)}")
    if "global_scale" not in params:
        raise ConfigError("expected the key 'global_scale'; received parameters without it")
    changes = {
        name: params[name]
        for name in ("quantization_type", "quantization_mode", "num_bits", "symmetric")
        if params.get(name) is not None
    }
    config = state.config.replace(**changes)
    if not config.quantization_type.integer:
        return config, None, {}
    for name, code in (("qmin", config.grid.qmin), ("qmax", config.grid.qmax)):
        if params.get(name, code) != code:
            raise ConfigError(f"expected {name}={code} for {config.quantization_type.name}; received {params[name]!r}")
    last: dict[str | None, QParams] = {None: _overall(params, config)}
    layers = params.get("layers", {})
    if not isinstance(layers, Mapping):
        raise ConfigError(f"expected layers to map names to parameters; received {type(layers).__name__}")
    if len(layers) > MAX_LAYERS:
        raise ConfigError(f"expected at most {MAX_LAYERS} layers; received {len(layers)}")
    with_layers = State.of(config)
    for name, own in layers.items():
        if not isinstance(name, str):
            raise ConfigError(f"expected layers by their names; received {reprlib.repr(name)}")
        last[name] = _layer(name, own, with_layers.config_of(name))
    calibrated = params.get("is_calibrated", True)
    if not isinstance(calibrated, bool):
        raise ConfigError(f"expected is_calibrated to be true or false; received {calibrated!r}")
    axis = _axis(last[None])
    if axis is not None and not config.per_channel:
        config = config.replace(per_channel=True)
    ends = _ends(params, last[None])
    fixed = Fixed.loaded(last[None], axis, config, ends) if calibrated else None
    return config, fixed, last


def _ends(params: Mapping[str, Any], overall: QParams) -> tuple[np.ndarray, np.ndarray] | None:
    """The calibrated range, for as many channels as there are scales; None if it isn't there."""
    values = [params.get(name) for name in ("calibrated_min", "calibrated_max")]
    if values == [None, None]:
        return None
    for name, value in zip(("calibrated_min", "calibrated_max"), values, strict=True):
        count = len(value) if isinstance(value, list) else None
        if count != (None if _axis(overall) is None else overall.scale.size):
            raise ConfigError(
                f"expected {name} for each of {overall.scale.size} scales; received {reprlib.repr(value)}"
            )
        _check_numbers(name, value, _SINGLE)
    lo, hi = (np.asarray(value, np.float64) for value in values)
    if np.any(lo > hi):
        raise ConfigError("expected calibrated_min <= calibrated_max; received a range whose ends are exchanged")
    return lo, hi


def _overall(params: Mapping[str, Any], config: QuantizationConfig) -> QParams:
    overall = _one(params["global_scale"], params.get("global_zero_point", 0), None, config)
    scales, zeros = params.get("per_channel_scales") or {}, params.get("per_channel_zero_points") or {}
    axis = params.get("channel_dim")
    if not scales and not zeros:
        if axis is not None:
            raise ConfigError(f"expected per_channel_scales beside channel_dim={axis!r}; received none")
        return overall
    scales = _listed("per_channel_scales", scales)
    zeros = _listed("per_channel_zero_points", zeros) if zeros else [0] * len(scales)
    if len(scales) != len(zeros):
        raise ConfigError(f"expected as many zero points as scales; received {len(zeros)} and {len(scales)}")
    return _one(scales, zeros, 0 if axis is None else axis, config)


def _layer(name: str, own: Any, config: QuantizationConfig) -> QParams:
    if not isinstance(own, Mapping) or "scale" not in own:
        raise ConfigError(f"expected parameters of layer {name!r} with a 'scale'; received {reprlib.repr(own)}")
    try:
        return _one(own["scale"], own.get("zero_point", 0), own.get("channel_dim"), config)
    except QiError as error:
        raise ConfigError(f"layer {name!r}: {error}") from error


def _listed(name: str, values: Any) -> list[Any]:
    """{0: a, 1: b} or {"0": a, "1": b} or [a, b] as [a, b]."""
    if not isinstance(values, list | tuple | Mapping):
        raise ConfigError(f"expected {name} to map indices to numbers; received {type(values).__name__}")
    if len(values) > _MAX_CHANNELS:
        raise ConfigError(f"expected at most {_MAX_CHANNELS} {name}; received {len(values)}")
    if not isinstance(values, Mapping):
        return list(values)
    by_index = {str(index): value for index, value in values.items()}
    try:
        return [by_index[str(i)] for i in range(len(values))]
    except KeyError as error:
        some = reprlib.repr(list(values))
        raise ConfigError(f"expected {name} for the indices 0 to {len(values) - 1}; received {some}") from error


def _one(scale: Any, zero_point: Any, axis: Any, config: QuantizationConfig) -> QParams:
    """Checked parameters; of channels as a vector."""
    _check_numbers("scale", scale)
    _check_numbers("zero_point", zero_point)
    if axis is None:
        if isinstance(scale, list) or isinstance(zero_point, list):
            raise ConfigError("expected channel_dim beside several scales; received None")
        return QParams(np.asarray(scale), np.asarray(zero_point), config.grid)
    if isinstance(axis, bool) or not isinstance(axis, int) or not -64 <= axis < 64:
        raise ConfigError(f"expected channel_dim to be an integer; received channel_dim={reprlib.repr(axis)}")
    if not isinstance(scale, list):
        raise ConfigError(f"expected a list of scales beside channel_dim={axis}; received {scale!r}")
    return QParams(np.asarray(scale), np.asarray(zero_point), config.grid, PerChannel(axis))


def _check_numbers(name: str, value: Any, greatest: float = _GREATEST) -> None:
    """Raises ConfigError unless it is a finite number, or a list of such."""
    for number in value if isinstance(value, list) else [value]:
        real = isinstance(number, int | float | np.integer | np.floating) and not isinstance(number, bool)
        if not real or not abs(number) <= greatest:
            raise ConfigError(f"expected {name} to be a finite number; received {reprlib.repr(number)}")


def _axis(params: QParams) -> int | None:
    return params.granularity.axis if isinstance(params.granularity, PerChannel) else None


def _plain(params: QParams) -> bool:
    """Whether scales are one, or one a channel: what this format can say."""
    return isinstance(params.granularity, PerTensor | PerChannel)


def _channels(params: QParams | None) -> dict[str, Any]:
    granularity: Granularity = PerTensor() if params is None else params.granularity
    if params is None or not params.scale.size:
        return {"scale": 1.0, "zero_point": 0.0, "channel_dim": None}
    if isinstance(granularity, PerChannel):
        scales, zeros = params.scale.ravel().tolist(), params.zero_point.ravel().astype(float).tolist()
        return {"scale": scales, "zero_point": zeros, "channel_dim": granularity.axis}
    return {"scale": float(params.scale.flat[0]), "zero_point": float(params.zero_point.flat[0]), "channel_dim": None}
