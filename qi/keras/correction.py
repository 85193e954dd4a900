"""Correction of what rounding shifts: means of outputs in biases, means and deviations in scales and biases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qi.algorithms import bias_correction, match_norms, output_moments
from qi.core import QTensor
from qi.keras.rounding import Rounded
from qi.observers import Moments

__all__ = ["corrected"]


def corrected(rounded: Rounded, moments: Moments) -> tuple[Rounded, np.ndarray] | str:
    """What a weight and its layer's bias become by the algorithms of stage "correction" that its spec names.

    Args:
        rounded: the weight.
        moments: of the layer's inputs.

    Returns:
        (the weight, what the bias ``[G * N]`` grows by), or why neither can be.
    """
    site, linear = rounded.site, rounded.site.linear
    if linear is None or linear.bias is None:
        return "has no bias of one number an output"
    weight, values = (linear.view.matrix(array).astype(np.float64) for array in (site.array, rounded.values))
    result, shift = rounded, np.zeros((values.shape[0], values.shape[2]))
    for name, options in site.steps("correction"):
        if name == "norm_correction":
            (mean, variance), (mean_q, variance_q) = (
                output_moments(matrix, moments.mean, moments.second) for matrix in (weight, values)
            )
            factor, _ = match_norms(
                mean.ravel(), np.sqrt(variance).ravel(), mean_q.ravel(), np.sqrt(variance_q).ravel(), **options
            )
            found = _scaled(result, factor.reshape(mean.shape))
            if isinstance(found, str):
                return found
            result, values = found, linear.view.matrix(found.values).astype(np.float64)
            shift = mean - (moments.mean[:, None, :] @ values)[:, 0]
        elif name == "bias_correction":
            shift = bias_correction(weight, values, moments.mean, **options)
    return result, shift.ravel()


def _scaled(rounded: Rounded, factor: np.ndarray) -> Rounded | str:
    """A weight whose outputs are multiplied by factors ``[G, N]``, which its scales take up; or why they can't."""
    site = rounded.site
    if site.linear is None or site.spec.granularity == "per_tensor" or site.spec.method == "power_of_two":
        return "has no scale of its own for each output"
    params = rounded.quantizer.qparams(site.array.shape)
    index = np.arange(params.scale.size).reshape(params.scale.shape)
    sharing = site.linear.view.matrix(
        np.broadcast_to(params.granularity.expand(index, site.array.shape), site.array.shape)
    )
    spread = np.broadcast_to(factor[:, None, :], sharing.shape)
    found = np.zeros(params.scale.size)
    found[sharing.ravel()] = spread.ravel()
    if not np.array_equal(found[sharing], spread):
        return "shares scales among outputs"
    scale = (params.scale * found.reshape(params.scale.shape)).astype(np.float32)
    quantizer = rounded.quantizer.with_qparams(scale, params.zero_point)
    codes = params.quantize(rounded.values).codes
    values = QTensor(codes, quantizer.qparams(site.array.shape)).dequantize()
    return replace(rounded, quantizer=quantizer, values=values.astype(site.array.dtype))
