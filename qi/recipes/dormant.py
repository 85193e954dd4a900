"""Quantizers of activations, also of those that calibration saw only at 0: of dead channels, or an input that was empty.

A range of nothing has scale 1, which keeps 0 at 0. But the scale counts behind it as well: the next layer's bias is an
integer number of steps ``sx * sw``, and with ``sx = 1`` that bias, all that such a layer gives, would be rounded
coarsely. So what sleeps gets the range of what it would be if it woke: of a size at which the layers after it stay
within what they were seen to give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qi.observers import TensorStatistics
from qi.quantizers import BaseInferableQuantizer
from qi.recipes.choose import activation_quantizer
from qi.recipes.plan import ActivationPlan, Graph, Group

__all__ = ["activation_quantizers", "dormant_ranges"]

_SUMMED = 16  # the square root of how many products a sum has, typically: by so much sums exceed the largest product


def activation_quantizers(
    graph: Graph,
    plan: ActivationPlan,
    seen: Mapping[str, TensorStatistics | None],
    largest_weight: Callable[[Any], float],
) -> dict[int, BaseInferableQuantizer]:
    """The quantizer of each group of activations, by ``id(group)``.

    Args:
        graph: prepared, its weights still float.
        plan: of its activations.
        seen: the statistics of each group by its key; None where the range is fixed.
        largest_weight: the largest magnitude in the matrices of an operation; 0 where it has none.
    """
    dormant = dormant_ranges(graph, plan, seen, largest_weight)
    return {
        id(group): activation_quantizer(group, seen.get(group.key), dormant.get(id(group), 0.0))
        for group in plan.groups
    }


def dormant_ranges(
    graph: Graph,
    plan: ActivationPlan,
    seen: Mapping[str, TensorStatistics | None],
    largest_weight: Callable[[Any], float],
) -> dict[int, float]:
    """How large the values of groups that were only seen at 0 may become, by ``id(group)``; 0 where nothing tells.

    ``m_x = min over what takes x of m_y / g``: ``m_y`` is the largest magnitude seen of its result, ``g`` is 1, or 16 times the
    largest magnitude of its weights. One pass against the flow of data settles whole chains of dead layers.
    """
    sizes = {id(group): _size(group, seen.get(group.key)) for group in plan.groups}
    if all(sizes.values()):
        return {}
    wanted: dict[int, float] = {}  # by id of a value: its size as those who take it would have it
    gains: dict[int, float] = {}
    for call in reversed(graph.calls):
        results = []
        for value in call.outputs:
            group = plan.group_of(value)
            results.append((group is not None and sizes[id(group)]) or wanted.get(id(value), 0.0))
        size = min((size for size in results if size), default=0.0)
        if not size:
            continue
        if id(call.op) not in gains:
            gains[id(call.op)] = _SUMMED * largest_weight(call.op) or 1.0
        for value in call.inputs:
            wanted[id(value)] = min(wanted.get(id(value), np.inf), size / gains[id(call.op)])
    found: dict[int, float] = {}
    for value in [*graph.flat_inputs(), *(value for call in graph.calls for value in call.outputs)]:
        group = plan.group_of(value)
        if group is not None and not sizes[id(group)] and id(value) in wanted:
            found[id(group)] = min(found.get(id(group), np.inf), wanted[id(value)])
    return found


def _size(group: Group, seen: TensorStatistics | None) -> float:
    """The largest magnitude of a group's values."""
    if group.fixed is not None:
        return max(-group.fixed[0], group.fixed[1])
    return 0.0 if seen is None or not seen.count else float(max(-seen.lo, seen.hi))
