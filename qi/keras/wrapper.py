"""KerasQuantizationWrapper: runs any Keras layer with quantized weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from qi.core import QParams, QTensor, packed_nbytes, unpack
from qi.core.packing import pack
from qi.dispatch import NodeQuantizationDispatcher
from qi.errors import ConfigError, FileFormatError, InputError
from qi.keras.dispatcher import KerasNodeQuantizationDispatcher
from qi.keras.variables import add_parameter, to_numpy, weights_of
from qi.quantizers import BaseInferableQuantizer

__all__ = ["KerasQuantizationWrapper"]


@dataclass(eq=False)
class _Binding:
    """One quantized weight: its quantizer, its variable, and the quantizer's parameters as variables."""

    quantizer: BaseInferableQuantizer
    variable: keras.Variable
    parameters: dict[str, keras.Variable]
    frozen: keras.Variable | None = None  # holds the quantized value; the variable itself when the wrapper owns the layer

    def qparams(self) -> QParams:
        granularity = self.quantizer.granularity(len(self.variable.shape))
        scale, zero_point = (to_numpy(self.parameters[name]) for name in ("scale", "zero_point"))
        return QParams(scale, zero_point, self.quantizer.grid, granularity)

    def current(self) -> BaseInferableQuantizer:
        """The quantizer with the parameters that its variables hold now."""
        return self.quantizer.with_qparams(*(to_numpy(self.parameters[name]) for name in ("scale", "zero_point")))


@keras.saving.register_keras_serializable(package="qi")
class KerasQuantizationWrapper(keras.layers.Layer):
    """Stands in for a layer and emulates it with quantized weights (and outputs).

    The layer is run with its variables' values replaced, inside ``keras.StatelessScope``: no attribute is set, so every
    layer works, its own weights stay as they are, and gradients reach them through the straight-through estimator.

    After `freeze` the weights are quantized once and for all instead of at every call; they no longer train, and saved
    files hold packed codes and scales in place of floats. `qi.quantize_model` gives frozen wrappers.

    Args:
        layer: the layer to wrap, built or not.
        dispatcher: which quantizer goes to which weight and output (see `qi.KerasNodeQuantizationDispatcher`).
        name: of the wrapper; ``quant_<layer name>`` by default.

    Raises:
        ConfigError: not a layer, not a dispatcher, a layer that is wrapped already; at build: a path that the layer doesn't
            have (the message lists those it has), or parameters that don't fit a weight's shape.

    Example:
        >>> import keras, numpy as np, qi
        >>> layer = keras.layers.Dense(2, kernel_initializer=keras.initializers.Constant(0.3))
        >>> quantizer = qi.WeightsSymmetricInferableQuantizer(num_bits=2, threshold=1, per_channel=True)
        >>> wrapper = qi.KerasQuantizationWrapper(layer, qi.KerasNodeQuantizationDispatcher(quantizer))
        >>> np.asarray(wrapper(np.ones((1, 3), "float32"))).tolist()
        [[1.5, 1.5]]
    """

    def __init__(self, layer: keras.layers.Layer, dispatcher: NodeQuantizationDispatcher, **kwargs: Any) -> None:
        if not isinstance(layer, keras.layers.Layer):
            raise ConfigError(f"expected a Keras layer; received layer={layer!r} of type {type(layer).__name__}")
        if isinstance(layer, KerasQuantizationWrapper):
            raise ConfigError(f"expected a layer that isn't wrapped yet; received the wrapper {layer.name!r}")
        if not isinstance(dispatcher, NodeQuantizationDispatcher):
            raise ConfigError(
                f"expected a KerasNodeQuantizationDispatcher; received dispatcher={dispatcher!r}; "
                "do wrap quantizers in qi.KerasNodeQuantizationDispatcher(...)"
            )
        frozen = kwargs.pop("frozen", False)
        # The inner layer follows its own dtype policy; out here nothing may be cast.
        super().__init__(**{"dtype": "float32", "autocast": False, "name": f"quant_{layer.name}"} | kwargs)
        if not isinstance(dispatcher, KerasNodeQuantizationDispatcher):
            dispatcher = KerasNodeQuantizationDispatcher(dispatcher.weight_quantizers, dispatcher.activation_quantizers)
        self.layer = layer
        self.dispatcher = dispatcher
        self.supports_masking = layer.supports_masking
        self._owns_layer = frozen  # only a wrapper read from a config is made frozen, and its layer is its own
        self._is_frozen = frozen
        self._bindings: dict[str, _Binding] = {}
        self._outputs: list[dict[str, keras.Variable]] = []

    # Building -----------------------------------------------------------------------------------------------------------

    def build(self, input_shape: Any = None) -> None:
        """Builds the layer, binds the quantizers and makes their parameter variables."""
        if not self.layer.built:
            self.layer.build(input_shape)
            self.layer.built = True
        variables = weights_of(self.layer)
        bound = self.dispatcher.bind_layer(self.layer)
        for path, quantizer in bound.items():
            arrays = quantizer.parameters(tuple(variables[path].shape))
            if self._is_frozen:  # read from a file: the arrays' shapes are the weight's, whatever the placeholder's
                shape = quantizer.granularity(len(variables[path].shape)).param_shape(tuple(variables[path].shape))
                arrays = {name: np.broadcast_to(array, shape) for name, array in arrays.items()}
            prefix = path.replace("/", "_")
            parameters = {name: add_parameter(self, f"{prefix}_{name}", array) for name, array in arrays.items()}
            self._bindings[path] = _Binding(quantizer, variables[path], parameters)
        for i, quantizer in enumerate(self.dispatcher.activation_quantizers):
            arrays = quantizer.parameters((1,))
            self._outputs.append(
                {name: add_parameter(self, f"output_{i}_{name}", a.reshape(())) for name, a in arrays.items()}
            )
        if self._is_frozen:
            self._settle()
        self.built = True

    def _settle(self) -> None:
        """Makes each quantized weight its own frozen value (the wrapper owns the layer)."""
        for binding in self._bindings.values():
            binding.frozen = binding.variable
            binding.variable.trainable = False

    def get_build_config(self) -> dict[str, Any]:
        """How the inner layer was built."""
        return {"layer": self.layer.get_build_config()}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Builds the inner layer as it was, then binds."""
        if config.get("layer") and not self.layer.built:
            self.layer.build_from_config(config["layer"])
        if self.layer.built:
            self.build(None)

    # Running ------------------------------------------------------------------------------------------------------------

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The layer's output with quantized weights, quantized itself where activation quantizers are bound."""
        substitutes = {
            id(b.variable): b.quantizer.apply(b.variable.value, b.parameters) if b.frozen is None else b.frozen.value
            for b in self._bindings.values()
            if b.frozen is not b.variable
        }
        outputs = (
            self._run_with(substitutes, inputs, args, kwargs) if substitutes else self.layer(inputs, *args, **kwargs)
        )
        return self._quantize_outputs(outputs) if self._outputs else outputs

    def _run_with(self, substitutes: Mapping[int, Any], inputs: Any, args: Any, kwargs: Any) -> Any:
        # All variables are snapshot, since an inner scope doesn't see an outer one.
        before = [(v, substitutes.get(id(v), v.value)) for v in weights_of(self.layer).values()]
        with keras.StatelessScope(state_mapping=before, collect_losses=True) as scope:
            outputs = self.layer(inputs, *args, **kwargs)
        for variable, value in before:
            after = scope.get_current_value(variable)
            if after is not value and id(variable) not in substitutes:
                variable.assign(after)
        for loss in scope.losses:
            self.add_loss(loss)
        return outputs

    def _quantize_outputs(self, outputs: Any) -> Any:
        flat = keras.tree.flatten(outputs)
        self.dispatcher.check_outputs(len(flat), self.layer.name)
        quantizers = self.dispatcher.activation_quantizers
        done = [q.apply(x, p) for q, x, p in zip(quantizers, flat, self._outputs, strict=True)]
        return keras.tree.pack_sequence_as(outputs, done)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The layer's mask."""
        return self.layer.compute_mask(inputs, previous_mask)

    # Quantized weights --------------------------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """Whether the weights are quantized once and for all."""
        return self._is_frozen

    @property
    def quantizers(self) -> dict[str, BaseInferableQuantizer]:
        """The weight quantizers by path, with their axes and current parameters."""
        return {path: binding.current() for path, binding in self._bindings.items()}

    def get_quantized_weights(self) -> dict[str, np.ndarray]:
        """The quantized value of every bound weight by path, as numpy arrays in the weight's shape and dtype."""
        return {path: tensor.dequantize() for path, tensor in self.get_quantized_tensors().items()}

    def get_quantized_tensors(self) -> dict[str, QTensor]:
        """Integer codes with scale and zero point of every bound weight by path."""
        return {path: self._qtensor(path, binding) for path, binding in self._bindings.items()}

    def _qtensor(self, path: str, binding: _Binding) -> QTensor:
        qparams = binding.qparams()
        source = to_numpy(binding.variable if binding.frozen is None else binding.frozen)
        if np.isnan(source).any():
            raise InputError(f"expected finite weights; received NaN in {path!r} of layer {self.layer.name!r}")
        tensor = qparams.quantize(source)
        if binding.frozen is not None and not np.array_equal(tensor.dequantize(), source):
            raise InputError(
                f"expected frozen weight {path!r} of layer {self.layer.name!r} on its grid; it was changed after freeze(); "
                "do call freeze() again"
            )
        return tensor

    def freeze(self, *, in_place: bool = False) -> KerasQuantizationWrapper:
        """Quantizes the weights now, once, instead of at every call.

        Args:
            in_place: True writes the quantized values into the wrapped layer itself, which saves memory; False keeps the
                layer as it is and holds them beside it.

        Returns:
            the wrapper.

        Raises:
            InputError: the wrapper isn't built yet, or a weight holds NaN.
        """
        if not self.built:
            raise InputError(f"expected a built wrapper; {self.name!r} has no weights yet; do call it once, or build it")
        for binding in self._bindings.values():
            if binding.frozen is not binding.variable:
                binding.frozen = None
        values = self.get_quantized_weights()
        self._is_frozen, self._owns_layer = True, in_place
        for path, binding in self._bindings.items():
            if in_place:
                binding.variable.assign(values[path])
            else:
                binding.frozen = add_parameter(self, path.replace("/", "_") + "_quantized", values[path])
        if in_place:
            self._settle()
        return self

    # Saving -------------------------------------------------------------------------------------------------------------

    def __dir__(self) -> list[str]:
        # Keras' saver walks dir(): without the inner layer there, this wrapper alone decides what is stored of it.
        return [name for name in super().__dir__() if name != "layer"]

    def save_own_variables(self, store: Any) -> None:
        """Stores every variable by name: frozen weights as packed codes, the rest as they are."""
        for path, variable in weights_of(self.layer).items():
            key, binding = path.replace("/", "."), self._bindings.get(path)
            if binding is not None:
                qparams = binding.qparams()
                store[f"{key}:scale"] = qparams.scale
                if qparams.zero_point.any():
                    store[f"{key}:zero_point"] = qparams.zero_point
            if binding is not None and binding.frozen is not None:
                tensor = self._qtensor(path, binding)
                store[f"{key}:codes"] = pack(tensor.codes, tensor.bits)
            else:
                store[key] = variable
        for i, parameters in enumerate(self._outputs):
            for name, variable in parameters.items():
                store[f"output.{i}:{name}"] = variable

    def load_own_variables(self, store: Any) -> None:
        """Reads what `save_own_variables` stored."""
        present = set(store.keys())

        def read(key: str) -> Any:
            if key not in present:
                raise FileFormatError(f"expected {key!r} for layer {self.layer.name!r}; the file holds {sorted(present)}")
            return np.asarray(store[key])

        for path, variable in weights_of(self.layer).items():
            key, binding = path.replace("/", "."), self._bindings.get(path)
            if binding is not None:
                zero = f"{key}:zero_point"
                binding.parameters["scale"].assign(read(f"{key}:scale"))
                binding.parameters["zero_point"].assign(
                    read(zero).astype(np.float32) if zero in present else keras.ops.zeros(binding.parameters["scale"].shape)
                )
            if binding is not None and binding.frozen is not None:
                binding.frozen.assign(self._decode(binding, read(f"{key}:codes")))
            else:
                variable.assign(store[key] if key in present else read(key))
        for i, parameters in enumerate(self._outputs):
            for name, variable in parameters.items():
                variable.assign(read(f"output.{i}:{name}"))

    def _decode(self, binding: _Binding, data: np.ndarray) -> np.ndarray:
        qparams, shape = binding.qparams(), tuple(binding.variable.shape)
        bits = binding.quantizer.num_bits
        if data.size != packed_nbytes(int(np.prod(shape)), bits):
            raise FileFormatError(f"expected {bits}-bit codes of shape {shape}; received {data.size} bytes")
        signed = getattr(qparams.grid, "signed", False) and hasattr(qparams.grid, "qmin")
        return QTensor(unpack(data, bits, shape, signed=signed), qparams).dequantize()

    def get_config(self) -> dict[str, Any]:
        """Structure of the layer and its quantizers; a frozen wrapper's arrays are stored as variables instead."""
        record = self.dispatcher.get_config()
        bound = {p: (b.quantizer.placeholder() if self._is_frozen else b.current()) for p, b in self._bindings.items()}
        if bound:
            record["weight_quantizers"] = {path: quantizer.to_dict() for path, quantizer in bound.items()}
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
            "dispatcher": record,
            "frozen": self._is_frozen,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KerasQuantizationWrapper:
        """A wrapper from `get_config`'s record, with a layer of its own."""
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer, KerasNodeQuantizationDispatcher.from_config(config.pop("dispatcher")), **config)
