"""Sums, products and averages of more than two tensors taken apart: runtimes take two, and what is between has a grid."""

from __future__ import annotations

from typing import Any

from keras import layers

from qi.keras.graph import Call, Graph, Value

__all__ = ["split_merges"]

_CHAINS: dict[str, Any] = {"Add": layers.Add, "Multiply": layers.Multiply, "Average": layers.Add}


def split_merges(graph: Graph) -> None:
    """Puts a chain of layers of two tensors, from left to right as Keras goes, in the place of each that merges more.

    Those of "block/sum" are called "block/sum/1", "block/sum/2"...; an average of n is a sum and a factor, "block/mean/factor".
    Maximum and Minimum stay: what is between is on the grid that all of it shares.

    Args:
        graph: changed in place; the layers of the given model are only read.
    """
    for call in list(graph.calls):
        if call.builtin_kind in _CHAINS and isinstance(call.op, layers.Layer) and len(call.inputs) > 2:
            position = graph.calls.index(call)
            graph.calls[position : position + 1] = _chain(call)


def _chain(call: Call) -> list[Call]:
    given, kind = call.op, _CHAINS[call.builtin_kind]
    parts: list[Call] = []
    total = call.inputs[0]
    for i, value in enumerate(call.inputs[1:], 1):
        parts.append(_part(call, kind, str(i), [total, value]))
        total = parts[-1].outputs[0]
    if call.builtin_kind == "Average":
        parts.append(
            _part(call, lambda **options: layers.Rescaling(1 / len(call.inputs), **options), "factor", [total])
        )
    last, result = parts[-1], call.outputs[0]
    last.outputs, result.producer = [result], last
    last.op.name = given.name
    return parts


def _part(call: Call, make: Any, part: str, inputs: list[Value]) -> Call:
    """A call of a layer of its own, whose output nothing takes yet."""
    given, path = call.op, f"{call.path}/{part}"
    op = make(name=f"{given.name}_{part}", dtype=given.dtype_policy)
    listed = len(inputs) > 1
    shapes = [value.shape for value in inputs]
    shape = op.compute_output_shape(shapes if listed else shapes[0])
    made = Call(op, path, call.site.replace(call.path, path, 1), inputs, [], split_from=call)
    made.arguments = lambda tensors: ((list(tensors) if listed else tensors[0],), {})
    made.outputs = [Value(tuple(shape), call.outputs[0].dtype, made)]
    return made
