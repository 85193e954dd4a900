"""Algorithms on the weights of a prepared model: from weights and moments to quantizers and values on their grids."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import keras
import numpy as np

from qi.algorithms import MatrixView, Problem, Solution
from qi.algorithms.journal import Journal
from qi.algorithms.run import Solved, Task, solve_all
from qi.core import LutGrid, SymmetricRule
from qi.core.affine import dequantize, quantize
from qi.dispatch import Slot
from qi.errors import ConfigError, FileFormatError, InputError
from qi.keras.inputs import weight_key
from qi.keras.linear import LinearView, linear_views
from qi.keras.prepare import Prepared
from qi.keras.rows import original_weights
from qi.keras.separable import weight_in_rules
from qi.keras.ties import tied_paths
from qi.keras.weights import weight_specs
from qi.observers import Moments
from qi.quantizers import (
    BaseInferableQuantizer,
    WeightsLUTPOTInferableQuantizer,
    WeightsLUTSymmetricInferableQuantizer,
)
from qi.recipes import TensorSpec
from qi.recipes.choose import weight_quantizer

__all__ = ["Rounded", "WeightSite", "problem_of", "quantizer_of", "round_weights", "view_of", "weight_sites"]

_SOLVED = ("range", "rounding")


@dataclass(frozen=True, eq=False)
class WeightSite:
    """A weight of a prepared model that the recipe quantizes.

    Attributes:
        op: the layer, a copy.
        layer: its path.
        weight: the weight's path within it.
        spec: how it is quantized.
        slot: its axes.
        array: its float values.
        linear: how it multiplies the layer's input; None where it doesn't.
        tied: the other layers that hold it, in words; "" where there are none.
    """

    op: Any
    layer: str
    weight: str
    spec: TensorSpec
    slot: Slot
    array: np.ndarray
    linear: LinearView | None = None
    tied: str = ""

    @cached_property
    def quantizer(self) -> BaseInferableQuantizer:
        """What its spec alone makes of it."""
        return weight_quantizer(self.array, self.spec, self.slot)

    @property
    def key(self) -> str:
        """Its name in statistics and progress files."""
        return weight_key(self.layer, self.weight)

    def steps(self, *stages: str) -> list[tuple[str, Mapping[str, Any]]]:
        """(name, options) of its algorithms of some stages."""
        return [(step.name, step.options) for step in self.spec.algorithms if step.stage in stages]


@dataclass(frozen=True, eq=False)
class Rounded:
    """What became of a weight: its quantizer, and values that lie on the quantizer's grid exactly."""

    site: WeightSite
    quantizer: BaseInferableQuantizer
    values: np.ndarray
    solved: Solved


def weight_sites(ready: Prepared) -> list[WeightSite]:
    """The weights that the recipe quantizes, each once, in the order of the graph."""
    found = []
    tied = tied_paths({calls[0].path: calls[0].op for calls in ready.graph.calls_of().values()})
    for calls in ready.graph.calls_of().values():
        call = calls[0]
        if not isinstance(call.op, keras.layers.Layer) or not call.op.weights or call.path in ready.notes:
            continue
        originals = original_weights(call.op)
        in_rules = partial(weight_in_rules, call)
        specs, _ = weight_specs(call.op, call.path, originals, ready.book, ready.kept.get(call.path, ""), in_rules)
        linear = {view.weight: view for each in calls for view in linear_views(each)}
        found += [
            WeightSite(call.op, call.path, name, spec, slot, originals[name], linear.get(name), tied.get(call.path, ""))
            for name, (spec, slot) in specs.items()
        ]
    return found


def problem_of(site: WeightSite, moments: Moments | None, array: np.ndarray | None = None) -> Problem:
    """The weight as matrices on the grid that its spec asks for.

    Args:
        site: the weight.
        moments: of its inputs; None where they aren't known.
        array: other values than the site's.
    """
    weight = site.array if array is None else array
    view = view_of(site)
    quantizer = site.quantizer if array is None else weight_quantizer(weight, site.spec, site.slot)
    params = quantizer.qparams(weight.shape)
    index = np.arange(params.scale.size, dtype=np.int32).reshape(params.scale.shape)
    sharing = np.broadcast_to(params.granularity.expand(index, weight.shape), weight.shape)
    known = moments is not None and moments.count > 0 and site.linear is not None
    return Problem(
        view.matrix(weight),
        params.scale.ravel(),
        params.zero_point.ravel(),
        view.matrix(sharing),
        params.grid,
        moments.second if known and moments is not None else None,
        moments.mean if known and moments is not None else None,
    )


def view_of(site: WeightSite) -> MatrixView:
    """The weight as matrices; of one that multiplies no input, with the channels as outputs."""
    if site.linear is not None:
        return site.linear.view
    axis = site.slot.channel_axis % site.array.ndim
    return MatrixView(site.array.shape, tuple(i for i in range(site.array.ndim) if i != axis), (axis,))


def quantizer_of(site: WeightSite, solution: Solution) -> tuple[BaseInferableQuantizer, np.ndarray]:
    """The quantizer of a solution, and the weight's values on its grid.

    Raises:
        ConfigError: a solution that no quantizer of weights can hold.
    """
    start = site.quantizer
    shape = start.qparams(site.array.shape).scale.shape
    scale = np.asarray(solution.scale, np.float32).reshape(shape)
    if isinstance(solution.grid, LutGrid):
        quantizer = _lut_quantizer(site, start, scale, solution.grid)
    else:
        quantizer = start.with_qparams(scale, solution.zero_point.reshape(shape))
    params = quantizer.qparams(site.array.shape)
    codes = view_of(site).tensor(solution.codes)
    scales = params.expanded(site.array.shape)
    values = dequantize(codes, *scales, params.grid)
    again = quantize(values, *scales, params.grid)
    if not np.array_equal(again, codes):
        raise ConfigError(
            f"expected codes that their values give again; received {int(np.sum(again != codes))} others of {site.key!r} from "
            f"{[step.name for step in site.spec.algorithms]}; do report this"
        )
    return quantizer, np.asarray(values, site.array.dtype)


def _lut_quantizer(
    site: WeightSite, start: BaseInferableQuantizer, scale: np.ndarray, grid: LutGrid
) -> BaseInferableQuantizer:
    if site.spec.granularity == "per_group":
        raise ConfigError(
            f"expected one scale a tensor or channel for a table of values; received granularity='per_group' for "
            f"{site.key!r}; do use 'per_channel'"
        )
    pot = site.spec.method == "power_of_two"
    cls = WeightsLUTPOTInferableQuantizer if pot else WeightsLUTSymmetricInferableQuantizer
    threshold = scale.astype(np.float64) * SymmetricRule.EDGE.divisor(grid)
    return cls(
        num_bits=site.spec.bits,
        lut_values=list(grid.values),
        threshold=threshold.ravel().tolist() if start.per_channel else float(threshold.ravel()[0]),
        per_channel=start.per_channel,
        channel_axis=start.channel_axis,
        input_rank=site.array.ndim,
        lut_values_bitwidth=grid.bits,
        signed=grid.signed,
    )


def round_weights(
    sites: list[WeightSite],
    inputs: Mapping[str, Moments],
    *,
    jobs: int | None,
    resume: str | os.PathLike[str] | None,
    origin: str,
    progress: bool,
) -> dict[str, Rounded]:
    """Runs the algorithms of stages "range" and "rounding" that the recipe names for each weight; without any, to nearest.

    Args:
        sites: of the model.
        inputs: moments by key.
        jobs: see `qi.algorithms.run.solve_all`.
        resume: a file that keeps what is done; None keeps nothing.
        origin: tells the model from any other.
        progress: whether to show a progress bar.

    Returns:
        what became of each weight that has such algorithms, or is to be corrected, by key.

    Raises:
        InputError: moments are needed that aren't there.
    """
    wanted = {site.key: site for site in sites if site.steps(*_SOLVED, "correction")}
    _check_moments(wanted, inputs)
    # What isn't asked for isn't used, so that stored statistics, which know all moments, give what the data would.
    inputs = {key: inputs[key] for key, site in wanted.items() if key in inputs and _needs_moments(site)}
    journal = Journal(resume, _fingerprint(wanted, inputs, origin))
    _check_kept(journal, wanted)
    tasks = {
        key: Task(problem_of(site, inputs.get(key)), site.steps(*_SOLVED))
        for key, site in wanted.items()
        if key not in journal.done
    }
    bar = keras.utils.Progbar(len(wanted), unit_name="weight", verbose=int(progress and bool(tasks)))
    for key, solved in solve_all(tasks, jobs=jobs):
        journal.add(key, solved)
        bar.update(len(journal.done), finalize=False)
    if tasks:
        bar.update(len(wanted), finalize=True)
    return {key: _rounded(site, journal.done[key]) for key, site in wanted.items()}


def _check_kept(journal: Journal, wanted: Mapping[str, WeightSite]) -> None:
    """Refuses results that aren't of these weights, whatever their file says.

    Raises:
        FileFormatError: results of other names or shapes.
    """
    for key, solved in journal.done.items():
        site, found = wanted.get(key), solved.solution
        if site is None or (found.codes.shape, found.scale.size) != (
            view_of(site).sizes,
            site.quantizer.qparams(site.array.shape).scale.size,
        ):
            raise FileFormatError(
                f"expected results of these weights in {journal.path}; received {found.codes.shape} for {key!r}; do delete it"
            )


def _rounded(site: WeightSite, solved: Solved) -> Rounded:
    quantizer, values = quantizer_of(site, solved.solution)
    return Rounded(site, quantizer, values, solved)


def _check_moments(wanted: Mapping[str, WeightSite], inputs: Mapping[str, Moments]) -> None:
    for key, site in wanted.items():
        stages = _SOLVED if site.linear is None or site.linear.bias is None else (*_SOLVED, "correction")
        asking = [step.name for step in site.spec.algorithms if step.needs == "moments" and step.stage in stages]
        if asking and site.linear is not None and (key not in inputs or not inputs[key].count):
            raise InputError(
                f"expected moments of the inputs of {key!r} for {asking[0]!r}; received none; do give data, or statistics of "
                "qi.calibrate, which keeps them"
            )


def _needs_moments(site: WeightSite) -> bool:
    return any(step.needs == "moments" for step in site.spec.algorithms)


def _fingerprint(wanted: Mapping[str, WeightSite], inputs: Mapping[str, Moments], origin: str) -> str:
    """Tells this work from any other: the weights, what is asked of each, and what is known of its inputs."""
    digest = hashlib.sha256(origin.encode())
    for key, site in wanted.items():
        digest.update(json.dumps([key, site.spec.to_config()], sort_keys=True).encode())
        digest.update(np.ascontiguousarray(site.array).tobytes())
        if key in inputs and inputs[key].count:
            digest.update(inputs[key].mean.astype(np.float32).tobytes())
            digest.update(np.diagonal(inputs[key].second, axis1=1, axis2=2).astype(np.float32).tobytes())
    return digest.hexdigest()
