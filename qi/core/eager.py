"""Fake quantization of torch tensors in as few passes over the data as eager execution allows.

The bits are those of the generic body in `qi.core.training`, and so are its gradients, but for those of NaN, which go through;
only the number of temporary tensors differs, which is what an eager framework spends its time on. The forward pass makes one
new tensor and keeps x, which whatever made x mostly keeps anyhow; the backward pass divides again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from qi.core.grid import IntGrid
from qi.typing import Array

__all__ = ["eager_body"]


def eager_body(grid: IntGrid, residual: bool, asked: tuple[bool, ...]) -> Callable[..., Any]:
    """A function ``(x, scale[, zero_point]) -> (result, gradient, saved)`` on float32 tensors, for rounding to nearest.

    ``gradient(g, *saved)`` gives the gradients of the arguments for one of the result.

    Args:
        grid: integer grid.
        residual: as of `qi.core.training.train_quantize`.
        asked: which of the arguments gradients will be asked for.
    """

    def forward(x: Array, scale: Array, *rest: Array) -> tuple[Array, Any, tuple[Array, ...]]:
        ends = _ends(grid, rest)
        value = (x / scale).clamp_(*ends).round_().add_(0.0)  # +0 where rounding gives -0
        return value.mul_(scale), partial(gradient, ends), (x, scale, *rest)

    def gradient(ends: tuple[Any, Any], g: Array, x: Array, scale: Array, *rest: Array) -> tuple[Array | None, ...]:
        u = x / scale
        dx = _within(g, u, *ends)
        found = [dx if asked[0] else None, None, None][: 2 + len(rest)]
        if asked[1]:
            clipped = u.clamp_(*ends)
            within = _product(dx, clipped, scale) if residual else None
            value = clipped.round_()  # in place: fresh memory costs more than what is written to it
            found[1] = _product(g, value, scale) - (_product(dx, value, scale) if within is None else within)
        if rest and asked[2]:
            found[2] = _summed(dx - g, scale) * scale
        return tuple(found)

    return forward


def _within(values: Array, u: Array, lo: Any, hi: Any) -> Array:
    """The values where u lies between the ends or on them, 0 elsewhere."""
    if not isinstance(lo, float):
        return values.masked_fill((u < lo) | (u > hi), 0.0)
    below, above = (float(np.nextafter(np.float32(end), np.float32(far))) for end, far in ((lo, -np.inf), (hi, np.inf)))
    kept: Array = sys.modules["torch"].ops.aten.hardtanh_backward(
        values, u, below, above
    )  # one pass; excludes its ends
    return kept


def _ends(grid: IntGrid, rest: tuple[Array, ...]) -> tuple[Any, Any]:
    """The least and the greatest step; plain numbers where that needs no waiting for a device, since they clamp faster."""
    if not rest:
        return float(grid.qmin), float(grid.qmax)
    (z,) = rest
    if z.numel() == 1 and z.device.type == "cpu":
        shift = z.item()
        return float(grid.qmin - shift), float(grid.qmax - shift)
    return grid.qmin - z, grid.qmax - z


def _product(a: Array, b: Array, like: Array) -> Array:
    """The sum of ``a b`` over the axes along which `like` was broadcast, in like's shape."""
    if like.numel() == 1:
        return a.reshape(-1).dot(b.reshape(-1)).reshape(like.shape)
    return _summed(a * b, like)


def _summed(x: Array, like: Array) -> Array:
    """The sum over the axes along which `like` was broadcast, in like's shape."""
    return x.sum_to_size(like.shape)
