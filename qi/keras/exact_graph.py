"""From fake quantization to the arithmetic of a runtime, and back: the same layers, called otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from qi.core import IntGrid
from qi.errors import ConfigError, UnsupportedError
from qi.ir.graph import take_name
from qi.ir.kinds import KINDS
from qi.keras.exact import EXACT_TARGETS, ExactDecode, ExactGrid, ExactPool, ExactSums
from qi.keras.fold import activation_name
from qi.keras.graph import Call, Graph, Value, build_model, build_tensors, flatten_model
from qi.keras.holder import KerasActivationQuantizationHolder
from qi.keras.traits import Role, is_fusable_activation, role_of
from qi.keras.wrapper import KerasQuantizationWrapper

__all__ = ["check_exact", "exact_target", "make_exact", "plain"]

_LINEAR = ("Dense", "Conv1D", "Conv2D", "DepthwiseConv1D", "DepthwiseConv2D", "Conv1DTranspose", "Conv2DTranspose")
_EXACT32 = 2**24


@dataclass(eq=False)
class _Codes:
    """A value as codes: three values of the exact graph."""

    codes: Value
    scale: Value
    zero: Value

    @property
    def all(self) -> list[Value]:
        return [self.codes, self.scale, self.zero]


@dataclass(eq=False)
class _Recipe:
    """How a value can be brought to a grid exactly: the step, what it takes, and the layer that has to run before."""

    step: str
    take: Callable[[_Writer], list[Value]]
    attrs: dict[str, Any] = field(default_factory=dict)
    activation: str = "none"
    layers: list[str] = field(default_factory=list)


def check_exact(exact: str | None) -> None:
    """Refuses what is no target.

    Raises:
        ConfigError: an unknown one.
        UnsupportedError: the backend can't do 64-bit sums.
    """
    if exact is None:
        return
    if exact not in EXACT_TARGETS:
        raise ConfigError(f"expected exact to be None or one of {EXACT_TARGETS}; received exact={exact!r}")
    if keras.backend.backend() == "jax":
        import jax

        if not jax.config.jax_enable_x64:
            raise UnsupportedError(
                f"expected 64-bit numbers for exact={exact!r}; JAX has them off; do set jax_enable_x64 before anything else"
            )


def exact_target(graph: Graph) -> str | None:
    """The target whose arithmetic a model has; None for plain fake quantization."""
    return next((call.op.target for call in graph.calls if isinstance(call.op, ExactGrid)), None)


def make_exact(model: keras.Model, target: str) -> keras.Model:
    """A model of the same layers that computes as a runtime does.

    Args:
        model: with wrappers and holders, inferable or trainable.
        target: one of `EXACT_TARGETS`.
    """
    graph = flatten_model(model)
    writer = _Writer(graph, target)
    for call in graph.calls:
        writer.write(call)
    outputs = [writer.real(value, name) for value, name in zip(graph.flat_outputs(), graph.output_names, strict=True)]
    graph.calls, graph.outputs = writer.calls, keras.tree.pack_sequence_as(graph.outputs, outputs)
    return build_model(graph, build_tensors(graph), kind=type(model))


class _Writer:
    """Writes the exact graph, call by call."""

    def __init__(self, graph: Graph, target: str) -> None:
        self.graph, self.target = graph, target
        self.calls: list[Call] = []
        self._consumers = graph.consumers()
        self._outputs = {id(value) for value in graph.flat_outputs()}
        self._codes: dict[int, _Codes] = {}
        self._recipes: dict[int, _Recipe] = {}
        self._real: dict[int, Value] = {}
        self._grids: dict[int, ExactGrid] = {}
        self._layers: dict[tuple[int, str], Any] = {}
        self._names = {call.op.name for call in graph.calls} | {value.name for value in graph.flat_inputs()}

    # What becomes of a call ---------------------------------------------------------------------------------------------

    def write(self, call: Call) -> None:
        """Adds what stands for a call."""
        if _is_held(call):
            self._hold(call)
            return
        recipe = self._recipe(call)
        if recipe is not None and self._held_next(call):
            recipe.layers.append(call.op.name)
            self._recipes[id(call.outputs[0])] = recipe
            return
        source = self._recipes.get(id(call.inputs[0])) if call.inputs else None
        if source is not None:  # an activation between what it is fused into and the quantizer
            source.activation = "relu6" if _is_relu6(call) else "relu"
            source.layers.append(call.op.name)
            self._recipes[id(call.outputs[0])] = source
            return
        moved = self._moved(call)
        if moved is None:
            call.inputs = [self.real(value) for value in call.inputs]
            self.calls.append(call)
        else:
            call.inputs = [codes.codes for codes in moved]
            self.calls.append(call)
            for value in call.outputs:
                self._codes[id(value)] = _Codes(value, moved[0].scale, moved[0].zero)

    def _hold(self, call: Call) -> None:
        source = call.inputs[0]
        recipe = self._recipes.get(id(source)) or _Recipe("real", lambda writer: [writer.real(source)])
        grid = self._grid(call)
        attrs = recipe.attrs | {"step": recipe.step, "activation": recipe.activation, "layers": recipe.layers}
        self._codes[id(call.outputs[0])] = self.emit(grid, call, recipe.take(self), 3, attrs, call.outputs[0].shape)

    def _grid(self, call: Call) -> ExactGrid:
        found = self._grids.get(id(call.op))
        if found is None:
            found = self._grids[id(call.op)] = ExactGrid(call.op, self.target, name=self.name(f"{call.op.name}_codes"))
        return found

    def _held_next(self, call: Call) -> bool:
        """Whether a quantizer follows, with at most a ReLU between, and nothing else sees the result."""
        value = call.outputs[0]
        for _ in range(2):
            after = self._consumers.get(id(value), [])
            if len(after) != 1 or id(value) in self._outputs:
                return False
            if _is_held(after[0]):
                return True
            if not is_fusable_activation(after[0]):
                return False
            value = after[0].outputs[0]
        return False

    def _moved(self, call: Call) -> list[_Codes] | None:
        """The codes that a call merely moves: all of one grid; None for other calls."""
        role = role_of(call)
        if role not in (Role.KEEPS, Role.JOINS) or not call.inputs:
            return None
        found = [self._codes.get(id(value)) for value in call.inputs]
        known = [codes for codes in found if codes is not None]
        same = len(known) == len(found) and all(_one_grid(codes, known[0]) for codes in known)
        return known if same else None

    # Recipes ------------------------------------------------------------------------------------------------------------

    def _recipe(self, call: Call) -> _Recipe | None:
        codes = [self._codes.get(id(value)) for value in call.inputs]
        if not codes or any(c is None for c in codes) or len(call.outputs) != 1:
            return None
        known = [c for c in codes if c is not None]
        kind = call.builtin_kind
        if isinstance(call.op, KerasQuantizationWrapper):
            linear = len(known) == 1 and _is_linear(call.op) and self._has_kernel(call.op.layer)
            return self._sums(call, known[0]) if linear else None
        if kind in ("Add", "Subtract", "Multiply") and len(known) == 2:
            sign = {"sign": -1} if kind == "Subtract" else {}
            step = "mul" if kind == "Multiply" else "add"
            if sign and self.target != "litert":
                return None
            return _Recipe(step, lambda writer: [*known[0].all, *known[1].all], sign)
        if kind == "Matmul" and len(known) == 2 and self._multiplies(call, known[1]):
            return _Recipe("matmul", lambda writer: [*known[0].all, *known[1].all])
        if kind in ("GlobalAveragePooling1D", "GlobalAveragePooling2D") and call.op.data_format == "channels_last":
            axes = list(range(1, len(call.inputs[0].shape) - 1))
            attrs = {"axes": axes, "keepdims": bool(call.op.keepdims)}
            return _Recipe("mean", lambda writer: known[0].all, attrs)
        if kind in ("AveragePooling1D", "AveragePooling2D") and self._pools(call, known[0]):
            return self._pool(call, known[0])
        return None

    def _has_kernel(self, layer: Any) -> bool:
        """Whether the target does such a layer in integers."""
        name = type(layer).__name__
        kind = "dense" if name == "Dense" else "depthwise_conv2d" if "Depthwise" in name else "conv2d"
        return self.target in KINDS.get("conv2d_transpose" if "Transpose" in name else kind).kernels

    def _multiplies(self, call: Call, second: _Codes) -> bool:
        """Whether the target multiplies such matrices in integers, and float32 holds every sum."""
        shapes = [value.shape for value in call.inputs]
        terms = shapes[0][-1]
        if len(shapes[0]) != len(shapes[1]) or len(shapes[0]) < 3 or terms is None or terms * 255 * 255 >= _EXACT32:
            return False
        grid = second.scale.producer.op if second.scale.producer is not None else None
        return self.target != "litert" or (isinstance(grid, ExactGrid) and _is_centred(grid.holder))

    def _pools(self, call: Call, codes: _Codes) -> bool:
        sizes = call.inputs[0].shape[1:]
        known = None not in sizes and call.op.data_format == "channels_last"
        return known and self._shares_grid(call, codes)

    def _shares_grid(self, call: Call, codes: _Codes) -> bool:
        after = self._consumers.get(id(call.outputs[0]), [])
        grid = codes.scale.producer.op if codes.scale.producer is not None else None
        if len(after) != 1 or not isinstance(after[0].op, KerasActivationQuantizationHolder) or grid is None:
            return False
        return grid.holder is after[0].op or _same_parameters(grid.holder, after[0].op)

    def _sums(self, call: Call, codes: _Codes) -> _Recipe:
        def take(writer: _Writer) -> list[Value]:
            make = lambda name: ExactSums(call.op, _needs_halves(call.op), name=name)
            layer = writer.layer(call.op, "sums", make)
            found = writer.emit(layer, call, [codes.codes, codes.scale], 2, {}, call.outputs[0].shape)
            return [found.codes, found.scale]

        return _Recipe("sums", take)

    def _pool(self, call: Call, codes: _Codes) -> _Recipe:
        layer = self.layer(call.op, "sums", lambda name: ExactPool(call.op, self.target, name=name))

        def take(writer: _Writer) -> list[Value]:
            found = writer.emit(layer, call, [codes.codes, codes.scale], 2, {}, call.outputs[0].shape)
            return [found.codes, found.scale, codes.scale, codes.zero]

        return _Recipe("pool", take, {"whole": layer.whole(call.inputs[0].shape)})

    # Writing ------------------------------------------------------------------------------------------------------------

    def layer(self, op: Any, kind: str, make: Callable[[str], Any]) -> Any:
        """One layer of ours for each of the given model's."""
        key = (id(op), kind)
        if key not in self._layers:
            self._layers[key] = make(self.name(f"{op.name}_{kind}"))
        return self._layers[key]

    def emit(self, op: Any, call: Call, inputs: list[Value], count: int, attrs: dict[str, Any], shape: Any) -> _Codes:
        """Adds a call of one of our layers, with `count` outputs."""
        outputs = [Value(tuple(shape), "float32")] + [Value((), "float32") for _ in range(count - 1)]
        made = Call(op, call.path, call.site, inputs, outputs, lambda tensors: (tuple(tensors), dict(attrs)))
        for value in outputs:
            value.producer = made
        self.calls.append(made)
        return _Codes(outputs[0], outputs[1], outputs[-1])

    def real(self, value: Value, output: str = "") -> Value:
        """The real numbers of a value; an output's have its name."""
        codes = self._codes.get(id(value))
        if codes is None:
            return value
        if id(value) not in self._real or output:
            fresh = output and output not in {call.op.name for call in self.calls}
            name = (
                output if fresh else self.name(f"{codes.codes.producer.op.name if codes.codes.producer else ''}_real")
            )
            result = Value(value.shape, "float32")
            call = Call(
                ExactDecode(name=name), name, name, [codes.codes, codes.scale], [result], lambda t: (tuple(t), {})
            )
            result.producer = call
            self.calls.append(call)
            self._real[id(value)] = result
        return self._real[id(value)]

    def name(self, wanted: str) -> str:
        """A name that no layer has."""
        return take_name(wanted, self._names)


def _is_held(call: Call) -> bool:
    """Whether a call is that of a quantizer with an integer grid: look-up tables stay as they are."""
    return isinstance(call.op, KerasActivationQuantizationHolder) and isinstance(call.op.quantizer.grid, IntGrid)


def _is_centred(holder: KerasActivationQuantizationHolder) -> bool:
    """Whether 0 has the middle code."""
    quantizer = holder.bound.current()
    grid: Any = quantizer.grid
    return bool(quantizer.qparams((1,)).zero_point.reshape(()) == (0 if grid.signed else 1 << (grid.bits - 1)))


def _same_parameters(one: KerasActivationQuantizationHolder, other: KerasActivationQuantizationHolder) -> bool:
    """Whether two quantizers are alike and stay so."""
    if one.bound.trains or other.bound.trains:
        return False
    return bool(one.bound.current().qparams((1,)) == other.bound.current().qparams((1,)))


def _one_grid(a: _Codes, b: _Codes) -> bool:
    return a.scale.producer is not None and b.scale.producer is not None and a.scale.producer.op is b.scale.producer.op


def _is_relu6(call: Call) -> bool:
    if call.builtin_kind == "ReLU":
        return call.op.max_value == 6
    return "relu6" in (activation_name(call.op), call.builtin_kind.lower())


def _is_linear(wrapper: KerasQuantizationWrapper) -> bool:
    """Whether a wrapper's sums can be integers: a plain kernel with one symmetric scale for all or for each channel."""
    layer, bounds = wrapper.layer, wrapper.bounds
    if type(layer).__name__ not in _LINEAR or not type(layer).__module__.startswith("keras"):
        return False
    if set(bounds) != {"kernel"} or activation_name(layer) not in ("linear", "relu"):
        return False  # ReLU commutes with a positive factor and rounding: the layer may apply it to the sums
    quantizer = bounds["kernel"].quantizer
    grouped = getattr(quantizer, "group_size", None) is not None
    plain_sums = activation_name(layer) == "linear" or not _needs_halves(wrapper)
    integers = isinstance(quantizer.grid, IntGrid) and quantizer.grid.signed and not grouped
    return integers and plain_sums and layer.compute_dtype == "float32"


def _needs_halves(wrapper: KerasQuantizationWrapper) -> bool:
    """Whether a sum could reach what float32 counts to; while weights train, with a factor of 2 in hand."""
    codes = wrapper.get_quantized_tensors()["kernel"].codes.astype(np.float64)
    axis = -2 if "Depthwise" in type(wrapper.layer).__name__ or "Transpose" in type(wrapper.layer).__name__ else -1
    axes = tuple(i for i in range(codes.ndim) if i != axis % codes.ndim)
    if "Depthwise" in type(wrapper.layer).__name__:
        axes = tuple(range(codes.ndim - 2))
    largest = 255 * float(np.abs(codes).sum(axis=axes).max(initial=0))
    return largest * (2 if wrapper.trains else 1) >= _EXACT32


def plain(graph: Graph) -> Graph:
    """The graph of wrappers and holders that an exact one was made of; others as they are.

    Args:
        graph: flat; changed in place.
    """
    if exact_target(graph) is None:
        return graph
    stands: dict[int, Value] = {}
    calls: list[Call] = []
    for call in graph.calls:
        inputs = [stands.get(id(value), value) for value in call.inputs]
        if isinstance(call.op, ExactDecode):
            stands[id(call.outputs[0])] = inputs[0]
        elif isinstance(call.op, (ExactSums, ExactPool)):
            op = call.op.wrapper if isinstance(call.op, ExactSums) else call.op.layer
            stands[id(call.outputs[0])] = _append(calls, op, call, inputs[:1])
        elif isinstance(call.op, ExactGrid):
            stands[id(call.outputs[0])] = _held(calls, call, inputs)
        else:
            call.inputs = inputs
            calls.append(call)
    graph.calls = calls
    graph.outputs = keras.tree.map_structure(lambda value: stands.get(id(value), value), graph.outputs)
    return graph


def _append(calls: list[Call], op: Any, call: Call, inputs: list[Value], arguments: Any = None) -> Value:
    result = Value(call.outputs[0].shape, "float32")
    above, slash, _ = call.path.rpartition("/")
    path, count = f"{above}{slash}{op.name}", call.site.partition("@")[2]
    made = Call(op, path, f"{path}@{count}" if count else path, list(inputs), [result])
    if arguments is not None:
        made.arguments = arguments
    result.producer = made
    calls.append(made)
    return result


def _held(calls: list[Call], call: Call, inputs: list[Value]) -> Value:
    """The operation, the activation and the holder behind one step."""
    _, attrs = call.arguments([None] * len(call.inputs))
    step, value, names = attrs["step"], inputs[0], list(attrs["layers"])
    if step in ("add", "mul"):
        kind = (
            keras.layers.Multiply
            if step == "mul"
            else keras.layers.Subtract
            if attrs.get("sign") == -1
            else keras.layers.Add
        )
        value = _append(calls, kind(name=names[0]), call, [inputs[0], inputs[3]], lambda t: ((list(t),), {}))
    elif step == "matmul":
        value = _append(
            calls, _matmul(inputs[0], inputs[3], names[0]), call, [inputs[0], inputs[3]], lambda t: (tuple(t), {})
        )
    elif step == "mean":
        cls = keras.layers.GlobalAveragePooling2D if len(inputs[0].shape) == 4 else keras.layers.GlobalAveragePooling1D
        value = _append(calls, cls(keepdims=attrs["keepdims"], name=names[0]), call, inputs[:1])
    if attrs["activation"] != "none":
        top = 6.0 if attrs["activation"] == "relu6" else None
        value = _append(calls, keras.layers.ReLU(max_value=top, name=names[-1]), call, [value])
    return _append(calls, call.op.holder, call, [value])


def _matmul(a: Value, b: Value, name: str) -> Any:
    """The operation behind ``keras.ops.matmul``."""
    tensors = [keras.KerasTensor(value.shape, value.dtype) for value in (a, b)]
    operation = keras.ops.matmul(*tensors)._keras_history.operation
    operation.name = name
    return operation
