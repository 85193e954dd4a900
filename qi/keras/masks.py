"""Scores with a mask's large numbers among them, as ``softmax(where(mask, scores, -1e9))`` has: no grid has room for both."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from qi.keras.graph import Call, Graph, Value
from qi.keras.traits import is_softmax, role_of
from qi.recipes.plan import Role

__all__ = ["masked_scores"]

_LARGE = 1e4  # beyond any score, and what exp makes 0
_PASSES = frozenset("Where Add Subtract Multiply Maximum Minimum Cast".split())


def masked_scores(graph: Graph) -> list[Value]:
    """The values on the way from a constant of 10,000 or more (of either sign) to a softmax, through sums and choices only."""
    large: dict[int, Value] = {}
    for call in graph.calls:
        if _passes(call) and (any(id(value) in large for value in call.inputs) or _has_large_constant(call)):
            large.update((id(value), value) for value in call.outputs)
    reaching: set[int] = set()
    for call in reversed(graph.calls):
        if is_softmax(call) or (_passes(call) and any(id(value) in reaching for value in call.outputs)):
            reaching.update(map(id, call.inputs))
    return [value for key, value in large.items() if key in reaching]


def _passes(call: Call) -> bool:
    return call.builtin_kind in _PASSES or (bool(call.builtin_kind) and role_of(call) is Role.KEEPS)


def _has_large_constant(call: Call) -> bool:
    if call.builtin_kind not in _PASSES:
        return False
    held = keras.tree.flatten(call.arguments([None] * len(call.inputs)))
    return any(_largest(value) >= _LARGE for value in held if value is not None)


def _largest(value: Any) -> float:
    if isinstance(value, (bool, str)):
        return 0.0
    try:
        array = np.asarray(keras.ops.convert_to_numpy(value), np.float64)
    except (TypeError, ValueError):  # an option, no number
        return 0.0
    return float(np.abs(array).max(initial=0.0))
