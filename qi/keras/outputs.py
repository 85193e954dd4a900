"""Names of outputs: Keras calls an output after the operation that gives it, and the new model's must be called alike."""

from __future__ import annotations

from dataclasses import dataclass, field

import keras

from qi.keras.graph import Call, Graph, Value
from qi.recipes.plan import ActivationPlan

__all__ = ["OutputNames", "name_outputs"]


@dataclass(eq=False)
class OutputNames:
    """Who gives the outputs their names.

    Attributes:
        layers: the operations that have one themselves, by their ``id``.
        quantizers: the outputs whose quantizer has one, by the ``id`` of the value.
        others: names that no operation can have by itself: those of several outputs, as a nested model has, or of an output
            that has another name already.
    """

    layers: dict[int, str] = field(default_factory=dict)
    quantizers: dict[int, str] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)

    @property
    def names(self) -> set[str]:
        """All names that an operation will have; none but these may."""
        return {*self.layers.values(), *self.quantizers.values(), *self.others}

    @classmethod
    def of(cls, graph: Graph, plan: ActivationPlan, *, one_each: bool = False) -> OutputNames:
        """Decides for each output of a graph.

        Args:
            graph: of copies.
            plan: says which outputs get a quantizer.
            one_each: whether a group has one quantizer layer only: it has an output's name where it serves nothing else.
        """
        result = cls()
        for name, values in _by_name(graph).items():
            groups = {id(plan.quantized[id(value)]) if id(value) in plan.quantized else None for value in values}
            ops = {id(value.producer.op) for value in values if value.producer is not None}
            fresh = not any(id(value) in result.quantizers for value in values) and not ops & set(result.layers)
            if fresh and groups == {None} and len(ops) == 1:
                result.layers[ops.pop()] = name
            elif fresh and len(groups) == 1 and None not in groups and not (one_each and _serves_more(plan, values)):
                result.quantizers.update((id(value), name) for value in values)
            else:
                result.others.add(name)
        return result


def _serves_more(plan: ActivationPlan, values: list[Value]) -> bool:
    """Whether the group of these values quantizes others too."""
    group = plan.quantized[id(values[0])]
    return sum(other is group for other in plan.quantized.values()) > len(values)


def _by_name(graph: Graph) -> dict[str, list[Value]]:
    """The different values behind each name; an input that is an output needs none but its own."""
    found: dict[str, list[Value]] = {}
    for value, name in zip(graph.flat_outputs(), graph.output_names, strict=True):
        own = value.producer is None and name == value.name
        if not own and all(value is not other for other in found.setdefault(name, [])):
            found[name].append(value)
    return found


def name_outputs(graph: Graph, names: OutputNames, raw: list[Value]) -> None:
    """Gives each output that has no name of its own a layer that merely has it.

    Args:
        graph: of copies and quantizers; changed in place.
        names: as they were before quantizers were inserted.
        raw: its outputs at that time. Inputs among them are given out as they came in: only their own layer has their name.
    """
    results = list(graph.flat_outputs())
    layers: dict[str, keras.layers.Layer] = {}
    made: dict[tuple[str, int], Value] = {}
    for i, (name, before, value) in enumerate(zip(graph.output_names, raw, results, strict=True)):
        if before.producer is None and name == before.name:
            results[i] = before
        elif name in names.others:
            dtype = value.dtype if value.is_float else None
            op = layers.setdefault(name, keras.layers.Identity(name=name, dtype=dtype))
            if value.is_float and op.compute_dtype != value.dtype:
                continue  # it would cast: rather another name
            if (name, id(value)) not in made:
                made[name, id(value)] = result = Value(value.shape, value.dtype, name=name)
                result.producer = Call(op, name, name, [value], [result])
                graph.calls.append(result.producer)
            results[i] = made[name, id(value)]
    graph.outputs = keras.tree.pack_sequence_as(graph.outputs, results)
