"""Smoothing: the outliers of a few channels of a layer's input are moved into its weights.

Source: Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models, 2022
(arXiv:2211.10438).
"""

from __future__ import annotations

import numpy as np

from qi.algorithms.factors import LIMIT, POWER_OF_TWO, bounded_factors, checked
from qi.algorithms.options import Number, Options
from qi.algorithms.registry import algorithm
from qi.typing import Array

__all__ = ["smoothing_factors"]

_OPTIONS = Options(alpha=Number(least=0, most=1), limit=LIMIT, power_of_two=POWER_OF_TWO)


@algorithm("smooth", stage="scaling", needs="moments", options=_OPTIONS)
def smoothing_factors(
    absmax_x: Array, absmax_w: Array, *, alpha: float = 0.5, limit: float = 1000.0, power_of_two: bool = False
) -> np.ndarray:
    """The factors that share the range of an input's channels between input and weights.

    ``s = absmax_x**alpha / absmax_w**(1 - alpha)``: the input is divided by s (in the layer before: the scale of a layer
    normalization, or the output channels of a linear layer), the rows of the weights are multiplied, and
    ``(x / s) @ (s W) = x @ W``. With 0.5 both have the range ``sqrt(absmax_x * absmax_w)`` in every channel; a greater
    alpha moves more into the weights.

    Args:
        absmax_x: Greatest magnitude of each channel of the input, ``[K]``, from 0 on.
        absmax_w: Greatest magnitude of each channel's weights, ``[K]``, over all layers that read this input.
        alpha: From 0 to 1.
        limit: Of the factors and their inverses.
        power_of_two: Whether to round them to powers of two, which change no bit of the layer's output in float.

    Returns:
        float64 ``[K]``; 1 for a dead channel, whose range is 0 on either side.

    Raises:
        InputError: If the ranges don't fit each other, or one is negative or not finite.
        ConfigError: If alpha or the limit is out of range.

    Example:
        >>> smoothing_factors([64.0, 1.0, 0.0], [1.0, 1.0, 1.0]).tolist()
        [8.0, 1.0, 1.0]
    """
    _OPTIONS.check(alpha=alpha, limit=limit, power_of_two=power_of_two)
    inputs = checked("absmax_x", absmax_x, least=0.0)
    weights = checked("absmax_w", absmax_w, inputs.shape, least=0.0)
    dead = (inputs == 0) | (weights == 0)
    factors = np.where(dead, 1.0, inputs) ** alpha / np.where(dead, 1.0, weights) ** (1 - alpha)
    return bounded_factors(factors, limit=limit, power_of_two=power_of_two)
