"""The dispatcher on Keras layers."""

from __future__ import annotations

import keras

from qi.dispatch import NodeQuantizationDispatcher
from qi.keras.slots import layer_policy, slots_of
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
        choices = slots_of(layer)
        shapes = {path: tuple(choice.place.variable.shape) for path, choice in choices.items()}
        slots = {path: choice.slot for path, choice in choices.items() if choice.slot is not None}
        return self.bind(shapes, layer_policy(layer), layer.name, slots)
