"""Activation-aware scaling: weights that meet great inputs are scaled up before they are rounded.

Source: Lin et al., AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration, 2023
(arXiv:2306.00978).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qi.algorithms.factors import bounded_factors, checked
from qi.algorithms.registry import algorithm
from qi.errors import ConfigError, InputError
from qi.typing import Array

__all__ = ["awq_factors"]


@algorithm("awq", stage="scaling", needs="moments")
def awq_factors(
    weight: Array,
    second: Array,
    absmean: Array,
    quantize: Callable[[np.ndarray], np.ndarray],
    sharing: Array | None = None,
    *,
    steps: int = 20,
    limit: float = 1000.0,
    power_of_two: bool = False,
) -> np.ndarray:
    """The factors of a layer's input channels that give its rounded weights the least output error.

    ``s = absmean**e`` (centered so that the greatest factor is the inverse of the least) for `steps` + 1 exponents from
    0 to 1. The rows of the weights are multiplied by s and the input is divided by it, which changes nothing in float;
    of the rounded weights the error is ``trace((W - V / s)^T second (W - V / s))``, ``V = quantize(s W)``. Exponent 0,
    no scaling, is among the candidates, so by this measure the choice is never worse than none.

    Args:
        weight: ``[K, N]``; of several layers that read one input, side by side.
        second: ``E[x x^T]`` of the input, ``[K, K]``.
        absmean: ``E[abs(x)]``, ``[K]``, from 0 on.
        quantize: Gives the values that scaled weights ``[K, N]`` have after rounding, by the ranges, grid and
            granularity that they will have.
        sharing: Integers ``[K]``: the input channel of each feature, where several (the places of a convolution's
            kernel) have to share a factor; None gives each its own.
        steps: From 1 on.
        limit: Of the factors and their inverses.
        power_of_two: Whether factors are powers of two, which change no bit of the layer's output in float.

    Returns:
        Factors of the features, float64 ``[K]``, the same for those that share a channel; 1 for dead channels.

    Raises:
        InputError: If shapes don't fit each other, values aren't finite, or `quantize` gives another shape.
        ConfigError: If `steps` or the limit is out of range.

    Example:
        >>> weight, absmean = np.array([[0.3, -0.2], [1.0, 0.9]]), np.array([9.0, 0.1])
        >>> awq_factors(weight, np.diag(absmean**2), absmean, lambda w: np.round(w * 3) / 3).round(2).tolist()
        [3.45, 0.29]
    """
    if type(steps) is not int or steps < 1:
        raise ConfigError(f"expected steps to be a whole number from 1 on; received steps={steps!r}")
    weights = np.asarray(weight, np.float64)
    if weights.ndim != 2 or not np.isfinite(weights).all():
        raise InputError(f"expected a finite weight [K, N]; received shape {weights.shape}")
    features = len(weights)
    moments = checked("second", second, (features, features))
    means = _by_channel(checked("absmean", absmean, (features,), least=0.0), sharing)
    alive = (means > 0) & (_by_channel(np.abs(weights).max(axis=1, initial=0.0), sharing) > 0)
    logs = np.log(np.where(alive, means, 1.0))
    center = (logs[alive].max() + logs[alive].min()) / 2 if alive.any() else 0.0
    best, least = np.ones(features), np.inf
    for exponent in np.linspace(0.0, 1.0, steps + 1):
        powers = np.where(alive, np.exp(exponent * (logs - center)), 1.0)
        factors = bounded_factors(powers, limit=limit, power_of_two=power_of_two)
        values = np.asarray(quantize(weights * factors[:, None]), np.float64)
        if values.shape != weights.shape:
            raise InputError(f"expected quantize to give values of shape {weights.shape}; received {values.shape}")
        difference = weights - values / factors[:, None]
        error = float(np.sum(difference * (moments @ difference)))
        if error < least:
            best, least = factors, error
    return best


def _by_channel(means: np.ndarray, sharing: Array | None) -> np.ndarray:
    """The means over the features of each channel, for each feature."""
    if sharing is None:
        return means
    channels = np.asarray(sharing)
    if channels.shape != means.shape or channels.dtype.kind not in "iu" or (channels < 0).any():
        raise InputError(
            f"expected sharing as integers of shape {means.shape} from 0 on; received {channels.dtype} {channels.shape}"
        )
    sums, counts = np.bincount(channels, means), np.bincount(channels)
    return np.asarray((sums / np.maximum(counts, 1))[channels])
