"""DoReFa: weights squashed by tanh before they are quantized; activations on a fixed range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qi.core.namespace import namespace_of
from qi.errors import ConfigError
from qi.quantizers.config import BaseQuantizerConfig
from qi.quantizers.registry import QuantizationMethod, QuantizationTarget, mark_quantizer
from qi.quantizers.ste import STEQuantizer
from qi.typing import Array

__all__ = ["DoReFaActivationQuantizer", "DoReFaWeightsQuantizer"]


@mark_quantizer(QuantizationTarget.WEIGHTS, [QuantizationMethod.SYMMETRIC], "dorefa")
class DoReFaWeightsQuantizer(STEQuantizer):
    """Quantizes ``t tanh(w / t) / max|tanh(w / t)|`` on a fixed symmetric grid, for a fixed threshold t.

    tanh keeps outliers from taking the range; ``dy/dw`` is the straight-through gradient times that of the squashing. The paper
    has t = 1 and a grid without 0, both for networks trained from scratch: here t starts at the weight's own range, so a trained
    layer keeps its magnitude, and 0 has a code. Conversion bakes the squashed values into the weight.

    Source: Zhou et al., DoReFa-Net, 2016 (arXiv:1606.06160), equation 9.

    Args: as `STEQuantizer`.

    Raises:
        ConfigError: as `BaseTrainableQuantizer`, and for a group_size.
    """

    def __init__(
        self, quantization_config: BaseQuantizerConfig, *, rests_in_training: bool = False, **options: Any
    ) -> None:
        super().__init__(quantization_config, rests_in_training=rests_in_training, **options)
        if self.group_size is not None:
            raise ConfigError(
                f"expected a threshold for each channel or tensor; received group_size={self.group_size}; "
                "do take another method for groups"
            )

    def transform(self, x: Array, variables: Mapping[str, Array]) -> Array:
        """The squashed weight: its greatest magnitude is the greatest threshold."""
        xp = namespace_of(x)
        x32 = xp.cast(x, "float32")
        threshold = xp.stop_gradient(xp.cast(variables["scale"], "float32")) * np.float32(max(self.grid.qmax, 1))
        squashed = xp.tanh(xp.divide(x32, threshold))
        axes = tuple(i for i, size in enumerate(threshold.shape) if size == 1)
        largest = xp.max(xp.abs(squashed), axis=axes, keepdims=True) if axes else xp.abs(squashed)
        largest = xp.maximum(largest, xp.zeros_like(largest) + np.float32(2.0**-60))
        return xp.cast(xp.divide(squashed, largest) * threshold, xp.dtype(x))


@mark_quantizer(QuantizationTarget.ACTIVATION, [QuantizationMethod.SYMMETRIC, QuantizationMethod.UNIFORM], "dorefa")
class DoReFaActivationQuantizer(STEQuantizer):
    """Clips to a fixed range and quantizes: the paper's [0, 1], or whatever range is given or calibrated.

    ``dy/dx = 1`` within the range, 0 outside.

    Source: Zhou et al., DoReFa-Net, 2016 (arXiv:1606.06160), section 2.4.

    Args and Raises: as `BaseTrainableQuantizer`.
    """
