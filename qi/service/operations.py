"""What each endpoint does, on numpy arrays: nothing here knows of HTTP, and nothing waits for the store.

Parameters travel with results. For clients that don't send them back, `qi.service.latest` keeps those of the latest array.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qi.core import PerChannel, PerTensor, QParams, QTensor
from qi.engine import QuantizationConfig, Quantizer
from qi.engine.inputs import codes_of
from qi.engine.ranges import covered, params_of
from qi.engine.state import fitted
from qi.errors import InputError, NotCalibratedError
from qi.service import latest
from qi.service.formats import Limits
from qi.service.imports import check_kinds, check_parameters
from qi.service.instances import Change, Instance
from qi.service.latest import Kept, Recalled

__all__ = [
    "OPERATIONS",
    "Result",
    "calibrated",
    "calibrating",
    "channels_of",
    "check_array",
    "compute_params",
    "configuring",
    "dequantize",
    "layer_params",
    "loading",
    "quantize",
    "quantize_dequantize",
    "reads_latest",
    "stats",
]

_BLOCK = 1 << 16
_WHOLE = (np.int8, np.uint8, np.int16, np.int32, np.int64)

_STATISTICS = (
    "clipped_values",
    "total_values",
    "quantize_calls",
    "dequantize_calls",
    "cache_hits",
    "cache_misses",
    "last_scale",
    "last_zero_point",
    "processing_time_ms",
)


@dataclass(frozen=True, eq=False)
class Result:
    """An array, and what is told about it.

    Attributes:
        array: The result, in the shape of the input.
        meta: Plain values for JSON: `original_shape`, and of codes `quantization_type`, `scale`, `zero_point`, `channel_dim`,
            `num_bits`, `dtype` and `params_rev`; scale and zero point are lists where channels differ, and None where numbers
            are no codes.
        kept: Parameters to keep as the latest, if there are any.
    """

    array: np.ndarray
    meta: dict[str, Any]
    kept: Kept | None = None


def check_array(array: np.ndarray, limits: Limits, channels: int = 1) -> np.ndarray:
    """The array, if it isn't too large.

    Args:
        array: Any.
        limits: What it may have.
        channels: How many of it have parameters of their own; see `channels_of`.

    Raises:
        InputError: It has too many numbers, dimensions or channels.
    """
    if array.ndim > limits.max_ndim:
        raise InputError(f"expected at most {limits.max_ndim} dimensions; received {array.ndim}")
    if array.size > limits.max_elements:
        raise InputError(f"expected at most {limits.max_elements} numbers; received {array.size}")
    if channels > limits.max_channels:
        raise InputError(
            f"expected at most {limits.max_channels} channels; received {channels}; do: choose another channel_dim"
        )
    return array


def channels_of(
    instance: Instance,
    array: np.ndarray,
    *,
    channel_dim: int | None = None,
    layer_name: str | None = None,
    scale: Any = None,
    **others: Any,
) -> int:
    """How many channels of an array have parameters of their own; 1 where all share them.

    Args:
        instance: What works on it.
        array: Any.
        channel_dim: The channel dimension; 0 if None.
        layer_name: The layer it belongs to.
        scale: A list where channels of codes differ.
        others: Other options of the operation.

    Raises:
        InputError: It has no such dimension.
    """
    config = _config_of(instance, layer_name)
    axis = _channel_dim(config, array, channel_dim, listed=not _scalar(scale))
    if axis is None and (config.per_channel or not _scalar(scale)) and array.ndim:
        axis = 0
    return 1 if axis is None else array.shape[axis]


def quantize(
    instance: Instance,
    array: np.ndarray,
    *,
    validate: bool = True,
    channel_dim: int | None = None,
    layer_name: str | None = None,
    remember: bool | None = None,
) -> Result:
    """Real numbers to codes.

    Args:
        instance: What quantizes.
        array: Real numbers of any shape.
        validate: Whether NaN and infinities are errors where the configuration says so.
        channel_dim: The channel dimension, where the configuration is per channel.
        layer_name: The layer it belongs to.
        remember: Whether `dequantize` uses these parameters by default from now on; None: as the store does. An array
            without numbers has none that are worth it.

    Raises:
        ValueError: The array can't be quantized.
        TypeError: It holds no real numbers.
        NotCalibratedError: Fixed parameters are wanted and there are none.
    """
    remember = bool(array.size) and (instance.store.remembers if remember is None else remember)
    quantizer = _quantizer(instance, validate, remember)
    codes, params, config = _quantized(instance, quantizer, array, channel_dim, layer_name or None)
    kept = None
    if params is not None and remember and not _is_fixed(instance, config):
        kept = latest.kept(instance, params, layer_name or None, local=quantizer is instance.quantizer)
    kind = "NONE" if params is None and not _halves(instance, config, layer_name) else config.quantization_type.name
    meta = {
        "quantization_type": kind,
        "original_shape": list(array.shape),
        **latest.told(params),
        "num_bits": config.bits if kind != "NONE" else None,
        "dtype": codes.dtype.name,
        "params_rev": instance.revision,
    }
    return Result(codes, meta, kept)


def reads_latest(
    instance: Instance, *, scale: Any = None, zero_point: Any = None, layer_name: str | None = None, **others: Any
) -> bool:
    """Whether `dequantize` with these options wants what `qi.service.latest.recall` finds."""
    config = _config_of(instance, layer_name)
    given = scale is not None or zero_point is not None
    return not (given or _plain(instance, config, layer_name or None) or _is_fixed(instance, config))


def dequantize(
    instance: Instance,
    array: np.ndarray,
    *,
    channel_dim: int | None = None,
    layer_name: str | None = None,
    scale: float | Sequence[float] | None = None,
    zero_point: float | Sequence[float] | None = None,
    recalled: Recalled | None = None,
) -> Result:
    """Codes to real numbers.

    Args:
        instance: What quantized.
        array: Codes: whole numbers of any dtype; any numbers where the type is FLOAT16 or NONE.
        channel_dim: The channel dimension, where channels differ.
        layer_name: The layer it belongs to.
        scale: The codes' parameters, with `zero_point`; None: fixed ones, or those of the latest array.
        zero_point: See `scale`.
        recalled: Those of the latest array, where `reads_latest`.

    Raises:
        ValueError: Something is no code, or parameters don't fit.
        NotCalibratedError: There are no parameters.
    """
    layer, config = layer_name or None, _config_of(instance, layer_name)
    channel_dim = _channel_dim(config, array, channel_dim, listed=not _scalar(scale))
    quantizer = instance.quantizer
    if _plain(instance, config, layer):
        numbers = quantizer.dequantize(array, layer_name=layer)
        return Result(numbers, {"original_shape": list(array.shape)})
    codes = _whole(array)
    params = _given(config, codes.ndim, channel_dim, scale, zero_point)
    if not codes.size:  # there is nothing to read
        params = QParams(np.ones(()), np.zeros(()), config.grid)
    if params is None and recalled is not None:
        params = latest.params_of(recalled, instance, config, codes.ndim, channel_dim)
    if params is None:
        fixed = config.quantization_mode.value in ("static", "calibrated")
        with _advising("send scale and zero_point, calibrate the instance, or " + (_LOAD if fixed else _REMEMBER)):
            numbers = quantizer.dequantize(codes, channel_dim, layer)
    else:
        params.check_shape(codes.shape)
        numbers = quantizer.dequantize(QTensor.of(codes_of(codes, config), params))
    return Result(numbers, {"original_shape": list(array.shape)})


def quantize_dequantize(
    instance: Instance,
    array: np.ndarray,
    *,
    validate: bool = True,
    channel_dim: int | None = None,
    layer_name: str | None = None,
) -> Result:
    """What quantization makes of real numbers; the latest parameters stay as they are.

    Args, Raises: as `quantize`.
    """
    quantizer = _quantizer(instance, validate, remember=False)
    codes, params, _ = _quantized(instance, quantizer, array, channel_dim, layer_name or None)
    if params is None:
        numbers = quantizer.dequantize(codes, layer_name=layer_name or None)
    else:
        numbers = quantizer.dequantize(QTensor.of(codes, params))
    return Result(numbers, {"original_shape": list(array.shape)})


OPERATIONS: dict[str, Callable[..., Result]] = {
    "quantize": quantize,
    "dequantize": dequantize,
    "quantize_dequantize": quantize_dequantize,
}
"""The operations on one array, by the names that clients use."""


def configuring(config: QuantizationConfig | Callable[[QuantizationConfig], QuantizationConfig]) -> Change:
    """Another configuration, or a function to it from the present one; a calibrated range stays where it can."""

    def change(quantizer: Quantizer) -> bool:
        quantizer.update_config(config(quantizer.config) if callable(config) else config)
        return False

    return change


def calibrating(arrays: Sequence[np.ndarray], channel_dim: int | None = None) -> Change:
    """Parameters fixed by representative data; see `Quantizer.calibrate`."""

    def change(quantizer: Quantizer) -> bool:
        quantizer.calibrate(arrays, channel_dim if quantizer.config.per_channel else None)
        return True

    return change


def loading(parameters: Mapping[str, Any], limits: Limits) -> Change:
    """Exported parameters taken over; see `Quantizer.load_parameters`."""

    def change(quantizer: Quantizer) -> bool:
        check_parameters(parameters, limits)
        quantizer.load_parameters(parameters)
        check_kinds(parameters)
        return True

    return change


def calibrated(instance: Instance) -> dict[str, Any]:
    """What calibration fixed.

    Returns:
        `scale`, `zero_point` of the whole range, `scales`, `zero_points` of channels (or None), `channel_dim`, `params_rev`.
    """
    quantizer = instance.quantizer
    exported = quantizer.export_parameters()
    axis = exported["channel_dim"]
    return {
        "scale": quantizer.scale,
        "zero_point": quantizer.zero_point,
        "scales": None if axis is None else list(exported["per_channel_scales"].values()),
        "zero_points": None if axis is None else list(exported["per_channel_zero_points"].values()),
        "channel_dim": axis,
        "params_rev": instance.revision,
    }


def compute_params(
    instance: Instance, array: np.ndarray, *, channel_idx: int | None = None, layer_name: str | None = None
) -> dict[str, float]:
    """The scale and zero point that an array asks for, in every mode; changes nothing.

    Raises:
        ValueError: The array can't be quantized, or has no such channel.
    """
    scale, zero_point = instance.quantizer.compute_scale_and_zero_point(array, channel_idx, layer_name or None)
    return {"scale": scale, "zero_point": zero_point}


def stats(instance: Instance) -> dict[str, Any]:
    """Counters of this process since the last reset."""
    found = instance.quantizer.get_stats()
    if instance.statistics.pair is not None and not _is_fixed(instance, instance.config):
        found["last_scale"], found["last_zero_point"] = instance.statistics.pair
    return {name: found[name] for name in _STATISTICS}


def layer_params(instance: Instance, layer_name: str) -> dict[str, Any]:
    """What a layer gets: `bits`, `type` (upper case) and `skip`."""
    found = instance.quantizer.get_layer_quantization_params(layer_name)
    return found | {"type": found["type"].upper()}


# How it is done.


_LOAD, _REMEMBER = "import parameters", "quantize with remember=true"


@contextlib.contextmanager
def _advising(advice: str) -> Iterator[None]:
    """A block in which missing parameters are an error that says what clients can do, who have no methods to call."""
    try:
        yield
    except NotCalibratedError as error:
        raise NotCalibratedError(f"{str(error).partition('; do: ')[0]}; do: {advice}") from error


def _quantizer(instance: Instance, validate: bool, remember: bool) -> Quantizer:
    if not validate:
        return instance.lenient
    return instance.quantizer if remember else instance.silent


def _quantized(
    instance: Instance, quantizer: Quantizer, array: np.ndarray, channel_dim: int | None, layer: str | None
) -> tuple[np.ndarray, QParams | None, QuantizationConfig]:
    """(codes, their parameters or None, the layer's configuration)."""
    config = _config_of(instance, layer)
    channel_dim = _channel_dim(config, array, channel_dim)
    if _plain(instance, config, layer):
        return quantizer.quantize(array, layer_name=layer), None, config
    with _advising(f"calibrate the instance, {_LOAD}, or choose a dynamic mode"):
        tensor = quantizer.quantize(array, channel_dim=channel_dim, layer_name=layer, return_tensor=True)
    instance.statistics.pair = _whole_pair(tensor.qparams, config)
    return tensor.codes, tensor.qparams, config


def _config_of(instance: Instance, layer: str | None) -> QuantizationConfig:
    return instance.config.for_layer(layer or None)


def _plain(instance: Instance, config: QuantizationConfig, layer: str | None) -> bool:
    """Whether numbers of this layer are no codes."""
    return not config.quantization_type.integer or not instance.config.should_quantize(layer or None)


def _halves(instance: Instance, config: QuantizationConfig, layer: str | None) -> bool:
    return config.quantization_type == "float16" and instance.config.should_quantize(layer or None)


def _is_fixed(instance: Instance, config: QuantizationConfig) -> bool:
    """Whether parameters don't come from the array."""
    return instance.fixed and not config.quantization_mode.dynamic


def _channel_dim(
    config: QuantizationConfig, array: np.ndarray, channel_dim: int | None, *, listed: bool = False
) -> int | None:
    """The channel dimension as the engine wants it: None where the configuration isn't per channel.

    Raises:
        InputError: The array has no such dimension.
    """
    if channel_dim is None:
        return None
    if not -array.ndim <= channel_dim < array.ndim:
        raise InputError(
            f"expected channel_dim from {-array.ndim} to {array.ndim - 1} for an array of {array.ndim} dimensions; "
            f"received channel_dim={channel_dim}"
        )
    return channel_dim if config.per_channel or listed else None


def _whole(array: np.ndarray) -> np.ndarray:
    """Codes as integers.

    Raises:
        InputError: Something is no whole number.
    """
    if array.dtype.kind in "iu":
        return array
    if array.size and array.dtype.kind != "f":
        raise InputError("expected codes, which are whole numbers; received others")
    numbers = array.reshape(-1)
    with np.errstate(invalid="ignore"):  # of NaN that signals
        lo, hi = float(numbers.min(initial=0)), float(numbers.max(initial=0))
    if not -(2**53) < lo <= hi < 2**53:
        raise InputError("expected codes, which are whole numbers; received others")
    codes = np.empty(array.size, next(kind for kind in _WHOLE if np.iinfo(kind).min <= lo and hi <= np.iinfo(kind).max))
    for start in range(0, array.size, _BLOCK):  # so that copies stay small
        block = numbers[start : start + _BLOCK].astype(np.float64)
        if not np.all(np.rint(block) == block):
            raise InputError("expected codes, which are whole numbers; received others")
        codes[start : start + _BLOCK] = block
    return codes.reshape(array.shape)


def _scalar(value: Any) -> bool:
    return value is None or np.ndim(value) == 0


def _given(
    config: QuantizationConfig, rank: int, channel_dim: int | None, scale: Any, zero_point: Any
) -> QParams | None:
    """Parameters that a client sent; None if it didn't.

    Raises:
        InputError: One of them is missing.
    """
    if scale is None and zero_point is None:
        return None
    if scale is None or zero_point is None or _scalar(scale) != _scalar(zero_point):
        raise InputError("expected scale and zero_point together, both numbers or both lists; received others")
    if _scalar(scale):
        return QParams(np.asarray(scale), np.asarray(zero_point), config.grid)
    granularity = PerChannel(0 if channel_dim is None else channel_dim)
    scales, zeros = np.asarray(scale, np.float64), np.asarray(zero_point, np.float64)
    if not scales.size or scales.shape != zeros.shape:
        raise InputError(f"expected as many zero points as scales; received {zeros.size} and {scales.size}")
    return fitted(QParams(scales, zeros, config.grid, granularity), rank, channel_dim)


def _whole_pair(params: QParams, config: QuantizationConfig) -> tuple[float, float]:
    """The scale and zero point that the whole range of all channels would have."""
    if params.scale.size == 1:
        return float(params.scale.flat[0]), float(params.zero_point.flat[0])
    lo, hi = covered(params, config)
    whole = params_of(lo.min(initial=0.0), hi.max(initial=0.0), PerTensor(), config)
    return float(whole.scale.flat[0]), float(whole.zero_point.flat[0])
