"""From a planned float graph to the quantized one: layers copied, wrapped and frozen, quantizers inserted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras
import numpy as np

from qi.keras.dispatcher import KerasNodeQuantizationDispatcher
from qi.keras.graph import Graph, Value
from qi.keras.holder import KerasActivationQuantizationHolder
from qi.keras.layers import copy_operations
from qi.keras.moving import MOVES, moved_by
from qi.keras.outputs import OutputNames, name_outputs
from qi.keras.rows import original_weights, weight_rows
from qi.keras.separable import weight_in_rules
from qi.keras.ties import Once
from qi.keras.weights import weight_quantizers
from qi.keras.wrapper import KerasQuantizationWrapper
from qi.ledger import Row
from qi.ledger.findings import unasked
from qi.quantizers import BaseInferableQuantizer, BaseQuantizer
from qi.recipes import RuleBook
from qi.recipes.plan import ActivationPlan

__all__ = ["Weights", "Within", "copy_layers", "frozen_wrapper", "insert_holders", "wrap_layers"]


@dataclass(eq=False)
class Weights:
    """What became of the weights: rows, and those matrices that stay float though nobody asked for it."""

    rows: list[Row] = field(default_factory=list)
    refused: list[Row] = field(default_factory=list)


def copy_layers(graph: Graph, plan: ActivationPlan) -> dict[str, str]:
    """Puts a copy in the place of every operation, with names that are unique in the flat graph.

    The names of outputs stay with the outputs (see `qi.keras.outputs`); whatever else had the name gets the ending "_raw".

    Returns:
        by path, why an operation couldn't be copied.
    """
    notes: dict[str, str] = {}
    names = OutputNames.of(graph, plan)
    taken = {value.name for value in graph.flat_inputs()} | names.names
    named: list[tuple[Any, str]] = []
    several = list(graph.calls_of().values())
    for calls in several:
        op, path = calls[0].op, calls[0].path
        wanted = op.name + ("_raw" if op.name in names.names else "")
        named.append((op, names.layers.get(id(op)) or _unique(wanted, path, taken)))
    for calls, (copy, why) in zip(several, copy_operations(named), strict=True):
        if why:
            notes[calls[0].path] = why
        for call in calls:
            call.op = copy
    return notes


def _unique(name: str, path: str, taken: set[str]) -> str:
    candidate, count = name, 1
    if candidate in taken:
        candidate = path.replace("/", "_")
    while candidate in taken:
        count += 1
        candidate = f"{path.replace('/', '_')}_{count}"
    taken.add(candidate)
    return candidate


Within = Mapping[str, Sequence[BaseQuantizer | None]]
"""Quantizers of what the layers within a layer give, by path."""

Wrap = Callable[[keras.layers.Layer, dict[str, BaseInferableQuantizer], Within], KerasQuantizationWrapper]


def frozen_wrapper(
    layer: keras.layers.Layer,
    quantizers: Mapping[str, BaseInferableQuantizer],
    within: Within | None = None,
    outputs: Sequence[BaseInferableQuantizer] = (),
) -> KerasQuantizationWrapper:
    """A wrapper of the layer's name that holds its weights quantized, in the layer itself."""
    dispatcher = KerasNodeQuantizationDispatcher(quantizers, list(outputs), within)
    wrapper = KerasQuantizationWrapper(layer, dispatcher, name=layer.name)
    wrapper.build(None)
    return wrapper.freeze(in_place=True)


def wrap_layers(
    graph: Graph,
    book: RuleBook,
    kept: Mapping[str, str],
    notes: Mapping[str, str],
    types: Mapping[int, str],
    wrap: Wrap | None = None,
    inner: Mapping[str, Within] | None = None,
    made: Mapping[tuple[int, str], BaseInferableQuantizer] | None = None,
    floats: Mapping[tuple[int, str], np.ndarray] | None = None,
) -> Weights:
    """Wraps every layer of which the recipe quantizes weights, or anything within.

    Args:
        graph: its operations are copies; changed in place.
        book: the recipe's decisions.
        kept: why a batch normalization wasn't folded or an attention not taken apart, by path.
        notes: why a layer is no copy, by path: it is left alone.
        types: description of each call's operation by ``id(call)``.
        wrap: makes a built wrapper of a layer and its quantizers; frozen ones by default.
        inner: the quantizers within each layer by the layer's path.
        made: quantizers that algorithms have chosen, by (``id`` of the layer, path of the weight).
        floats: likewise, the weights before an algorithm moved them, for the report.
    """
    result = Weights()
    once = Once({calls[0].path: calls[0].op for calls in graph.calls_of().values()}, trains=wrap is not None)
    for calls in graph.calls_of().values():
        op, path = calls[0].op, calls[0].path
        within = (inner or {}).get(path, {})
        if not isinstance(op, keras.layers.Layer) or not (op.weights or within):
            continue
        originals = original_weights(op)
        in_rules = partial(weight_in_rules, calls[0])
        chosen = {name: made[id(op), name] for name in originals if made and (id(op), name) in made}
        quantizers, reasons = weight_quantizers(op, path, originals, book, kept.get(path, ""), in_rules, chosen)
        originals |= {name: floats[id(op), name] for name in originals if floats and (id(op), name) in floats}
        if path in notes:
            reasons |= dict.fromkeys(quantizers, notes[path])
            quantizers = {}
        for name in moved_by(calls[0]) & set(quantizers) if quantizers else ():
            reasons[name] = MOVES
            del quantizers[name]
        known = once.settle(op, path, quantizers, reasons)
        if quantizers or within:
            wrapper = (wrap or frozen_wrapper)(op, quantizers, within)
            for call in calls:
                call.op = wrapper
        originals = {name: array for name, array in originals.items() if name not in known}
        rows = once.noted(op, path, weight_rows(calls, originals, reasons, types[id(calls[0])]))
        result.rows += rows
        result.refused += [row for row in rows if not row.quantized and unasked(row, book.recipe.weights is not None)]
    return result


def insert_holders(
    graph: Graph, plan: ActivationPlan, quantizers: Mapping[int, BaseQuantizer], *, one_each: bool = False
) -> dict[int, Value]:
    """Inserts one quantizer layer a group, called on each value that needs it, and one for each name of an output.

    Args:
        graph: of copies; changed in place.
        plan: which values get a quantizer.
        quantizers: by ``id(group)``.
        one_each: whether no group may have two layers, as where they train and have to stay equal.

    Returns:
        the quantized value of each value that got a quantizer, by the ``id`` of the latter.
    """
    names, outputs = OutputNames.of(graph, plan, one_each=one_each), graph.flat_outputs()
    taken = {call.op.name for call in graph.calls} | {value.name for value in graph.flat_inputs()} | names.names
    holders: dict[tuple[int, str], KerasActivationQuantizationHolder] = {}
    held: dict[int, Value] = {}
    for value in [*graph.flat_inputs(), *(value for call in list(graph.calls) for value in call.outputs)]:
        group = plan.quantized.get(id(value))
        if group is None:
            continue
        source = value.producer.op.name if value.producer is not None else value.name
        own = names.quantizers.get(id(value), "")
        if (id(group), own) not in holders:
            name = own or _unique(f"{source}_quant", f"{source}_quant", taken)
            holders[id(group), own] = KerasActivationQuantizationHolder(quantizers[id(group)], name=name)
        held[id(value)] = graph.insert_after(value, holders[id(group), own], source)
    name_outputs(graph, names, outputs)
    return held
