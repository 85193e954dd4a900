"""Activation-aware scaling: weights that meet great inputs are scaled up before they are rounded.

Source: Lin et al., AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration, 2023
(arXiv:2306.00978).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qi.algorithms.factors import LIMIT, POWER_OF_TWO, bounded_factors, checked
from qi.algorithms.options import Count, Options
from qi.algorithms.registry import algorithm
from qi.errors import InputError
from qi.typing import Array

__all__ = ["Reader", "awq_factors", "joint_awq_factors"]

_OPTIONS = Options(steps=Count(1), limit=LIMIT, power_of_two=POWER_OF_TWO)


@algorithm("awq", stage="scaling", needs="moments", options=_OPTIONS)
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
        weight: ``[K, N]``.
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
    _OPTIONS.check(steps=steps, limit=limit, power_of_two=power_of_two)
    means = checked("absmean", absmean, np.shape(weight)[:1], least=0.0)
    channels = np.arange(len(means)) if sharing is None else np.asarray(sharing)
    if np.ndim(weight) != 2 or channels.ndim != 1:
        raise InputError(
            f"expected a weight [K, N] and sharing [K]; received shapes {np.shape(weight)}, {channels.shape}"
        )
    reader = Reader(
        np.asarray(weight)[None], np.asarray(second)[None], means[None], channels[None], lambda w: quantize(w[0])[None]
    )
    return np.asarray(joint_awq_factors([reader], steps=steps, limit=limit, power_of_two=power_of_two)[channels])


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads the scaled channels, as G matrices side by side.

    Attributes:
        weight: ``[G, K, N]``, finite.
        second: ``E[x x^T]`` of what it takes, ``[G, K, K]``.
        absmean: ``E[abs(x)]``, ``[G, K]``, from 0 on.
        channels: Integers ``[G, K]``: which channel each feature is of.
        quantize: Gives the values that scaled weights ``[G, K, N]`` have after rounding.

    Raises:
        InputError: If shapes don't fit each other, or values aren't finite.
    """

    weight: np.ndarray
    second: np.ndarray
    absmean: np.ndarray
    channels: np.ndarray
    quantize: Callable[[np.ndarray], np.ndarray]

    def __post_init__(self) -> None:
        shape = np.shape(self.weight)
        if len(shape) != 3 or not np.isfinite(self.weight).all():
            raise InputError(f"expected a finite weight [G, K, N]; received shape {shape}")
        checked("second", self.second, (*shape[:2], shape[1]))
        checked("absmean", self.absmean, shape[:2], least=0.0)
        channels = np.asarray(self.channels)
        if channels.shape != shape[:2] or channels.dtype.kind not in "iu" or (channels < 0).any():
            raise InputError(
                f"expected sharing as integers of shape {shape[:2]} from 0 on; received {channels.dtype} {channels.shape}"
            )

    def error(self, factors: np.ndarray) -> float:
        """The output's, with the rows of the rounded weights scaled by factors of the channels ``[C]``."""
        rows = factors[self.channels][:, :, None]
        weights = np.asarray(self.weight, np.float64)
        values = np.asarray(self.quantize(weights * rows), np.float64)
        if values.shape != weights.shape:
            raise InputError(f"expected quantize to give values of shape {weights.shape}; received {values.shape}")
        difference = weights - values / rows
        return float(np.sum(difference * (np.asarray(self.second, np.float64) @ difference)))


def joint_awq_factors(
    readers: Sequence[Reader], *, steps: int = 20, limit: float = 1000.0, power_of_two: bool = False
) -> np.ndarray:
    """`awq_factors` for all layers that read the same channels: those that give them the least sum of output errors.

    Args:
        readers: At least one, of any kernel sizes.
        steps: From 1 on.
        limit: Of the factors and their inverses.
        power_of_two: Whether factors are powers of two.

    Returns:
        Factors of the channels, float64 ``[C]``.

    Raises:
        ConfigError: If `steps` or the limit is out of range.

    Example:
        >>> weight, absmean = np.array([[[0.3, -0.2], [1.0, 0.9]]]), np.array([[9.0, 0.1]])
        >>> second, channels = np.eye(2)[None] * absmean**2, np.array([[0, 1]])
        >>> reader = Reader(weight, second, absmean, channels, lambda w: np.round(w * 3) / 3)
        >>> joint_awq_factors([reader, reader]).round(2).tolist()
        [3.45, 0.29]
    """
    _OPTIONS.check(steps=steps, limit=limit, power_of_two=power_of_two)
    channels = np.concatenate([np.ravel(reader.channels) for reader in readers])
    means = np.concatenate([np.ravel(reader.absmean) for reader in readers])
    tops = np.concatenate([np.abs(reader.weight).max(axis=2, initial=0.0).ravel() for reader in readers])
    counts = np.maximum(np.bincount(channels), 1)
    means = np.bincount(channels, means) / counts
    alive = (means > 0) & (np.bincount(channels, tops) > 0)
    logs = np.log(np.where(alive, means, 1.0))
    center = (logs[alive].max() + logs[alive].min()) / 2 if alive.any() else 0.0
    best, least = np.ones(len(means)), np.inf
    for exponent in np.linspace(0.0, 1.0, steps + 1):
        powers = np.where(alive, np.exp(exponent * (logs - center)), 1.0)
        factors = bounded_factors(powers, limit=limit, power_of_two=power_of_two)
        error = sum(reader.error(factors) for reader in readers)
        if error < least:
            best, least = factors, error
    return best
