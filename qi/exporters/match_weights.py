"""Which weights of a file are which of a model: by what they hold, whatever the gain that each channel was folded with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qi.core import IntGrid, PerGroup
from qi.errors import ConfigError
from qi.exporters.vendor import Constant
from qi.quantizers import BaseInferableQuantizer, WeightsSymmetricInferableQuantizer, WeightsUniformInferableQuantizer

__all__ = ["common_bias", "gains", "least_likeness", "likeness", "weight_quantizer"]

_SLACK = ((8, 0.05), (4, 0.15), (0, 0.3))  # by the least bits, how much rounding may change a channel's gain
_FEW = 8  # products of so few weights tell little of a channel


def likeness(own: np.ndarray, given: np.ndarray, axes: Sequence[int]) -> float:
    """How alike two weights are, from 0 to 1: the mean correlation of their channels.

    Args:
        own: float weights.
        given: others of the same shape.
        axes: those of the channels. Where channels are short, the correlation of the whole counts.
    """
    a, b = (array.astype(np.float64) for array in (own, given))
    summed = tuple(i for i in range(a.ndim) if i not in {axis % a.ndim for axis in axes})
    if not summed or math.prod(a.shape[i] for i in summed) < _FEW:
        summed = tuple(range(a.ndim))
    lengths = np.sqrt((a * a).sum(axis=summed)) * np.sqrt((b * b).sum(axis=summed))
    known = lengths > 0
    if not known.any():
        return float(not a.any() and not b.any())
    found = (a * b).sum(axis=summed)[known] / lengths[known]
    return float(np.mean(np.clip(found, 0.0, 1.0)))


def gains(own: np.ndarray, given: np.ndarray, axes: Sequence[int], bits: int) -> np.ndarray | None:
    """By what a file's channels have to be multiplied to be the model's, where it folded something elsewhere; else None.

    Args:
        own: float weights.
        given: others of the same shape that are like them.
        axes: those of the channels.
        bits: of a code: rounding alone changes a channel's gain by so much.

    Returns:
        float64, 1 along all axes but those of the channels; one number where all channels have the same.
    """
    a, b = (array.astype(np.float64) for array in (own, given))
    summed = tuple(i for i in range(a.ndim) if i not in {axis % a.ndim for axis in axes})
    power = (b * b).sum(axis=summed, keepdims=True)
    found = np.divide((a * b).sum(axis=summed, keepdims=True), power, out=np.ones_like(power), where=power > 0)
    slack = next(share for least, share in _SLACK if bits >= least)
    if np.all(np.abs(found - 1) <= slack):
        return None
    whole = float((a * b).sum() / (b * b).sum())
    return np.full((1,) * a.ndim, whole) if np.all(np.abs(found / whole - 1) <= slack) else found


def least_likeness(size: int) -> float:
    """From which likeness on weights of so many elements are taken for the same.

    Codes of 2 bits correlate by 0.8 with what they were made of; short random vectors may do so by chance.
    """
    return max(0.75, min(0.95, 4 / math.sqrt(max(size, 1))))


def common_bias(own: np.ndarray, given: Sequence[Constant]) -> np.ndarray:
    """The real numbers from which the biases of all calls of a layer are rounded, each at the scale of its own sums.

    Args:
        own: the layer's; it is kept where the file's integers follow from it.
        given: the file's, one for each call.
    """
    reals = [constant.real().reshape(-1) for constant in given]
    steps = [np.inf if constant.scale is None else float(np.min(constant.scale)) for constant in given]
    for candidate in (own.reshape(-1).astype(np.float32), *reals):
        if all(_rounds_to(candidate, constant) for constant in given):
            return candidate
    return reals[int(np.argmin(steps))]


def _rounds_to(bias: np.ndarray, constant: Constant) -> bool:
    if constant.scale is None:
        return np.array_equal(bias, constant.real().reshape(-1))
    scale = np.broadcast_to(constant.scale.reshape(-1), bias.shape)
    return np.array_equal(np.rint(bias / scale), constant.data.reshape(-1))


def weight_quantizer(weight: Constant) -> tuple[BaseInferableQuantizer, np.ndarray]:
    """The quantizer that has just the scales and zero points of a file's weight, and the real numbers of its codes.

    Args:
        weight: quantized; its axes are those of the layer's variable, scales may be of its full shape.

    Raises:
        ConfigError: bits or scales that no quantizer has; the reason is told.
    """
    if weight.scale is None or weight.zero_point is None:
        raise ConfigError("expected a weight with scales")
    if weight.bits > 16:
        raise ConfigError(f"expected codes of at most 16 bits; received {weight.bits}")
    codes, zeros = weight.data.astype(np.int64), np.broadcast_to(weight.zero_point, weight.scale.shape).astype(np.int64)
    half, signed = 1 << (weight.bits - 1), weight.data.dtype.kind == "i"
    if not signed and (zeros == half).all():
        codes, zeros, signed = codes - half, zeros - half, True
    if signed and zeros.any():
        codes, zeros, signed = codes + half, zeros + half, False
    if signed and weight.bits < 2:
        raise ConfigError("expected codes of at least 2 bits; received 1")
    real = ((codes - zeros).astype(np.float32) * weight.scale).astype(np.float32)
    axes, steps, scale, zero_point = _compact(weight.data.shape, weight.scale, zeros)
    how: dict[str, Any] = {"per_channel": bool(axes)} | _axes_of(axes, steps)
    quantizer: BaseInferableQuantizer
    if signed:
        narrow = codes.size == 0 or int(codes.min()) > IntGrid(weight.bits).qmin
        quantizer = WeightsSymmetricInferableQuantizer(weight.bits, 1.0, narrow_range=narrow, **how)
    else:
        quantizer = WeightsUniformInferableQuantizer(weight.bits, -1.0, 1.0, **how)
    return quantizer.with_qparams(scale, zero_point), real


def _compact(
    shape: tuple[int, ...], scale: np.ndarray, zeros: np.ndarray
) -> tuple[list[int], list[int], np.ndarray, np.ndarray]:
    """(axes along which parameters differ, how many neighbours share them there, the parameters without repetitions)."""
    axes, steps = [], []
    for axis, size in enumerate(scale.shape):
        step = _step(scale, zeros, axis, size)
        if step < size:
            axes.append(axis)
            steps.append(max(1, step * shape[axis] // size))
        scale, zeros = (a.take(range(0, size, step), axis) if size > 1 else a for a in (scale, zeros))
    return axes, steps, scale, zeros


def _step(scale: np.ndarray, zeros: np.ndarray, axis: int, size: int) -> int:
    """The longest run of equal parameters along an axis, if all runs but the last are that long."""
    if size < 2:
        return size
    changes = np.zeros(size - 1, bool)
    for array in (scale, zeros):
        moved = np.moveaxis(np.asarray(array), axis, 0).reshape(size, -1)
        changes |= (moved[1:] != moved[:-1]).any(axis=1)
    places = np.flatnonzero(changes) + 1
    return int(np.gcd.reduce(places)) if places.size else size


def _axes_of(axes: list[int], steps: list[int]) -> dict[str, int]:
    """The arguments of a quantizer whose parameters differ along these axes: channels, and groups along one more."""
    if not axes:
        return {}
    if len(axes) == 1 and steps[0] == 1:
        return {"channel_axis": axes[0]}
    if len(axes) != 2 or min(steps) != 1:
        raise ConfigError(
            f"expected scales for the tensor, for channels or for groups in them; received some along axes {axes}"
        )
    channel = 1 if steps[1] == 1 else 0
    group = 1 - channel
    PerGroup(axes[group], steps[group], axes[channel])
    return {"channel_axis": axes[channel], "group_axis": axes[group], "group_size": steps[group]}
