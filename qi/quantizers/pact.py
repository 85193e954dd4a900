"""PACT: activations with a learned upper clip."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qi.core.namespace import namespace_of
from qi.quantizers.base import QuantizerVariable
from qi.quantizers.registry import QuantizationMethod, QuantizationTarget, mark_quantizer
from qi.quantizers.trainable import BaseTrainableQuantizer, positive
from qi.typing import Array, Shape

__all__ = ["PACTQuantizer"]


@mark_quantizer(QuantizationTarget.ACTIVATION, [QuantizationMethod.UNIFORM], "pact")
class PACTQuantizer(BaseTrainableQuantizer):
    """Clips to [0, alpha] and quantizes with ``s = alpha / (2**b - 1)``; alpha trains by what it clips.

    ``dy/dalpha = 1`` where ``x > alpha``, else 0; ``dy/dx = 1`` within [0, alpha], else 0. Negative values become 0, as the ReLU
    that PACT replaces does: for tensors with negative values take another method.

    Source: Choi et al., PACT: Parameterized Clipping Activation, 2018 (arXiv:1805.06085).

    Args and Raises: as `BaseTrainableQuantizer`.
    """

    residual = False

    def declare(self, shape: Shape, x: np.ndarray | None = None) -> list[QuantizerVariable]:
        """Trainable ``alpha``: the top of the first range."""
        scale, zero_point = self.initial(shape, x)
        alpha = np.maximum((self.grid.qmax - zero_point) * scale, scale)
        return [QuantizerVariable("alpha", alpha.astype(np.float32), trainable=True)]

    def scale_zero_point(self, variables: Mapping[str, Array]) -> tuple[Array, Array | None]:
        """``alpha / (2**b - 1)``, zero point 0."""
        alpha = variables["alpha"]
        xp = namespace_of(alpha)
        return positive(alpha * np.float32(1 / self.grid.qmax)), xp.zeros_like(alpha)
