"""What a user should hear of: the warnings of a report."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras

from qi.keras.calibrate import Calibration
from qi.keras.fold import activation_name
from qi.keras.graph import Graph
from qi.keras.prepare import Prepared
from qi.ledger import Row
from qi.ledger.findings import range_findings
from qi.ledger.summary import worked_text
from qi.observers import TensorStatistics
from qi.recipes import Recipe

__all__ = ["algorithms_of", "findings"]


def findings(
    ready: Prepared, rows: list[Row], calibration: Calibration, seen: Mapping[str, TensorStatistics]
) -> list[str]:
    """Sentences on calibration, ranges, errors and layers.

    Args:
        ready: the prepared model.
        rows: of the report.
        calibration: what it gave.
        seen: statistics by group.
    """
    return [
        *range_findings(
            rows,
            calibration.samples,
            seen,
            model=f"{ready.graph.name!r} by {ready.book.recipe.name}",
            efforts=True,
        ),
        *_shared(ready.notes, rows),
        *_misnamed(ready.given),
        *_lambdas(ready.given),
    ]


def algorithms_of(recipe: Recipe, rows: list[Row]) -> dict[str, str]:
    """For a report's settings: the algorithms that worked on weights, with their options; nothing where none did.

    Args:
        recipe: names the algorithms and their options.
        rows: of the report.
    """
    written: dict[str, set[str]] = {}
    for step in (step for spec in recipe.all_weights() for step in spec.algorithms):
        written.setdefault(step.name, set()).add(str(step))
    # Where rules differ in options, a row doesn't tell which of them it got.
    text = worked_text(rows, {name: texts.pop() for name, texts in written.items() if len(texts) == 1})
    return {"algorithms": text} if text else {}


def _shared(notes: Mapping[str, str], rows: list[Row]) -> list[str]:
    """What no row of a weight tells: operations that couldn't be copied, whose weights, if any, stay in float anyhow."""
    told = {row.layer for row in rows if row.kind == "weight" and notes.get(row.layer, row.layer) in row.reason}
    silent = {path: why for path, why in notes.items() if path not in told}
    return [f"{len(silent)} layers can't be copied: {path!r} is {why}" for path, why in list(silent.items())[:1]]


def _misnamed(graph: Graph) -> list[str]:
    """Functions of users that a file holds under the name of one of Keras', as which they would come back."""
    found = {}
    for call in graph.calls:
        if call.builtin_kind and activation_name(call.op).startswith("custom_"):
            name = call.op.get_config().get("activation")
            if isinstance(name, str) and hasattr(keras.activations, name):
                found[call.path] = name
    return [
        f"{len(found)} layers apply functions with the name of one of Keras', which saved files will mean: {name!r} of {path!r}; "
        "do register them with keras.saving.register_keras_serializable"
        for path, name in list(found.items())[:1]
    ]


def _lambdas(graph: Graph) -> list[str]:
    """What no row tells: weights that functions in Lambda layers read, which no layer holds."""
    functions = {call.path: call.op.function for call in graph.calls if isinstance(call.op, keras.layers.Lambda)}
    read = {path: names for path, function in functions.items() if (names := _weights_read(function))}
    return [
        f"{len(read)} Lambda layers read weights that no layer holds: {path!r} reads {names}, which stay in float, don't train "
        "and are in no file; do write a layer in its place"
        for path, names in list(read.items())[:1]
    ]


def _weights_read(function: Any) -> list[str]:
    """The names under which a function reads variables, or layers with weights, from outside of it."""
    if not inspect.isfunction(function):
        return []
    try:
        outside = inspect.getclosurevars(function)
    except ValueError:  # of a name that isn't set yet
        return []
    values = {**outside.globals, **outside.nonlocals}
    return sorted(name for name, value in values.items() if isinstance(value, keras.Variable) or _has_weights(value))


def _has_weights(value: Any) -> bool:
    return isinstance(value, keras.layers.Layer) and bool(value.weights)
