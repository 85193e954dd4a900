"""A model on its way to be quantized, stopped where algorithms that train begin, and what is made of what they find."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from qi.keras.assemble import frozen_wrapper, insert_holders
from qi.keras.dormant import activation_quantizers
from qi.keras.graph import build_model, build_tensors
from qi.keras.prepare import Prepared, gather_statistics, prepare
from qi.keras.rows import original_weights
from qi.keras.student import paths
from qi.keras.variables import to_numpy
from qi.keras.weights import weight_quantizers
from qi.quantizers import BaseInferableQuantizer
from qi.recipes.plan import group_statistics

Weights = dict[tuple[int, str], BaseInferableQuantizer]
Activations = dict[int, BaseInferableQuantizer]


def start(model: keras.Model, recipe: Any, x: Any) -> tuple[Prepared, Weights, Activations]:
    """The prepared graph, and the quantizers that round-to-nearest quantization would have."""
    ready = prepare(model, recipe)
    seen = gather_statistics(model, ready, x, None, 64, False).statistics
    merged = {group.key: group_statistics(group, seen) for group in ready.plan.groups}
    weights: Weights = {}
    for key, calls in ready.graph.calls_of().items():
        op = calls[0].op
        if paths(op):
            found, _ = weight_quantizers(op, calls[0].path, original_weights(op), ready.book, "")
            weights |= {(key, path): quantizer for path, quantizer in found.items()}
    return ready, weights, activation_quantizers(ready.graph, ready.plan, merged)


def finish(ready: Prepared, weights: Any, floats: Any, activations: Any) -> keras.Model:
    """The quantized model; `weights` are (quantizer, values) by key. The prepared graph is used up."""
    for key, calls in ready.graph.calls_of().items():
        op, held = calls[0].op, paths(calls[0].op)
        mine = {path: found for (owner, path), found in weights.items() if owner == key}
        for path, (_, values) in mine.items():
            held[path].assign(values)
        for (owner, path), values in floats.items():
            if owner == key:
                held[path].assign(values)
        if mine:
            wrapper = frozen_wrapper(op, {path: quantizer for path, (quantizer, _) in mine.items()})
            for path, values in wrapper.get_quantized_weights().items():
                np.testing.assert_array_equal(values, mine[path][1])
            for call in calls:
                call.op = wrapper
    insert_holders(ready.graph, ready.plan, activations)
    return build_model(ready.graph, build_tensors(ready.graph))


def nearest(ready: Prepared, weights: Weights) -> Any:
    """The given quantizers with the values that rounding to nearest gives."""
    ops = {key: calls[0].op for key, calls in ready.graph.calls_of().items()}
    return {(key, path): (q, q(to_numpy(paths(ops[key])[path]))) for (key, path), q in weights.items()}


def state(ready: Prepared) -> dict[str, Any]:
    """Everything of a prepared graph that nobody may change."""
    found: dict[str, Any] = {}
    for place, call in enumerate(ready.graph.calls):
        found[f"{place} op"] = (
            id(call.op),
            len(call.op._inbound_nodes),
            list(map(id, call.inputs)),
            id(call.outputs[0]),
        )
        for path, variable in paths(call.op).items():
            found[f"{place} {path}"] = (to_numpy(variable).tobytes(), variable.trainable)
    return found
