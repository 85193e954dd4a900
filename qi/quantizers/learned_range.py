"""Learned ranges: thresholds, or least and greatest values, that train; and the same with additive noise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qi.core.gradients import round_ste
from qi.core.namespace import namespace_of
from qi.quantizers.base import QuantizerVariable
from qi.quantizers.registry import QuantizationMethod, QuantizationTarget, mark_quantizer
from qi.quantizers.trainable import BaseTrainableQuantizer, positive
from qi.typing import Array, Shape

__all__ = ["AdditiveNoiseQuantizer", "LearnedRangeQuantizer"]

_METHODS = [QuantizationMethod.SYMMETRIC, QuantizationMethod.UNIFORM]
_BOTH = [QuantizationTarget.WEIGHTS, QuantizationTarget.ACTIVATION]


@mark_quantizer(_BOTH, _METHODS, "ste_learned")
class LearnedRangeQuantizer(BaseTrainableQuantizer):
    """The range trains by what it clips.

    Symmetric: a threshold t with ``s = t / 2**(b-1)`` (``t / 2**b`` unsigned); uniform: ``min <= 0 <= max`` with
    ``s = (max - min) / (2**b - 1)`` and ``z = round(-min / s)``. Values beyond an end pull at that end with gradient 1 (for t:
    the end's share of t; less by r / (2**b - 1) where z was rounded by r), values within with 0. ``dy/dx`` is 1 within and 0
    outside.

    Source: Jain et al., Trained Quantization Thresholds, 2019 (arXiv:1903.08066), section 3.4, on what TensorFlow's
    ``fake_quant_with_min_max_vars`` does.

    Args and Raises: as `BaseTrainableQuantizer`.
    """

    residual = False

    def declare(self, shape: Shape, x: np.ndarray | None = None) -> list[QuantizerVariable]:
        """Trainable ``threshold``, or ``min_range`` and ``max_range``."""
        scale, zero_point = self.initial(shape, x)
        if self.spec.method is QuantizationMethod.SYMMETRIC:
            return [QuantizerVariable("threshold", scale * np.float32(self.grid.edge), trainable=True)]
        ends = -zero_point * scale, (self.grid.qmax - zero_point) * scale
        return [
            QuantizerVariable(name, end.astype(np.float32), trainable=True)
            for name, end in zip(("min_range", "max_range"), ends, strict=True)
        ]

    def scale_zero_point(self, variables: Mapping[str, Array]) -> tuple[Array, Array | None]:
        """From the threshold, or from both ends stretched to contain 0."""
        if self.spec.method is QuantizationMethod.SYMMETRIC:
            return positive(variables["threshold"] * np.float32(1 / self.grid.edge)), None
        lo, hi = variables["min_range"], variables["max_range"]
        xp = namespace_of(lo)
        zero = xp.zeros_like(lo)
        lo, hi = xp.minimum(lo, zero), xp.maximum(hi, zero)
        top = np.float32(self.grid.qmax)
        # Times the reciprocal: graph optimizers would turn a division by a constant into that anyway, each in its own way.
        scale = positive((hi - lo) * np.float32(1 / self.grid.qmax))
        zero_point = xp.clip(round_ste(xp.divide(zero - lo, scale), xp=xp), np.float32(0), top)
        return scale, zero_point


@mark_quantizer(_BOTH, _METHODS, "noise")
class AdditiveNoiseQuantizer(LearnedRangeQuantizer):
    """Uniform noise of one step's width in place of rounding while training; to nearest otherwise.

    ``y = clip(x + s (r - 1/2))`` with r uniform in [0, 1): differentiable without an estimator, also in s:
    ``dy/ds = r - 1/2`` within the range and the end's code outside.

    Source: Defossez et al., Differentiable Model Compression via Pseudo Quantization Noise, 2021 (arXiv:2104.09987).

    Args and Raises: as `BaseTrainableQuantizer`.
    """

    rounding = "noise"
    residual = True
    needs_noise = True
