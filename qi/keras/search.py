"""Which weight gets how many bits: the least loss within budgets of bytes, operations or mean bits."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import keras
import numpy as np

from qi.algorithms.allocation import Allocation, allocate, front
from qi.algorithms.run import check_jobs
from qi.errors import ConfigError, InputError, UnsupportedError
from qi.keras.data import batches, tell_shapes
from qi.keras.graph import follow_model
from qi.keras.measured import TaskMetric, measured_losses
from qi.keras.prepare import Prepared, prepare, stored_statistics
from qi.keras.search_result import SearchPoint, SearchResult, WeightChoice
from qi.keras.searched import Fixed, Searched, searched_weights
from qi.keras.sending import Source
from qi.keras.sensitivity import (
    divergence,
    hessian_losses,
    input_moments,
    output_errors,
    perturbed_values,
    quantized_values,
    some_samples,
)
from qi.keras.verify import check_copies
from qi.observers import TensorStatistics
from qi.recipes import Recipe, RecipeLike, Rule, TensorSpec, decode_name, get_recipe
from qi.registry import suggest

__all__ = ["BUDGETS", "METRICS", "NothingToSearchError", "literally", "search"]

BUDGETS = ("bytes", "bops", "bits")
"""Bytes of all weights, scales included; multiply-accumulates times bits of weight and activation; mean bits of a weight."""

METRICS = ("task", "output", "hessian")
"""How the loss of a weight's candidate is found, the default first; see `search`.

On ResNet-8 and a small MobileNetV2, at the bytes of uniform 4, 3, 2.5 and 2.25 bits, what was chosen agreed with the float model
on 79.4 % ("task"), 77.2 % ("output") and 78.0 % ("hessian") of 768 images that weren't searched with (weights alone quantized).
"""

_UNIFORM_BITS = 8  # what "0.5x" refers to


class NothingToSearchError(InputError):
    """Every weight stays as a rule says, or there is none."""


@dataclass(frozen=True, eq=False)
class _Space:
    """What there is to choose from, and what that costs."""

    base: Recipe
    specs: Mapping[str, TensorSpec]  # the candidates by name
    weights: Sequence[Searched]
    costs: Mapping[str, list[np.ndarray]]  # by budget, of each weight the candidates'; at the end what is fixed
    eight: Mapping[str, float]  # by budget, the cost of uniform 8 bits

    def point(self, choice: Sequence[int], loss: float, costs: Mapping[str, float], bound: float | None) -> SearchPoint:
        """A choice as a recipe, with one rule a weight before those of the base."""
        names = list(self.specs)
        chosen = {weight.label: names[place] for weight, place in zip(self.weights, choice, strict=True)}
        rules = [
            Rule(literally(weight.path), weight=literally(weight.name), weights=self.specs[chosen[weight.label]])
            for weight in self.weights
        ]
        recipe = self.base.with_rules(*rules, name=f"{self.base.name}_search")
        return SearchPoint(dict(costs), loss, bound, chosen, recipe)

    def found(self, allocation: Allocation) -> SearchPoint:
        """An allocation, of which the last item is what is fixed."""
        return self.point(allocation.choice[:-1], allocation.loss, allocation.costs, allocation.bound)


def search(
    model: keras.Model,
    data: Any = None,
    budgets: Mapping[str, float | str] | None = None,
    candidates: Iterable[int | str | TensorSpec] = (2, 3, 4, 6, 8),
    *,
    recipe: RecipeLike = "w8a8",
    metric: str | TaskMetric | None = None,
    statistics: Mapping[str, TensorStatistics] | str | os.PathLike[str] | None = None,
    samples: int = 256,
    points: int = 16,
    batch_size: int = 64,
    time_limit: float = 60.0,
    jobs: int | None = 1,
    progress: bool = True,
) -> SearchResult:
    """Chooses how each weight is quantized: the least sum of losses within budgets, proven to be the least.

    The loss of a candidate is what quantizing that one weight does, all else in float, weights rounded to the nearest; the sum
    over the weights predicts what quantizing all of them does. Weights of which a rule of the recipe speaks stay as the rule
    says, and are counted; those that several layers hold count once.

    Args:
        model: as of `qi.quantize_model`, but one whose call can be followed; it is only read.
        data: as of `qi.quantize_model`.
        budgets: the most that may be spent, by name: "bytes" (all weights as they are stored, biases and scales included), "bops"
            (multiply-accumulates x bits of the weight x bits of the activation, over all layers with a weight), "bits" (the mean
            over all weights that can be quantized). Numbers, or texts as "0.5x": so much of what 8 bits for every searched
            weight take. The first is the one that the front is drawn over.
        candidates: what to choose from: bits (granularity and method as of the recipe's weights), names of recipes for weights
            ("w4_g32", "w4_pt"), or specs.
        recipe: quantizes the activations, and its rules hold.
        metric: how losses are found. "task": the model is run with each candidate of each weight, from there on, and its outputs
            are compared (Kullback-Leibler divergence of probabilities, squared error over variance of anything else). "output":
            the error of the layer's output is predicted from moments of its inputs, with no run of the model. "hessian":
            that, times how much the model's outputs change with small random errors of the weight, from two runs a weight.
            Or a function of the outputs (lists of arrays) of the float and the changed model, that gives a number, 0 where
            they are equal: its mean over the batches counts. By default "task", without data "output".
        statistics: of this very model, from `qi.calibrate`, in place of data; for "output" alone.
        samples: how many, the first, the model is run on ("task", "hessian").
        points: how many budgets the front is found for.
        batch_size: for arrays.
        time_limit: seconds for each allocation; `SearchPoint.gap` tells what is then left open.
        jobs: how many processes work at once; None leaves number and backend to `joblib.parallel_config`. To run the model
            ("task", "hessian"), each rebuilds it from its file, which takes about 0.6 GiB and some seconds for TensorFlow, and
            computes with as many threads as this one: the losses are the same, bit for bit.
        progress: whether to show a progress bar.

    Returns:
        the choice, with its recipe and the front.

    Raises:
        ConfigError: an unknown budget, metric or candidate; budgets that can't be met: the nearest that can are named.
        InputError: no data where they are needed; a metric that gives NaN; a model without a weight to search.
        UnsupportedError: a model whose call can't be followed, or that other processes can't rebuild (jobs).
        MissingDependencyError: scipy isn't installed.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        >>> found = search(model, x, {"bits": 5}, progress=False)
        >>> found.chosen.costs["bits"] <= 5, found.chosen.gap
        (True, 0.0)
    """
    start = time.perf_counter()
    base = get_recipe(recipe)
    specs, metric = _specs(candidates, base), _checked_metric(metric, data)
    wanted = _checked_budgets(budgets)
    _check_numbers(samples, points, time_limit)
    jobs = check_jobs(jobs)
    ready = _prepared(model, data, base)
    space = _space(ready, base, specs)
    limits = {name: _number(name, value, space.eight[name]) for name, value in wanted.items()}
    nothing = [np.zeros(len(specs))] * len(space.weights) + [np.zeros(1)]
    allocate(nothing, space.costs, limits, time_limit=time_limit)  # refuses budgets that can't be met before the work
    known = stored_statistics(model, data, statistics).inputs if statistics is not None else None
    source = Source(model, base, tuple(specs.values()))
    losses = _losses(ready, space.weights, metric, data, known, samples, batch_size, jobs, source, progress)
    items = [*losses, np.zeros(1)]
    best = allocate(items, space.costs, limits, time_limit=time_limit)
    drawn = front(items, space.costs, next(iter(limits)), limits, points=points, time_limit=time_limit)
    return SearchResult(
        model=model.name,
        metric=metric if isinstance(metric, str) else getattr(metric, "__name__", "metric"),
        budgets=limits,
        chosen=space.found(best),
        front=tuple(space.found(point.allocation) for point in drawn),
        uniform={name: _uniform(space, losses, place) for place, name in enumerate(specs)},
        weights=tuple(_choices(space, losses, best.choice)),
        seconds=time.perf_counter() - start,
    )


def _check_numbers(samples: object, points: object, time_limit: object) -> None:
    for name, value, least in (("samples", samples, 1), ("points", points, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"expected {name} to be a whole number from {least} on; received {name}={value!r}")
    number = isinstance(time_limit, (int, float)) and not isinstance(time_limit, bool)
    if not (number and time_limit > 0):  # type: ignore[operator]
        raise ConfigError(f"expected time_limit to be a number of seconds above 0; received time_limit={time_limit!r}")


def _prepared(model: keras.Model, data: Any, base: Recipe) -> Prepared:
    tell_shapes(model, data)
    graph, why = follow_model(model)
    if graph is None:
        raise UnsupportedError(
            f"expected a model whose call can be followed, for bits are searched layer by layer; received {model.name!r}: {why}; "
            "do rebuild it as keras.Model(inputs, outputs)"
        )
    return prepare(model, base, graph=graph)


def _specs(candidates: Iterable[int | str | TensorSpec], base: Recipe) -> dict[str, TensorSpec]:
    """The candidates by name, each once."""
    single = isinstance(candidates, (str, TensorSpec)) or not isinstance(candidates, Iterable)
    given = [candidates] if single else list(candidates)
    if not given:
        raise ConfigError("expected at least one candidate; received none; do: candidates=(2, 3, 4, 6, 8)")
    found: dict[str, TensorSpec] = {}
    for candidate in given:
        if isinstance(candidate, TensorSpec):
            found[str(candidate)] = Recipe("candidate", weights=candidate).weights or candidate
        elif isinstance(candidate, str):
            recipe = decode_name(candidate)
            if recipe.activations is not None or recipe.weights is None:
                raise ConfigError(
                    f"expected candidates for weights alone, such as 'w4' or 'w4_g32'; received {candidate!r}; do give "
                    "activations by recipe="
                )
            found[candidate] = recipe.weights
        else:
            found[f"w{candidate}"] = _of_bits(candidate, base)
    return found


def _of_bits(bits: object, base: Recipe) -> TensorSpec:
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)):
        raise ConfigError(f"expected candidates as bits, names or TensorSpecs; received {bits!r}")
    spec = decode_name(f"w{bits}").weights
    if spec is None or base.weights is None:
        return decode_name(f"w{bits}").weights or TensorSpec(bits=int(bits))
    own = base.weights
    made = replace(spec, method=own.method, granularity=own.granularity, group_size=own.group_size)
    return replace(made, range="minmax", range_options={}) if own.method == "uniform" else made


def _checked_metric(metric: str | TaskMetric | None, data: Any) -> str | TaskMetric:
    if metric is None:
        return "task" if data is not None else "output"
    if callable(metric) or metric in METRICS:
        if data is None and metric != "output":
            raise InputError(f"expected data for metric={metric!r}, which runs the model; received none; do pass data")
        return metric
    raise ConfigError(
        f"expected a metric among {', '.join(METRICS)}, or a function; received {metric!r}.{suggest(str(metric), METRICS)}"
    )


def _checked_budgets(budgets: object) -> dict[str, float | str]:
    if not isinstance(budgets, Mapping) or not budgets:
        raise ConfigError(f"expected budgets by name, such as {{'bytes': 40000}}; received budgets={budgets!r}")
    for name, value in budgets.items():
        if name not in BUDGETS:
            raise ConfigError(
                f"expected budgets among {', '.join(BUDGETS)}; received {name!r}.{suggest(str(name), BUDGETS)}"
            )
        _number(name, value, 1.0)
    return dict(budgets)


def _number(name: str, value: object, eight: float) -> float:
    """A budget as a number; `eight` is what 8 bits take."""
    text = value.strip().lower() if isinstance(value, str) else ""
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(text[:-1]) * eight if text.endswith("x") else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigError(
            f"expected a budget as a positive number, or as '0.5x' of what 8 bits take; received {name}={value!r}"
        )
    return number


def _space(ready: Prepared, base: Recipe, specs: Mapping[str, TensorSpec]) -> _Space:
    """The searched weights with their candidates, and the costs."""
    weights, fixed = searched_weights(ready, [*specs.values(), _of_bits(_UNIFORM_BITS, base)])
    if not weights:
        raise NothingToSearchError(
            f"expected a model with weights to quantize that the rules of {base.name!r} leave open; received "
            f"{ready.given.name!r}, which has none"
        )
    costs = _costs(weights, fixed)
    eight = {name: float(sum(own[-1] for own in found)) for name, found in costs.items()}
    own = {name: [*(each[:-1] for each in found[:-1]), found[-1]] for name, found in costs.items()}
    cut = [replace(weight, quantizers=weight.quantizers[:-1]) for weight in weights]
    return _Space(base, specs, cut, own, eight)


def _costs(weights: Sequence[Searched], fixed: Sequence[Fixed]) -> dict[str, list[np.ndarray]]:
    """By budget, for each weight the costs of its candidates; at the end those of what is fixed, as one more."""
    matrices = [f for f in fixed if f.bits is not None]
    numbers = sum(w.array.size for w in weights) + sum(f.size for f in matrices)
    found: dict[str, list[np.ndarray]] = {name: [] for name in BUDGETS}
    for weight in weights:
        bits = np.array([quantizer.num_bits for quantizer in weight.quantizers], np.float64)
        found["bytes"].append(np.array([weight.nbytes(place) for place in range(len(bits))], np.float64))
        found["bops"].append(weight.macs * weight.activation_bits * bits)
        found["bits"].append(weight.array.size * bits / numbers)
    found["bytes"].append(np.array([float(sum(f.nbytes for f in fixed))]))
    found["bops"].append(np.array([float(sum(f.macs * f.activation_bits * (f.bits or 0) for f in matrices))]))
    found["bits"].append(np.array([sum(f.size * (f.bits or 0) for f in matrices) / numbers]))
    return found


def _losses(
    ready: Prepared,
    weights: Sequence[Searched],
    metric: str | TaskMetric,
    data: Any,
    known: Any,
    samples: int,
    batch_size: int,
    jobs: int | None,
    source: Source,
    progress: bool,
) -> list[np.ndarray]:
    """Of each weight the losses of its candidates."""
    if metric == "output":
        if known is None and data is None:
            raise InputError("expected data or statistics; received neither; do pass data")
        if known is not None and not known:
            raise InputError(
                "expected statistics with moments of the inputs of layers; received none; do calibrate again"
            )
        check_copies(ready.given, ready.graph, [])
        seen = input_moments(ready, batches(data, ready.graph, batch_size)) if known is None else known
        return output_errors(weights, seen, jobs=jobs)
    held = list(some_samples(ready, data, samples, batch_size))
    first = held[0][0]
    check_copies(ready.given, ready.graph, [] if any(array is None for array in first) else first)
    bar = keras.utils.Progbar(len(weights) * len(held), unit_name="weight", verbose=int(progress))
    measure = partial(measured_losses, ready, held, weights, advance=bar.add, jobs=jobs, source=source)
    if metric == "hessian":
        found = measure(perturbed_values, divergence)
        return hessian_losses(weights, found, input_moments(ready, held), jobs=jobs)
    distance = divergence if isinstance(metric, str) else metric
    found = measure(quantized_values, distance)
    # Rounding alone may take a divergence below 0; what a user's metric calls better than float is left to it.
    return [np.maximum(own, 0.0) for own in found] if isinstance(metric, str) else found


def _uniform(space: _Space, losses: Sequence[np.ndarray], place: int) -> SearchPoint:
    costs = {name: float(sum(own[place] for own in found[:-1]) + found[-1][0]) for name, found in space.costs.items()}
    loss = float(sum(own[place] for own in losses))
    return space.point([place] * len(space.weights), loss, costs, None)


def _choices(space: _Space, losses: Sequence[np.ndarray], choice: Sequence[int]) -> Iterable[WeightChoice]:
    names = list(space.specs)
    for index, (weight, own) in enumerate(zip(space.weights, losses, strict=True)):
        place = choice[index]
        yield WeightChoice(
            path=weight.label,
            size=int(weight.array.size),
            macs=weight.macs,
            candidate=names[place],
            bits=weight.quantizers[place].num_bits,
            nbytes=int(space.costs["bytes"][index][place]),
            losses=dict(zip(names, map(float, own), strict=True)),
        )


def literally(text: str) -> str:
    """A pattern of rules that matches this text alone.

    Example:
        >>> literally("block[0]/conv")
        'block[[]0]/conv'
    """
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)
