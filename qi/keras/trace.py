"""Classes with a ``call`` of their own as graphs: it is run once on symbolic tensors, which shows every layer that it calls.

Subclassed models are followed so, and layers that are made of other layers.
"""

from __future__ import annotations

import inspect
import linecache
import re
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import keras

from qi.errors import InputError, QiError, UnsupportedError
from qi.ir.graph import take_name

__all__ = ["input_shapes", "is_shape", "know_shapes", "same_in_training", "trace_call", "trace_model", "why_whole"]

_KNOWN: WeakKeyDictionary[keras.Model, Any] = WeakKeyDictionary()
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_COUNT = re.compile(r"_\d+$")
_OWN = Path(__file__).parents[1]
_BY_VALUES = {
    "Cond": "cond, whose branches run by values",
    "Switch": "switch, whose branches run by values",
    "WhileLoop": "while_loop, whose steps run by values",
    "ForiLoop": "fori_loop, whose function can't be followed",
    "Map": "map, whose function can't be followed",
    "Scan": "scan, whose function can't be followed",
    "AssociativeScan": "associative_scan, whose function can't be followed",
    "VectorizedMap": "vectorized_map, whose function can't be followed",
}  # operations that are given functions: no graph tells what these call, and they hold tensors of the one call
_UNKNOWN = "give arrays or a data set, or give its class a build(self, input_shape) that builds its layers, and call it"
_ADVICE = (
    "do rebuild it as keras.Model(inputs, outputs), or wrap its layers with KerasQuantizationWrapper in its own call"
)


@contextmanager
def trace_model(
    model: keras.Model, *, training: bool | None = None, integers: Collection[int] = ()
) -> Iterator[keras.Model]:
    """A Functional model over the very layers of a subclassed one; once left, the layers don't remember it.

    Args:
        model: built; its ``call`` takes one argument besides ``training`` and ``mask``.
        training: what to give for ``training``; by default nothing.
        integers: the places of the flat inputs that are integers; nothing but their use tells.

    Yields:
        a Functional model of the same name. It is good for reading.

    Raises:
        UnsupportedError: a ``call`` that doesn't run on symbolic tensors, takes several arguments, or uses weights of the
            model's own, which no layer holds.
        InputError: a model that isn't built yet.
    """
    shapes = input_shapes(model)
    with _forgotten(model):
        functional = _run(model, shapes, "float32", training)
        if integers:
            dtypes = ["int32" if place in integers else "float32" for place in range(len(functional.inputs))]
            functional = _run(model, shapes, keras.tree.pack_sequence_as(functional.input, dtypes), training)
        _check_weights(model, functional)
        _check_training(model, functional, training)
        _number(functional)
        yield functional


@contextmanager
def trace_call(layer: keras.layers.Layer, node: Any, *, training: bool | None = None) -> Iterator[keras.Model]:
    """A Functional model of one call of a layer, over the layer's own sub-layers, which don't remember it once it is left.

    Args:
        layer: made of other layers (see `why_whole`).
        node: Keras' record of the call.
        training: what to give for ``training``; by default nothing.

    Yields:
        a Functional model. Its inputs are the tensors of the call, each once, in the order of its arguments.

    Raises:
        UnsupportedError: as `trace_model`; or the layer adds losses.
    """
    given = {id(tensor): tensor for tensor in node.arguments.keras_tensors}
    with _forgotten(layer):
        inputs = [
            keras.Input(batch_shape=tuple(tensor.shape), dtype=tensor.dtype, name=f"input_{place}")
            for place, tensor in enumerate(given.values(), start=1)
        ]
        args, kwargs = node.arguments.fill_in(dict(zip(given, inputs, strict=True)))
        functional = _followed(layer, inputs, args, kwargs, training)
        _check_weights(layer, functional)
        _check_training(layer, functional, training)
        _number(functional)
        yield functional


def why_whole(layer: Any, node: Any) -> str:
    """Why a call of a layer isn't followed into the layers that it is made of; "" where it can be tried.

    Keras' own layers have rules of their own, and what is called with masks or in another precision does more than its
    sub-layers do.
    """
    owner = type(layer)
    if isinstance(layer, keras.Model):
        owner = next((cls for cls in owner.__mro__ if "call" in vars(cls)), object)
    if owner.__module__.partition(".")[0] in ("keras", "qi"):
        return "it isn't a layer of the user's own"
    children = layer._flatten_layers(include_self=False, recursive=False)
    if not children:
        return "it has no sub-layers"
    own = {id(v) for v in layer.variables} - {id(v) for child in children for v in child.variables}
    if own:
        return "it has weights of its own"
    tensors = [*node.arguments.keras_tensors, *node.outputs]
    if any(getattr(tensor, "_keras_mask", None) is not None for tensor in tensors):
        return "it is called with a mask"
    if node.arguments.kwargs.get("training") is not None:
        return "it is called for training or inference alone"
    if any("float" in t.dtype and t.dtype != layer.compute_dtype for t in node.arguments.keras_tensors):
        return "it casts what it is given"
    return ""


@contextmanager
def _forgotten(owner: keras.layers.Layer) -> Iterator[None]:
    """Has a layer and all in it forget the calls made within."""
    layers = list(owner._flatten_layers())
    before = [(layer, len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in layers]
    try:
        yield
    finally:
        for layer, inbound, outbound in before:
            del layer._inbound_nodes[inbound:]
            del layer._outbound_nodes[outbound:]


def _number(functional: keras.Model) -> None:
    """Names functions by their place in the model: Keras counts them through the process, a second trace would differ."""
    layers = (keras.layers.Layer,)
    taken = {op.name for op in functional.operations if isinstance(op, layers)}
    for operation in functional.operations:
        if isinstance(operation, layers):
            continue
        operation.name = take_name(_COUNT.sub("", operation.name), taken)


def know_shapes(model: keras.Model, shapes: Any) -> None:
    """Remembers what a model takes: of a call that does one thing or another by a value, Keras keeps no shapes."""
    _KNOWN[model] = shapes


def input_shapes(model: keras.Model) -> Any:
    """The structure of shapes that the model was built with, or that its data were found to have."""
    shapes = getattr(model, "_build_shapes_dict", None) or ({"": _KNOWN[model]} if model in _KNOWN else None)
    if not model.built or not shapes:
        raise InputError(
            f"expected a built model; received {model.name!r}, whose input shape isn't known; do "
            f"{_UNKNOWN if model.built else 'call it once on a batch'}"
        )
    needed = [p.name for p in _parameters(model).values() if p.default is p.empty and p.kind not in _VARIADIC]
    if len(needed) > 1:
        raise UnsupportedError(
            f"expected a call with one argument, as fit and predict give; received {model.name!r} of class "
            f"{type(model).__name__}, whose call needs {needed}; do give it one list or dict"
        )
    return next(iter(shapes.values()))


def _parameters(model: keras.layers.Layer) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.call).parameters


def _run(model: keras.Model, shapes: Any, dtypes: Any, training: bool | None) -> keras.Model:
    inputs = _inputs(shapes, dtypes, "input")
    return _followed(model, inputs, (inputs,), {}, training)


def _followed(
    layer: keras.layers.Layer, inputs: Any, args: Any, kwargs: Mapping[str, Any], training: bool | None
) -> keras.Model:
    """The Functional model of a call on symbolic inputs."""
    if training is not None:
        kwargs = {**kwargs, "training": training}
    losses = len(layer._losses)
    try:
        with _weights_unread(layer), _masks_taken_off(layer):
            outputs = layer.call(*args, **kwargs)
        _check_functions(layer, outputs)
        functional = keras.Model(inputs, outputs, name=layer.name)
    except Exception as error:  # of users' code
        if isinstance(error, QiError):
            raise
        if "Exception encountered when calling Cond.call()" in str(error):  # jax runs its branches already
            raise _runs_by_values(layer, "Cond") from error
        raise UnsupportedError(
            f"expected a model whose call is made of layers and keras.ops; received {layer.name!r} of class "
            f"{type(layer).__name__}, whose call raised {type(error).__name__} on symbolic tensors{_place(error)}: "
            f"{' '.join(str(error).split())[:300]}; {_ADVICE}"
        ) from error
    if len(layer._losses) > losses:
        del layer._losses[losses:]
        raise UnsupportedError(
            f"expected a call without losses of its own; received {layer.name!r} of class {type(layer).__name__}, which adds "
            "some; do add them in a layer of their own"
        )
    return functional


def _check_functions(layer: keras.layers.Layer, outputs: Any) -> None:
    """Refuses operations that are given functions; before Keras looks, to which some of them seem to go around in circles."""
    seen: set[int] = set()
    left = keras.tree.flatten(outputs)
    while left:
        history = getattr(left.pop(), "_keras_history", None)
        if history is None:
            continue
        operation, node = history.operation, history.operation._inbound_nodes[history.node_index]
        if id(node) in seen:
            continue
        seen.add(id(node))
        left += node.arguments.keras_tensors
        kind = type(operation)
        if kind.__name__ in _BY_VALUES and kind.__module__.partition(".")[0] == "keras":
            raise _runs_by_values(layer, kind.__name__)
        if any(map(_holds_tensors, keras.tree.flatten((node.arguments.args, node.arguments.kwargs)))):
            raise UnsupportedError(
                f"expected a model whose call is made of layers and keras.ops; received {layer.name!r} of class "
                f"{type(layer).__name__}, whose call gives {operation.name!r} a function that holds tensors; {_ADVICE}"
            )


def _runs_by_values(layer: keras.layers.Layer, kind: str) -> UnsupportedError:
    return UnsupportedError(
        f"expected a model whose call is made of layers and keras.ops; received {layer.name!r} of class "
        f"{type(layer).__name__}, whose call uses keras.ops.{_BY_VALUES[kind]}; {_ADVICE}"
    )


def _holds_tensors(value: Any) -> bool:
    """Whether it is a function written within a call, that speaks of the call's symbolic tensors."""
    held = inspect.getclosurevars(value).nonlocals.values() if inspect.isfunction(value) else ()
    return any(isinstance(each, keras.KerasTensor) for each in held)


def _place(error: Exception) -> str:
    """The expression in the user's code that raised an error, operators and all; "" where its text isn't known."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not _is_library(Path(frame.filename))]
    text = own[-1].line or "" if own else ""
    start, end = (own[-1].colno, own[-1].end_colno) if own else (None, None)
    if not text or start is None or end is None or own[-1].lineno != own[-1].end_lineno:
        return f" at {text!r}" if text else ""
    indent = _indent(own[-1])
    return f" at {text[start - indent : end - indent]!r}"


def _is_library(path: Path) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(path.parts) or _OWN in path.parents


def _indent(frame: traceback.FrameSummary) -> int:
    """How much of a line `frame.line` leaves out."""
    whole = linecache.getline(frame.filename, frame.lineno or 0)
    return len(whole) - len(whole.lstrip())


@contextmanager
def _weights_unread(layer: keras.layers.Layer) -> Iterator[None]:
    """Refuses reading the layer's weights outside of its sub-layers: the graph would hold their values of now for ever."""
    with keras.StatelessScope() as scope:  # sub-layers on symbolic tensors run in scopes of their own
        for variable in layer.variables:
            scope.state_mapping[id(variable)] = _Unread(layer, variable.path)
        yield


@contextmanager
def _masks_taken_off(layer: keras.layers.Layer) -> Iterator[None]:
    """Has attention take the hidden masks off the tensors that it is given, as it does whenever it runs on numbers."""
    kind = keras.layers.MultiHeadAttention
    found = [part for part in layer._flatten_layers() if isinstance(part, kind) and type(part).call is kind.call]

    def erasing(part: Any) -> Any:
        def compute_output_spec(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(kind.call).bind(part, *args, **kwargs).arguments
            for name in ("query", "value", "key"):
                if getattr(given.get(name), "_keras_mask", None) is not None:
                    given[name]._keras_mask = None
            return type(part).compute_output_spec(part, *args, **kwargs)

        return compute_output_spec

    for part in found:
        part.__dict__["compute_output_spec"] = erasing(part)  # no attribute: Keras would watch it
    try:
        yield
    finally:
        for part in found:
            part.__dict__.pop("compute_output_spec", None)


class _Unread:
    """In place of a weight's value."""

    def __init__(self, layer: keras.layers.Layer, path: str) -> None:
        self.__dict__ |= {"_told": (layer.name, type(layer).__name__, path)}

    def __getattribute__(self, name: str) -> Any:
        told = object.__getattribute__(self, "__dict__").get("_told")
        if told is None or name in ("__class__", "__dict__"):
            return object.__getattribute__(self, name)
        raise UnsupportedError(
            f"expected a model whose weights are read by the layers that hold them; received {told[0]!r} of class "
            f"{told[1]}, whose call reads {told[2]!r} itself; do move that into a keras.layers.Layer"
        )


def _inputs(shapes: Any, dtypes: Any, name: str) -> Any:
    """Symbolic inputs in the structure of the shapes, of an open batch size, named by their place in it."""
    if isinstance(shapes, dict):
        pick = lambda key: dtypes[key] if isinstance(dtypes, dict) else dtypes
        return {key: _inputs(shape, pick(key), str(key)) for key, shape in shapes.items()}
    if is_shape(shapes):
        return keras.Input(shape=tuple(shapes[1:]), dtype=dtypes, name=name)
    pick = lambda index: dtypes if isinstance(dtypes, str) else dtypes[index]
    return type(shapes)([_inputs(shape, pick(i), f"{name}_{i + 1}") for i, shape in enumerate(shapes)])


def is_shape(shape: Any) -> bool:
    """Whether it is one shape, and no structure of them."""
    return isinstance(shape, (tuple, list)) and all(size is None or isinstance(size, int) for size in shape)


def _check_weights(model: keras.layers.Layer, functional: keras.Model) -> None:
    """Refuses models whose ``call`` uses weights that are in no layer it calls: a copy would lack them."""
    held = {id(weight) for weight in functional.weights}
    own = [w for w in (*model._trainable_variables, *model._non_trainable_variables) if id(w) not in held]
    for operation in functional.operations:
        for node in operation._inbound_nodes[-1:]:
            arguments = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
            own += [value for value in arguments if isinstance(value, keras.Variable)]
    if own:
        raise UnsupportedError(
            f"expected a model whose weights are held by the layers it calls; received {model.name!r} of class "
            f"{type(model).__name__}, whose call uses {sorted({weight.path for weight in own})} itself; do move them into a "
            "keras.layers.Layer"
        )


def _called_with(functional: keras.Model, training: bool) -> list[str]:
    """The layers that are called so whatever the model is called for, as no Functional model does."""
    found = []
    for op in functional.operations:
        given = op._inbound_nodes[-1].arguments.kwargs.get("training") if op._inbound_nodes else None
        own = _parameters(op).get("training") if given is training else None
        if own is not None and own.default is not training:  # Keras records a default as if it had been given
            found.append(op.name)
    return found


def _check_training(model: keras.layers.Layer, functional: keras.Model, training: bool | None) -> None:
    """Refuses calls that train in inference: a Functional model tells all of its layers what it is called for itself."""
    trained = _called_with(functional, True) if training is None else []
    if trained:
        raise UnsupportedError(
            f"expected layers to be called for inference in inference; received {model.name!r} of class {type(model).__name__}, "
            f"whose call passes training=True to {trained}; do quantize it as it is, layer by layer"
        )


def same_in_training(model: keras.layers.Layer, node: Any = None) -> bool:
    """Whether a subclassed model's, or a layer's, ``call`` runs the same operations in training as in inference.

    Args:
        model: followed from what it was built with.
        node: of a layer, the call to follow.

    Raises:
        UnsupportedError, InputError: as `trace_model`.
    """
    trace = (lambda **how: trace_model(model, **how)) if node is None else lambda **how: trace_call(model, node, **how)
    if "training" not in _parameters(model):
        with trace() as one:
            return not _called_with(one, False)
    with trace() as one, trace(training=True) as other:
        return _sequence(one) == _sequence(other) and not _called_with(other, False)


def _sequence(functional: keras.Model) -> list[Any]:
    """What tells two traces apart: their layers, and the classes of other operations."""
    operations = functional.operations
    return [op if isinstance(op, keras.layers.Layer) else type(op) for op in operations if not _is_input(op)]


def _is_input(operation: Any) -> bool:
    return isinstance(operation, keras.layers.InputLayer)
