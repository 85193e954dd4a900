"""Scores with a mask's large numbers among them, as ``softmax(scores.masked_fill(mask, -inf))`` has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from qi.torch.follow import LARGE
from qi.torch.graph import Call, Graph, Value

__all__ = ["masked_scores"]

_PASSES = frozenset(
    "where add sub mul div maximum minimum masked_fill to float type type_as full full_like neg".split()
)


def masked_scores(graph: Graph, is_softmax: Callable[[Call], bool], keeps: Callable[[Call], bool]) -> list[Value]:
    """The values on the way from a constant of 10,000 or more (of either sign) to a softmax, through sums and choices only.

    An input that held such numbers when the module was traced counts as such a constant.

    Args:
        graph: left alone.
        is_softmax: tells of a call.
        keeps: whether a call only moves what it takes.
    """

    def passes(call: Call) -> bool:
        return call.builtin_kind in _PASSES or keeps(call)

    large: dict[int, Value] = {id(value): value for value in graph.inputs if value.node.meta.get("qi_large")}
    for call in graph.calls:
        held = any(id(value) in large for value in call.inputs) or _is_large(call)
        if held and (call.kind in ("Buffer", "Parameter") or passes(call)):
            large.update((id(value), value) for value in call.outputs)
    reaching: set[int] = set()
    for call in reversed(graph.calls):
        if is_softmax(call) or (passes(call) and any(id(value) in reaching for value in call.outputs)):
            reaching.update(map(id, call.inputs))
    return [value for key, value in large.items() if key in reaching]


def _is_large(call: Call) -> bool:
    """Whether a call brings a large constant: a number among its arguments, or the tensor that it is."""
    if isinstance(call.op, torch.Tensor):
        numbers = call.op.detach()
        return bool(numbers.is_floating_point() and numbers.numel() and numbers.abs().max() >= LARGE)
    return call.builtin_kind in _PASSES and any(map(_large, [*call.node.args, *call.node.kwargs.values()]))


def _large(given: Any) -> bool:
    if isinstance(given, (fx.Node, bool)):
        return False
    return isinstance(given, (int, float)) and abs(given) >= LARGE
