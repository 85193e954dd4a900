"""Bias correction from samples: what the mean of each output is off by goes into the layer's bias."""

from __future__ import annotations

import numpy as np

from qi.algorithms.factors import checked
from qi.algorithms.options import Count, Options
from qi.algorithms.registry import algorithm
from qi.typing import Array

__all__ = ["empirical_bias_correction"]

_OPTIONS = Options(samples=Count(1))


@algorithm("empirical_bias_correction", stage="correction", needs="data", options=_OPTIONS)
def empirical_bias_correction(mean_float: Array, mean_quantized: Array, *, samples: int = 256) -> np.ndarray:
    """What a layer's bias grows by, so that its outputs keep the means they had in float.

    The means are those of the outputs before the activation, over samples: of the float network, and of the quantized one with
    all layers before this one corrected already. Unlike `bias_correction` it sees what rounding activations, and all layers
    before, shift.

    Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019 (arXiv:1906.04721),
    section 4.2 (the empirical form); Nagel et al., A White Paper on Neural Network Quantization, 2021 (arXiv:2106.08295).

    Args:
        mean_float: Means of the outputs in float, ``[N]``.
        mean_quantized: Means with what is quantized, ``[N]``.
        samples: How many samples are looked at, at most; from 1 on.

    Returns:
        float64 ``[N]``.

    Raises:
        InputError: If the means don't fit each other, or aren't finite.
        ConfigError: If the number of samples is below 1.

    Example:
        >>> empirical_bias_correction([1.0, 2.0], [0.75, 2.0]).tolist()
        [0.25, 0.0]
    """
    _OPTIONS.check(samples=samples)
    wanted = checked("mean_float", mean_float)
    return np.asarray(wanted - checked("mean_quantized", mean_quantized, wanted.shape))
