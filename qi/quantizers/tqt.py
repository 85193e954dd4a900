"""TQT: learned thresholds that are powers of two at every step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qi.core.namespace import namespace_of
from qi.quantizers.base import QuantizerVariable
from qi.quantizers.registry import QuantizationMethod, QuantizationTarget, mark_quantizer
from qi.quantizers.trainable import BaseTrainableQuantizer
from qi.typing import Array, Shape

__all__ = ["TQTQuantizer"]

_LIMIT = 100
_POWERS = 2.0 ** np.arange(-_LIMIT, _LIMIT + 1)


@mark_quantizer([QuantizationTarget.WEIGHTS, QuantizationTarget.ACTIVATION], [QuantizationMethod.POWER_OF_TWO], "tqt")
class TQTQuantizer(BaseTrainableQuantizer):
    """Learns log2 of the threshold: ``t = 2**ceil(l)``, ``s = t / 2**(b-1)`` (``t / 2**b`` unsigned).

    ``dy/dl = s ln 2 (round(u) - u)`` within the range and ``s ln 2`` times the end's code outside, the ceiling passed straight
    through. The threshold is a power of two in training as later, so nothing jumps at conversion.

    Source: Jain et al., Trained Quantization Thresholds, 2019 (arXiv:1903.08066), equations 7 and 8.

    Args and Raises: as `BaseTrainableQuantizer`.
    """

    def declare(self, shape: Shape, x: np.ndarray | None = None) -> list[QuantizerVariable]:
        """Trainable ``log2_threshold``."""
        scale, _ = self.initial(shape, x)
        exponent = np.log2(scale.astype(np.float64) * self.grid.edge)
        return [QuantizerVariable("log2_threshold", exponent.astype(np.float32), trainable=True)]

    def scale_zero_point(self, variables: Mapping[str, Array]) -> tuple[Array, Array | None]:
        """The power of two from a table, since exp2 is not exact everywhere; its gradient is that of exp2."""
        exponent = variables["log2_threshold"]
        xp = namespace_of(exponent)
        whole = xp.clip(xp.ceil(exponent), np.float32(-_LIMIT), np.float32(_LIMIT))
        table = xp.asarray((_POWERS / self.grid.edge).astype(np.float32))
        scale = xp.stop_gradient(xp.take(table, xp.cast(whole, "int32") + _LIMIT))
        # The slope times 0: exact whatever a compiler fuses, and for thresholds far beyond the table.
        return scale + scale * np.float32(np.log(2)) * (exponent - xp.stop_gradient(exponent)), None
