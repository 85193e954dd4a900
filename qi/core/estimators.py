"""Gradient estimators, by name: what stands in for the derivative of rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qi.core.namespace import ArrayNamespace
from qi.errors import ConfigError
from qi.registry import Registry
from qi.typing import Array

__all__ = ["ESTIMATORS", "check_estimator", "register_estimator"]

Estimator = Callable[..., Array]
ESTIMATORS: Registry[Estimator] = Registry("gradient estimator")
"""Functions ``(g, u, clipped, value, *, xp, **options) -> gradient of u``.

``g`` is the gradient of the rounded value, ``u`` the input in steps, ``clipped`` the same within the grid, ``value`` it rounded.
"""


_OPTIONS: dict[str, dict[str, tuple[float, float]]] = {}


def register_estimator(name: str, **options: tuple[float, float]) -> Callable[[Estimator], Estimator]:
    """Registers a gradient estimator.

    Args:
        name: that configurations give.
        **options: the least and greatest value of each option it takes.

    Raises:
        ConfigError: the name is taken.
    """

    def register(function: Estimator) -> Estimator:
        ESTIMATORS.register(name)(function)
        _OPTIONS[name] = options
        return function

    return register


@register_estimator("clipped_ste")
def clipped_ste(g: Array, u: Array, clipped: Array, value: Array, *, xp: ArrayNamespace) -> Array:
    """``g`` within the grid, 0 outside of it: the straight-through estimator with saturation.

    Source: Hubara et al., Quantized Neural Networks, 2016 (arXiv:1609.07061), section 1.3.
    """
    return xp.where(clipped == u, g, xp.zeros_like(g))


@register_estimator("ste")
def ste(g: Array, u: Array, clipped: Array, value: Array, *, xp: ArrayNamespace) -> Array:
    """``g`` everywhere, also where values saturate.

    Source: Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013 (arXiv:1308.3432).
    """
    return g


@register_estimator("ewgs", delta=(0.0, 1.0))
def ewgs(g: Array, u: Array, clipped: Array, value: Array, *, xp: ArrayNamespace, delta: float = 0.1) -> Array:
    """``g (1 + delta sign(g) (u - value))`` within the grid: larger where the step moves the value to its own side.

    Source: Lee et al., Network Quantization with Element-wise Gradient Scaling, 2021 (arXiv:2104.00903), equation 4.
    """
    scaled = g + np.float32(delta) * xp.abs(g) * (clipped - value)
    return xp.where(clipped == u, scaled, xp.zeros_like(g))


@register_estimator("dsq", alpha=(1e-6, 0.999))
def dsq(g: Array, u: Array, clipped: Array, value: Array, *, xp: ArrayNamespace, alpha: float = 0.4) -> Array:
    """``g`` times the slope of a tanh staircase within the grid: largest halfway between two codes.

    With ``m`` the middle between the codes around u and ``k = ln(2 / alpha - 1)``, the slope is
    ``k (1 - tanh(k (u - m))**2) / (2 tanh(k / 2))``; over a whole step it averages to 1.

    Source: Gong et al., Differentiable Soft Quantization, 2019 (arXiv:1908.05033), equations 3 to 6.
    """
    k = np.log(2 / alpha - 1)
    t = xp.tanh(np.float32(k) * (clipped - xp.floor(clipped) - np.float32(0.5)))
    slope = np.float32(k / (2 * np.tanh(k / 2))) * (np.float32(1) - t * t)
    return xp.where(clipped == u, g * slope, xp.zeros_like(g))


def check_estimator(name: str, options: dict[str, float]) -> None:
    """Refuses unknown estimators and options.

    Raises:
        ConfigError: the message names what is known.
    """
    ESTIMATORS.get(name)
    known = _OPTIONS.get(name, {})
    for option, value in options.items():
        if option not in known:
            raise ConfigError(f"expected options of {name!r} out of {sorted(known)}; received {option}={value!r}")
        lo, hi = known[option]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not lo <= value <= hi:
            raise ConfigError(f"expected {option} from {lo:g} to {hi:g}; received {option}={value!r}")
