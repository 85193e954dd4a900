"""Granularity: which elements of a tensor share one scale.

The shape of the scale *is* the granularity: it has the tensor's rank, 1 along every axis that shares, the
axis' size where each index has its own, and ``ceil(size / group)`` where groups do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qi.core.namespace import namespace_of
from qi.errors import ConfigError, InputError
from qi.typing import Array, Shape

__all__ = ["Granularity", "PerChannel", "PerGroup", "PerTensor"]


def _integer(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ConfigError(f"expected {name} to be an integer; received {name}={value!r}")
    return int(value)


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise InputError(
            f"expected channel_axis from {-rank} to {rank - 1} for a tensor of rank {rank}; received {axis}"
        )
    return axis % rank


class _Granularity:
    """What all granularities share: reductions written on `blocks`, a view with the shared axes to reduce."""

    def param_shape(self, shape: Shape) -> Shape:
        raise TypeError("abstract")  # pragma: no cover - every granularity defines it

    def _blocks(self, x: np.ndarray, fill: float) -> tuple[np.ndarray, tuple[int, ...]]:
        del fill  # only groups can be partial
        kept = self.param_shape(x.shape)
        return x, tuple(i for i, n in enumerate(kept) if n == 1)

    def reduce(self, function: Callable[..., Any], x: Array, fill: float = 0.0) -> np.ndarray:
        """Applies a numpy reduction such as ``np.max`` over all elements that share a scale.

        Args:
            function: takes ``(array, axis=..., keepdims=True)``.
            x: array of any shape; non-finite values are the caller's business.
            fill: what pads the last, partial group.

        Returns:
            array of shape ``param_shape(x.shape)``.
        """
        blocks, axes = self._blocks(np.asarray(x), fill)
        return np.asarray(function(blocks, axis=axes, keepdims=True)).reshape(self.param_shape(np.shape(x)))

    def minmax(self, x: Array) -> tuple[np.ndarray, np.ndarray]:
        """The least and greatest value of each block in float64; an empty tensor gives 0 and 0."""
        values = np.asarray(x)
        if values.dtype not in (np.float32, np.float64):
            values = values.astype(np.float64)
        if values.size == 0:
            zeros = np.zeros(self.param_shape(values.shape))
            return zeros, zeros.copy()
        lo, hi = self.reduce(np.min, values, np.inf), self.reduce(np.max, values, -np.inf)
        return lo.astype(np.float64), hi.astype(np.float64)

    def absmax(self, x: Array) -> np.ndarray:
        """The greatest magnitude of each block in float64; an empty tensor gives 0."""
        lo, hi = self.minmax(x)
        return np.asarray(np.maximum(-lo, hi).clip(min=0.0))

    def expand(self, param: Array, shape: Shape) -> Array:
        """Gives a parameter of shape ``param_shape(shape)`` a shape that broadcasts against `shape`."""
        return param


@dataclass(frozen=True)
class PerTensor(_Granularity):
    """One scale for the whole tensor: shape ``[A, B]`` has scales of shape ``[1, 1]``.

    Example:
        >>> PerTensor().param_shape((3, 5))
        (1, 1)
    """

    def param_shape(self, shape: Shape) -> Shape:
        """The scale's shape for a tensor of `shape`."""
        return (1,) * len(shape)


@dataclass(frozen=True)
class PerChannel(_Granularity):
    """One scale for each index along `axis`: shape ``[A, B]``, axis -1, has scales of shape ``[1, B]``.

    Example:
        >>> PerChannel(-1).param_shape((3, 5)), PerChannel(0).param_shape((3, 5))
        ((1, 5), (3, 1))
    """

    axis: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "axis", _integer("channel_axis", self.axis))

    def param_shape(self, shape: Shape) -> Shape:
        """The scale's shape for a tensor of `shape`."""
        axis = _axis(self.axis, len(shape))
        return tuple(n if i == axis else 1 for i, n in enumerate(shape))


@dataclass(frozen=True)
class PerGroup(_Granularity):
    """One scale for each run of `size` indices along `axis`, and for each index along `channel_axis`.

    Shape ``[64, B]``, axis 0, size 32 has scales of shape ``[2, B]``; the last group may be partial.

    Example:
        >>> PerGroup(axis=0, size=32).param_shape((70, 5))
        (3, 5)
    """

    axis: int
    size: int
    channel_axis: int = -1

    def __post_init__(self) -> None:
        for name, value in (("axis", self.axis), ("size", self.size), ("channel_axis", self.channel_axis)):
            object.__setattr__(self, name, _integer("group_size" if name == "size" else name, value))
        if self.size < 1:
            raise ConfigError(f"expected group_size to be at least 1; received group_size={self.size}")

    def _axes(self, rank: int) -> tuple[int, int]:
        axis, channel = _axis(self.axis, rank), _axis(self.channel_axis, rank)
        if axis == channel:
            raise InputError(
                "expected the grouped axis to differ from channel_axis; "
                f"received both as {axis} for a tensor of rank {rank}"
            )
        return axis, channel

    def param_shape(self, shape: Shape) -> Shape:
        """The scale's shape for a tensor of `shape`."""
        axis, channel = self._axes(len(shape))
        groups = -(-shape[axis] // self.size)
        return tuple(groups if i == axis else n if i == channel else 1 for i, n in enumerate(shape))

    def _size(self, length: int) -> int:
        """How many of `length` elements a group has: where it is larger, all, or what is missing would take memory."""
        return min(self.size, max(length, 1))

    def _blocks(self, x: np.ndarray, fill: float) -> tuple[np.ndarray, tuple[int, ...]]:
        axis, channel = self._axes(x.ndim)
        size = self._size(x.shape[axis])
        groups = -(-x.shape[axis] // size)
        missing = groups * size - x.shape[axis]
        if missing:
            x = np.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)], constant_values=fill)
        split = x.reshape(*x.shape[:axis], groups, size, *x.shape[axis + 1 :])
        kept = {axis, channel + (channel > axis)}
        return split, tuple(i for i in range(split.ndim) if i not in kept)

    def expand(self, param: Array, shape: Shape) -> Array:
        """Repeats each group's parameter over its members."""
        axis, _ = self._axes(len(shape))
        spread = namespace_of(param).repeat(param, self._size(shape[axis]), axis)
        return spread[(slice(None),) * axis + (slice(0, shape[axis]),)]


Granularity = PerTensor | PerChannel | PerGroup
