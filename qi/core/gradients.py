"""Gradient algebra: exact forward values with a chosen gradient, by `stop_gradient` alone.

No backend's custom-gradient machinery is needed, so higher derivatives, ``jit`` and ``vmap`` keep working,
and on numpy every function is simply its forward value.
"""

from __future__ import annotations

from qi.core.namespace import ArrayNamespace
from qi.typing import Array

__all__ = ["ceil_ste", "round_ste", "scale_gradient", "straight_through", "surrogate"]


def straight_through(u: Array, value: Array, *, xp: ArrayNamespace) -> Array:
    """`value` in the forward pass, the gradient of `u` in the backward pass.

    ``u + stop_gradient(value - u)`` is exactly `value` when `value` is u rounded to an integer: its rounding
    errors cancel. It is also +0 where rounding gave -0. For other values use `surrogate`.

    Source: Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013
    (arXiv:1308.3432).
    """
    return u + xp.stop_gradient(value - u)


def surrogate(value: Array, gradient_of: Array, *, xp: ArrayNamespace) -> Array:
    """`value` exactly in the forward pass, the gradient of `gradient_of` (finite) in the backward pass."""
    return xp.stop_gradient(value) + (gradient_of - xp.stop_gradient(gradient_of))


def round_ste(u: Array, *, xp: ArrayNamespace) -> Array:
    """Round half to even with gradient 1."""
    return straight_through(u, xp.round(u), xp=xp)


def ceil_ste(u: Array, *, xp: ArrayNamespace) -> Array:
    """Ceiling with gradient 1, as learned power-of-two thresholds use (TQT, arXiv:1903.08066)."""
    return straight_through(u, xp.ceil(u), xp=xp)


def scale_gradient(x: Array, factor: float, *, xp: ArrayNamespace) -> Array:
    """`x` with its gradient multiplied by `factor` (LSQ's ``g``, arXiv:1902.08153)."""
    kept = xp.stop_gradient(x)
    return kept + (x - kept) * factor  # 0 times the factor: exact even where a compiler fuses the product and the sum
