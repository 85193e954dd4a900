"""One batch as blocks of cache size: validated, float32, one row per channel.

Every statistic is fed with the same blocks, so that one pass over the data serves all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from qi.errors import ConfigError, InputError
from qi.typing import Array

__all__ = ["Block", "as_planes", "blocks", "check_axis"]

# Values per block: with its temporaries it stays in a core's own cache (128 KiB of float32).
_BLOCK = 1 << 15


@dataclass(frozen=True)
class Block:
    """Some values of a batch.

    Attributes:
        values: float32 ``[channels, n]``, C-contiguous; 0 where the given value was not finite.
        finite: bool ``[channels, n]``, or None when every value is finite.
        lo: float64 ``[channels]``, the least finite value (``inf`` where there is none).
        hi: float64 ``[channels]``, the greatest finite value (``-inf`` where there is none).
        nonfinite: how many values were NaN or infinite.
    """

    values: np.ndarray
    finite: np.ndarray | None
    lo: np.ndarray
    hi: np.ndarray
    nonfinite: int

    @property
    def count(self) -> int:
        """How many finite values there are."""
        return self.values.size - self.nonfinite


def check_axis(axis: int | None) -> int | None:
    """Return a channel axis as an int, or None for one range per tensor.

    Raises:
        ConfigError: If it is neither an integer nor None.
    """
    if axis is None:
        return None
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        raise ConfigError(f"expected axis to be an integer or None; received axis={axis!r}")
    return int(axis)


def as_planes(x: Array, axis: int | None) -> np.ndarray:
    """View a batch as ``[outer, channels, inner]``; one channel when `axis` is None.

    Args:
        x: Real numbers of any shape and of any integer, boolean or floating dtype, those of `ml_dtypes`
            included.
        axis: The channel axis, negative ones counting from the end; None for a single channel.

    Raises:
        InputError: If the values aren't real numbers, or there is no such axis.
    """
    x = np.asarray(x)
    if x.dtype.kind not in "biuf" and not x.dtype.name.startswith(("bfloat", "float", "int", "uint")):
        raise InputError(f"expected an array of real numbers; received dtype={x.dtype}; convert it to a float dtype")
    if axis is None:
        return np.asarray(x.reshape(1, 1, x.size))
    if not -x.ndim <= axis < x.ndim:
        raise InputError(f"expected a batch with the channel axis {axis}; received shape {x.shape}")
    axis %= x.ndim
    return np.asarray(x.reshape(math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :])))


def blocks(planes: np.ndarray) -> Iterator[Block]:
    """Cut the planes of `as_planes` into blocks; a batch without values has none.

    Values are taken as float32, as the arithmetic of `qi.core` does: one beyond float32's range counts as
    infinite.
    """
    outer, channels, inner = planes.shape
    if planes.size == 0:
        return
    inner_step = max(1, _BLOCK // channels)
    outer_step = max(1, inner_step // inner)
    for i in range(0, outer, outer_step):
        for j in range(0, inner, inner_step):
            part = planes[i : i + outer_step, :, j : j + inner_step].swapaxes(0, 1)
            with np.errstate(over="ignore", invalid="ignore"):  # to infinity, and NaN of small float types
                values = np.ascontiguousarray(part.reshape(channels, -1), np.float32)
            yield _block(values)


def _block(values: np.ndarray) -> Block:
    with np.errstate(invalid="ignore"):
        lo, hi = values.min(axis=1), values.max(axis=1)
    if np.isfinite(lo).all() and np.isfinite(hi).all():  # NaN and infinities reach one of the two
        return Block(values, None, lo.astype(np.float64), hi.astype(np.float64), 0)
    finite = np.isfinite(values)
    lo = np.where(finite, values, np.inf).min(axis=1)
    hi = np.where(finite, values, -np.inf).max(axis=1)
    clean = np.where(finite, values, np.float32(0))
    nonfinite = values.size - int(np.count_nonzero(finite))
    return Block(clean, finite, lo.astype(np.float64), hi.astype(np.float64), nonfinite)
