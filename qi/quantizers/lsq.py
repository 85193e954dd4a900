"""LSQ and LSQ+: learned step sizes, with a learned offset."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from qi.core.gradients import round_ste, scale_gradient
from qi.core.namespace import namespace_of
from qi.quantizers.base import QuantizerVariable
from qi.quantizers.registry import QuantizationMethod, QuantizationTarget, mark_quantizer
from qi.quantizers.trainable import HUGE, TINY, BaseTrainableQuantizer, positive
from qi.typing import Array, Shape

__all__ = ["LSQPlusQuantizer", "LSQQuantizer"]

_BOTH = [QuantizationTarget.WEIGHTS, QuantizationTarget.ACTIVATION]


@mark_quantizer(_BOTH, [QuantizationMethod.SYMMETRIC, QuantizationMethod.UNIFORM], "lsq")
class LSQQuantizer(BaseTrainableQuantizer):
    """Learned step size: the step trains against rounding and clipping errors alike.

    ``y = s clip(round(x / s))``; ``dy/ds = round(u) - u`` with ``u = x / s`` within the range, and the end's code outside, times
    ``g = 1 / sqrt(n qmax)`` for n elements a step (of one sample, for activations), which keeps steps and weights learning at
    one pace. Uniform quantizers keep their first zero point; `LSQPlusQuantizer` learns it too.

    Source: Esser et al., Learned Step Size Quantization, 2019 (arXiv:1902.08153).

    Args and Raises: as `BaseTrainableQuantizer`.
    """

    def declare(self, shape: Shape, x: np.ndarray | None = None) -> list[QuantizerVariable]:
        """Trainable ``step``: the first range's where one is given, ``2 mean|x| / sqrt(qmax)`` otherwise."""
        uniform = self.spec.method is QuantizationMethod.UNIFORM
        if uniform or x is None or self._initial is not None or "threshold" in self.spec.params:
            scale, zero_point = self.initial(shape, x)
            fixed = [QuantizerVariable("zero_point", zero_point)] if uniform else []
            return [QuantizerVariable("step", scale, trainable=True), *fixed]
        mean = self.granularity(x.ndim).reduce(np.mean, np.abs(x.astype(np.float64)))
        step = 2 * mean / np.sqrt(max(self.grid.qmax, 1))
        least = self.spec.min_threshold / self.grid.edge
        step = np.where(mean > 0, np.clip(step, max(least, float(TINY)), float(HUGE)), max(least, 1.0))
        return [QuantizerVariable("step", step.astype(np.float32), trainable=True)]

    def scale_zero_point(self, variables: Mapping[str, Array]) -> tuple[Array, Array | None]:
        """The step's magnitude."""
        return positive(variables["step"]), variables.get("zero_point")

    def prepared(self, x: Array, variables: Mapping[str, Array]) -> Mapping[str, Array]:
        """Variables whose gradients are scaled by g."""
        factor = self.gradient_scale(tuple(x.shape))
        learned = {name: value for name, value in variables.items() if name != "zero_point"}
        return {
            **variables,
            **{name: scale_gradient(value, factor, xp=namespace_of(value)) for name, value in learned.items()},
        }

    def gradient_scale(self, shape: Shape) -> float:
        """``1 / sqrt(n qmax)`` for a tensor of `shape` (the first size of an activation is the batch)."""
        if self.quantization_target is QuantizationTarget.ACTIVATION:
            count = prod([size for size in shape[1:] if size is not None])  # a list: torch compiles no generator here
        else:
            count = prod(shape) // max(1, prod(self.granularity(len(shape)).param_shape(shape)))
        return float(1 / np.sqrt(max(1, count) * max(1, self.grid.qmax)))


@mark_quantizer(_BOTH, [QuantizationMethod.UNIFORM], "lsq_plus")
class LSQPlusQuantizer(LSQQuantizer):
    """LSQ with a learned offset, for tensors that are not symmetric about 0.

    Step s and offset b (the value of the lowest code) train; ``z = round(-b / s)``, so that 0 keeps a code of its own, which the
    paper leaves open: integer kernels need it. Gradients as of LSQ; b gets 1 from each value outside the range.

    Source: Bhalgat et al., LSQ+, 2020 (arXiv:2004.09576).

    Args and Raises: as `BaseTrainableQuantizer`.
    """

    def declare(self, shape: Shape, x: np.ndarray | None = None) -> list[QuantizerVariable]:
        """Trainable ``step`` and ``offset``."""
        scale, zero_point = self.initial(shape, x)
        offset = (-zero_point * scale).astype(np.float32)
        return [QuantizerVariable("step", scale, trainable=True), QuantizerVariable("offset", offset, trainable=True)]

    def scale_zero_point(self, variables: Mapping[str, Array]) -> tuple[Array, Array | None]:
        """The step's magnitude, and the offset in steps."""
        scale = positive(variables["step"])
        xp = namespace_of(scale)
        # Clipped before the division, which would overflow for offsets far off.
        offset = xp.clip(variables["offset"], scale * np.float32(-self.grid.qmax), xp.zeros_like(scale))
        return scale, round_ste(xp.divide(xp.zeros_like(scale) - offset, scale), xp=xp)
