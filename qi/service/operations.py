"""What each endpoint does, on numpy arrays: nothing here knows of HTTP.

Parameters travel with results. For clients that don't send them back, those of the latest array are kept in the store, so
that every process reads codes as the one that made them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qi.core import PerChannel, PerTensor, QParams, QTensor
from qi.engine import QuantizationConfig, Quantizer
from qi.engine.inputs import codes_of
from qi.engine.ranges import covered, params_of
from qi.engine.state import fitted
from qi.errors import InputError, NotCalibratedError
from qi.service.instances import Instance, Instances

__all__ = [
    "OPERATIONS",
    "Result",
    "calibrate",
    "check_array",
    "compute_params",
    "dequantize",
    "export_parameters",
    "layer_params",
    "quantize",
    "quantize_dequantize",
    "stats",
]

_MAX_REMEMBERED = 1 << 16  # scales of one array
_MAX_SEQUENCES = 1 << 12  # layers

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
    """

    array: np.ndarray
    meta: dict[str, Any]


def check_array(array: np.ndarray, *, max_elements: int, max_ndim: int) -> np.ndarray:
    """The array, if it isn't too large.

    Raises:
        InputError: It has too many numbers or dimensions.
    """
    if array.ndim > max_ndim:
        raise InputError(f"expected at most {max_ndim} dimensions; received {array.ndim}")
    if array.size > max_elements:
        raise InputError(f"expected at most {max_elements} numbers; received {array.size}")
    return array


def quantize(
    instance: Instance,
    array: np.ndarray,
    *,
    validate: bool = True,
    channel_dim: int | None = None,
    layer_name: str | None = None,
    remember: bool = True,
) -> Result:
    """Real numbers to codes.

    Args:
        instance: What quantizes.
        array: Real numbers of any shape.
        validate: Whether NaN and infinities are errors where the configuration says so.
        channel_dim: The channel dimension, where the configuration is per channel.
        layer_name: The layer it belongs to.
        remember: Whether `dequantize` uses these parameters by default from now on.

    Raises:
        ValueError: The array can't be quantized.
        TypeError: It holds no real numbers.
        NotCalibratedError: Fixed parameters are wanted and there are none.
    """
    quantizer = _quantizer(instance, validate, remember)
    codes, params, config = _quantized(instance, quantizer, array, channel_dim, layer_name or None)
    if params is not None and remember and not _is_fixed(instance, config):
        _remember(instance, params, layer_name or None, local=quantizer is instance.quantizer)
    kind = "NONE" if params is None and not _halves(instance, config, layer_name) else config.quantization_type.name
    meta = {
        "quantization_type": kind,
        "original_shape": list(array.shape),
        **_told(params),
        "num_bits": config.bits if kind != "NONE" else None,
        "dtype": codes.dtype.name,
        "params_rev": instance.revision,
    }
    return Result(codes, meta)


def dequantize(
    instance: Instance,
    array: np.ndarray,
    *,
    channel_dim: int | None = None,
    layer_name: str | None = None,
    scale: float | Sequence[float] | None = None,
    zero_point: float | Sequence[float] | None = None,
) -> Result:
    """Codes to real numbers.

    Args:
        instance: What quantized.
        array: Codes: whole numbers of any dtype; any numbers where the type is FLOAT16 or NONE.
        channel_dim: The channel dimension, where channels differ.
        layer_name: The layer it belongs to.
        scale: The codes' parameters, with `zero_point`; None: fixed ones, or those of the latest array.
        zero_point: See `scale`.

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
    if params is None and not _is_fixed(instance, config):
        params = _recalled(instance, config, codes.ndim, channel_dim, layer)
    if params is None:
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


def calibrate(
    instances: Instances,
    id: str,
    arrays: Sequence[np.ndarray],
    *,
    channel_dim: int | None = None,
    revision: int | None = None,
) -> dict[str, Any]:
    """Fixes an instance's parameters by representative data.

    Returns:
        `scale`, `zero_point` of the whole range, `scales`, `zero_points` of channels (or None), `channel_dim`, `params_rev`.

    Raises:
        ValueError: The data can't be used. The instance is as it was.
    """
    if not instances.get(id).config.per_channel:
        channel_dim = None
    instance = instances.calibrate(id, arrays, channel_dim, revision)
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


def export_parameters(instance: Instance) -> dict[str, Any]:
    """The parameters as plain values, those of the latest arrays of all processes included."""
    exported = instance.quantizer.export_parameters()
    latest = {
        layer: json.loads(found.parameters) for layer, found in instance.store.recall_all(instance.record).items()
    }
    latest = {layer: params for layer, params in latest.items() if params is not None}
    if latest:
        exported["layers"] |= {layer: params for layer, params in latest.items() if layer}
        if "" in latest:
            exported |= _as_exported(latest[""])
        copy = Quantizer(instance.config)
        copy.load_parameters(exported)
        exported = copy.export_parameters()
    for name in ("per_channel_scales", "per_channel_zero_points"):
        exported[name] = {str(index): value for index, value in exported[name].items()}
    return exported


# How it is done.


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
    if not array.size:
        return array.astype(np.int64)
    if array.dtype.kind != "f" or not np.all((np.abs(array) < 2**53) & (np.rint(array) == array)):
        raise InputError("expected codes, which are whole numbers; received others")
    return array.astype(np.int64)


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


def _told(params: QParams | None) -> dict[str, Any]:
    """Scale, zero point and channel dimension as plain values."""
    if params is None:
        return {"scale": None, "zero_point": None, "channel_dim": None}
    if isinstance(params.granularity, PerChannel):
        return {
            "scale": params.scale.ravel().tolist(),
            "zero_point": params.zero_point.ravel().astype(float).tolist(),
            "channel_dim": params.granularity.axis,
        }
    return {"scale": float(params.scale.flat[0]), "zero_point": float(params.zero_point.flat[0]), "channel_dim": None}


def _whole_pair(params: QParams, config: QuantizationConfig) -> tuple[float, float]:
    """The scale and zero point that the whole range of all channels would have."""
    if params.scale.size == 1:
        return float(params.scale.flat[0]), float(params.zero_point.flat[0])
    lo, hi = covered(params, config)
    whole = params_of(lo.min(initial=0.0), hi.max(initial=0.0), PerTensor(), config)
    return float(whole.scale.flat[0]), float(whole.zero_point.flat[0])


def _remember(instance: Instance, params: QParams, layer: str | None, *, local: bool) -> None:
    """Keeps parameters in the store; those of too many channels as null, so that no others are taken for them."""
    text = json.dumps(_told(params) if params.scale.size <= _MAX_REMEMBERED else None)
    names: tuple[str, ...] = () if layer in _own_layers(instance.config) else ("",)
    names += () if layer is None else (layer,)
    sequence = instance.store.remember(instance.record, names, text)
    if len(instance.sequences) > _MAX_SEQUENCES:
        instance.sequences.clear()  # the store still knows
    for name in names:
        instance.sequences[name] = sequence if local else -1


def _recalled(
    instance: Instance, config: QuantizationConfig, rank: int, channel_dim: int | None, layer: str | None
) -> QParams | None:
    """The latest parameters of a layer, as far as the instance's quantizer doesn't have them itself.

    Raises:
        NotCalibratedError: There were too many to be kept.
    """
    name, recall = layer or "", instance.store.recall
    latest = recall(instance.record, name)
    if latest is None and layer not in _own_layers(instance.config):
        name = ""
        latest = recall(instance.record, name)
    if latest is None:
        return None
    plain = json.loads(latest.parameters)
    if plain is None:
        raise NotCalibratedError(
            f"expected at most {_MAX_REMEMBERED} channels to be remembered; received more; do send scale and zero_point"
        )
    if instance.sequences.get(name) == latest.sequence:
        return None  # so that results can be kept
    if plain["channel_dim"] is None:
        return QParams(np.asarray(plain["scale"]), np.asarray(plain["zero_point"]), config.grid)
    granularity = PerChannel(plain["channel_dim"])
    params = QParams(np.asarray(plain["scale"]), np.asarray(plain["zero_point"]), config.grid, granularity)
    return fitted(params, rank, channel_dim)


def _own_layers(config: QuantizationConfig) -> set[str | None]:
    """Layers that have a configuration of their own."""
    return {*config.custom_quantization_config, *config.mixed_precision_layers}


def _as_exported(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of one array by the keys of an export."""
    if params["channel_dim"] is None:
        own = {"global_scale": params["scale"], "global_zero_point": params["zero_point"]}
        return {**own, "per_channel_scales": {}, "per_channel_zero_points": {}, "channel_dim": None}
    return {
        "global_scale": params["scale"][0],
        "global_zero_point": params["zero_point"][0],
        "per_channel_scales": params["scale"],
        "per_channel_zero_points": params["zero_point"],
        "channel_dim": params["channel_dim"],
    }
