"""STE: fixed range, straight-through gradient; and the same with stochastic rounding while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qi.quantizers.base import QuantizerVariable, flag
from qi.quantizers.config import BaseQuantizerConfig
from qi.quantizers.registry import QuantizationMethod, QuantizationTarget, mark_quantizer
from qi.quantizers.trainable import BaseTrainableQuantizer
from qi.typing import Array, Json, Shape

__all__ = ["STEQuantizer", "StochasticQuantizer"]

_METHODS = [QuantizationMethod.SYMMETRIC, QuantizationMethod.POWER_OF_TWO, QuantizationMethod.UNIFORM]
_BOTH = [QuantizationTarget.WEIGHTS, QuantizationTarget.ACTIVATION]


@mark_quantizer(_BOTH, _METHODS, "ste")
class STEQuantizer(BaseTrainableQuantizer):
    """Fixed range: only the tensor trains.

    ``y = s (clip(round(x / s), qmin - z, qmax - z))``, and ``dy/dx = 1`` within the range, 0 outside.

    Source: Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons, 2013 (arXiv:1308.3432).

    Args:
        quantization_config: see `BaseTrainableQuantizer`, also for `options`.
        rests_in_training: True quantizes outside of training only. For the last softmax, say: nothing could learn from the
            error there, and a loss takes the logarithm of what the grid made 0.
        **options: the gradient estimator.

    Raises:
        ConfigError: as `BaseTrainableQuantizer`.
    """

    learned_range = False

    def __init__(
        self, quantization_config: BaseQuantizerConfig, *, rests_in_training: bool = False, **options: Any
    ) -> None:
        super().__init__(quantization_config, **options)
        self.rests_in_training = flag("rests_in_training", rests_in_training)

    def get_config(self) -> Json:
        """Constructor arguments as plain JSON values."""
        return super().get_config() | ({"rests_in_training": True} if self.rests_in_training else {})

    def apply(
        self,
        x: Array,
        variables: Mapping[str, Array],
        *,
        training: bool = False,
        noise: Callable[[Array], Array] | None = None,
    ) -> Array:
        """As of the base class, unless it rests."""
        if training and self.rests_in_training:
            return x
        return super().apply(x, variables, training=training, noise=noise)

    def declare(self, shape: Shape, x: np.ndarray | None = None) -> list[QuantizerVariable]:
        """Fixed ``scale`` and, for uniform, ``zero_point``."""
        scale, zero_point = self.initial(shape, x)
        uniform = self.spec.method is QuantizationMethod.UNIFORM
        return [QuantizerVariable("scale", scale), *([QuantizerVariable("zero_point", zero_point)] if uniform else [])]

    def scale_zero_point(self, variables: Mapping[str, Array]) -> tuple[Array, Array | None]:
        """The variables as they are."""
        return variables["scale"], variables.get("zero_point")


@mark_quantizer(_BOTH, _METHODS, "stochastic")
class StochasticQuantizer(STEQuantizer):
    """Fixed range, rounded up with the probability of the fraction while training, to nearest otherwise.

    ``E[y] = x`` within the range, so small gradients are not lost to rounding; ``dy/dx`` as of `STEQuantizer`.

    Source: Gupta et al., Deep Learning with Limited Numerical Precision, 2015 (arXiv:1502.02551).

    Args and Raises: as `BaseTrainableQuantizer`.
    """

    rounding = "stochastic"
    needs_noise = True
