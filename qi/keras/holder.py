"""KerasActivationQuantizationHolder: a layer that quantizes a tensor between layers."""

from __future__ import annotations

from typing import Any

import keras

from qi.errors import ConfigError, InputError
from qi.keras.variables import add_parameter
from qi.quantizers import BaseInferableQuantizer, QuantizationTarget, quantizer_from_dict

__all__ = ["KerasActivationQuantizationHolder"]


def _check_one(inputs: Any) -> None:
    if isinstance(inputs, (list, tuple, dict)):
        raise InputError(
            f"expected one tensor; received {type(inputs).__name__} of {len(inputs)}; do use one holder for each tensor"
        )


@keras.saving.register_keras_serializable(package="qi")
class KerasActivationQuantizationHolder(keras.layers.Layer):
    """Fake-quantizes its input with an activation quantizer.

    Scale and zero point are float32 variables, so no graph optimizer can change the arithmetic; the computation is float32
    under every dtype policy and the result has the input's dtype. Called several times, it shares its parameters.

    Args:
        quantizer: an activation quantizer.
        name: of the layer.

    Raises:
        ConfigError: not an activation quantizer.

    Example:
        >>> import numpy as np, qi
        >>> holder = qi.KerasActivationQuantizationHolder(qi.ActivationPOTInferableQuantizer(2, 2.0, signed=True))
        >>> np.asarray(holder(np.array([0.6, 5.0], "float32"))).tolist()
        [1.0, 1.0]
    """

    def __init__(self, quantizer: BaseInferableQuantizer, **kwargs: Any) -> None:
        if not isinstance(quantizer, BaseInferableQuantizer) or (
            quantizer.quantization_target is not QuantizationTarget.ACTIVATION
        ):
            raise ConfigError(f"expected an activation quantizer; received {quantizer!r}")
        # Float16 inputs are neither cast nor their parameters: the quantizer itself computes in float32.
        super().__init__(**{"dtype": "float32", "autocast": False} | kwargs)
        self.quantizer = quantizer
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Makes the variables ``scale`` and ``zero_point``."""
        parameters = self.quantizer.parameters((1,))
        self._parameters = {name: add_parameter(self, name, value.reshape(())) for name, value in parameters.items()}
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The fake-quantized input.

        Raises:
            InputError: inputs is a structure of tensors.
        """
        _check_one(inputs)
        return self.quantizer.apply(inputs, self._parameters)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The input's shape."""
        return input_shape

    def compute_output_spec(self, inputs: Any) -> Any:
        """The symbolic output, with the input's dtype."""
        _check_one(inputs)
        # Given outright: Keras calls some dense tensors sparse (a product with a number), and tracing would believe it.
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype if "float" in inputs.dtype else "float32")

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments; the quantizer as a plain record."""
        return {**super().get_config(), "quantizer": self.quantizer.to_dict()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KerasActivationQuantizationHolder:
        """A holder from `get_config`'s record."""
        config = dict(config)
        return cls(quantizer_from_dict(config.pop("quantizer")), **config)
