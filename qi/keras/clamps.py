"""Where activations cut values off: ReLU, ReLU6 and clamps that took their place."""

from __future__ import annotations

from typing import Any

import numpy as np

from qi.keras.caps import ChannelCap
from qi.keras.fold import activation_name
from qi.keras.graph import Call, Graph, Value
from qi.keras.variables import to_numpy

__all__ = ["Ends", "ends_after", "limit_of"]

Ends = tuple[float, Any]
"""Between what values are let through: a number, and a number or those of the channels ``[C]``."""

_OPEN: Ends = (-np.inf, np.inf)
_LIMITS = {"relu": np.inf, "relu6": 6.0}


def limit_of(call: Call) -> float | None:
    """Where a ReLU, or a clamp that took its place, ends before any scaling: infinity for the former; None for all else."""
    op: Any = call.op
    if isinstance(op, ChannelCap):
        return op.value
    if call.builtin_kind == "ReLU" and not op.negative_slope and not op.threshold:
        return np.inf if op.max_value is None else float(op.max_value)
    if call.builtin_kind in ("Relu", "Relu6", "Activation"):
        return _LIMITS.get(activation_name(op) if call.builtin_kind == "Activation" else call.builtin_kind.lower())
    return None


def ends_after(graph: Graph, op: Any) -> Ends:
    """Between what ends the outputs of a layer, with its bias, are let through by what follows it; infinite where nothing clamps.

    Args:
        graph: as it is now, with the caps of channels that were scaled.
        op: called once or more in it; where calls differ, nothing is said.
    """
    consumers, last = graph.consumers(), {id(value) for value in graph.flat_outputs()}
    found = [_ends(call.outputs[0], op, consumers, last) for call in graph.calls if call.op is op]
    same = all(lo == found[0][0] and np.array_equal(hi, found[0][1]) for lo, hi in found)
    return found[0] if found and same else _OPEN


def _ends(value: Value, op: Any, consumers: dict[int, list[Call]], last: set[int]) -> Ends:
    inside = _LIMITS.get(activation_name(op) or "")
    lo, hi = _OPEN if inside is None else (0.0, inside)
    while id(value) not in last and len(consumers.get(id(value), [])) == 1:
        taker = consumers[id(value)][0]
        limit = limit_of(taker)
        if limit is None:
            break
        if isinstance(taker.op, ChannelCap):
            hi = np.minimum(hi, to_numpy(taker.op.caps).astype(np.float64))
        else:
            lo, hi = 0.0, np.minimum(hi, limit)
        value = taker.outputs[0]
    return lo, hi
