"""Post-training quantization."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras
import numpy as np

from qi.algorithms.run import check_jobs
from qi.errors import ConfigError, UnsupportedError, warn
from qi.files import check_place
from qi.keras.accuracy import Metric, check_control, quantize_within
from qi.keras.assemble import insert_holders, wrap_layers
from qi.keras.calibrate import Calibration, run
from qi.keras.data import elements, tell_shapes
from qi.keras.dormant import activation_quantizers
from qi.keras.exact_graph import check_exact, make_exact
from qi.keras.findings import algorithms_of, findings
from qi.keras.graph import Graph, Value, build_model, build_tensors, follow_model
from qi.keras.in_place import unregistered
from qi.keras.in_place_quantize import (
    calibrate_in_place,
    prepare_in_place,
    put_quantizers,
    quantized_rows,
)
from qi.keras.low_bits import LowBits
from qi.keras.parts import outputs_seen, part_rows
from qi.keras.prepare import Prepared, gather_statistics, prepare, stored_statistics
from qi.keras.rows import activation_rows, describe, errors_of, in_graph_order
from qi.keras.running import predict
from qi.keras.saving import size_on_disk
from qi.ledger import QuantizationReport, Row
from qi.ledger.findings import check_strict, range_findings
from qi.observers import TensorStatistics
from qi.quantizers import BaseInferableQuantizer
from qi.recipes import Recipe, RecipeLike, RuleBook, with_effort
from qi.recipes.efforts import check_many_times, check_no_algorithms, check_repeatable
from qi.recipes.plan import group_statistics

__all__ = ["check_not_exact", "quantize_model"]


def quantize_model(
    model: keras.Model,
    recipe: RecipeLike = "w8a8",
    data: Any = None,
    *,
    strict: bool = False,
    statistics: Mapping[str, TensorStatistics] | str | os.PathLike[str] | None = None,
    exact: str | None = None,
    effort: str | None = None,
    max_drop: float | None = None,
    metric: Metric | None = None,
    jobs: int | None = 1,
    resume: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> tuple[keras.Model, QuantizationReport]:
    """Quantizes a trained model: same inputs, same outputs, low-precision weights and activations.

    Batch normalization is folded, nested models are inlined, every kernel gets its own scales, and one quantizer sits
    between any two operations that a deployed integer graph would fuse. The given model is left as it is.

    Args:
        model: a built Keras 3 model, nested to any depth: Functional, Sequential, or a class with a call of its own. Layers of
            yours that are made of layers are taken apart. A model whose call does more than calling layers and ``keras.ops`` is
            quantized in place: the copy keeps its class and methods, its layers' weights and outputs get quantizers, one for all
            calls of a layer, and no file for a runtime can be made of it.
        recipe: a name such as "w8a8", "w8", "w4a8", "w8a16", "w4_g32" (see `qi.recipes`), a `qi.Recipe`, or the path of a
            recipe's JSON file.
        data: samples that calibrate the activations; weight-only recipes need none and don't read them. A numpy array; a
            list or dict of arrays for several inputs; a tuple (x, y[, sample_weight]); a tf.data.Dataset, PyDataset,
            generator or any iterable of batches in the same convention, of which one at a time is in memory.
        strict: raise where a weight matrix stays in float although no rule says so.
        statistics: of this very model, from `calibrate`, or the path of a file from ``qi calibrate``, in place of data.
        exact: "litert", "onnxruntime" or "reference": the model computes just as that runtime's kernels will, so that
            ``predict`` gives what the exported file (with its default options) gives, bit for bit. By default sums are rounded as
            real numbers, which moves some results by a step. Of what the runtime does in real numbers, element by element or
            along an axis (GELU, say), the last bit may differ, and with it seldom a code by one.
            Convolutional networks take as long as with plain fake quantization, wide Dense layers and transformers up to two
            thirds longer, "reference", whose kernels compute in 64 bits, 4 to 5 times as long.
        effort: "fast", "balanced" or "best" (`qi.recipes.EFFORTS`): algorithms for the weights that the recipe names none for.
        max_drop: how much less than the float model's the metric may be, in the metric's unit: where the recipe costs more, the
            weights, then the activations, that cost most get more bits until it holds. The report's settings say what was raised,
            and what that took. Needs scipy (the extra "search").
        metric: with max_drop: a function of a model that gives a number, the more the better, as its accuracy in percent.
        jobs: how many weights the recipe's algorithms work on at once; None leaves that, and where they run, to
            `joblib.parallel_config`.
        resume: a file that keeps what the algorithms have done, weight by weight: stopped by Ctrl-C or killed, the same call goes
            on there. What trains keeps its state in a second file, whose name ends in ".training"; with max_drop each recipe that
            is tried has files of its own, whose names go on with the recipe's.
        batch_size: for arrays.
        progress: whether to show a progress bar.

    Returns:
        (quantized model, report). The model, a Functional one or in place of the given class, saves to ``.keras`` and reloads,
        bit-equal, with ``keras.models.load_model`` once `qi.keras` is imported. The report has a row for every weight and
        activation.

    Raises:
        UnsupportedError: an already quantized model; a call that needs several arguments; with exact, a model that is quantized
            in place, or a layer that no Keras model can compute as the runtime does, such as a convolution of which the weights
            alone are quantized: it is named.
        StrictError: with strict, a weight matrix stays in float; all are listed.
        InputError: an unbuilt model, NaN in weights or data, data of a wrong shape, or none where it is needed; data and
            statistics both; a layer that computes something else once its configuration rebuilt it.
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
    check_exact(exact)
    check_control(max_drop, metric)
    check_jobs(jobs)
    _check_resume(resume)
    recipe = recipe if effort is None else with_effort(recipe, effort)
    if max_drop is not None and metric is not None:
        check_many_times(data)

        def again(chosen: Recipe) -> tuple[keras.Model, QuantizationReport]:
            kept = None if resume is None else f"{os.fspath(resume)}.{re.sub(r'[^0-9A-Za-z]+', '_', chosen.name)}"
            return quantize_model(
                model, chosen, data, strict=strict, statistics=statistics, exact=exact, jobs=jobs, resume=kept,
                batch_size=batch_size, progress=progress,
            )  # fmt: skip

        return quantize_within(
            model, recipe, data, again, max_drop=max_drop, metric=metric, statistics=statistics, batch_size=batch_size,
            jobs=jobs, progress=progress,
        )  # fmt: skip
    check_repeatable(recipe, data)
    tell_shapes(model, data)
    graph, why = follow_model(model)
    if graph is None:
        check_no_algorithms(recipe, f"a model that is quantized in place ({why})")
        check_not_exact(model, exact)
        stored = None if statistics is None else stored_statistics(model, data, statistics).statistics
        return _quantize_in_place(model, recipe, data, stored, why, strict, batch_size, progress)
    ready = prepare(model, recipe, graph=graph, scales=True)
    low_bits = LowBits(ready)
    calibration = gather_statistics(model, ready, data, statistics, batch_size, progress)
    low_bits.scale(calibration)
    work = partial(low_bits.round, calibration, data=data, jobs=jobs, resume=resume, progress=progress)
    return _quantize_graph(model, ready, calibration, low_bits, work, strict, exact)


def _check_resume(resume: object) -> None:
    """Refuses what can't be a file, before any work.

    Raises:
        ConfigError: no path.
        OSError: a path that can't be written.
    """
    if resume is not None and not (isinstance(resume, (str, os.PathLike)) and os.fspath(resume)):
        raise ConfigError(
            f"expected resume to be the path of a file that keeps what is done; received resume={resume!r}"
        )
    if resume is not None:
        check_place(resume)


def _quantize_graph(
    model: keras.Model,
    ready: Prepared,
    calibration: Calibration,
    low_bits: LowBits,
    work: Callable[[dict[int, BaseInferableQuantizer]], dict[int, BaseInferableQuantizer]],
    strict: bool,
    exact: str | None,
) -> tuple[keras.Model, QuantizationReport]:
    """A prepared model with its statistics; `work` runs the algorithms, given the quantizers of activations."""
    merged = {group.key: group_statistics(group, calibration.statistics) for group in ready.plan.groups}
    quantizers = activation_quantizers(ready.graph, ready.plan, merged)
    measured = _measured_values(ready, calibration)
    made = {path: part.quantizers for path, part in ready.parts.items()}
    before, before_within = _measure(ready, calibration, ready.tensors, measured)
    types = {id(call): describe(call) for call in ready.graph.calls}
    float_graph = Graph(
        ready.graph.name, ready.graph.inputs, ready.graph.outputs, list(ready.graph.calls), whole=ready.graph.whole
    )
    quantizers = work(quantizers)
    weights = wrap_layers(
        ready.graph, ready.book, ready.kept, ready.notes, types, inner=ready.within(), made=low_bits.quantizers,
        floats=low_bits.floats,
    )  # fmt: skip
    check_strict(weights.refused, strict)
    held = insert_holders(ready.graph, ready.plan, quantizers)
    tensors = build_tensors(ready.graph)
    result = build_model(ready.graph, tensors)
    after, after_within = _measure(ready, calibration, tensors, [held.get(id(v), v) for v in measured])
    errors = errors_of(
        measured, before, after, {id(v): quantizers[id(g)] for v in measured if (g := ready.plan.group_of(v))}
    )
    seen_by_group = {key: found for key, found in merged.items() if found is not None}
    activations = activation_rows(
        float_graph, ready.plan, quantizers, seen_by_group, errors, types, ready.kept, ready.inner
    )
    parts = {
        path: [row for part in parts.values() for row in part_rows(part, made[part.path], before_within, after_within)]
        for path, parts in ready.inner.items()
    }
    rows = low_bits.noted(in_graph_order(float_graph, weights.rows, activations, parts))
    result = result if exact is None else make_exact(result, exact)
    told = [*low_bits.told, *findings(ready, rows, calibration, seen_by_group)]
    return result, _report(model, result, ready.book, rows, told, calibration.settings | low_bits.settings)


def _quantize_in_place(
    model: keras.Model,
    recipe: RecipeLike,
    data: Any,
    statistics: Mapping[str, TensorStatistics] | None,
    why: str,
    strict: bool,
    batch_size: int,
    progress: bool,
) -> tuple[keras.Model, QuantizationReport]:
    """A model whose call can't be followed: the layers are quantized where they are."""
    ready = prepare_in_place(model, recipe)
    calibrate_in_place(ready, data, statistics, batch_size, progress)
    result, weights, made = put_quantizers(ready)
    check_strict(weights.refused, strict)
    rows = quantized_rows(ready, result, weights, made)
    told = [f"quantized in place, layer by layer, which no file for a runtime can be made of: {why}"]
    if line := unregistered(result):
        told[0] += f"; {line}"
    told += range_findings(
        rows, ready.calibration.samples, ready.statistics, model=f"{model.name!r} by {ready.book.recipe.name}"
    )
    return result, _report(model, result, ready.book, rows, told, ready.calibration.settings)


def check_not_exact(model: keras.Model, exact: str | None) -> None:
    """Refuses the arithmetic of a runtime for a model that is quantized in place."""
    if exact is not None:
        raise UnsupportedError(
            f"expected exact=None for a model that is quantized in place; received exact={exact!r} for {model.name!r} of class "
            f"{type(model).__name__}; do rebuild it as keras.Model(inputs, outputs)"
        )


def _measured_values(ready: Prepared, calibration: Calibration) -> list[Value]:
    """Values whose error is measured on the kept samples: all quantized ones."""
    if not calibration.sample:
        return []
    known = [*ready.graph.flat_inputs(), *(value for call in ready.graph.calls for value in call.outputs)]
    return [value for value in known if ready.plan.group_of(value) is not None]


def _measure(
    ready: Prepared, calibration: Calibration, tensors: dict[int, Any], values: list[Value]
) -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
    """On the kept samples: the arrays of values, and what the parts of layers give by path."""
    if not calibration.sample or not (values or ready.parts):
        return [], {}
    call = run(ready.graph, tensors, values or ready.graph.flat_outputs())
    arrays: list[np.ndarray] = []
    calls = Counter(id(call.op) for call in ready.given.calls)
    often = {
        call.path for call in ready.given.calls if calls[id(call.op)] > 1
    }  # in another order the next time, perhaps
    alone = {part.path: part for path, parts in ready.inner.items() if path not in often for part in parts.values()}
    within = outputs_seen(alone, lambda: arrays.extend(call(calibration.sample)))
    return arrays[: len(values)], within


def _report(
    model: keras.Model,
    result: keras.Model,
    book: RuleBook,
    rows: list[Row],
    found: list[str],
    settings: dict[str, Any],
) -> QuantizationReport:
    recipe = book.recipe
    report = QuantizationReport(
        recipe=recipe.name,
        model=model.name,
        description=str(recipe),
        rows=tuple(rows),
        unused_rules=book.unused_rules(),
        warnings=found,
        settings=settings | algorithms_of(recipe, rows),
        float_file_bytes=size_on_disk(model),
        quantized_file_bytes=size_on_disk(result),
    )
    for line in report.all_warnings:
        warn(line)
    report.attach(float_model=model, quantized_model=result, predict=predict, batches=elements)
    return report
