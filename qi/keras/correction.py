"""Correction of what rounding shifts: means of outputs in biases, means and deviations in scales and biases."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qi.algorithms import bias_correction, match_norms, output_moments
from qi.core import QTensor
from qi.keras.clamps import Ends
from qi.keras.rounding import Rounded
from qi.keras.variables import to_numpy, weights_of
from qi.observers import Moments

__all__ = ["Corrected", "corrected"]

_OPEN: Ends = (-np.inf, np.inf)
_FROM_NORMS = "analytic_bias_correction"
_ANALYTIC = (_FROM_NORMS, "norm_correction", "bias_correction")


@dataclass(frozen=True, eq=False)
class Corrected:
    """A weight after correction.

    Attributes:
        rounded: the weight.
        shift: what the bias ``[G * N]`` grows by; None where nothing was corrected.
        left: why an algorithm did nothing, by its name.
    """

    rounded: Rounded
    shift: np.ndarray | None
    left: dict[str, str]


def corrected(
    rounded: Rounded, moments: Moments | None, mean: np.ndarray | None = None, *, ends: Ends | None = None
) -> Corrected:
    """What a weight and its layer's bias become by the algorithms of stage "correction" that its spec names.

    All but the empirical one, which runs the model.

    Args:
        rounded: the weight.
        moments: of the layer's inputs; None where they aren't known.
        mean: of them ``[G, K]``, as batch normalizations tell it; None where none does.
        ends: between what the layer's outputs count (`qi.keras.clamps.ends_after`); None where all do.
    """
    site, linear = rounded.site, rounded.site.linear
    steps = [(name, options) for name, options in site.steps("correction") if name in _ANALYTIC]
    if linear is None or linear.bias is None:
        return Corrected(rounded, None, {name: "has no bias of one number an output" for name, _ in steps})
    weight, values = (linear.view.matrix(array).astype(np.float64) for array in (site.array, rounded.values))
    shift, left = None, {}
    if mean is None and any(name == _FROM_NORMS for name, _ in steps):
        left[_FROM_NORMS] = "has no batch normalization ahead of it that tells the mean of its inputs"
    elif any(name == _FROM_NORMS for name, _ in steps):
        shift = bias_correction(weight, values, mean).ravel()
    for name, options in steps:
        if moments is None or name == _FROM_NORMS:
            continue
        if name == "norm_correction":
            before, after = (output_moments(matrix, moments.mean, moments.second) for matrix in (weight, values))
            flat = [part.ravel() for part in (before[0], np.sqrt(before[1]), after[0], np.sqrt(after[1]))]
            factor, _ = match_norms(*flat, **options)
            found = _scaled(rounded, factor.reshape(before[0].shape))
            if isinstance(found, str):
                left[name] = found
                continue
            rounded, values = found, linear.view.matrix(found.values).astype(np.float64)
        open_ends = _OPEN if ends is None or name == "norm_correction" else ends  # a normalization is of all outputs
        bias = to_numpy(weights_of(site.op)[linear.bias])
        # [G, N], as the outputs of all groups lie behind one another in a bias.
        shape = weight.shape[0], weight.shape[2]
        parts = [np.broadcast_to(np.ravel(part), shape[0] * shape[1]).reshape(shape) for part in (bias, *open_ends)]
        shift = bias_correction(weight, values, moments.mean, moments.second, *parts).ravel()
    return Corrected(rounded, shift, left)


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
