"""Takes operations of a Keras graph apart where a file does them in steps, each of which it rounds to codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from qi.exporters.match_graph import CallView, Matching
from qi.exporters.vendor import VendorGraph, VendorNode, VendorTensor
from qi.ir.graph import take_name

__all__ = ["split_gains", "split_swish"]

_SAME = 0.05  # how far factors that stand for the same may lie apart


def split_swish(graph: Any, file: VendorGraph) -> None:
    """Makes products with sigmoids of swishes, where the file rounds such sigmoids to codes.

    Args:
        graph: a `qi.keras.graph.Graph`; changed in place.
        file: to be matched.
    """
    if not any(_is_swish(file, node) for node in file.nodes):
        return
    from qi.keras.graph import Call, Value
    from qi.keras.steps import swish_steps

    made: dict[int, tuple[Any, Any]] = {}
    names = _Names(graph)
    for call in [call for call in graph.calls if _function(call) in ("silu", "swish")]:
        if id(call.op) not in made:
            name = call.op.name
            made[id(call.op)] = swish_steps(names.take(f"{name}_sigmoid"), names.take(f"{name}_product"))
        sigmoid, product = made[id(call.op)]
        x, result = call.inputs[0], call.outputs[0]
        path = f"{call.path}/sigmoid"
        first = Call(sigmoid, path, call.site.replace(call.path, path, 1), [x], [], split_from=call)
        middle = Value(result.shape, result.dtype, first)
        first.outputs = [middle]
        second = Call(product, call.path, call.site, [x, middle], [result], _listed, split_from=call)
        result.producer = second
        at = graph.calls.index(call)
        graph.calls[at : at + 1] = [first, second]


def _listed(tensors: list[Any]) -> tuple[Any, Any]:
    """The arguments of a layer that takes a list."""
    return (list(tensors),), {}


def _is_swish(file: VendorGraph, node: VendorNode) -> bool:
    """Whether a node is the product of a tensor with its sigmoid, in codes."""
    if node.kind != "mul" or len(node.inputs) != 2:
        return False
    roots = [file.root(tensor) for tensor in node.inputs]
    for x, y in (roots, roots[::-1]):
        before = file.producer(y)
        if before is not None and before.kind == "sigmoid" and file.root(before.inputs[0]) is x:
            return file.settled(before.outputs[0]) is not None
    return False


def _function(call: Any) -> str:
    from qi.keras.fold import activation_name

    return activation_name(call.op) if call.builtin_kind == "Activation" else call.builtin_kind.lower()


def split_gains(graph: Any, views: list[CallView], found: Matching, file: VendorGraph) -> bool:
    """Gives a factor that the file has behind a product a call of its own: 1/sqrt(d) of attention, say.

    Args:
        graph: a `qi.keras.graph.Graph`; changed in place.
        views: its calls.
        found: of them.
        file: that was matched.

    Returns:
        whether anything was changed: then nothing else of the matching holds any more.
    """
    from qi.keras.layers import rebuild_layer
    from qi.keras.steps import factor_step

    changed, names, calls = False, _Names(graph), graph.calls_of()
    for view in views:
        call = view.call
        if id(call) not in found.gains or view.weight is None or len(calls[id(call.op)]) > 1:
            continue
        ends = _ends(graph, call.outputs[0], found, file)
        factors = {factor for _, factor in ends or ()}
        if ends is None or len(factors) != 1:
            continue
        (factor,) = factors
        values = {view.path: (view.weight / np.float32(factor)).astype(np.float32)}
        if view.bias is not None:
            values["bias"] = (view.bias / np.float32(factor)).astype(np.float32)
        call.op = rebuild_layer(call.op, {}, values)
        for value, _ in ends:
            before = value.producer
            layer = factor_step(factor, names.take(f"{before.op.name}_factor"))
            after = graph.insert_after(value, layer, f"{before.path}/factor").producer
            after.site = before.site.replace(before.path, after.path, 1)
            after.split_from = before.split_from or before
        changed = True
    return changed


def _ends(graph: Any, value: Any, found: Matching, file: VendorGraph) -> list[tuple[Any, float]] | None:
    """(the last value that lacks a factor, that factor in the file) for each way from a value on; None where one has no end."""
    if found.factor(value) == 1.0 or any(value is output for output in graph.flat_outputs()):
        return None
    place = found.place(value)
    factor = _scaled_by(file, place) if place is not None else None
    if factor is not None and abs(factor / found.factor(value) - 1) < _SAME:
        return [(value, factor)]
    ends = []
    users = graph.consumers().get(id(value), [])
    for result in (result for call in users for result in call.outputs):
        behind = _ends(graph, result, found, file)
        if behind is None:
            return None
        ends += behind
    return ends or None


def _scaled_by(file: VendorGraph, tensor: VendorTensor) -> float | None:
    """The one number that a tensor is multiplied by, if nothing else is done to it."""
    users = file.users(tensor)
    if len(users) != 1 or users[0].kind != "mul" or len(users[0].inputs) != 1 or len(users[0].constants) != 1:
        return None
    constant = users[0].constants[0]
    return float(constant.real().reshape(())) if constant.data.size == 1 and constant.data.any() else None


class _Names:
    """Names that no layer of a graph has."""

    def __init__(self, graph: Any) -> None:
        self._taken = {call.op.name for call in graph.calls} | {value.name for value in graph.flat_inputs()}

    def take(self, name: str) -> str:
        return take_name(name, self._taken)
