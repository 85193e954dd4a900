"""A clamp whose limit differs from channel to channel."""

from __future__ import annotations

from typing import Any

import keras

__all__ = ["ChannelCap"]


@keras.saving.register_keras_serializable(package="qi")
class ChannelCap(keras.layers.Layer):
    """The lesser of x and a number for each channel: what ReLU6 cuts off, once its channels were scaled.

    Args:
        value: of all channels, to begin with.

    Shapes: ``[..., C]`` to the same. The numbers are the non-trainable variable ``caps``, float32 ``[C]``.
    """

    def __init__(self, value: float = 6.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value = float(value)
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Makes the variable."""
        self.caps = self.add_weight(
            name="caps",
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.value),
            trainable=False,
            dtype="float32",
        )

    def call(self, x: Any) -> Any:
        """The lesser of the two."""
        return keras.ops.minimum(x, keras.ops.cast(self.caps, x.dtype))

    def compute_output_spec(self, x: Any) -> Any:
        """As the input."""
        return keras.KerasTensor(x.shape, x.dtype)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return super().get_config() | {"value": self.value}
