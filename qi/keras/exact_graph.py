"""From fake quantization to the arithmetic of a runtime: the same layers, called otherwise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from qi.core import IntGrid
from qi.ir import onnxruntime, reference
from qi.ir.arithmetic import largest_sum
from qi.ir.fixed_softmax import fixed_exponentials
from qi.ir.graph import Op, take_name
from qi.ir.linear import EXACT32
from qi.ir.litert import bilinear_places
from qi.keras.exact import ExactDecode, ExactGrid, ExactPool, ExactSums
from qi.keras.exact_islands import island_layer
from qi.keras.exact_kernels import ExactBilinear, ExactRealBilinear, ExactRows, ExactSoftmax, ExactTable
from qi.keras.exact_routed import Routed, check_exact, is_dynamic, product_kind, table_of
from qi.keras.exact_softmax import ExactFixedSoftmax
from qi.keras.fold import FUSED_ACTIVATIONS, activation_name, split_activation
from qi.keras.graph import Call, Graph, Value, build_model, build_tensors, flatten_model
from qi.keras.holder import KerasActivationQuantizationHolder
from qi.keras.traits import is_fusable_activation, role_of
from qi.keras.wrapper import KerasQuantizationWrapper
from qi.recipes.plan import Role

__all__ = ["check_exact", "make_exact"]

_LINEAR = ("Dense", "Conv1D", "Conv2D", "DepthwiseConv1D", "DepthwiseConv2D", "Conv1DTranspose", "Conv2DTranspose")
_POOLS = ("AveragePooling1D", "AveragePooling2D", "AveragePooling3D")  # volumes ONNX Runtime adds up in another order
_MOST_TERMS = 1024  # of a softmax whose sum is added up one by one


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
    """How a value can be brought to a grid exactly.

    Attributes:
        step: of `qi.keras.exact_steps`.
        take: adds the layers that have to run before, and gives what the step takes.
        attrs: of the step.
        kept: whether the call itself stays in the graph, in real numbers.
        activation: that is fused.
        layers: names of those that the step stands for.
    """

    step: str
    take: Callable[[], list[Value]]
    attrs: dict[str, Any] = field(default_factory=dict)
    kept: bool = False
    activation: str = "none"
    layers: list[str] = field(default_factory=list)


def make_exact(model: keras.Model, target: str) -> keras.Model:
    """A model of the same layers that computes as a runtime does.

    Args:
        model: with wrappers and holders, inferable or trainable. Layers are used as they are, but for activations that are split
            off: a model to be kept as it was must be given as a copy.
        target: one of `EXACT_TARGETS`.

    Raises:
        UnsupportedError: a layer that Keras can't compute as the runtime does; it is named.
    """
    graph = flatten_model(model)
    _split_fused(graph, target)
    writer = _Writer(graph, target)
    for call in graph.calls:
        writer.write(call)
    writer.routed.check()
    outputs = [writer.real(value, name) for value, name in zip(graph.flat_outputs(), graph.output_names, strict=True)]
    graph.calls, graph.outputs = writer.calls, keras.tree.pack_sequence_as(graph.outputs, outputs)
    return build_model(graph, build_tensors(graph), kind=type(model))


def _split_fused(graph: Graph, target: str) -> None:
    """Takes the activation out of linear layers whose results are quantized, where exact sums have to come before it."""
    consumers = graph.consumers()
    for calls in graph.calls_of().values():
        op = calls[0].op
        after = [consumers.get(id(call.outputs[0]), []) for call in calls]
        held = all(len(found) == 1 and _is_held(found[0]) for found in after)
        if not held or not isinstance(op, KerasQuantizationWrapper) or not _is_linear(op):
            continue
        # ReLU commutes with a positive factor and rounding: a layer may apply it to its sums, if they are in one part.
        name = activation_name(op.layer)
        fixed = (
            target == "reference" or op.bounds["kernel"].quantizer.num_bits < 8
        )  # sums in fixed point, with their bias
        if name == "relu6" or (name == "relu" and (fixed or _needs_halves(op))):
            split_activation(graph, calls, op.layer, op)
            op.layer.activation = keras.activations.linear


class _Writer:
    """Writes the exact graph, call by call."""

    def __init__(self, graph: Graph, target: str) -> None:
        self.graph, self.target = graph, target
        self.calls: list[Call] = []
        self.routed = Routed(graph, target, any(map(_trains, graph.calls)))
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
        op = self._op(call)
        recipe = None
        if op is not None:
            recipe = self._recipe(call, op) if op.quantized else self._island(call, op)
        if recipe is not None:
            self.routed.cover(op)
            recipe.layers.append(call.op.name)
            self._recipes[id(call.outputs[0])] = recipe
            if recipe.kept:
                self._keep(call)
            return
        source = self._recipes.get(id(call.inputs[0])) if call.inputs else None
        if source is not None:  # an activation between what it is fused into and the quantizer
            source.activation = "relu6" if _is_relu6(call) else "relu"
            source.layers.append(call.op.name)
            self._recipes[id(call.outputs[0])] = source
            return
        moved = self._moved(call)
        if moved is not None:
            call.inputs = [codes.codes for codes in moved]
            self.calls.append(call)
            for value in call.outputs:
                self._codes[id(value)] = _Codes(value, moved[0].scale, moved[0].zero)
            return
        self._dynamic(call)
        self._keep(call)

    def _keep(self, call: Call) -> None:
        """The call as it is, on real numbers."""
        call.inputs = [self.real(value) for value in call.inputs]
        self.calls.append(call)

    def _dynamic(self, call: Call) -> None:
        """Puts a layer that rounds its activations row by row in the place of one that the target does so."""
        op = self.routed.op_of(call.outputs[0]) if call.outputs else None
        wrapped = isinstance(call.op, KerasQuantizationWrapper)
        if (
            not is_dynamic(op)
            or not wrapped
            or type(call.op.layer).__name__ != "Dense"
            or set(call.op.bounds) != {"kernel"}
        ):
            return
        self.routed.cover(op)
        key, wrapper = (id(call.op), "rows"), call.op
        if key not in self._layers:
            self._layers[key] = ExactRows(wrapper, _needs_halves(wrapper), name=wrapper.name)
        call.op = self._layers[key]

    def _hold(self, call: Call) -> None:
        source = call.inputs[0]
        recipe = self._recipes.get(id(source))
        codes = self._codes.get(id(source))
        if recipe is None and codes is not None:
            recipe = _Recipe("rescale", lambda: codes.all)
            self.routed.cover(self.routed.op_of(call.outputs[0]))
        recipe = recipe or _Recipe("real", lambda: [self.real(source)])
        attrs = recipe.attrs | {"step": recipe.step, "activation": recipe.activation}
        attrs |= {"layers": recipe.layers, "kept": recipe.kept}
        taken = recipe.take()
        self._codes[id(call.outputs[0])] = self.emit(self._grid(call), call, taken, 3, attrs, call.outputs[0].shape)

    def _grid(self, call: Call) -> ExactGrid:
        found = self._grids.get(id(call.op))
        if found is None:
            found = self._grids[id(call.op)] = ExactGrid(call.op, self.target, name=self.name(f"{call.op.name}_codes"))
        return found

    def _op(self, call: Call) -> Op | None:
        """The operation that a call becomes, where a quantizer follows it, or a ReLU that it takes into itself and then one."""
        value, between = call.outputs[0], False
        for _ in range(2):
            after = self._consumers.get(id(value), [])
            if len(after) != 1 or id(value) in self._outputs:
                return None
            if _is_held(after[0]):
                op = self.routed.op_of(after[0].outputs[0])
                return None if op is None or (between and op.attrs.get("activation", "none") == "none") else op
            if not is_fusable_activation(after[0]):
                return None
            value, between = after[0].outputs[0], True
        return None

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

    def _recipe(self, call: Call, op: Op) -> _Recipe | None:
        """How to compute a call exactly, whose result the target gives by an integer operation."""
        codes = [self._codes.get(id(value)) for value in call.inputs]
        if not codes or any(c is None for c in codes) or len(call.outputs) != 1:
            return None
        known = [c for c in codes if c is not None]
        if isinstance(call.op, KerasQuantizationWrapper):
            linear = len(known) == 1 and _is_linear(call.op)
            return self._sums(call, op, known[0]) if linear else None
        kind = call.builtin_kind
        if kind in ("Add", "Subtract", "Multiply") and len(known) == 2 and _same_rank(call):
            sign = {"sign": -1} if kind == "Subtract" else {}
            return _Recipe("mul" if kind == "Multiply" else "add", lambda: [*known[0].all, *known[1].all], sign)
        if kind == "Matmul" and len(known) == 2:
            wide = int(call.inputs[0].shape[-1] or EXACT32) * 255 * 255 >= EXACT32
            return _Recipe("matmul", lambda: [*known[0].all, *known[1].all], {"wide": wide})
        if op.kind == "mean" and len(known) == 1 and op.x.shape == call.inputs[0].shape:
            axes = {"axes": list(op.attrs["axes"]), "keepdims": bool(op.attrs["keepdims"])}
            if kind in ("GlobalAveragePooling1D", "GlobalAveragePooling2D"):
                return _Recipe("mean", lambda: known[0].all, axes)
            return _Recipe("mean", lambda: [call.outputs[0], *known[0].all], axes, kept=True)
        if op.kind in ("mean", "avg_pool2d"):
            pools = kind in _POOLS[: 3 if self.target != "onnxruntime" else 2] and None not in call.inputs[0].shape[1:]
            return self._pool(call, op, known[0]) if pools else None
        return self._beside(call, op, known[0]) if len(known) == 1 else None

    def _sums(self, call: Call, op: Op, codes: _Codes) -> _Recipe | None:
        by = product_kind(op, self.target)
        halves = _needs_halves(call.op) or (by != "float" and largest_sum(op) >= EXACT32)
        applied = activation_name(call.op.layer)
        if applied == "relu6" or (halves and applied != "linear"):
            return None

        def take() -> list[Value]:
            make = lambda name: ExactSums(call.op, halves, by != "float", name=name)
            layer = self.layer(call.op, f"sums_{by}" if by != "float" else "sums", make)
            found = self.emit(layer, call, [codes.codes, codes.scale], 2, {}, call.outputs[0].shape)
            return [found.codes, found.scale]

        return _Recipe("sums", take, {"by": by})

    def _pool(self, call: Call, op: Op, codes: _Codes) -> _Recipe:
        layer = self.layer(call.op, "sums", lambda name: ExactPool(call.op, self.target, name=name))

        def take() -> list[Value]:
            found = self.emit(layer, call, [codes.codes, codes.scale], 2, {}, call.outputs[0].shape)
            return [found.codes, found.scale, codes.scale, codes.zero]

        whole = layer.whole(call.inputs[0].shape)
        return _Recipe("pool", take, {"whole": whole, "same": op.x.qparams == op.y.qparams})

    def _beside(self, call: Call, op: Op, codes: _Codes) -> _Recipe | None:
        """A layer that computes the codes, beside the call; for quantizers that don't train any more."""
        layer = None if self.routed.trains else self._kernel(op, f"{call.site.replace('/', '_')}_kernel")
        return None if layer is None else self._given(layer, call, codes)

    def _island(self, call: Call, op: Op) -> _Recipe | None:
        """A layer beside one that the target does in real numbers so that every processor finds the same codes."""
        known = [self._codes.get(id(value)) for value in call.inputs]
        codes = known[0] if len(known) == 1 else None
        if codes is None or self.routed.trains:
            return None
        name = lambda: self.name(f"{call.site.replace('/', '_')}_kernel")
        layer = island_layer(self.routed.island(op), self.target, call.inputs[0].shape, name)
        return None if layer is None else self._given(layer, call, codes)

    def _given(self, layer: Any, call: Call, codes: _Codes) -> _Recipe:
        def take() -> list[Value]:
            found = self.emit(layer, call, [codes.codes, codes.zero], 1, {}, call.outputs[0].shape)
            return [call.outputs[0], found.codes]

        return _Recipe("given", take, kept=True)

    def _kernel(self, op: Op, name: str) -> Any:
        if op.kind == "softmax":
            size = op.x.shape[op.attrs["axis"]]
            if size is None or size > _MOST_TERMS:
                return None
            if self.target == "reference":
                return ExactFixedSoftmax(op.attrs["axis"], fixed_exponentials(op), name=self.name(name))
            quotient = self.target == "onnxruntime"
            terms = (onnxruntime if quotient else reference).exponentials(op)
            return ExactSoftmax(
                op.attrs["axis"], quotient, float(op.y.scale), op.y.zero_point, terms, name=self.name(name)
            )
        if op.kind == "resize_bilinear":
            return self._bilinear(op, self.name(name))
        table = table_of(op, self.target)
        if table is None:
            return None
        shape = table.shape[1:] if table.size > 256 else ()
        return ExactTable(shape, table, name=self.name(name))

    def _bilinear(self, op: Op, name: str) -> Any:
        size = op.attrs["size"]
        if self.target == "onnxruntime":
            places = [onnxruntime.bilinear_places(op, op.x.shape, axis) for axis in (1, 2)]
            return ExactRealBilinear(size, places, op.y.zero_point, [op.x.scale, op.y.scale], name=name)
        away = self.target == "reference"
        find = reference.bilinear_places if away else bilinear_places
        found = [find(int(n or 0), m) for n, m in zip(op.x.shape[1:3], size, strict=True)]
        return ExactBilinear(size, 10 if away else 11, [(*pair, part) for pair, part in found], away, name=name)

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
        return _Codes(outputs[0], outputs[count > 1], outputs[-1])

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


def _trains(call: Call) -> bool:
    if isinstance(call.op, KerasActivationQuantizationHolder):
        return call.op.bound.trains
    return isinstance(call.op, KerasQuantizationWrapper) and call.op.trains


def _same_rank(call: Call) -> bool:
    """Whether both operands have as many axes: layers that merge add others behind the batch."""
    return len({len(value.shape) for value in call.inputs}) == 1


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
    if set(bounds) != {"kernel"} or activation_name(layer) not in FUSED_ACTIVATIONS:
        return False
    quantizer = bounds["kernel"].quantizer
    grouped = getattr(quantizer, "group_size", None) is not None
    integers = isinstance(quantizer.grid, IntGrid) and quantizer.grid.signed and not grouped
    return integers and layer.compute_dtype == "float32"


def _needs_halves(wrapper: KerasQuantizationWrapper) -> bool:
    """Whether a sum could reach what float32 counts to; while weights train, with a factor of 2 in hand."""
    codes = wrapper.get_quantized_tensors()["kernel"].codes.astype(np.float64)
    axis = -2 if "Depthwise" in type(wrapper.layer).__name__ or "Transpose" in type(wrapper.layer).__name__ else -1
    axes = tuple(i for i in range(codes.ndim) if i != axis % codes.ndim)
    if "Depthwise" in type(wrapper.layer).__name__:
        axes = tuple(range(codes.ndim - 2))
    largest = 255 * float(np.abs(codes).sum(axis=axes).max(initial=0))
    return largest * (2 if wrapper.trains else 1) >= EXACT32
