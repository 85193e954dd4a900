"""Fake quantization of torch tensors in as few passes over the data as eager execution allows.

The bits are those of the generic body in `qi.core.training`, and so are its gradients; only the number of temporary tensors
differs, which is what an eager framework spends its time on. Tensors' own methods are all that is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qi.core.grid import IntGrid
from qi.typing import Array

__all__ = ["eager_body"]


def eager_body(grid: IntGrid, residual: bool, *, learns: bool, learns_scale: bool) -> Callable[..., Any]:
    """A function ``(x, scale[, zero_point]) -> (result, gradient)`` on float32 tensors, for rounding to nearest.

    Args:
        grid: integer grid.
        residual: as of `qi.core.training.train_quantize`.
        learns: whether any gradient will be asked for.
        learns_scale: whether that of the scale or the zero point will be.
    """

    def forward(x: Array, scale: Array, *rest: Array) -> tuple[Array, Any]:
        lo, hi = _ends(grid, rest)
        u = x / scale
        clipped = u.clamp(lo, hi)
        if not learns:
            return clipped.round_().add_(0.0).mul_(scale), None
        inside = clipped == u
        value = clipped.round().add_(0.0)  # +0 where rounding gives -0
        pull = None
        if learns_scale:
            pull = value - clipped.mul_(inside) if residual else value.masked_fill(inside, 0.0)

        def gradient(g: Array) -> tuple[Array | None, ...]:
            dx = g.masked_fill(~inside, 0.0)
            if pull is None:
                return (dx, None, None)[: 2 + len(rest)]
            found = [dx, _product(g, pull, scale)]
            if rest:
                found.append(_summed(dx - g, scale) * scale)
            return tuple(found)

        return value.mul_(scale), gradient

    return forward


def _ends(grid: IntGrid, rest: tuple[Array, ...]) -> tuple[Any, Any]:
    """The least and the greatest step; plain numbers where that needs no waiting for a device, since they clamp faster."""
    if not rest:
        return float(grid.qmin), float(grid.qmax)
    (z,) = rest
    if z.numel() == 1 and z.device.type == "cpu":
        return float(grid.qmin - z), float(grid.qmax - z)
    return grid.qmin - z, grid.qmax - z


def _product(a: Array, b: Array, like: Array) -> Array:
    """The sum of ``a b`` over the axes along which `like` was broadcast, in like's shape."""
    if like.numel() == 1:
        return a.reshape(-1).dot(b.reshape(-1)).reshape(like.shape)
    return _summed(a * b, like)


def _summed(x: Array, like: Array) -> Array:
    """The sum over the axes along which `like` was broadcast, in like's shape."""
    return x.sum_to_size(like.shape)
