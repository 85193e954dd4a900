"""Parameters of a `Quantizer` as plain values, and back.

========================= ===============================================================================
key                       value
========================= ===============================================================================
global_scale              float: scale of the tensor, or of the whole range where channels differ
global_zero_point         float: its integer code of 0
per_channel_scales        {index: float}: scales of the channels; {} without channels
per_channel_zero_points   {index: float}: their codes of 0
channel_dim               dimension of the channels, or null
has_parameters            whether all these are of anything: false before the first array
quantization_type         lower-case name
quantization_mode         lower-case name
num_bits, symmetric       as in the configuration
is_calibrated             whether calibration or loading fixed parameters, for the tensor or for layers of other modes
calibration               what was fixed, or null: {"min", "max", "channel_dim"}, floats or, of channels, [float]; beside
                          them, where parameters were loaded, {"scale", "zero_point", "num_bits", "signed", "symmetric"}
qmin, qmax                lowest and highest code
layers                    {name: {"scale", "zero_point", "channel_dim"}}: of the latest call of each layer, 4,096 at most
========================= ===============================================================================

JSON turns the indices of channels into strings; both are read. Keys that another exporter left out have the defaults of
the quantizer that reads them; ``global_scale`` is required, and fixed where ``is_calibrated`` isn't false. The settings of
layers are no parameters: both quantizers need the same.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qi.core import IntGrid, PerChannel, PerTensor, QParams
from qi.engine.config import QuantizationConfig
from qi.engine.state import Fixed, State
from qi.errors import ConfigError, QiError, UnsupportedError
from qi.registry import suggest

__all__ = ["MAX_LAYERS", "exported", "imported"]

MAX_LAYERS = 4096
"""Layers whose latest parameters are kept."""

_MAX_CHANNELS = 1 << 20
_GREATEST = float(np.finfo(np.float64).max)
_KEYS = (
    "global_scale",
    "global_zero_point",
    "per_channel_scales",
    "per_channel_zero_points",
    "channel_dim",
    "has_parameters",
    "quantization_type",
    "quantization_mode",
    "num_bits",
    "symmetric",
    "is_calibrated",
    "calibration",
    "qmin",
    "qmax",
    "layers",
)

_RANGE = ("min", "max", "channel_dim")
_LOADED = ("scale", "zero_point", "num_bits", "signed", "symmetric")

Last = Mapping[str | None, QParams]
"""Parameters of the latest call of each layer; None: of the latest call."""


def exported(state: State, last: Last, pair: tuple[float, float]) -> dict[str, Any]:
    """All parameters of a quantizer, independent of it.

    Raises:
        ConfigError: The latest array had groups, whose scales belong to its shape.
    """
    config, top = state.config, state.current(last)
    if not all(_plain(params) for params in last.values()):
        raise ConfigError(
            "expected one scale per tensor or per channel to export; received groups; do: keep the QuantizedTensor"
        )
    plain: dict[str, Any] = {"global_scale": pair[0], "global_zero_point": pair[1]}
    channels = _channels(top)
    for key, name in (("scale", "per_channel_scales"), ("zero_point", "per_channel_zero_points")):
        plain[name] = dict(enumerate(channels[key])) if channels["channel_dim"] is not None else {}
    integer = config.quantization_type.integer
    return plain | {
        "channel_dim": channels["channel_dim"],
        "has_parameters": top is not None,
        "quantization_type": config.quantization_type.value,
        "quantization_mode": config.quantization_mode.value,
        "num_bits": config.num_bits,
        "symmetric": config.symmetric,
        "is_calibrated": state.fixed is not None,
        "calibration": None if state.fixed is None else _fixed(state.fixed),
        "qmin": config.grid.qmin if integer else None,
        "qmax": config.grid.qmax if integer else None,
        "layers": {name: _channels(own) for name, own in last.items() if name is not None},
    }


def _fixed(fixed: Fixed) -> dict[str, Any]:
    plain = {"min": fixed.lo.tolist(), "max": fixed.hi.tolist(), "channel_dim": fixed.axis}
    if fixed.params is None:
        return plain
    grid, symmetric = fixed.form
    form = {"num_bits": grid.bits, "signed": grid.signed, "symmetric": symmetric}
    return plain | {key: _channels(fixed.params)[key] for key in ("scale", "zero_point")} | form


def imported(params: Any, state: State) -> tuple[QuantizationConfig, Fixed | None, dict[str | None, QParams]]:
    """What `exported` gave, checked as a whole: (configuration, fixed parameters, parameters of the latest calls).

    Raises:
        UnsupportedError: It is no dict.
        ConfigError: A key is missing or unknown, a value impossible, or two contradict each other.
    """
    if not isinstance(params, Mapping):
        raise UnsupportedError(f"expected a dict from export_import_parameters; received {type(params).__name__}")
    _check_keys(params, _KEYS, ("global_scale",))
    config = _configured(params, state.config)
    last: dict[str | None, QParams] = {}
    if config.quantization_type.integer:
        top = _overall(params, config.grid)
        if _flag(params, "has_parameters"):
            last[None] = top
        if params.get("symmetric") is True and config.grid.signed and np.any(top.zero_point):
            raise ConfigError(
                f"expected zero points of 0 with symmetric=true; received {reprlib.repr(top.zero_point.ravel().tolist())}"
            )
    fixed = _imported_fixed(params, last.get(None), config)
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
    channels = [fixed.axis if fixed is not None else None, _axis(last[None]) if None in last else None]
    if channels != [None, None] and not config.per_channel:
        config = config.replace(per_channel=True)
    return config, fixed, last


def _configured(params: Mapping[str, Any], config: QuantizationConfig) -> QuantizationConfig:
    """The configuration with what the parameters say of it."""
    changes = {
        name: params[name]
        for name in ("quantization_type", "quantization_mode", "num_bits", "symmetric")
        if params.get(name) is not None
    }
    config = config.replace(**changes)
    if config.quantization_type.integer:
        for name, code in (("qmin", config.grid.qmin), ("qmax", config.grid.qmax)):
            if params.get(name, code) != code:
                raise ConfigError(
                    f"expected {name}={code} for {config.quantization_type.name}; received {reprlib.repr(params[name])}"
                )
    return config


def _imported_fixed(params: Mapping[str, Any], top: QParams | None, config: QuantizationConfig) -> Fixed | None:
    """What calibration or loading fixed; `top` itself where nothing else is said."""
    own, integer = params.get("calibration"), config.quantization_type.integer
    if not _flag(params, "is_calibrated") or not integer:
        if own is not None:
            raise ConfigError(
                "expected calibration=null for a type without codes, or without is_calibrated; received one"
            )
        return None
    if own is None:
        if top is None:
            raise ConfigError("expected parameters or a calibration where is_calibrated is true; received neither")
        return Fixed.loaded(top, _axis(top), config)
    fixed = _calibration(own)
    read_by = fixed.params_of_channels(config) if not config.quantization_mode.dynamic else top
    if top is not read_by and _channels(top) != _channels(read_by):
        raise ConfigError(
            "expected the scales and zero points that the calibration gives; received others; "
            "do: leave out 'calibration' to fix these"
        )
    return fixed


def _calibration(own: Any) -> Fixed:
    if not isinstance(own, Mapping):
        raise ConfigError(f"expected calibration to be a dict or null; received {reprlib.repr(own)}")
    loaded = any(key in own for key in _LOADED)
    _check_keys(own, _RANGE + _LOADED, _RANGE + _LOADED if loaded else _RANGE)
    axis, ends = own["channel_dim"], [own["min"], own["max"]]
    _check_axis(axis)
    for name, value in zip(_RANGE, ends, strict=False):
        _check_numbers(name, value)
        if isinstance(value, list) != (axis is not None):
            raise ConfigError(
                f"expected {name} as a list with channel_dim, a number without; received {reprlib.repr(own)}"
            )
    lo, hi = (np.asarray(value, np.float64) for value in ends)
    if lo.shape != hi.shape or np.any(lo > hi):
        raise ConfigError(
            "expected min <= max of each channel; received ends that are exchanged, or of different channels"
        )
    if not loaded:
        return Fixed(lo, hi, axis)
    signed, symmetric = (_flag(own, name) for name in ("signed", "symmetric"))
    params = _one(own["scale"], own["zero_point"], axis, IntGrid(own["num_bits"], signed=signed))
    if params.scale.size != lo.size:
        raise ConfigError(f"expected a scale for each of {lo.size} channels; received {params.scale.size}")
    return Fixed(lo, hi, axis, params, (params.grid, symmetric))


def _check_keys(params: Mapping[str, Any], known: Sequence[str], needed: Sequence[str]) -> None:
    for key in params:
        if key not in known:
            raise ConfigError(f"expected keys among {list(known)}; received {key!r}.{suggest(str(key), known)}")
    for key in needed:
        if key not in params:
            raise ConfigError(f"expected the key {key!r}; received parameters without it")


def _flag(params: Mapping[str, Any], name: str) -> bool:
    value = params.get(name, True)
    if not isinstance(value, bool):
        raise ConfigError(f"expected {name} to be true or false; received {reprlib.repr(value)}")
    return value


def _overall(params: Mapping[str, Any], grid: IntGrid) -> QParams:
    overall = _one(params["global_scale"], params.get("global_zero_point", 0), None, grid)
    scales, zeros = (
        [] if params.get(name) is None else _listed(name, params[name])
        for name in ("per_channel_scales", "per_channel_zero_points")
    )
    axis = params.get("channel_dim")
    if not scales and not zeros and axis is None:
        return overall
    zeros = zeros or [0] * len(scales)
    if len(scales) != len(zeros):
        raise ConfigError(f"expected as many zero points as scales; received {len(zeros)} and {len(scales)}")
    return _one(scales, zeros, 0 if axis is None else axis, grid)


def _layer(name: str, own: Any, config: QuantizationConfig) -> QParams:
    if not isinstance(own, Mapping) or "scale" not in own:
        raise ConfigError(f"expected parameters of layer {name!r} with a 'scale'; received {reprlib.repr(own)}")
    try:
        return _one(own["scale"], own.get("zero_point", 0), own.get("channel_dim"), config.grid)
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


def _one(scale: Any, zero_point: Any, axis: Any, grid: IntGrid) -> QParams:
    """Checked parameters; of channels as a vector."""
    _check_numbers("scale", scale)
    _check_numbers("zero_point", zero_point)
    _check_axis(axis)
    if axis is None:
        if isinstance(scale, list) or isinstance(zero_point, list):
            raise ConfigError("expected channel_dim beside several scales; received None")
        return QParams(np.asarray(scale), np.asarray(zero_point), grid)
    if not isinstance(scale, list):
        raise ConfigError(f"expected a list of scales beside channel_dim={axis}; received {scale!r}")
    return QParams(np.asarray(scale), np.asarray(zero_point), grid, PerChannel(axis))


def _check_axis(axis: Any) -> None:
    whole = isinstance(axis, int) and not isinstance(axis, bool) and -64 <= axis < 64
    if axis is not None and not whole:
        raise ConfigError(f"expected channel_dim to be an integer; received channel_dim={reprlib.repr(axis)}")


def _check_numbers(name: str, value: Any) -> None:
    """Raises ConfigError unless it is a finite number, or a list of such."""
    for number in value if isinstance(value, list) else [value]:
        real = isinstance(number, int | float | np.integer | np.floating) and not isinstance(number, bool)
        if not real or not abs(number) <= _GREATEST:
            raise ConfigError(f"expected {name} to be a finite number; received {reprlib.repr(number)}")


def _axis(params: QParams) -> int | None:
    return params.granularity.axis if isinstance(params.granularity, PerChannel) else None


def _plain(params: QParams) -> bool:
    """Whether scales are one, or one a channel: what this format can say."""
    return isinstance(params.granularity, PerTensor | PerChannel)


def _channels(params: QParams | None) -> dict[str, Any]:
    if params is None:
        return {"scale": 1.0, "zero_point": 0.0, "channel_dim": None}
    if isinstance(granularity := params.granularity, PerChannel):
        scales, zeros = params.scale.ravel().tolist(), params.zero_point.ravel().astype(float).tolist()
        return {"scale": scales, "zero_point": zeros, "channel_dim": granularity.axis}
    return {"scale": float(params.scale.flat[0]), "zero_point": float(params.zero_point.flat[0]), "channel_dim": None}
