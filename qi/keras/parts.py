"""Layers that are quantized where they are, within others: which they are, what calibration sees of them, their quantizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import keras
import numpy as np

from qi.core import sqnr_db
from qi.keras.attention import ATTENTIONS
from qi.keras.graph import Call, Value
from qi.keras.hooks import observed
from qi.keras.inner import distinct, unfuse
from qi.keras.rows import activation_row
from qi.keras.running import eagerly
from qi.keras.traits import known_range, role_of
from qi.keras.variables import is_builtin, layers_within, own_variables, sub_layers, to_numpy, unique_path
from qi.ledger import Row
from qi.observers import TensorStatistics
from qi.quantizers import BaseInferableQuantizer, BaseQuantizer
from qi.recipes import Decision, RuleBook, TensorSpec
from qi.recipes.choose import activation_quantizer
from qi.recipes.plan import Group, Role

__all__ = [
    "IN_PLACE",
    "UNSEEN",
    "AdaptWithin",
    "Part",
    "cell_parts",
    "cells_of",
    "inner_parts",
    "outputs_seen",
    "part_rows",
    "parts_in_place",
    "parts_of",
    "quantizers_within",
    "recording",
]

_MOVES = "it only moves values, and leaves them as they come"
IN_PLACE = "the call of the model isn't followed"
UNSEEN = "the call never ran it on the calibration data"
_MEASURED_ELEMENTS = 2**22  # of what parts give, kept to measure errors: 16 MiB


@dataclass(eq=False)
class Part:
    """A layer within a model or another layer, and what becomes of it.

    Attributes:
        layer: of a copy.
        path: its place.
        spec: how its outputs are quantized; None: in float, for the reason.
        reason: why.
        fixed: the range of its outputs, where that is known beforehand.
        decide: what rules say of one of its outputs by name, where they may speak of each.
        once: whether a tensor that it gives twice counts once.
        inputs: shapes of what it was given, at its first call.
        outputs: statistics of each of its outputs; none before calibration, or where one isn't a real tensor.
        shapes: of its outputs, at its first call.
    """

    layer: keras.layers.Layer
    path: str
    spec: TensorSpec | None = None
    reason: str = ""
    fixed: tuple[float, float] | None = None
    decide: Callable[[str], Decision | None] | None = None
    once: bool = True
    inputs: list[tuple[int | None, ...]] = field(default_factory=list)
    outputs: list[TensorStatistics] = field(default_factory=list)
    shapes: list[tuple[int | None, ...]] = field(default_factory=list)

    @classmethod
    def of(cls, layer: keras.layers.Layer, path: str, book: RuleBook, *, once: bool = True) -> Part:
        """The part as a recipe has it."""
        part = cls(layer, path, once=once)
        call = Call(layer, path, path, [Value((), "float32")], [])
        if role_of(call) is Role.KEEPS:
            part.reason = _MOVES
            return part
        part.spec, part.reason = book.activations_for(path, part.kind)
        part.fixed = known_range(call) if role_of(call) is Role.FIXED else None
        return part

    @property
    def kind(self) -> str:
        """Its class' name."""
        return type(self.layer).__name__

    @property
    def watched(self) -> bool:
        """Whether calibration has to find its ranges."""
        return self.spec is not None and self.fixed is None

    @property
    def names(self) -> list[str]:
        """Of its outputs, in statistics and reports."""
        return [self.path + (f":{index}" if index else "") for index in range(len(self.outputs))]

    @property
    def call(self) -> Call:
        """It as a call of a graph, for those who ask for shapes."""
        given, made = (
            [Value(shape, "float32") for shape in shapes or [(None, None)]] for shapes in (self.inputs, self.shapes)
        )
        return Call(self.layer, self.path, self.path, given, made)

    def given(self, outputs: list[Any]) -> list[Any]:
        """Of the flat outputs of a call, those that count."""
        return distinct(outputs) if self.once else outputs

    def see(self, inputs: list[Any], outputs: list[Any]) -> None:
        """Takes in what one call was given and gave."""
        outputs = self.given(outputs)
        if not self.shapes:
            self.inputs = [_open(x) for x in inputs if hasattr(x, "shape")]
            self.shapes = [_open(x) for x in outputs if hasattr(x, "shape")]
        if self.spec is None:
            return
        real = all(hasattr(x, "dtype") and "float" in keras.backend.standardize_dtype(x.dtype) for x in outputs)
        if not real or (self.outputs and len(outputs) != len(self.outputs)):
            self.spec, self.outputs = None, []
            self.reason = "its calls give other things than a fixed number of tensors of real numbers"
            return
        self.outputs = self.outputs or [TensorStatistics() for _ in outputs]
        for seen, x in zip(self.outputs, outputs, strict=True):
            seen.update(to_numpy(x))

    def take(self, statistics: Mapping[str, TensorStatistics]) -> None:
        """Takes over what an earlier calibration saw of it."""
        found: list[TensorStatistics] = []
        while (name := self.path + (f":{len(found)}" if found else "")) in statistics:
            found.append(statistics[name])
        self.outputs, self.shapes = found, [(None, None)] * len(found)  # only data tell shapes
        if self.spec is not None and not found:
            self.spec, self.reason = None, "the statistics know nothing of it"

    def decision(self, index: int) -> Decision:
        """How one of its outputs is quantized."""
        own = self.decide(self.names[index]) if self.spec is not None and self.decide is not None and index else None
        return own or Decision(self.spec, self.reason)

    def group(self, index: int) -> Group | None:
        """The group that one of its outputs is; None where it stays in float."""
        spec = self.decision(index).spec
        return None if spec is None else Group(spec, self.fixed, names=[self.names[index]])

    @cached_property
    def quantizers(self) -> list[BaseInferableQuantizer | None]:
        """The quantizer of each output, None for those in float; an empty list where all are. To be asked after calibration."""
        groups = [self.group(index) for index in range(len(self.outputs))] if self.spec is not None else []
        made = [
            None if group is None else activation_quantizer(group, seen)
            for group, seen in zip(groups, self.outputs, strict=True)
        ]
        return made if any(q is not None for q in made) else []


def _open(x: Any) -> tuple[int | None, ...]:
    shape = tuple(x.shape)
    return (None, *shape[1:]) if shape else ()


def parts_of(owner: Any) -> dict[str, keras.layers.Layer]:
    """The layers of a model that are hooked, by path: Keras' own and those of users that hold weights or no other layers.

    A layer of a user's that is made of others and has weights of its own is one, and so are those that it is made of.
    """
    found: dict[str, keras.layers.Layer] = {}
    seen: set[int] = set()

    def walk(owner: Any, prefix: str) -> None:
        for name, child in sub_layers(owner):
            if id(child) in seen or isinstance(child, keras.layers.InputLayer):
                continue
            seen.add(id(child))
            if not _made_of_others(child) or own_variables(child):
                found[unique_path(prefix + name, found)] = child
            if _made_of_others(child):
                walk(child, f"{prefix}{name}/")

    walk(owner, "")
    return found


def _made_of_others(layer: Any) -> bool:
    return bool(sub_layers(layer)) and (isinstance(layer, keras.Model) or not is_builtin(layer))


def cells_of(layer: Any) -> dict[str, keras.layers.Layer]:
    """The cells that the recurrent layers within a layer, or it itself, run step by step, by path."""
    recurrent = any(isinstance(part, keras.layers.RNN) for part in layer._flatten_layers())
    within = layers_within(layer) if recurrent and (is_builtin(layer) or isinstance(layer, keras.layers.RNN)) else {}
    return {
        path: cell
        for path, cell in within.items()
        if hasattr(cell, "state_size")
        and not isinstance(cell, (keras.layers.RNN, keras.layers.StackedRNNCells, keras.layers.Bidirectional))
    }


def inner_parts(layer: Any, path: str, book: RuleBook, whole: str = "") -> dict[str, Part]:
    """What is quantized within a layer that is called as a whole, by path below it.

    Of layers that are made of others, each of these; so of attentions that aren't taken apart. Cells of recurrent layers only
    where a rule says so: no runtime's operator could quantize what it hands from step to step.

    Args:
        layer: a copy.
        path: its place in the model.
        book: the recipe's decisions.
        whole: why an attention wasn't taken apart.
    """
    if not isinstance(layer, keras.layers.Layer):
        return {}
    if not _made_of_others(layer) and not (whole and type(layer).__name__ in ATTENTIONS):
        return cell_parts(layer, path, book)
    found = {name: Part.of(part, f"{path}/{name}", book) for name, part in parts_of(layer).items()}
    for name, part in list(found.items()):
        found |= {f"{name}/{below}": cell for below, cell in cell_parts(part.layer, part.path, book).items()}
    return found


def parts_in_place(layer: keras.layers.Layer, path: str, book: RuleBook) -> dict[str, Part]:
    """What is quantized within a part of a model that is quantized in place, whose other parts have hooks of their own."""
    if is_builtin(layer) and type(layer).__name__ in ATTENTIONS:
        return inner_parts(layer, path, book, whole=IN_PLACE)
    return cell_parts(layer, path, book)


def cell_parts(layer: keras.layers.Layer, path: str, book: RuleBook) -> dict[str, Part]:
    """The cells of recurrent layers that rules speak of, by path below `layer`."""
    found = {}
    for name, cell in cells_of(layer).items():
        decide = partial(book.activations_within, layer_type=type(cell).__name__, outer=(path, type(layer).__name__))
        decision = decide(f"{path}/{name}")
        if decision is not None and decision.spec is not None:
            found[name] = Part(cell, f"{path}/{name}", decision.spec, decide=decide)
    unfuse(layer, [part.layer for part in found.values()])
    return found


AdaptWithin = Callable[[BaseInferableQuantizer, Part], BaseQuantizer]


def quantizers_within(
    parts: Mapping[str, Part], adapt: AdaptWithin | None = None
) -> dict[str, list[BaseQuantizer | None]]:
    """The quantizers of parts of a layer by path, as a dispatcher takes them; `adapt` makes others of the inferable ones."""
    change = (lambda q, part: q) if adapt is None else adapt
    found = {name: [q and change(q, part) for q in part.quantizers] for name, part in parts.items()}
    return {name: quantizers for name, quantizers in found.items() if quantizers}


@contextmanager
def recording(parts: Mapping[str, Part]) -> Iterator[None]:
    """Has parts see every call that is made of them; functions that users compiled run as they are written."""
    if not parts:
        yield
        return
    layers = {path: part.layer for path, part in parts.items()}
    with eagerly(), observed(layers, lambda path, given, made: parts[path].see(given, made)):
        yield


def outputs_seen(parts: Mapping[str, Part], run: Callable[[], Any]) -> dict[str, list[np.ndarray]]:
    """All values that the outputs of each part take while something runs, flat, as far as memory allows."""
    kept: dict[str, list[list[np.ndarray]]] = {}
    left = _MEASURED_ELEMENTS

    def see(path: str, given: list[Any], made: list[Any]) -> None:
        nonlocal left
        if parts[path].spec is None:
            return
        arrays = [to_numpy(x).ravel() for x in parts[path].given(made)]
        left -= sum(array.size for array in arrays)
        if left >= 0:
            kept.setdefault(path, []).append(arrays)

    if not parts:
        run()
        return {}
    with eagerly(), observed({path: part.layer for path, part in parts.items()}, see):
        run()
    return {path: [np.concatenate(arrays) for arrays in zip(*calls, strict=True)] for path, calls in kept.items()}


def part_rows(
    part: Part,
    made: Sequence[BaseInferableQuantizer | None],
    before: Mapping[str, Sequence[np.ndarray]],
    after: Mapping[str, Sequence[np.ndarray]],
) -> list[Row]:
    """The rows of what a part gives.

    Args:
        part: calibrated.
        made: the quantizer of each output; none where all are in float.
        before: by path, values of each output in the float model, where they were kept.
        after: the same of the quantized model.
    """
    if not made:
        reason = part.reason or "no rule of the recipe covers it"
        return [activation_row(part.path, part.kind, next(iter(part.shapes), ()), reason)]
    rows, exact, results = [], before.get(part.path, ()), after.get(part.path, ())
    for index, (quantizer, seen) in enumerate(zip(made, part.outputs, strict=True)):
        found: Any = part.decision(index).reason
        errors, group = None, part.group(index)
        if quantizer is not None and group is not None:
            found = (group, quantizer, seen)
            same = index < min(len(exact), len(results)) and exact[index].shape == results[index].shape
            if same and exact[index].size:
                errors = sqnr_db(exact[index], quantizer(exact[index])), sqnr_db(exact[index], results[index])
        rows.append(activation_row(part.names[index], part.kind, part.shapes[index], found, errors))
    return rows
