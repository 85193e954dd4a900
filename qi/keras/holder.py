"""KerasActivationQuantizationHolder: a layer that quantizes a tensor between layers."""

from __future__ import annotations

from typing import Any

import keras

from qi.errors import ConfigError, InputError
from qi.keras.bound import Bound, bind_quantizer
from qi.quantizers import BaseQuantizer, QuantizationTarget, quantizer_from_dict

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

    def __init__(self, quantizer: BaseQuantizer, **kwargs: Any) -> None:
        if not isinstance(quantizer, BaseQuantizer) or (
            quantizer.quantization_target is not QuantizationTarget.ACTIVATION
        ):
            raise ConfigError(f"expected an activation quantizer; received {quantizer!r}")
        # Float16 inputs are neither cast nor their parameters: the quantizer itself computes in float32.
        super().__init__(**{"dtype": "float32", "autocast": False} | kwargs)
        self._given = quantizer
        self._bound: Bound | None = None
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Makes the quantizer's variables: ``scale`` and ``zero_point`` where it is inferable."""
        self._bound = bind_quantizer(self, self._given, (1,), reshape=())
        self.built = True

    @property
    def quantizer(self) -> BaseQuantizer:
        """The quantizer: as given, or as a callback replaced it since."""
        return self._given if self._bound is None else self._bound.quantizer

    @property
    def bound(self) -> Bound:
        """The quantizer with its variables; InputError where the holder isn't built."""
        if self._bound is None:
            raise InputError(f"expected a built layer; {self.name!r} has no variables yet; do call it once")
        return self._bound

    def call(self, inputs: Any, training: Any = None) -> Any:
        """The fake-quantized input; None, where a model's optional input is left out, stays None.

        Raises:
            InputError: inputs is a structure of tensors.
        """
        if inputs is None:
            return None
        _check_one(inputs)
        return self.bound(inputs, training)

    def convert2inferable(self) -> KerasActivationQuantizationHolder:
        """A holder of the same name with the inferable quantizer that the variables stand for now.

        Raises:
            InputError: the holder isn't built.
            ConfigError: its quantizer is inferable already.
        """
        if not self.bound.trains:
            raise ConfigError(f"expected a trainable quantizer in {self.name!r}; received {self.quantizer!r}")
        return KerasActivationQuantizationHolder(self.bound.current(), name=self.name)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The input's shape."""
        return input_shape

    def compute_output_spec(self, inputs: Any, training: Any = None) -> Any:
        """The symbolic output, with the input's dtype."""
        _check_one(inputs)
        # Given outright: Keras calls some dense tensors sparse (a product with a number), and tracing would believe it.
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype if "float" in inputs.dtype else "float32")

    def save_own_variables(self, store: Any) -> None:
        """Stores the variables as Keras does, and the state of the noise where there is some."""
        super().save_own_variables(store)
        if self.bound.generator is not None:
            store["noise"] = self.bound.generator.state

    def load_own_variables(self, store: Any) -> None:
        """Reads what `save_own_variables` stored."""
        present = set(store.keys())
        if self.bound.generator is not None and "noise" in present:
            self.bound.generator.state.assign(store["noise"])
        super().load_own_variables({key: store[key] for key in present - {"noise"}})

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments; the quantizer as a plain record."""
        return {**super().get_config(), "quantizer": self.quantizer.to_dict()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KerasActivationQuantizationHolder:
        """A holder from `get_config`'s record."""
        config = dict(config)
        return cls(quantizer_from_dict(config.pop("quantizer")), **config)
