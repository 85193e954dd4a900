"""Quantization under control of a metric: what costs most gets more bits, until the metric holds."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import keras

from qi.errors import ConfigError, InputError, QuantizationWarning, warn
from qi.keras.search import NothingToSearchError, literally, search
from qi.ledger import QuantizationReport
from qi.observers import TensorStatistics
from qi.recipes import Recipe, RecipeLike, Rule, TensorSpec, get_recipe

__all__ = ["DropError", "Metric", "check_control", "quantize_within"]

Metric = Callable[[keras.Model], float]
"""What a model is worth: the more the better."""

_BITS = (2, 3, 4, 5, 6, 8)
_POINTS = 24  # of the front: so finely bits are added

Quantize = Callable[[Recipe], tuple[keras.Model, QuantizationReport]]


class DropError(ConfigError):
    """No bits that are at hand keep the metric within the limit."""


@dataclass(frozen=True, eq=False)
class _Tried:
    model: keras.Model
    report: QuantizationReport
    value: float


def check_control(max_drop: object, metric: object) -> None:
    """Refuses a limit without a metric, a metric without a limit, or a limit that is none.

    Raises:
        ConfigError: one of these.
    """
    if (max_drop is None) != (metric is None):
        raise ConfigError(
            f"expected max_drop and metric together; received max_drop={max_drop!r}, metric={metric!r}; do give a function of "
            "the model that returns a number, the more the better"
        )
    number = isinstance(max_drop, (int, float)) and not isinstance(max_drop, bool)
    if max_drop is not None and not (number and 0 <= max_drop < math.inf):  # type: ignore[operator]
        raise ConfigError(f"expected max_drop to be a number from 0 on, in the metric's unit; received {max_drop!r}")
    if metric is not None and not callable(metric):
        raise ConfigError(f"expected metric to be a function of the model; received metric={metric!r}")


def quantize_within(
    model: keras.Model,
    recipe: RecipeLike,
    data: Any,
    quantize: Quantize,
    *,
    max_drop: float,
    metric: Metric,
    statistics: Mapping[str, TensorStatistics] | str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    jobs: int | None = 1,
    progress: bool = True,
) -> tuple[keras.Model, QuantizationReport]:
    """Quantizes with as few bits as the metric allows, from those of the recipe on.

    Where the recipe's own bits cost too much, a search finds for rising sizes which weights are to get more (see `qi.search`),
    and of these choices the smallest is taken whose metric holds, by bisection. Where 8 bits for all weights aren't enough, the
    activations of the lowest SQNR get 16 bits, more and more of them.

    Args:
        model: as of `qi.quantize_model`.
        recipe: where to begin; its rules hold.
        data: as of `qi.quantize_model`.
        quantize: quantizes by a recipe.
        max_drop: how much less than that of the float model the metric may be, in its own unit.
        metric: a function of a model that gives a number, the more the better.
        statistics: in place of data.
        batch_size: for arrays.
        jobs: of the search.
        progress: whether to show progress bars.

    Returns:
        as of `qi.quantize_model`; the report's settings hold the metric of both models and what was raised.

    Raises:
        InputError: a metric that gives NaN or no number.
        ConfigError: a drop that not even 8-bit weights and 16-bit activations hold; the least drop found is named.
    """
    base = get_recipe(recipe)
    least = _value(metric, model, "the float model") - max_drop
    tried: list[_Tried] = []

    def holds(chosen: Recipe) -> bool:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", QuantizationWarning)  # only what is kept is worth a warning
            quantized, report = quantize(chosen)
        tried.append(_Tried(quantized, report, _value(metric, quantized, f"the model quantized by {chosen.name}")))
        return tried[-1].value >= least

    found = None if holds(base) else tried[0]
    if found is not None:
        if data is None and statistics is None:
            raise InputError(
                f"expected data or statistics, to find out what each weight costs: {base.name} gives {found.value:.6g}, and not "
                f"{least:.6g}, the least that max_drop allows; received neither; do pass data"
            )
        ladder = _more_bits(model, base, data, statistics, batch_size, jobs, progress)
        if not _first(ladder, holds):
            widest = ladder[-1] if ladder else base
            worst = [row.layer for row in tried[-1].report.worst(10**6, kind="activation")]
            if not _first([_wider(widest, worst[:count]) for count in _counts(len(worst))], holds):
                best = max(tried, key=lambda one: one.value)
                raise DropError(
                    f"expected a max_drop that can hold; received max_drop={max_drop:g}, and a metric of {best.value:.6g} at "
                    f"best, {least + max_drop - best.value:.4g} below the float model's; do allow that, or leave layers in float"
                )
    kept = min((one for one in tried if one.value >= least), key=_size)
    for line in kept.report.all_warnings:
        warn(line)
    return kept.model, _told(kept, tried[0], least + max_drop)


def _value(metric: Metric, model: keras.Model, what: str) -> float:
    """The metric of a model.

    Raises:
        InputError: it isn't a number.
    """
    value = metric(model)
    try:
        number = math.nan if isinstance(value, (str, bytes, bool)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"expected a metric that gives a finite number; received {value!r} for {what}; do repair it")
    return number


def _more_bits(
    model: keras.Model, base: Recipe, data: Any, statistics: Any, batch_size: int, jobs: int | None, progress: bool
) -> list[Recipe]:
    """Recipes of rising size up to 8 bits for every weight that no rule fixes."""
    if base.weights is None or base.weights.bits >= _BITS[-1]:
        return []
    candidates = tuple(bits for bits in _BITS if bits >= base.weights.bits)
    try:
        found = search(
            model, data, {"bytes": "1x"}, candidates, recipe=base, statistics=statistics, points=_POINTS,
            batch_size=batch_size, jobs=jobs, progress=progress,
        )  # fmt: skip
    except NothingToSearchError:  # its rules say all; activations may still get more
        return []
    smallest = min(point.costs["bytes"] for point in found.uniform.values())
    return [
        _with_algorithms(point.recipe, base.weights, f"{base.name} raised {place}")
        for place, point in enumerate(found.front, 1)
        if point.costs["bytes"] > smallest
    ]


def _with_algorithms(recipe: Recipe, spec: TensorSpec, name: str) -> Recipe:
    """The recipe with a spec's algorithms for the weights that the search chose bits for."""

    def worked(rule: Rule) -> Rule:
        chosen = rule.weights
        if not isinstance(chosen, TensorSpec) or chosen.algorithms or rule.weight is None:
            return rule
        return replace(rule, weights=replace(chosen, algorithms=spec.algorithms))

    return replace(recipe, name=name, rules=tuple(worked(rule) for rule in recipe.rules))


def _wider(recipe: Recipe, layers: list[str]) -> Recipe:
    """The recipe with activations of 16 bits for some layers."""
    spec = TensorSpec(bits=16, range="minmax")
    chosen = list(dict.fromkeys(layers))
    rules: list[Rule] = []
    for rule in recipe.rules:
        # A rule that decides on a layer's weights would hide one for its activations that comes behind it.
        for layer in chosen if rule.weight is None and rule.activations is None else ():
            if rule.match is None or fnmatchcase(layer, rule.match):
                rules.append(replace(rule, match=literally(layer), activations=spec))
        rules.append(rule)
    # Behind the others: ahead of them they would decide on the weights as well.
    rules += [Rule(literally(layer), activations=spec) for layer in chosen]
    return replace(recipe, name=f"{recipe.name}, {len(chosen)} activations of 16 bits", rules=tuple(rules))


def _counts(total: int) -> list[int]:
    """So many of the worst at a time: one, two, four... all."""
    counts = [2**power for power in range(total.bit_length()) if 2**power < total]
    return [*counts, total] if total else []


def _first(recipes: list[Recipe], holds: Callable[[Recipe], bool]) -> bool:
    """Finds by bisection the first of recipes that holds, taken as rising in quality; says whether any does."""
    if not recipes or not holds(recipes[-1]):
        return False
    low, high = -1, len(recipes) - 1  # what holds is at `high`, what doesn't at `low`
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(recipes[middle]) else (middle, high)
    return True


def _size(tried: _Tried) -> float:
    """Bytes of the weights, and bits of the activations where these are alike."""
    bits = sum(row.bits or 32 for row in tried.report.rows if row.kind == "activation")
    return tried.report.totals.bytes_after + bits / 1e6


def _told(kept: _Tried, first: _Tried, floating: float) -> QuantizationReport:
    before = {row.path: row.bits for row in first.report.rows}
    raised = [f"{r.path} {before[r.path]}->{r.bits}" for r in kept.report.rows if r.bits != before.get(r.path)]
    kept.report.settings.update(
        {
            "metric_float": floating,
            "metric_quantized": kept.value,
            "metric_before_raising": first.value,
            "raised": ", ".join(raised) or "nothing",
            "raised_bytes": kept.report.totals.bytes_after - first.report.totals.bytes_after,
        }
    )
    return kept.report
