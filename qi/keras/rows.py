"""The report's rows: one for every weight and every activation of the quantized graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from qi.core import sqnr_db
from qi.keras.attention import ATTENTIONS
from qi.keras.graph import Call, Graph, Value
from qi.keras.macs import multiply_accumulates
from qi.keras.plan import value_name
from qi.keras.variables import to_numpy, weights_of
from qi.keras.wrapper import KerasQuantizationWrapper
from qi.ledger import Row
from qi.ledger.outcomes import in_float, quantized_activation, quantized_weight
from qi.observers import TensorStatistics
from qi.quantizers import BaseInferableQuantizer
from qi.recipes.plan import ActivationPlan, Group

__all__ = [
    "activation_row",
    "activation_rows",
    "describe",
    "errors_of",
    "in_graph_order",
    "original_weights",
    "weight_rows",
    "whole_rows",
]

_STATES = (
    "gates and states between the steps of a recurrent layer stay in float, here and in exported files; a rule for its cell "
    "quantizes the states"
)
_GATES = "inside a recurrent cell only its outputs and states are quantized; gates stay in float"


def original_weights(layer: keras.layers.Layer) -> dict[str, np.ndarray]:
    """All variables of a layer by path, but for the states of random generators."""
    return {p: to_numpy(v) for p, v in weights_of(layer).items() if "seed_generator" not in p}


def describe(call: Call) -> str:
    """An operation with what was folded into it, such as "Conv2D + BatchNormalization"."""
    return " + ".join([call.kind, *(name.split()[0] for name in call.fused)])


def weight_rows(
    calls: Sequence[Call], originals: Mapping[str, np.ndarray], reasons: Mapping[str, str], type_name: str
) -> list[Row]:
    """Rows of one layer's weights.

    Args:
        calls: its calls in the quantized graph.
        originals: float values by path, after folding.
        reasons: why a path stays float.
        type_name: the layer's class with what was folded into it.
    """
    op = calls[0].op
    wrapper = op if isinstance(op, KerasQuantizationWrapper) else None
    layer = wrapper.layer if wrapper is not None else op
    tensors = wrapper.get_quantized_tensors() if wrapper is not None else {}
    quantizers = wrapper.quantizers if wrapper is not None else {}
    inner = [replace(call, op=layer) for call in calls]
    rows = []
    for path, array in originals.items():
        if path in tensors:
            outcome = quantized_weight(array, tensors[path], quantizers[path])
        else:
            outcome = in_float(reasons.get(path, "no rule of the recipe covers it")) | {"size_after": array.nbytes}
        rows.append(
            Row(
                kind="weight",
                layer=calls[0].path,
                layer_type=type_name,
                name=path,
                shape=array.shape,
                size_before=array.nbytes,
                macs=_macs(inner, path, array.shape),
                **outcome,
            )
        )
    return rows


def activation_rows(
    graph: Graph,
    plan: ActivationPlan,
    quantizers: Mapping[int, BaseInferableQuantizer],
    statistics: Mapping[str, TensorStatistics],
    errors: Mapping[int, tuple[float, float]],
    types: Mapping[int, str],
    kept: Mapping[str, str] | None = None,
    inner: Mapping[str, Collection[str]] | None = None,
) -> list[Row]:
    """Rows of all activations.

    Args:
        graph: the float graph before quantizers were inserted.
        plan: what became of each value.
        quantizers: by ``id(group)``.
        statistics: by group key; absent where ranges were fixed.
        errors: own and total SQNR in dB by ``id(value)``, where measured.
        types: description of each call's operation by ``id(call)``.
        kept: why attentions weren't taken apart, by path.
        inner: the parts of each layer that are quantized where they are, by the layer's path.
    """
    rows = []
    for value in [*graph.flat_inputs(), *(v for call in graph.calls for v in call.outputs)]:
        if id(value) in plan.fused:
            continue
        call, group = value.producer, plan.group_of(value)
        kind = "InputLayer" if call is None else types.get(id(call), call.kind)
        name = "input" if call is None else "output"
        if group is None:
            reason = plan.floats.get(id(value), "not planned")
            rows.append(activation_row(value_name(value), kind, value.shape, reason, name=name))
        else:
            found = (group, quantizers[id(group)], statistics.get(group.key))
            rows.append(activation_row(value_name(value), kind, value.shape, found, errors.get(id(value)), name=name))
        if call is None or group is None or value is not call.outputs[0]:
            continue
        op = call.op.layer if isinstance(call.op, KerasQuantizationWrapper) else call.op
        quantized, path = bool(inner and inner.get(call.path)), call.path
        kind = types.get(id(call), call.kind)
        rows += whole_rows(
            op, value_name(value), kind, quantized, (kept or {}).get(path, ""), graph.whole.get(path, "")
        )
    return rows


def activation_row(
    layer: str,
    layer_type: str,
    shape: tuple[int | None, ...],
    found: str | tuple[Group, BaseInferableQuantizer, TensorStatistics | None],
    errors: tuple[float, float] | None = None,
    *,
    name: str = "output",
) -> Row:
    """The row of one activation.

    Args:
        layer: the place of the layer that gives it.
        layer_type: its class.
        shape: of the activation.
        found: why it stays in float; or how it is quantized, and what calibration saw of it.
        errors: own and total SQNR in dB, where measured.
        name: what it is of the layer.
    """
    if isinstance(found, str):
        outcome = in_float(found)
    else:
        own, total = errors or (None, None)
        group, quantizer, seen = found
        outcome = quantized_activation(quantizer, seen, group.fixed is not None) | {
            "sqnr_db": own,
            "total_sqnr_db": total,
        }
    return Row(kind="activation", layer=layer, layer_type=layer_type, name=name, shape=shape, **outcome)


def whole_rows(op: Any, layer: str, layer_type: str, quantized: bool, kept: str = "", whole: str = "") -> list[Row]:
    """A row of what stays in float within a layer that is called as a whole; none for layers that hold no others.

    Args:
        op: the layer or operation.
        layer: its place.
        layer_type: its class.
        quantized: whether anything within it is quantized.
        kept: why it wasn't taken apart, where it is an attention.
        whole: why it wasn't followed, where it is a layer of a user's.
    """
    parts = op._flatten_layers() if isinstance(op, keras.layers.Layer) else ()
    if whole:
        told = "; what its parts give is quantized, what it computes between them isn't" if quantized else ""
        name, why = "within", f"it is called as a whole, for {whole}{told}"
    elif any(isinstance(part, (keras.layers.RNN, keras.layers.Bidirectional)) for part in parts):
        name, why = ("gates", _GATES) if quantized else ("states", _STATES)
    elif kept and type(op).__name__ in ATTENTIONS:
        name, why = "scores", f"attention is kept whole: {kept}"
    else:
        return []
    return [Row(kind="activation", layer=layer, layer_type=layer_type, name=name, **in_float(why))]


def in_graph_order(
    graph: Graph, weights: list[Row], activations: list[Row], parts: Mapping[str, list[Row]] | None = None
) -> list[Row]:
    """The rows as data flow: the inputs, then each layer's weights and what it gives.

    Args:
        graph: the float graph.
        weights: rows of weights; those of a shared layer go where it is called first.
        activations: rows of activations.
        parts: rows of what layers quantize within, by the layer's path.
    """
    first = {call.path: place for place, call in reversed(list(enumerate(graph.calls, start=1)))}
    made = {value_name(value): place for place, call in enumerate(graph.calls, start=1) for value in call.outputs}
    placed = [(first.get(row.layer, 0), row) for row in weights]
    placed += [(first.get(path, 0), row) for path, rows in (parts or {}).items() for row in rows]
    placed += [(0 if row.name == "input" else made[row.layer], row) for row in activations]
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]


def errors_of(
    values: list[Value],
    before: list[np.ndarray],
    after: list[np.ndarray],
    quantizers: Mapping[int, BaseInferableQuantizer],
) -> dict[int, tuple[float, float]]:
    """(own, total) SQNR in dB of each value by ``id``: its own quantizer's error, and all error up to there.

    Args:
        values: the measured values.
        before: their arrays in the float model.
        after: their arrays in the quantized model.
        quantizers: of each value by ``id``.
    """
    return {
        id(value): (sqnr_db(exact, quantizers[id(value)](exact)), sqnr_db(exact, quantized))
        for value, exact, quantized in zip(values, before, after, strict=True)
        if exact.size
    }


def _macs(calls: Sequence[Call], path: str, shape: tuple[int, ...]) -> int | None:
    counts = [multiply_accumulates(call, path, shape) for call in calls]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None
