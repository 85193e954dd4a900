"""Fake quantization for training: the forward pass of `fake_quantize`, gradients in closed form.

`qi.core.affine.fake_quantize` leaves gradients to automatic differentiation and is the reference: same bits forward, same
gradients for the plain estimator. Here they are written out, which needs half the passes over the data and lets the estimator
depend on the incoming gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qi.core.eager import eager_body
from qi.core.estimators import ESTIMATORS
from qi.core.grid import IntGrid
from qi.core.namespace import ArrayNamespace, namespace_of
from qi.core.rounding import ROUNDINGS
from qi.typing import Array

__all__ = ["train_quantize"]


def train_quantize(
    x: Array,
    scale: Array,
    zero_point: Array | None,
    grid: IntGrid,
    *,
    rounding: str = "nearest",
    noise: Array | None = None,
    estimator: str = "clipped_ste",
    estimator_options: Mapping[str, float] | None = None,
    residual: bool = True,
) -> Array:
    """Fake-quantizes x with gradients for x, the scale and the zero point.

    With ``u = x / s`` clipped to ``[l, h] = [qmin - z, qmax - z]`` and rounded to ``v``, the result is ``s v``, and

    * ``dx`` is what the estimator makes of the gradient (1 within the range, 0 outside, for "clipped_ste");
    * ``ds = v - u`` within the range and ``v`` outside (LSQ, arXiv:1902.08153, equation 3); without `residual`, 0 within
      (as TensorFlow's ``fake_quant_with_min_max_vars`` has it);
    * ``dz = -s`` outside the range and 0 within.

    Args:
        x: real array of any shape and float dtype; computed in float32.
        scale: positive float32 that broadcasts against x.
        zero_point: integers as float32, shaped like scale; None for 0.
        grid: integer grid.
        rounding: a name from `qi.core.rounding.ROUNDINGS`, or "noise", which adds ``noise - 1/2`` instead of rounding.
        noise: uniform [0, 1) numbers of x's shape, for "stochastic" and "noise".
        estimator: a name from `qi.core.estimators.ESTIMATORS`.
        estimator_options: its options.
        residual: whether rounding errors within the range pull at the scale.

    Returns:
        array of x's shape and dtype.

    Example:
        >>> import numpy as np
        >>> train_quantize(np.array([-3.0, 0.3, 0.26]), np.float32(0.5), None, IntGrid(3)).tolist()
        [-2.0, 0.5, 0.5]
    """
    xp = namespace_of(x, scale)
    estimate, options = ESTIMATORS.get(estimator), dict(estimator_options or {})
    turn = _add_noise if rounding == "noise" else ROUNDINGS.get(rounding)

    def forward(x: Array, scale: Array, *rest: Array) -> tuple[Array, Any]:
        ends = np.float32(grid.qmin), np.float32(grid.qmax)
        lo, hi = (ends[0] - rest[0], ends[1] - rest[0]) if rest else ends
        u = xp.divide(x, scale)
        clipped = xp.clip(u, lo, hi)
        # Exact, and +0 where rounding gives -0, as in `straight_through`.
        value = clipped + (turn(clipped, xp=xp, noise=noise) - clipped)
        value = xp.clip(value, lo, hi) if rounding == "noise" else value

        def gradient(*args: Any, upstream: Array = None) -> tuple[Array, ...]:
            g = upstream if upstream is not None else args[0]
            inside = clipped == u
            pull = value - xp.where(inside, clipped, xp.zeros_like(u))
            if not residual:
                pull = xp.where(inside, xp.zeros_like(u), value)
            found = [estimate(g, u, clipped, value, xp=xp, **options), _sum_to(g * pull, scale, xp)]
            if rest:
                outside = xp.where(inside, xp.zeros_like(g), -g)
                found.append(_sum_to(outside * scale, scale, xp))
            return tuple(found)

        return xp.multiply(value, scale), gradient

    dtype = xp.dtype(x)
    parameters = (scale,) if zero_point is None else (scale, zero_point)
    given = [xp.cast(x, "float32"), *(xp.cast(xp.beside(a, x), "float32") for a in parameters)]
    body: Any = forward
    asked = xp.asked(*given) if rounding == "nearest" and estimator == "clipped_ste" else None
    if asked is not None:
        body = eager_body(grid, residual, asked)
    return xp.cast(xp.custom_gradient(body, *given), dtype if "float" in dtype else "float32")


def _add_noise(u: Array, *, xp: ArrayNamespace, noise: Array | None = None) -> Array:
    return u + (xp.cast(xp.beside(xp.asarray(noise), u), "float32") - np.float32(0.5))


def _sum_to(x: Array, like: Array, xp: ArrayNamespace) -> Array:
    """The sum of x over the axes along which `like` was broadcast, in like's shape."""
    shape, rank = tuple(like.shape), len(x.shape)
    padded = (1,) * (rank - len(shape)) + shape
    axes = tuple(i for i, size in enumerate(padded) if size == 1)
    total = xp.sum(x, axis=axes, keepdims=True) if axes else x
    return xp.reshape(total, shape)
