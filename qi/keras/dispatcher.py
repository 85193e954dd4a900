"""The dispatcher on Keras layers."""

from __future__ import annotations

import keras

from qi.dispatch import NodeQuantizationDispatcher, policy_for
from qi.keras.variables import class_names, weights_of
from qi.quantizers import BaseQuantizer

__all__ = ["KerasNodeQuantizationDispatcher"]


class KerasNodeQuantizationDispatcher(NodeQuantizationDispatcher):
    """The quantizers of one Keras layer; see `qi.NodeQuantizationDispatcher` for what it accepts.

    Example:
        >>> import qi
        >>> w_quantizer = qi.WeightsSymmetricInferableQuantizer(num_bits=8, threshold=2, signed=True, per_channel=True)
        >>> qi.KerasNodeQuantizationDispatcher(w_quantizer).is_weights_quantization
        True
        >>> dispatcher = qi.KerasNodeQuantizationDispatcher(
        ...     {"kernel": w_quantizer}, [qi.ActivationUniformInferableQuantizer(8, min_range=0, max_range=6)]
        ... )
        >>> dispatcher.num_act_quantizers
        1
    """

    def bind_layer(self, layer: keras.layers.Layer) -> dict[str, BaseQuantizer]:
        """The quantizer of each weight path of a built layer; raises as `bind` does."""
        names = class_names(layer)
        shapes = {path: tuple(variable.shape) for path, variable in weights_of(layer).items()}
        return self.bind(shapes, policy_for(names), layer.name)
