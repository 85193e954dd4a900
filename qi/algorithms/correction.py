"""Correction: what rounding weights does to the means and deviations of a layer's outputs is taken back.

Sources: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019 (arXiv:1906.04721);
for the deviations: Finkelstein et al., Fighting Quantization Bias With Bias, 2019 (arXiv:1906.03193), and Sun et al.,
Hybrid 8-bit Floating Point (HFP8) Training and Inference for Deep Neural Networks, 2019 (re-estimated normalization).
"""

from __future__ import annotations

import math

import numpy as np

from qi.algorithms.factors import LIMIT, bounded_factors, checked
from qi.algorithms.options import Options
from qi.algorithms.registry import algorithm
from qi.errors import InputError
from qi.typing import Array

__all__ = [
    "analytic_bias_correction",
    "bias_correction",
    "clipped_normal",
    "clipped_normal_mean",
    "match_norms",
    "output_moments",
]


_LEAST_SHARE = 1e-3  # of the places where an activation lets an output through


@algorithm("bias_correction", stage="correction", needs="moments")
def bias_correction(
    weight: Array,
    values: Array,
    mean: Array,
    second: Array | None = None,
    bias: Array = 0.0,
    lo: Array = -np.inf,
    hi: Array = np.inf,
) -> np.ndarray:
    """What to add to a layer's bias so that rounding its weights doesn't move the means of its outputs.

    ``E[x] (W - V)``: the mean of the error e of each output is 0 then, whatever else the error is. Where an activation lets only
    outputs y between `lo` and `hi` through, errors elsewhere don't count, and the mean is that of those that do: to first order,
    ``E[e | lo < y < hi]`` is the shift that leaves the least squared error behind the activation. Of y and e that are normal
    together, with m and s the mean and the deviation of y, a = (lo - m) / s and b = (hi - m) / s, that is
    ``E[e] + cov(e, y) / s * (phi(a) - phi(b)) / (Phi(b) - Phi(a))``. Outputs that are let through less than once in 1,000 times
    stay as they are.

    The conditional mean is a derivation of this package, from the mean of a truncated normal distribution.

    Args:
        weight: The float weights W ``[G, K, N]``.
        values: Those in their place V, ``[G, K, N]``.
        mean: ``E[x]`` ``[G, K]``, measured, or from `clipped_normal_mean` without data.
        second: ``E[x x^T]`` ``[G, K, K]``; needed with `lo` or `hi`.
        bias: Of the layer in float, ``[G, N]``; looked at with `lo` or `hi`.
        lo: Where an activation begins to let the outputs through: 0 of ReLU. A number, or ``[G, N]``.
        hi: Where it ends to: 6 of ReLU6.

    Returns:
        float64 ``[G, N]``.

    Raises:
        InputError: If shapes don't fit each other, values aren't finite, or `second` is missing.

    Example:
        >>> bias_correction([[[0.6], [0.2]]], [[[0.5], [0.0]]], [[1.0, 2.0]]).tolist()
        [[0.5]]

        With ReLU behind it, an output whose error grows with it needs more:

        >>> bias_correction([[[1.0]]], [[[0.8]]], [[0.0]], [[[1.0]]], lo=0.0).round(4).tolist()  # 0.2 * sqrt(2 / pi)
        [[0.1596]]
    """
    weights = _weights("weight", weight)
    difference = weights - checked("values", values, weights.shape)
    means = checked("mean", mean, weights.shape[:2])
    shift = np.asarray((means[:, None, :] @ difference)[:, 0])
    clamped = np.broadcast_to(np.isfinite(lo) | np.isfinite(hi), shift.shape)
    if not clamped.any():
        return shift
    if second is None:
        raise InputError("expected second moments for outputs that are cut off; received second=None")
    middle, variance = output_moments(weights, means, second)
    middle, spread = middle + np.asarray(bias, np.float64), np.sqrt(variance)
    clamped = clamped & (spread > 0)
    safe = np.where(spread > 0, spread, 1.0)
    covariance = np.asarray(second, np.float64) - means[:, :, None] * means[:, None, :]
    joint = np.sum(difference * (covariance @ weights), axis=1)
    low, high = (np.broadcast_to((np.asarray(end, np.float64) - middle) / safe, shift.shape) for end in (lo, hi))
    share = (_tail(low.ravel()) - _tail(high.ravel())).reshape(shift.shape)
    seen = share >= _LEAST_SHARE
    slope = (_density(low) - _density(high)) / np.where(seen, share, 1.0)
    return np.where(clamped, np.where(seen, shift + joint / safe * slope, 0.0), shift)


@algorithm("analytic_bias_correction", stage="correction", needs="weights")
def analytic_bias_correction(weight: Array, values: Array, mean: Array) -> np.ndarray:
    """As `bias_correction`, without data: what layers take on average is told by the batch normalizations ahead of them.

    Args:
        weight: The float weights W ``[G, K, N]``.
        values: Those in their place V, ``[G, K, N]``.
        mean: ``E[x]`` ``[G, K]``, from `clipped_normal`.

    Returns:
        float64 ``[G, N]``.

    Raises:
        InputError: As `bias_correction`.

    Example:
        >>> analytic_bias_correction([[[2.0]]], [[[1.5]]], [[4.0]]).tolist()
        [[2.0]]
    """
    return bias_correction(weight, values, mean)


def output_moments(weight: Array, mean: Array, second: Array) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of a layer's outputs ``x W`` (without bias), from the moments of its input.

    Args:
        weight: W, ``[G, K, N]``, float or rounded.
        mean: ``E[x]`` ``[G, K]``.
        second: ``E[x x^T]`` ``[G, K, K]``.

    Returns:
        (means, variances), float64 ``[G, N]``: ``E[x] W`` and ``diag(W^T cov(x) W)``.

    Raises:
        InputError: If shapes don't fit each other or values aren't finite.

    Example:
        >>> mean, variance = output_moments([[[2.0], [1.0]]], [[1.0, 0.0]], [[[2.0, 0.5], [0.5, 1.0]]])
        >>> mean.tolist(), variance.tolist()  # cov = [[1, 0.5], [0.5, 1]]
        ([[2.0]], [[7.0]])
    """
    weights = _weights("weight", weight)
    groups, inputs, _ = weights.shape
    means = checked("mean", mean, (groups, inputs))
    products = checked("second", second, (groups, inputs, inputs))
    covariance = products - means[:, :, None] * means[:, None, :]
    variance = np.sum(weights * (covariance @ weights), axis=1)
    return np.asarray((means[:, None, :] @ weights)[:, 0]), np.maximum(variance, 0.0)


_NORMS = Options(limit=LIMIT)


@algorithm("norm_correction", stage="correction", needs="moments", options=_NORMS)
def match_norms(
    mean_float: Array, std_float: Array, mean_q: Array, std_q: Array, *, limit: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    """The factor and shift of each output channel that give it back the mean and deviation it had in float.

    ``factor * y + shift`` of the layer's outputs y with rounded weights. That is what re-estimating a batch
    normalization does that follows the layer; where it is folded, the factor belongs into the scale of the channel's
    weights (and its bias), the shift into its bias.

    Args:
        mean_float: Means of the outputs in float, ``[N]``.
        std_float: Their standard deviations, from 0 on.
        mean_q: Means with rounded weights.
        std_q: Their standard deviations, from 0 on.
        limit: Of the factors and their inverses: where rounding left little of a channel, no factor brings it back.

    Returns:
        (factors, shifts), float64 ``[N]``; a dead channel, of deviation 0, gets the factor 1.

    Raises:
        InputError: If shapes don't fit each other, or values aren't finite or deviations negative.
        ConfigError: If the limit is below 1.

    Example:
        >>> factor, shift = match_norms([1.0], [3.0], [0.5], [2.0])
        >>> factor.tolist(), shift.tolist()
        ([1.5], [0.25])
    """
    _NORMS.check(limit=limit)
    wanted = checked("mean_float", mean_float)
    middle = checked("mean_q", mean_q, wanted.shape)
    deviation = checked("std_float", std_float, wanted.shape, least=0.0)
    rounded = checked("std_q", std_q, wanted.shape, least=0.0)
    dead = (deviation == 0) | (rounded == 0)
    factor = bounded_factors(np.where(dead, 1.0, deviation) / np.where(dead, 1.0, rounded), limit=limit)
    return factor, wanted - factor * middle


def clipped_normal(mean: Array, std: Array, lo: float, hi: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of ``clip(x, lo, hi)`` of normal x: what a ReLU makes of a normalized channel.

    Args:
        mean: Of x, ``[C]``: the batch normalization's beta.
        std: Of x, ``[C]``, from 0 on: its abs(gamma).
        lo: 0 of ReLU and ReLU6; may be -inf.
        hi: ``inf`` of ReLU, 6 of ReLU6.

    Returns:
        (means, variances), float64 ``[C]``.

    Raises:
        InputError: If the arrays don't fit each other or the bounds are in disorder.

    Example:
        >>> mean, variance = clipped_normal([0.0], [1.0], 0.0, np.inf)
        >>> mean.round(6).tolist(), variance.round(6).tolist()  # 1 / sqrt(2 pi), 1 / 2 - 1 / (2 pi)
        ([0.398942], [0.340845])
    """
    middle = checked("mean", mean)
    spread = checked("std", std, middle.shape, least=0.0)
    if not lo <= hi or lo == np.inf or hi == -np.inf:
        raise InputError(f"expected bounds in order; received lo={lo!r}, hi={hi!r}")
    safe = np.where(spread > 0, spread, 1.0)
    # In deviations from the mean, so that the variance isn't the difference of great numbers.
    low, high = (lo - middle) / safe, (hi - middle) / safe
    below, above = _tail(-low), _tail(high)
    density_low, density_high = _density(low), _density(high)
    finite_low, finite_high = np.where(np.isfinite(low), low, 0.0), np.where(np.isfinite(high), high, 0.0)
    first = finite_low * below + finite_high * above + density_low - density_high
    second = finite_low**2 * below + finite_high**2 * above + 1.0 - below - above
    second += finite_low * density_low - finite_high * density_high
    constant = spread == 0
    means = np.where(constant, np.clip(middle, lo, hi), np.clip(middle + safe * first, lo, hi))
    return means, np.where(constant, 0.0, np.maximum(second - first**2, 0.0) * spread**2)


def clipped_normal_mean(mean: Array, std: Array, lo: float, hi: float) -> np.ndarray:
    """The mean of ``clip(x, lo, hi)`` of normal x, float64 ``[C]``; see `clipped_normal`."""
    return clipped_normal(mean, std, lo, hi)[0]


def _weights(name: str, values: Array) -> np.ndarray:
    found = np.asarray(values, np.float64)
    if found.ndim != 3 or not np.isfinite(found).all():
        raise InputError(f"expected a finite {name} [G, K, N]; received shape {found.shape}")
    return found


def _tail(z: np.ndarray) -> np.ndarray:
    """The share of a standard normal distribution above z."""
    return np.array([0.5 * math.erfc(value / math.sqrt(2.0)) for value in z.tolist()])


def _density(z: np.ndarray) -> np.ndarray:
    """Of the standard normal distribution, 0 at infinity."""
    return np.asarray(np.exp(-0.5 * np.minimum(np.abs(z), 100.0) ** 2) / math.sqrt(2.0 * math.pi))
