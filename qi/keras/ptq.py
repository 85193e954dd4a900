"""Post-training quantization of Functional and Sequential models."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from qi.errors import ConfigError, InputError, QuantizationWarning, StrictError, UnsupportedError
from qi.keras.assemble import Weights, copy_layers, insert_holders, wrap_layers
from qi.keras.calibrate import Calibration, collect, group_statistics, run
from qi.keras.choose import activation_quantizer
from qi.keras.fold import fold_batch_norms, split_activations
from qi.keras.graph import Graph, Value, build_model, build_tensors, flatten_model
from qi.keras.holder import KerasActivationQuantizationHolder
from qi.keras.plan import ActivationPlan, plan_activations
from qi.keras.rows import activation_rows, describe, errors_of
from qi.keras.saving import size_on_disk
from qi.keras.weights import has_policy
from qi.keras.wrapper import KerasQuantizationWrapper
from qi.ledger import QuantizationReport, Row
from qi.observers import TensorStatistics, load_statistics
from qi.recipes import RecipeLike, RuleBook, get_recipe

__all__ = ["calibrate", "quantize_model"]

_QUANTIZED = (KerasActivationQuantizationHolder, KerasQuantizationWrapper)
_FEW_SAMPLES = 32
_SATURATED = 0.02
_MEASURED_ELEMENTS = 2**24  # activations held at once to measure errors: 64 MiB a model


@dataclass(eq=False)
class _Prepared:
    """A model on its way: the folded float graph, the recipe's decisions and the plan of its activations."""

    graph: Graph
    book: RuleBook
    plan: ActivationPlan
    unfolded: dict[str, str]
    notes: dict[str, str]
    tensors: dict[int, Any]

    @property
    def watched(self) -> list[Value]:
        """Values that calibration has to see."""
        return [value for group in self.plan.groups if group.fixed is None for value in group.observed]


def _prepare(model: keras.Model, recipe: RecipeLike) -> _Prepared:
    graph = flatten_model(model)
    done = [call.path for call in graph.calls if isinstance(call.op, _QUANTIZED)]
    if done:
        raise UnsupportedError(
            f"expected a float model; received {model.name!r}, in which {len(done)} layers are quantized ({done[0]!r}...); "
            "do start from the float model"
        )
    chosen = get_recipe(recipe)
    book = chosen.resolve()
    unfolded = fold_batch_norms(graph)
    probe = chosen.resolve()  # a book of its own: asking marks rules as used
    if any(probe.activations_for(call.path, call.kind).spec is not None for call in graph.calls):
        split_activations(graph, has_policy)
    plan = plan_activations(graph, book)
    notes = copy_layers(graph, plan)
    return _Prepared(graph, book, plan, unfolded, notes, build_tensors(graph))


def calibrate(
    model: keras.Model, data: Any, recipe: RecipeLike = "w8a8", *, batch_size: int = 64, progress: bool = True
) -> dict[str, TensorStatistics]:
    """Collects the statistics from which any recipe's activation ranges can be chosen later, with no data at hand.

    Args:
        model: a built Functional or Sequential model; it is only read.
        data: see `quantize_model`.
        recipe: decides which values are watched; recipes that quantize the same tensors can use the result.
        batch_size: for arrays.
        progress: whether to show a progress bar.

    Returns:
        statistics by value name: give them to ``quantize_model(..., statistics=...)``, or to
        `qi.observers.save_statistics`.

    Raises:
        ConfigError: a recipe that quantizes no activations, besides what `quantize_model` raises.
    """
    ready = _prepare(model, recipe)
    if not ready.watched:
        raise ConfigError(
            f"expected a recipe with activation ranges to choose; received {ready.book.recipe.name!r}, which needs no "
            "statistics; do quantize without them"
        )
    statistics = _collect(ready, data, batch_size, progress).statistics
    for group in ready.plan.groups:
        group_statistics(group, statistics)  # refuses what no recipe could use
    return statistics


def quantize_model(
    model: keras.Model,
    recipe: RecipeLike = "w8a8",
    data: Any = None,
    *,
    strict: bool = False,
    statistics: Mapping[str, TensorStatistics] | str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> tuple[keras.Model, QuantizationReport]:
    """Quantizes a trained model: same inputs, same outputs, low-precision weights and activations.

    Batch normalization is folded, nested models are inlined, every kernel gets its own scales, and one quantizer sits
    between any two operations that a deployed integer graph would fuse. The given model is left as it is.

    Args:
        model: a built Functional or Sequential Keras 3 model, nested to any depth.
        recipe: a name such as "w8a8", "w8", "w4a8", "w8a16", "w4_g32" (see `qi.recipes`), a `qi.Recipe`, or the path of a
            recipe's JSON file.
        data: samples that calibrate the activations; weight-only recipes need none and don't read them. A numpy array; a
            list or dict of arrays for several inputs; a tuple (x, y[, sample_weight]); a tf.data.Dataset, PyDataset,
            generator or any iterable of batches in the same convention, of which one at a time is in memory.
        strict: raise where a weight matrix stays in float although no rule says so.
        statistics: from `calibrate`, or the path of a file from ``qi calibrate``, in place of data.
        batch_size: for arrays.
        progress: whether to show a progress bar.

    Returns:
        (quantized model, report). The model is a Functional model that saves to ``.keras`` and reloads, bit-equal, with
        ``keras.models.load_model`` once `qi.keras` is imported. The report has a row for every weight and activation.

    Raises:
        UnsupportedError: a subclassed or an already quantized model.
        StrictError: with strict, a weight matrix stays in float; all are listed.
        InputError: an unbuilt model, NaN in weights or data, data of a wrong shape, or none where it is needed; data and
            statistics both.
        ConfigError: an unknown recipe; statistics of another model; an illegal batch size.
        FileFormatError: a statistics file that is damaged or something else.
        OSError: a recipe's or statistics file that can't be opened.

    Example:
        >>> import keras, numpy as np, qi
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        >>> qmodel, report = qi.quantize_model(model, "w8a8", x, progress=False)
        >>> float(np.abs(qmodel.predict(x, verbose=0) - model.predict(x, verbose=0)).max()) < 0.1
        True
        >>> [row.name for row in report.unquantized]
        ['bias', 'bias']
    """
    ready = _prepare(model, recipe)
    calibration, seen = _statistics(ready, data, statistics, batch_size, progress)
    merged = {group.key: group_statistics(group, seen) for group in ready.plan.groups}
    quantizers = {id(group): activation_quantizer(group, merged[group.key]) for group in ready.plan.groups}
    measured = _measured_values(ready, calibration)
    before = run(ready.graph, ready.tensors, measured)(calibration.sample) if measured else []
    types = {id(call): describe(call) for call in ready.graph.calls}
    float_graph = Graph(ready.graph.name, ready.graph.inputs, ready.graph.outputs, list(ready.graph.calls))

    weights = wrap_layers(ready.graph, ready.book, ready.unfolded, ready.notes, types)
    _check_strict(weights, strict)
    held = insert_holders(ready.graph, ready.plan, quantizers)
    tensors = build_tensors(ready.graph)
    result = build_model(ready.graph, tensors)
    after = run(ready.graph, tensors, [held.get(id(v), v) for v in measured])(calibration.sample) if measured else []
    errors = errors_of(
        measured, before, after, {id(v): quantizers[id(g)] for v in measured if (g := ready.plan.group_of(v))}
    )
    seen_by_group = {key: found for key, found in merged.items() if found is not None}
    rows = weights.rows + activation_rows(float_graph, ready.plan, quantizers, seen_by_group, errors, types)
    return result, _report(
        model, result, ready, rows, _warnings(rows, calibration, seen_by_group), calibration.settings
    )


def _statistics(
    ready: _Prepared, data: Any, statistics: Any, batch_size: int, progress: bool
) -> tuple[Calibration, Mapping[str, TensorStatistics]]:
    """What calibration gave, and the statistics to choose ranges from, new or stored."""
    if statistics is not None:
        if data is not None:
            raise InputError("expected data or statistics; received both; do give one of them")
        found = load_statistics(statistics) if isinstance(statistics, (str, os.PathLike)) else statistics
        if not isinstance(found, Mapping) or not all(isinstance(s, TensorStatistics) for s in found.values()):
            raise InputError(
                f"expected TensorStatistics by name, as calibrate gives them; received {type(found).__name__}"
            )
        return Calibration(source="stored statistics"), found
    if not ready.plan.groups or (data is None and not ready.watched):
        return Calibration(), {}
    calibration = _collect(ready, data, batch_size, progress)
    return calibration, calibration.statistics


def _collect(ready: _Prepared, data: Any, batch_size: int, progress: bool) -> Calibration:
    sizes = [np.prod([n or 1 for n in v.shape[1:]]) for call in ready.graph.calls for v in call.outputs]
    keep = int(np.clip(_MEASURED_ELEMENTS // max(1, int(sum(sizes))), 1, 64))
    return collect(ready.graph, ready.tensors, ready.watched, data, batch_size=batch_size, progress=progress, keep=keep)


def _measured_values(ready: _Prepared, calibration: Calibration) -> list[Value]:
    """Values whose error is measured on the kept samples: all quantized ones."""
    if not calibration.sample:
        return []
    known = [*ready.graph.flat_inputs(), *(value for call in ready.graph.calls for value in call.outputs)]
    return [value for value in known if ready.plan.group_of(value) is not None]


def _check_strict(weights: Weights, strict: bool) -> None:
    if strict and weights.refused:
        lines = "\n".join(f"  {row.layer}/{row.name} {row.shape}: {row.reason}" for row in weights.refused)
        raise StrictError(
            f"expected every weight matrix to be quantized (strict=True); received {len(weights.refused)} that stay in "
            f"float:\n{lines}\ndo leave them in float by a rule, or pass strict=False"
        )


def _report(
    model: keras.Model,
    result: keras.Model,
    ready: _Prepared,
    rows: list[Row],
    found: list[str],
    settings: dict[str, Any],
) -> QuantizationReport:
    recipe = ready.book.recipe
    report = QuantizationReport(
        recipe=recipe.name,
        model=model.name,
        description=str(recipe),
        rows=tuple(rows),
        unused_rules=ready.book.unused_rules(),
        warnings=found,
        settings=settings,
        float_file_bytes=size_on_disk(model),
        quantized_file_bytes=size_on_disk(result),
    )
    for line in report.all_warnings:
        warnings.warn(line, QuantizationWarning, stacklevel=3)
    report.attach(float_model=model, quantized_model=result, predict=lambda m, x: m.predict(x, verbose=0))
    return report


def _warnings(rows: list[Row], calibration: Calibration, seen: Mapping[str, TensorStatistics]) -> list[str]:
    found = []
    if seen and not calibration.source and calibration.samples < _FEW_SAMPLES:
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
    broken = {name: statistics.nonfinite for name, statistics in seen.items() if statistics.nonfinite}
    if broken:
        worst_name = max(broken, key=lambda name: broken[name])
        found.append(
            f"{len(broken)} activations hold NaN or infinities in the float model, which their ranges leave out: "
            f"{broken[worst_name]} values of {worst_name}; do look at the range of data and weights"
        )
    return found
