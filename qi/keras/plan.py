"""The plan of a Keras graph's activations: `qi.recipes.plan` with what Keras' operations do to grids."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from qi.keras.graph import Graph, Value, looks_up
from qi.keras.masks import masked_scores
from qi.keras.traits import fuses_activation, is_fusable_activation, known_range, multiplies, role_of
from qi.recipes import RuleBook, plan
from qi.recipes.plan import ActivationPlan, Role, Traits

__all__ = ["TRAITS", "plan_activations", "value_name"]

_MASKED = "a mask's large numbers stand among scores: no grid has room for both"
_INDICES = "holds indices into a table"


def plan_activations(graph: Graph, book: RuleBook, folds_later: Collection[str] = ()) -> ActivationPlan:
    """`qi.recipes.plan.plan_activations` of a Keras graph."""
    return plan.plan_activations(graph, book, TRAITS, folds_later)


def value_name(value: Value) -> str:
    """The call site that gives a value, or the input's name; further outputs get ":1", ":2"..."""
    if value.producer is None:
        return value.name
    index = next(i for i, other in enumerate(value.producer.outputs) if other is value)
    return value.producer.site + (f":{index}" if index else "")


def _place_of(value: Value) -> tuple[str, str]:
    call = value.producer
    call = call.split_from or call if call is not None else None  # rules speak of the layers of the given model
    return (call.path, call.kind) if call is not None else (value.name, "InputLayer")


def _exempt(graph: Graph) -> Iterable[tuple[str, Iterable[Value]]]:
    return (_MASKED, masked_scores(graph)), (_INDICES, _indices(graph))


def _indices(graph: Graph) -> list[Value]:
    """Values that are looked up, or become so once they were moved; some networks hand in indices as real numbers."""
    found: dict[int, Value] = {}
    for call in reversed(graph.calls):
        moved = role_of(call) is Role.KEEPS and any(id(value) in found for value in call.outputs)
        if moved or looks_up(call):
            found.update((id(value), value) for value in call.inputs)
    return list(found.values())


TRAITS = Traits(
    role_of, known_range, fuses_activation, is_fusable_activation, multiplies, value_name, _place_of, _exempt
)
