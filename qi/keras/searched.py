"""The weights whose bits are searched, with what each candidate makes of them; and those about which nothing is to choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np

from qi.keras.graph import Call
from qi.keras.inputs import weight_key
from qi.keras.macs import multiply_accumulates
from qi.keras.moving import moved_by
from qi.keras.prepare import Prepared
from qi.keras.rows import original_weights
from qi.keras.separable import weight_in_rules
from qi.keras.slots import slots_of
from qi.keras.ties import Once
from qi.keras.variables import weights_of
from qi.keras.weights import weight_quantizers
from qi.quantizers import BaseInferableQuantizer
from qi.recipes import Recipe, RuleBook, TensorSpec
from qi.recipes.book import Decision
from qi.recipes.choose import weight_quantizer

__all__ = ["FLOAT_BITS", "Fixed", "Searched", "searched_weights"]

FLOAT_BITS = 32
"""What a weight or an activation in float counts."""


@dataclass(frozen=True, eq=False)
class Fixed:
    """A weight about which there is nothing to search; `bits` is None for what no recipe quantizes, as biases."""

    path: str
    name: str
    nbytes: int
    size: int
    bits: int | None
    macs: int
    activation_bits: int


@dataclass(frozen=True, eq=False)
class Searched:
    """A weight whose quantizer is searched.

    Attributes:
        path: of its layer, as rules know it.
        name: of the weight within the layer, likewise.
        call: the first call of its layer in the graph that is run.
        own: the path of the weight within that layer.
        array: its float values.
        quantizers: one a candidate.
        macs: multiply-accumulates with it for one sample, over all calls; 0 where they can't be counted.
        activation_bits: of what it is multiplied with.
    """

    path: str
    name: str
    call: Call
    own: str
    array: np.ndarray
    quantizers: tuple[BaseInferableQuantizer, ...]
    macs: int
    activation_bits: int

    @property
    def label(self) -> str:
        """The path of the weight as reports and statistics have it, "conv/kernel"."""
        return weight_key(self.call.path, self.own)

    @property
    def variable(self) -> keras.Variable:
        """The variable that the graph reads."""
        return weights_of(self.call.op)[self.own]

    def values(self, candidate: int) -> np.ndarray:
        """The weight on the grid of a candidate."""
        return self.quantizers[candidate].qparams(self.array.shape).quantize(self.array).dequantize()

    def nbytes(self, candidate: int) -> int:
        """Bytes of its packed codes with scales, as a report counts them."""
        return int(self.quantizers[candidate].qparams(self.array.shape).quantize(self.array).nbytes)


class _Asked(RuleBook):
    """Remembers under which names a weight was last asked for, and whether the recipe's default decided."""

    def __init__(self, recipe: Recipe, default: TensorSpec) -> None:
        super().__init__(Recipe(recipe.name, weights=default, activations=recipe.activations, rules=recipe.rules))
        self.names = ("", "")
        self.free = False

    def weights_for(self, path: str, layer_type: str, attribute: str, within: Any = ()) -> Decision:
        """As of the base class."""
        found = super().weights_for(path, layer_type, attribute, within)
        self.names, self.free = (path, attribute), found.spec is self.recipe.weights
        return found


def searched_weights(ready: Prepared, specs: Sequence[TensorSpec]) -> tuple[list[Searched], list[Fixed]]:
    """The weights of a prepared graph that no rule of the recipe speaks of, and all others.

    Weights that several layers hold count once, for the first of these.

    Args:
        ready: the graph; its weights are only read.
        specs: the candidates.
    """
    asked = _Asked(ready.book.recipe, TensorSpec(bits=8, granularity="per_channel"))
    once = Once({calls[0].path: calls[0].op for calls in ready.graph.calls_of().values()}, trains=False)
    searched: list[Searched] = []
    fixed: list[Fixed] = []
    for calls in ready.graph.calls_of().values():
        op, path = calls[0].op, calls[0].path
        if not isinstance(op, keras.layers.Layer) or not op.weights:
            continue
        originals, slots = original_weights(op), slots_of(op)
        still = set(originals) if path in ready.notes else moved_by(calls[0])
        quantizers, reasons, free = {}, {}, {}
        for name, array in originals.items():
            own, why = _decided(calls[0], name, array, asked, ready.kept.get(path, ""))
            if own is not None and name not in still:
                quantizers[name] = own
                free[name] = asked.names if asked.free else None
            else:
                reasons[name] = why
        known = once.settle(op, path, quantizers, reasons)
        bits = _activation_bits(ready, calls[0])
        for name, array in originals.items():
            if name in known:
                continue
            macs = _macs(calls, name, array)
            names = free.get(name)
            if name in quantizers and names is not None:
                made = tuple(weight_quantizer(array, spec, slots[name].slot) for spec in specs)  # type: ignore[arg-type]
                searched.append(Searched(*names, calls[0], name, array, made, macs, bits))
            else:
                fixed.append(_fixed(path, name, array, quantizers.get(name), slots[name].slot is not None, macs, bits))
    return searched, fixed


def _decided(
    call: Call, name: str, array: np.ndarray, asked: _Asked, kept: str
) -> tuple[BaseInferableQuantizer | None, str]:
    found, reasons = weight_quantizers(call.op, call.path, {name: array}, asked, kept, partial(weight_in_rules, call))
    return found.get(name), reasons.get(name, "")


def _fixed(
    path: str,
    name: str,
    array: np.ndarray,
    quantizer: BaseInferableQuantizer | None,
    matrix: bool,
    macs: int,
    bits: int,
) -> Fixed:
    if quantizer is None:
        return Fixed(path, name, array.nbytes, array.size, FLOAT_BITS if matrix else None, macs, bits)
    nbytes = int(quantizer.qparams(array.shape).quantize(array).nbytes)
    return Fixed(path, name, nbytes, array.size, quantizer.num_bits, macs, bits)


def _macs(calls: Sequence[Call], name: str, array: np.ndarray) -> int:
    counts = [multiply_accumulates(call, name, array.shape) for call in calls]
    return sum(count for count in counts if count is not None)


def _activation_bits(ready: Prepared, call: Call) -> int:
    group = ready.plan.group_of(call.inputs[0]) if call.inputs else None
    return FLOAT_BITS if group is None else int(group.spec.bits)
