"""A flat graph of a model: the form that folding, planning and assembly work on.

Nested models are inlined, each call of a layer is a `Call` of its own, and a tensor is a `Value`. The given model is only
read. This is the one module that walks Keras' graph (`KerasTensor._keras_history` and the nodes behind it).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import keras

from qi.errors import InputError, QiError, UnsupportedError
from qi.keras.trace import input_shapes, same_in_training, trace_call, trace_model, why_whole
from qi.keras.variables import check_model, class_names, is_builtin, names_within, paths_within, sub_layers

__all__ = [
    "Call",
    "Graph",
    "Value",
    "build_model",
    "build_tensors",
    "flatten_model",
    "follow_model",
    "is_graph_model",
    "looks_up",
]

_LOOKUPS = frozenset(["Embedding", "ReversibleEmbedding"])


@dataclass(eq=False)
class Value:
    """One tensor of the graph; `name` is that of a model input, or the name Keras gives a model output.

    An `optional` one is an input of the model that may be None.
    """

    shape: tuple[int | None, ...]
    dtype: str
    producer: Call | None = None
    name: str = ""
    optional: bool = False

    @property
    def is_float(self) -> bool:
        """Whether it holds real numbers."""
        return "float" in self.dtype


@dataclass(eq=False)
class Call:
    """One call of a layer or operation.

    Attributes:
        op: the layer or operation; passes put other ones in its place.
        path: the layer's place in the given model, such as "backbone/conv1".
        site: `path`, with "@2", "@3"... for the later calls of a shared layer.
        inputs: the values it takes, in argument order.
        outputs: the values it gives.
        arguments: makes (args, kwargs) from the tensors of its inputs.
        fused: layers that were merged into it, as "BatchNormalization bn1".
        split_from: the call that this one was a part of in the given model, where a pass took a layer apart.
    """

    op: Any
    path: str
    site: str
    inputs: list[Value]
    outputs: list[Value]
    arguments: Callable[[list[Any]], tuple[Any, Any]] = lambda tensors: (tensors, {})
    fused: list[str] = field(default_factory=list)
    split_from: Call | None = None

    @property
    def kind(self) -> str:
        """Class name of the operation."""
        return type(self.op).__name__

    @property
    def builtin_kind(self) -> str:
        """Class name of one of Keras' own operations; "" for others, which may do anything under the same name."""
        return self.kind if type(self.op).__module__.partition(".")[0] == "keras" else ""


@dataclass(eq=False)
class Graph:
    """Calls in topological order, with the model's inputs and outputs as nested structures of values.

    Keras names an output after the operation that gives it, a nested model for one: `output_names` has these names, flat.
    `whole` tells by path why layers and models of users that are made of layers are called as a whole.
    """

    name: str
    inputs: Any
    outputs: Any
    calls: list[Call]
    output_names: list[str] = field(default_factory=list)
    whole: dict[str, str] = field(default_factory=dict)

    def copy(self) -> Graph:
        """The same calls of the same operations, in objects of its own."""
        values: dict[int, Value] = {}

        def copied(value: Value) -> Value:
            return values.setdefault(id(value), replace(value, producer=None))

        inputs = keras.tree.map_structure(copied, self.inputs)
        calls = []
        for old in self.calls:
            given, made = ([copied(value) for value in several] for several in (old.inputs, old.outputs))
            calls.append(replace(old, inputs=given, outputs=made, fused=list(old.fused)))
            for value in made:
                value.producer = calls[-1]
        outputs = keras.tree.map_structure(copied, self.outputs)
        return replace(
            self,
            inputs=inputs,
            outputs=outputs,
            calls=calls,
            output_names=list(self.output_names),
            whole=dict(self.whole),
        )

    def flat_inputs(self) -> list[Value]:
        """The input values."""
        return keras.tree.flatten(self.inputs)

    def flat_outputs(self) -> list[Value]:
        """The output values."""
        return keras.tree.flatten(self.outputs)

    def consumers(self) -> dict[int, list[Call]]:
        """Calls that take each value, by ``id(value)``."""
        table: dict[int, list[Call]] = {}
        for call in self.calls:
            for value in call.inputs:
                table.setdefault(id(value), []).append(call)
        return table

    def calls_of(self) -> dict[int, list[Call]]:
        """Calls of each operation, by ``id(op)``."""
        table: dict[int, list[Call]] = {}
        for call in self.calls:
            table.setdefault(id(call.op), []).append(call)
        return table

    def replace(self, old: Value, new: Value) -> None:
        """Makes every consumer of `old`, the model's outputs included, take `new`."""
        new.name = new.name or old.name
        for call in self.calls:
            call.inputs = [new if value is old else value for value in call.inputs]
        self.outputs = keras.tree.map_structure(lambda value: new if value is old else value, self.outputs)

    def insert_after(self, value: Value, op: Any, path: str) -> Value:
        """Calls `op` on `value` and hands its result to all who took `value`."""
        result = Value(value.shape, value.dtype)
        self.replace(value, result)
        call = Call(op, path, path, [value], [result])
        result.producer = call
        position = self.calls.index(value.producer) + 1 if value.producer is not None else 0
        self.calls.insert(position, call)
        return result


def is_graph_model(op: Any) -> bool:
    """Whether `op` is a Functional or Sequential model, or a subclass of one that leaves its ``call`` alone."""
    owner = next((cls for cls in type(op).__mro__ if "call" in vars(cls)), object)
    return owner.__module__.partition(".")[0] == "keras" and owner.__name__ in ("Functional", "Sequential")


def flatten_model(model: keras.Model) -> Graph:
    """The flat graph of a built model; of a subclassed one, that which its call makes of symbolic tensors.

    Raises:
        UnsupportedError: a subclassed model whose call is more than layers and keras.ops.
        InputError: not a model, or one that isn't built yet.
    """
    check_model(model)
    if getattr(model, "quantized_in_place", False):
        raise UnsupportedError(
            f"expected a model whose graph is known; received {model.name!r}, which is quantized in place, layer by layer; do "
            "rebuild the float model as keras.Model(inputs, outputs) and quantize that"
        )
    with ExitStack() as traces:
        return _flattened(model, traces)


def follow_model(model: Any) -> tuple[Graph | None, str]:
    """The flat graph of a model, or None and why the call of a class of the user's can't be followed.

    Raises:
        InputError: not a model, or one that isn't built.
        UnsupportedError: a call that takes several arguments.
    """
    if not isinstance(model, keras.Model) or is_graph_model(model):
        return flatten_model(model), ""
    input_shapes(model)
    try:
        return flatten_model(model), ""
    except UnsupportedError as error:
        return None, str(error).partition("; do ")[0]


def _flattened(model: keras.Model, traces: ExitStack, integers: Collection[int] = ()) -> Graph:
    traced = not is_graph_model(model)
    functional = traces.enter_context(trace_model(model, integers=integers)) if traced else _functional(model)
    if functional is None:
        raise InputError(
            f"expected a built model; received {model.name!r}; do give it an Input, or call build(input_shape)"
        )
    values = {id(tensor): _input_value(tensor) for tensor in functional.inputs}
    walker = _Walker(traces)
    walker.walk(functional, values, "", paths_within(model) if traced else {}, held=traced)
    for tensor in functional.outputs:
        values[id(tensor)].name = values[id(tensor)].name or _operation_name(tensor)
    inputs, outputs = (
        keras.tree.map_structure(lambda tensor: values[id(tensor)], structure)
        for structure in (functional.input, functional.output)
    )
    graph = Graph(model.name, inputs, outputs, walker.calls, [_operation_name(t) for t in functional.outputs])
    graph.calls = _needed(graph)
    graph.whole = {call.path: walker.whole[call.path] for call in graph.calls if call.path in walker.whole}
    looked_up = {id(call.inputs[0]) for call in graph.calls if looks_up(call)}
    found = [place for place, value in enumerate(graph.flat_inputs()) if id(value) in looked_up]
    return _flattened(model, traces, found) if traced and found and not integers else graph


def looks_up(call: Call) -> bool:
    """Whether a call takes rows of a table, by the indices that it is given."""
    if _LOOKUPS.isdisjoint(class_names(call.op)):
        return False
    args, kwargs = call.arguments(list(call.inputs))
    return not (kwargs.get("reverse") or (len(args) > 1 and args[1]))  # the table tied to scores takes real numbers


def _input_value(tensor: Any) -> Value:
    layer = tensor._keras_history.operation
    return Value(tuple(tensor.shape), str(tensor.dtype), name=layer.name, optional=getattr(layer, "optional", False))


def _needed(graph: Graph) -> list[Call]:
    """The calls that lead to an output of the graph: those behind other outputs of a nested model may not."""
    wanted = {id(value) for value in graph.flat_outputs()}
    needed = []
    for call in reversed(graph.calls):
        if any(id(value) in wanted for value in call.outputs):
            wanted.update(id(value) for value in call.inputs)
            needed.append(call)
    return needed[::-1]


def _functional(model: Any) -> Any:
    """The functional model that a model is, or that a Sequential one keeps inside; None where there is none yet."""
    return model._functional if isinstance(model, keras.Sequential) else model


def _operation_name(tensor: Any) -> str:
    return str(tensor._keras_history.operation.name)


class _Walker:
    """Collects calls; remembers the first path of every operation and how often it was called."""

    def __init__(self, traces: ExitStack) -> None:
        self.calls: list[Call] = []
        self.whole: dict[str, str] = {}
        self._traces = traces
        self._traced: dict[int, Any] = {}
        self._paths: dict[int, str] = {}
        self._sites: dict[str, int] = {}  # by path: functions within a layer are others at each of its calls

    def walk(
        self, model: Any, values: dict[int, Value], prefix: str, names: Mapping[int, str], held: bool = False
    ) -> None:
        """Adds the calls that lead to a functional model's outputs.

        Args:
            model: its graph is followed.
            values: maps known KerasTensors, its inputs among them, and gets the others.
            prefix: of the paths within it.
            names: of layers in these paths, by ``id``, where they go by others than their own: Keras numbers those of layers
                that a class holds through the process.
            held: whether a class of the user's makes what is in it.
        """
        for node in _nodes(model.outputs, values):
            op = node.operation
            path = self._paths.setdefault(id(op), prefix + names.get(id(op), op.name))
            functional, inner = self._inside(op, node, path)
            if inner is None:
                self._add(op, node, values, path)
                continue
            known = {id(own): values[id(given)] for own, given in zip(functional.inputs, inner, strict=True)}
            owned = paths_within(op) if not is_graph_model(op) else names_within(functional) if held else {}
            self.walk(functional, known, path + "/", owned, held or not is_graph_model(op))
            for given, own in zip(node.outputs, functional.outputs, strict=True):
                values[id(given)] = known[id(own)]

    def _inside(self, op: Any, node: Any, path: str) -> tuple[Any, list[Any] | None]:
        """The functional model that is called, and the tensors it is given in the order of its inputs.

        A nested model is one, keeps one inside or can be traced to one; so can layers of users that are made of layers.
        (None, None) for all else.
        """
        if not isinstance(op, keras.layers.Layer):
            return None, None
        if isinstance(op, keras.Model):
            functional = _functional(op) if is_graph_model(op) else self._model_of(op)
            inner = _inner_inputs(functional, node) if functional is not None else None
            if inner is not None or is_graph_model(op):
                return (None, None) if inner is None else (functional, inner)
        why = why_whole(op, node)
        try:
            if not why and same_in_training(op, node):
                given = {id(tensor): tensor for tensor in node.arguments.keras_tensors}
                return self._traces.enter_context(trace_call(op, node)), list(given.values())
            why = why or "it does something else in training"
        except QiError as error:
            why = str(error).partition("; do ")[0]
        if not is_builtin(op) and sub_layers(op):
            self.whole[path] = why
        return None, None

    def _model_of(self, op: Any) -> Any:
        """What a subclassed model of one argument can be traced to, whatever it is called on."""
        if id(op) not in self._traced:
            self._traced[id(op)] = None
            with suppress(QiError):  # then this call is followed by itself, as that of any layer is
                if same_in_training(op):
                    self._traced[id(op)] = self._traces.enter_context(trace_model(op))
        return self._traced[id(op)]

    def _add(self, op: Any, node: Any, values: dict[int, Value], path: str) -> None:
        self._sites[path] = count = self._sites.get(path, 0) + 1
        site = path if count == 1 else f"{path}@{count}"
        tensors = list(node.arguments.keras_tensors)
        symbolic = node.arguments

        def arguments(given: Sequence[Any]) -> tuple[Any, Any]:
            return symbolic.fill_in({id(t): g for t, g in zip(tensors, given, strict=True)})

        outputs = [Value(tuple(t.shape), str(t.dtype)) for t in node.outputs]
        call = Call(op, path, site, [values[id(t)] for t in tensors], outputs, arguments)
        for tensor, value in zip(node.outputs, outputs, strict=True):
            value.producer = call
            values[id(tensor)] = value
        self.calls.append(call)


def _inner_inputs(functional: Any, node: Any) -> list[Any] | None:
    """The tensors given to a nested functional model, in the order of its own inputs; None where it must be called as a whole.

    Calling it would do more than its layers do when it casts or reshapes what it is given, or passes arguments on.
    """
    masks = [getattr(t, "_keras_mask", None) for t in node.arguments.keras_tensors]  # which layers find by themselves
    extra = [*node.arguments.args[1:], *(v for k, v in node.arguments.kwargs.items() if k != "inputs")]
    plain = all(any(value is known for known in (None, False, *masks)) for value in keras.tree.flatten(extra))
    if not plain:
        return None
    given = node.arguments.args[0] if node.arguments.args else node.arguments.kwargs.get("inputs")
    if isinstance(given, dict) and not isinstance(functional.input, dict):
        names = [_operation_name(tensor) for tensor in functional.inputs]
        flat = [given[name] for name in names] if set(names) <= set(given) else []
    else:
        flat = [t for t in keras.tree.flatten(given) if isinstance(t, keras.KerasTensor)]
    if len(flat) != len(functional.inputs):
        return None
    same = all(_passes(functional, outer, own) for outer, own in zip(flat, functional.inputs, strict=True))
    return flat if same else None


def _passes(functional: Any, given: Any, own: Any) -> bool:
    """Whether a nested model takes a tensor as it is.

    Between real numbers, its layers cast just as it does; whatever type indices have, tables are looked up by integers.
    """
    if len(given.shape) != len(own.shape):
        return False
    real = "float" in given.dtype and "float" in own.dtype
    return given.dtype == own.dtype or real or ("int" in given.dtype and _only_looked_up(functional, own))


def _only_looked_up(functional: Any, own: Any) -> bool:
    """Whether all that takes an input of a functional model are tables."""
    nodes = [node for node in _nodes(functional.outputs, {}) if any(t is own for t in node.arguments.keras_tensors)]
    given = any(tensor is own for tensor in functional.outputs)
    return bool(nodes) and not given and all(type(node.operation) is keras.layers.Embedding for node in nodes)


def _nodes(outputs: Sequence[Any], known: dict[int, Value]) -> Iterator[Any]:
    """Nodes behind `outputs` in topological order, without recursion (graphs can be thousands of calls deep)."""
    done: set[int] = set()
    stack = [(tensor, False) for tensor in reversed(outputs)]
    while stack:
        tensor, ready = stack.pop()
        if id(tensor) in known:
            continue
        history = tensor._keras_history
        node = history.operation._inbound_nodes[history.node_index]
        if id(node) in done:
            continue
        if ready:
            done.add(id(node))
            yield node
        else:
            stack.append((tensor, True))
            stack.extend((t, False) for t in reversed(node.arguments.keras_tensors))


def build_tensors(graph: Graph) -> dict[int, Any]:
    """Calls the graph's operations on fresh inputs; gives the KerasTensor of every value by ``id(value)``.

    The operations then belong to whatever models are made from these tensors. Values take the shapes that Keras infers
    now: within a nested model they may have been open.

    Raises:
        InputError: an operation fails, a copy that lacks something for instance.
    """
    tensors: dict[int, Any] = {}
    for value in graph.flat_inputs():
        tensors[id(value)] = keras.Input(
            batch_shape=value.shape, dtype=value.dtype, name=value.name, optional=value.optional
        )
    for call in graph.calls:
        args, kwargs = call.arguments([tensors[id(value)] for value in call.inputs])
        try:
            results = keras.tree.flatten(call.op(*args, **kwargs))
        except Exception as error:  # of users' code
            raise InputError(
                f"expected layers that their configuration can rebuild; layer {call.path!r} of class {call.kind} fails when "
                f"rebuilt and called again ({type(error).__name__}: {error}); do put its state into get_config or its weights"
            ) from error
        for value, tensor in zip(call.outputs, results, strict=True):
            tensors[id(value)] = tensor
            value.shape = tuple(tensor.shape)
    return tensors


def build_model(
    graph: Graph, tensors: dict[int, Any], outputs: Any = None, kind: type[keras.Model] = keras.Model
) -> keras.Model:
    """A Keras model over tensors of `build_tensors`.

    Args:
        graph: gives the structure of inputs and outputs.
        tensors: by ``id(value)``.
        outputs: another structure of values to give instead of the graph's own.
        kind: the model's class.
    """
    inputs, results = (
        keras.tree.map_structure(lambda value: tensors[id(value)], structure)
        for structure in (graph.inputs, graph.outputs if outputs is None else outputs)
    )
    with _LIMIT.raised(2 * len(graph.calls)):  # to follow a graph, Keras calls itself once for each call
        return kind(inputs, results, name=graph.name)


class _RecursionLimit:
    """How deep calls may go: one number for all threads, that none may take back while another needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depths: list[int] = []
        self._base = self._set = 0

    @contextmanager
    def raised(self, depth: int) -> Iterator[None]:
        """Lets calls go that much deeper within."""
        with self._lock:
            if not self._depths or sys.getrecursionlimit() != self._set:
                self._base = sys.getrecursionlimit()
            self._depths.append(depth)
            self._apply(self._base + max(self._depths))
        try:
            yield
        finally:
            with self._lock:
                self._depths.remove(depth)
                if sys.getrecursionlimit() == self._set:  # or somebody else has set it since
                    self._apply(self._base + max(self._depths, default=0))

    def _apply(self, limit: int) -> None:
        self._set = limit
        sys.setrecursionlimit(limit)


_LIMIT = _RecursionLimit()
