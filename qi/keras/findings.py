"""What a user should hear of: the warnings of a report."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import keras

from qi.keras.calibrate import Calibration
from qi.keras.fold import activation_name
from qi.keras.graph import Graph
from qi.keras.prepare import Prepared
from qi.ledger import Row
from qi.observers import TensorStatistics

__all__ = ["findings", "range_findings"]

_FEW_SAMPLES = 32
_SATURATED = 0.02
_DESTROYED_DB = 10.0  # below this the error has more than 30 % of the signal's amplitude


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
        *range_findings(rows, calibration, seen),
        *_shared(ready.notes, rows),
        *_misnamed(ready.given),
        *_lambdas(ready.given),
    ]


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


def range_findings(rows: list[Row], calibration: Calibration, seen: Mapping[str, TensorStatistics]) -> list[str]:
    """Sentences on calibration, ranges and errors; the arguments are those of `findings`."""
    found = []
    if seen and 0 < calibration.samples < _FEW_SAMPLES:
        found.append(
            f"only {calibration.samples} calibration samples; ranges need at least {_FEW_SAMPLES}, better some hundreds"
        )
    clipped = [row for row in rows if (row.clipped_share or 0) > _SATURATED]
    if clipped:
        worst = max(clipped, key=lambda row: row.clipped_share or 0)
        found.append(
            f"{len(clipped)} activation ranges saturate: {worst.layer} clips {100 * (worst.clipped_share or 0):.1f} % of its "
            "values; do use range minmax or more bits there"
        )
    # A signal of zeros has no ratio (-inf), and nothing that an error could destroy.
    ratios = {row.layer: row.total_sqnr_db for row in rows if row.total_sqnr_db is not None}
    lost = {layer: ratio for layer, ratio in ratios.items() if -math.inf < ratio < _DESTROYED_DB}
    if lost:
        layer = min(lost, key=lambda layer: lost[layer])
        found.append(
            f"{len(lost)} activations drown in error (total SQNR below {_DESTROYED_DB:g} dB): {layer} has "
            f"{lost[layer]:.1f} dB; do use more bits, or leave the first of them in float by a rule"
        )
    broken = {name: statistics.nonfinite for name, statistics in seen.items() if statistics.nonfinite}
    if broken:
        worst_name = max(broken, key=lambda name: broken[name])
        found.append(
            f"{len(broken)} activations hold NaN or infinities in the float model, which their ranges leave out: "
            f"{broken[worst_name]} values of {worst_name}; do look at the range of data and weights"
        )
    return found
