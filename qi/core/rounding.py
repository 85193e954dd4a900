"""Roundings, by name: from a real number on the grid's scale to an integer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qi.core.namespace import NUMPY, ArrayNamespace
from qi.errors import InputError
from qi.registry import Registry
from qi.typing import Array

__all__ = ["ROUNDINGS", "floor", "nearest", "stochastic"]

Rounding = Callable[..., Array]
ROUNDINGS: Registry[Rounding] = Registry("rounding")


@ROUNDINGS.register("nearest")
def nearest(u: Array, *, xp: ArrayNamespace, noise: Array | None = None) -> Array:
    """Rounds to the nearest integer, half to even (IEEE 754 roundTiesToEven).

    Example:
        >>> import numpy as np
        >>> from qi.core.namespace import NUMPY
        >>> nearest(np.array([0.5, 1.5, 2.5]), xp=NUMPY).tolist()
        [0.0, 2.0, 2.0]
    """
    return xp.round(u)


@ROUNDINGS.register("floor")
def floor(u: Array, *, xp: ArrayNamespace, noise: Array | None = None) -> Array:
    """Rounds towards minus infinity."""
    return xp.floor(u)


@ROUNDINGS.register("stochastic")
def stochastic(u: Array, *, xp: ArrayNamespace, noise: Array | None = None) -> Array:
    """Rounds up with the probability of the fractional part: unbiased, ``E[round(u)] = u``.

    Args:
        u: finite values on the grid's scale; NaN stays NaN.
        xp: the namespace.
        noise: uniform numbers in ``[0, 1)`` of u's shape, from a generator of the caller's. Randomness never
            comes from a hidden state.

    Raises:
        InputError: no noise is given, or numpy noise of another shape.

    Source: Gupta et al., Deep Learning with Limited Numerical Precision, 2015 (arXiv:1502.02551).
    """
    if noise is None or (xp is NUMPY and np.shape(noise) != np.shape(u)):
        received = None if noise is None else np.shape(noise)
        raise InputError(
            "expected noise, uniform in [0, 1) and shaped like the input, for rounding='stochastic'; "
            f"received noise={received}"
        )
    # Compared with the fraction, not added to u: in float32, 65534 + 0.999 is 65535, an integer moved.
    lower = xp.floor(u)
    return lower + xp.cast(xp.cast(xp.beside(xp.asarray(noise), u), "float32") < u - lower, "float32")
