"""KerasQuantizationWrapper: runs any Keras layer with quantized weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras
import numpy as np

from qi.core import IntGrid, QTensor, packed_nbytes, unpack
from qi.core.grid import code_bits
from qi.core.packing import pack
from qi.dispatch import NodeQuantizationDispatcher
from qi.errors import ConfigError, FileFormatError, InputError
from qi.keras.bound import Bound, WeightBinding, bind_quantizer
from qi.keras.dispatcher import KerasNodeQuantizationDispatcher
from qi.keras.inner import InnerQuantizers
from qi.keras.layers import build_by, build_configs, finalize_layer, rebuild_layer
from qi.keras.signatures import signature_around
from qi.keras.variables import add_parameter, build_layer, first_value, to_numpy, weights_of
from qi.quantizers import BaseInferableQuantizer

__all__ = ["KerasQuantizationWrapper"]


@dataclass(eq=False)
class _Inside:
    """The wrapped layer's variables by path, in an object of ours: a dict Keras would track as the wrapper's own state."""

    weights: dict[str, keras.Variable] = field(default_factory=dict)
    run: Callable[..., Any] | None = None
    only: list[str] | None = None
    around: list[keras.Variable] = field(default_factory=list)

    @property
    def stored(self) -> list[tuple[str, keras.Variable]]:
        return [item for item in self.weights.items() if self.only is None or item[0] in self.only]


def _unshared(record: Any, owner: str) -> Any:
    """A layer's record whose objects are shared within it only: another part of the model may need the float layer."""
    if isinstance(record, list):
        return [_unshared(item, owner) for item in record]
    if not isinstance(record, dict):
        return record
    copy = {key: _unshared(value, owner) for key, value in record.items()}
    return copy | ({"shared_object_id": f"{owner}/{copy['shared_object_id']}"} if "shared_object_id" in copy else {})


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
            dispatcher = KerasNodeQuantizationDispatcher(
                dispatcher.weight_quantizers, dispatcher.activation_quantizers, dispatcher.inner_quantizers
            )
        self.layer = layer
        self.dispatcher = dispatcher
        self.supports_masking = layer.supports_masking
        self._call_signature = signature_around(layer)
        self._owns_layer = frozen  # only a wrapper read from a config is made frozen, and its layer is its own
        self._is_frozen = frozen
        self._inside = _Inside()
        self._bindings: dict[str, WeightBinding] = {}
        self._outputs: list[Bound] = []
        self._inner = InnerQuantizers()

    # Building -----------------------------------------------------------------------------------------------------------

    def build(self, input_shape: Any = None) -> None:
        """Builds the layer, binds the quantizers and makes their parameter variables.

        Raises:
            ConfigError: as the class says.
            InputError: the layer isn't built and can't be built from one shape.
        """
        if not self.layer.built:
            build_layer(self.layer, input_shape)
        variables = self._inside.weights = weights_of(self.layer)
        for path, quantizer in self.dispatcher.bind_layer(self.layer).items():
            if not quantizer.enabled:
                continue  # stays in float, as if it had none
            shape, prefix = tuple(variables[path].shape), f"{path.replace('/', '_')}_"
            bound = bind_quantizer(self, quantizer, shape, first_value(variables[path]), prefix=prefix)
            self._bindings[path] = WeightBinding(bound, variables[path])
        for i, quantizer in enumerate(self.dispatcher.activation_quantizers):
            self._outputs.append(bind_quantizer(self, quantizer, (1,), prefix=f"output_{i}_", reshape=()))
        self._inner.bind(self, self.layer, self.dispatcher.inner_quantizers)
        if self._is_frozen:
            self._settle()
        self.built = True

    def _settle(self) -> None:
        """Makes each quantized weight its own frozen value (the wrapper owns the layer)."""
        for binding in self._bindings.values():
            binding.frozen = binding.variable
            binding.variable.trainable = False

    @property
    def trainable(self) -> bool:
        """Whether what isn't frozen trains."""
        return keras.layers.Layer.trainable.fget(self)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Layer.trainable.fset(self, value)
        if self._owns_layer:
            self._settle()

    @property
    def variables(self) -> list[keras.Variable]:
        """All state; a weight frozen beside its layer stands in place of the layer's own."""
        return self._with_frozen(super().variables)

    @property
    def weights(self) -> list[keras.Variable]:
        """All weights; a weight frozen beside its layer stands in place of the layer's own."""
        return self._with_frozen(super().weights)

    def _with_frozen(self, variables: list[keras.Variable]) -> list[keras.Variable]:
        bindings = self._bindings.values()
        swapped = {id(b.variable): b.frozen for b in bindings if b.frozen is not None}
        made = {id(b.beside) for b in bindings if b.beside is not None}
        return [swapped.get(id(variable), variable) for variable in variables if id(variable) not in made]

    def get_build_config(self) -> dict[str, Any]:
        """How the inner layer was built, and all layers in it."""
        return {"layer": self.layer.get_build_config(), "within": build_configs(self.layer)}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Builds the inner layer as it was, then binds."""
        if not self.layer.built:
            build_by(self.layer, config.get("within"), config.get("layer"))
        if self.layer.built:
            self.build(None)

    # Running ------------------------------------------------------------------------------------------------------------

    def call(self, inputs: Any, *args: Any, training: Any = None, **kwargs: Any) -> Any:
        """The layer's output with quantized weights, quantized itself where activation quantizers are bound."""
        substitutes = {
            id(b.variable): self.quantized_weight(path, training)
            for path, b in self._bindings.items()
            if b.frozen is not b.variable or training  # some layers change their weights as they train
        }
        if training is not None:
            kwargs["training"] = training
        run = partial(self._run_with, substitutes) if substitutes else self._run
        with self._inner.running(training):
            outputs = run(inputs, *args, **kwargs)
        return self._quantize_outputs(outputs, training) if self._outputs else outputs

    @property
    def layer_weights(self) -> dict[str, keras.Variable]:
        """The variables of the wrapped layer by path; empty before it is built."""
        return dict(self._inside.weights)

    def quantized_weight(self, path: str, training: Any = None) -> Any:
        """The fake-quantized value of a bound weight, as a tensor."""
        binding = self._bindings[path]
        return binding.bound(binding.variable.value, training) if binding.frozen is None else binding.frozen.value

    def run_with(self, values: Mapping[str, Any], inputs: Any) -> Any:
        """The layer's output with other values for some of its weights, by path."""
        return self._run_with({id(self._inside.weights[path]): value for path, value in values.items()}, inputs)

    def hooked(self, run: Callable[..., Any], stored: list[str] | None, around: list[keras.Variable]) -> None:
        """Makes it what a hook on its layer calls: `run` runs the layer, files hold `stored` here, and `around` is read too."""
        self._inside.run, self._inside.only, self._inside.around = run, stored, around

    def _run(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        # No property: Keras' saver would find the layer in it.
        return (self._inside.run or self.layer)(inputs, *args, **kwargs)

    def _run_with(self, substitutes: Mapping[int, Any], inputs: Any, *args: Any, **kwargs: Any) -> Any:
        # All variables are snapshot, since an inner scope doesn't see an outer one.
        known = {id(v): v for v in (*self._inside.weights.values(), *self._inside.around, *self._inner.variables)}
        before = [(v, substitutes.get(key, v.value)) for key, v in known.items()]
        with keras.StatelessScope(state_mapping=before, collect_losses=True) as scope:
            held = [
                (v, scope.get_current_value(v)) for v, _ in before
            ]  # the scope may hold a copy, as on torch's meta device
            outputs = self._run(inputs, *args, **kwargs)
        for variable, value in held:
            after = scope.get_current_value(variable)
            if after is value:
                continue
            if id(variable) not in substitutes:
                variable.assign(after)
            elif not self._is_frozen:
                # What the layer adds to the quantized weight is added to the weight itself.
                variable.assign(variable + keras.ops.cast(keras.ops.stop_gradient(after - value), variable.dtype))
        for loss in scope.losses:
            # It is the wrapper's from here on: within an outer scope its maker would count it once more.
            for sub_layer in self.layer._flatten_layers():
                sub_layer._loss_ids.discard(id(loss))
            self.add_loss(loss)
        return outputs

    def _quantize_outputs(self, outputs: Any, training: Any) -> Any:
        flat = keras.tree.flatten(outputs)
        self.dispatcher.check_outputs(len(flat), self.layer.name)
        done = [bound(x, training) for bound, x in zip(self._outputs, flat, strict=True)]
        return keras.tree.pack_sequence_as(outputs, done)

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's output shape."""
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Symbolic outputs, found by tracing `call`: the layer's dtype policy decides their dtype."""
        # Keras calls some dense tensors sparse (a product with a number), and tracing would believe it.
        dense = lambda x: keras.KerasTensor(x.shape, dtype=x.dtype) if getattr(x, "sparse", False) else x
        args, kwargs = keras.tree.map_structure(dense, (args, kwargs))
        return keras.Operation.compute_output_spec(self, *args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The layer's mask."""
        return self.layer.compute_mask(inputs, previous_mask)

    # Quantized weights --------------------------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """Whether the weights are quantized once and for all."""
        return self._is_frozen

    @property
    def trains(self) -> bool:
        """Whether any of its quantizers is trainable."""
        return any(bound.trains for bound in self.bounds.values())

    @property
    def bounds(self) -> dict[str, Bound]:
        """Its quantizers with their variables: by weight path, "output_0"... of outputs, and "cell/output_0"... within."""
        weights = {path: binding.bound for path, binding in self._bindings.items()}
        return weights | {f"output_{i}": bound for i, bound in enumerate(self._outputs)} | self._inner.bounds

    def get_source(self, path: str) -> np.ndarray:
        """What the quantizer of a weight quantizes: the weight as it is, or what a trainable quantizer makes of it first."""
        return self._bindings[path].source()

    @property
    def quantizers(self) -> dict[str, BaseInferableQuantizer]:
        """The weight quantizers by path, with their axes and current parameters."""
        return {path: binding.bound.current() for path, binding in self._bindings.items()}

    @property
    def output_quantizers(self) -> list[BaseInferableQuantizer]:
        """The activation quantizers of the outputs with their current parameters; none where they are disabled."""
        enabled = any(bound.quantizer.enabled for bound in self._outputs)
        return [bound.current() for bound in self._outputs] if enabled else []

    @property
    def inner_quantizers(self) -> dict[str, list[BaseInferableQuantizer | None]]:
        """The activation quantizers within the layer, by path of the inner layer, with their current parameters."""
        return self._inner.current()

    def get_quantized_weights(self) -> dict[str, np.ndarray]:
        """The quantized value of every bound weight by path, as numpy arrays in the weight's shape and dtype."""
        return {path: tensor.dequantize() for path, tensor in self.get_quantized_tensors().items()}

    def get_quantized_tensors(self) -> dict[str, QTensor]:
        """Integer codes with scale and zero point of every bound weight by path."""
        return {path: self._qtensor(path, binding) for path, binding in self._bindings.items()}

    def _qtensor(self, path: str, binding: WeightBinding) -> QTensor:
        if binding.frozen is None:
            return self._quantized(path, binding)
        source = to_numpy(binding.frozen)
        tensor = binding.qparams().quantize(source)
        if not np.array_equal(tensor.dequantize(), source):
            raise InputError(
                f"expected frozen weight {path!r} of layer {self.layer.name!r} on its grid; it was changed after freeze(); "
                "do call freeze() again"
            )
        return tensor

    def _quantized(self, path: str, binding: WeightBinding) -> QTensor:
        source = binding.source()
        if np.isnan(source).any():
            raise InputError(f"expected finite weights; received NaN in {path!r} of layer {self.layer.name!r}")
        return binding.qparams().quantize(source)

    def freeze(self, *, in_place: bool = False) -> KerasQuantizationWrapper:
        """Quantizes the weights now, once, instead of at every call.

        Frozen again, it takes the layer's weights as they are then. A compiled model must be compiled again to notice.

        Args:
            in_place: True writes the quantized values into the wrapped layer itself, which saves memory; False keeps the
                layer as it is and holds them beside it (unless they are in place already).

        Returns:
            the wrapper.

        Raises:
            InputError: the wrapper isn't built yet, or a weight holds NaN.
        """
        if not self.built:
            raise InputError(
                f"expected a built wrapper; {self.name!r} has no weights yet; do call it once, or build it"
            )
        training = [path for path, binding in self._bindings.items() if binding.bound.trains]
        if training:
            raise ConfigError(
                f"expected inferable quantizers to freeze; {training} of layer {self.layer.name!r} train; "
                "do call convert2inferable() first"
            )
        values = {path: self._quantized(path, binding).dequantize() for path, binding in self._bindings.items()}
        self._is_frozen, self._owns_layer = True, in_place or self._owns_layer
        for path, binding in self._bindings.items():
            if self._owns_layer:
                binding.variable.assign(values[path])
            elif binding.beside is None:
                name, dtype = f"{path.replace('/', '_')}_quantized", binding.variable.dtype
                binding.frozen = binding.beside = add_parameter(self, name, values[path], dtype)
            else:
                binding.beside.assign(values[path])
        if self._owns_layer:
            self._settle()
        return self

    def convert2inferable(self) -> KerasQuantizationWrapper:
        """A wrapper of the same name around the same layer, with the inferable quantizers that the trainable ones became.

        Where a quantizer quantizes something made of the weight (DoReFa), the new wrapper's layer is a copy that holds that.

        Raises:
            InputError: the wrapper isn't built, or training left NaN or infinities.
            ConfigError: none of its quantizers trains.
        """
        if not self.built:
            raise InputError(
                f"expected a built wrapper; {self.name!r} has no variables yet; do call it once, or build it"
            )
        if not self.trains:
            raise ConfigError(f"expected trainable quantizers in {self.name!r}; they all are inferable already")
        layer, changed = self.layer, {}
        for path, binding in self._bindings.items():
            source = binding.source()
            if binding.bound.trains and not np.array_equal(source, to_numpy(binding.variable)):
                changed[path] = source
        if changed:
            layer = rebuild_layer(self.layer, values=changed)
        weights = {path: binding.bound.current() for path, binding in self._bindings.items()}
        outputs = self.output_quantizers
        dispatcher = KerasNodeQuantizationDispatcher(weights, outputs, self.inner_quantizers)
        result = KerasQuantizationWrapper(layer, dispatcher, name=self.name)
        result.build(None)
        return result

    # Saving -------------------------------------------------------------------------------------------------------------

    def __dir__(self) -> list[str]:
        # Keras' saver walks dir(): without the inner layer there, this wrapper alone decides what is stored of it.
        return [name for name in super().__dir__() if name != "layer"]

    def save_own_variables(self, store: Any) -> None:
        """Stores every variable by name: frozen weights as packed codes, the rest as they are."""
        for path, variable in self._inside.stored:
            key, binding = path.replace("/", "."), self._bindings.get(path)
            for name, parameter in binding.bound.variables.items() if binding is not None else ():
                value = to_numpy(parameter)
                if name != "zero_point" or value.any():
                    store[f"{key}:{name}"] = value.astype(np.int32) if name == "zero_point" else value
            if binding is not None and binding.bound.generator is not None:
                store[f"{key}:noise"] = binding.bound.generator.state
            if binding is not None and binding.frozen is not None:
                tensor = self._qtensor(path, binding)
                store[f"{key}:codes"] = pack(tensor.codes, tensor.bits)
            else:
                store[key] = variable
        for key, variable in self._activation_state():
            store[key] = variable

    def _activation_state(self) -> Iterator[tuple[str, keras.Variable]]:
        """What files hold of the quantizers of activations, by key."""
        outputs = {f"output.{i}": bound for i, bound in enumerate(self._outputs)}
        inner = {f"inner.{path.replace('/', '.')}": bound for path, bound in self._inner.bounds.items()}
        for key, bound in (outputs | inner).items():
            for name, variable in bound.state.items():
                yield f"{key}:{name}", variable

    def load_own_variables(self, store: Any) -> None:
        """Reads what `save_own_variables` stored."""
        present = set(store.keys())

        def read(key: str) -> Any:
            if key not in present:
                raise FileFormatError(
                    f"expected {key!r} for layer {self.layer.name!r}; the file holds {sorted(present)}"
                )
            return np.asarray(store[key])

        for path, variable in self._inside.stored:
            key, binding = path.replace("/", "."), self._bindings.get(path)
            for name, parameter in binding.bound.variables.items() if binding is not None else ():
                stored = f"{key}:{name}"
                zeros = name == "zero_point" and stored not in present
                parameter.assign(np.zeros(parameter.shape) if zeros else read(stored).astype(np.float32))
            if binding is not None and binding.bound.generator is not None:
                binding.bound.generator.state.assign(read(f"{key}:noise"))
            if binding is not None and binding.frozen is not None:
                binding.frozen.assign(self._decode(binding, read(f"{key}:codes")))
            else:
                variable.assign(store[key] if key in present else read(key))
        for key, variable in self._activation_state():
            variable.assign(read(key))
        finalize_layer(self.layer)  # Keras tells no layer that this wrapper loads for

    def _decode(self, binding: WeightBinding, data: np.ndarray) -> np.ndarray:
        qparams, shape = binding.qparams(), tuple(binding.variable.shape)
        grid = qparams.grid
        bits = code_bits(grid)
        if data.size != packed_nbytes(int(np.prod(shape)), bits):
            raise FileFormatError(f"expected {bits}-bit codes of shape {shape}; received {data.size} bytes")
        signed = isinstance(grid, IntGrid) and grid.signed
        return QTensor(unpack(data, bits, shape, signed=signed), qparams).dequantize()

    def get_config(self) -> dict[str, Any]:
        """Structure of the layer and its quantizers; a frozen wrapper's arrays are stored as variables instead."""
        record = self.dispatcher.get_config()
        bound = {
            p: b.bound.quantizer.placeholder() if self._is_frozen else b.bound.record()
            for p, b in self._bindings.items()
        }
        if bound:
            record["weight_quantizers"] = {path: quantizer.to_dict() for path, quantizer in bound.items()}
        if self._outputs:
            record["activation_quantizers"] = [output.quantizer.to_dict() for output in self._outputs]
        if self._inner.bounds:
            record["inner_quantizers"] = self._inner.records()
        layer = keras.saving.serialize_keras_object(self.layer)
        layer.pop("build_config", None)  # ours does it, tracing where a layer has no build of its own
        return {
            **super().get_config(),
            "layer": layer,
            "dispatcher": record,
            "frozen": self._is_frozen,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KerasQuantizationWrapper:
        """A wrapper from `get_config`'s record, with a layer of its own."""
        config = dict(config)
        record = config.pop("layer")
        if config.get("frozen"):
            record = _unshared(record, config.get("name", ""))
        layer = keras.saving.deserialize_keras_object(record)
        return cls(layer, KerasNodeQuantizationDispatcher.from_config(config.pop("dispatcher")), **config)
