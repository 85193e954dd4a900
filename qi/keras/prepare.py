"""The steps before any quantizer: the graph folded and copied, the plan of its activations, their statistics."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import keras
import numpy as np

from qi.errors import ConfigError, InputError, UnsupportedError
from qi.keras.assemble import Within, copy_layers
from qi.keras.attention import split_attention
from qi.keras.calibrate import Calibration, collect
from qi.keras.data import tell_shapes
from qi.keras.exact import ExactGrid, ExactSums
from qi.keras.exact_kernels import ExactRows
from qi.keras.fingerprint import fingerprint
from qi.keras.fold import fold_batch_norms, fold_gain, folds_into_scales, split_activations
from qi.keras.given import check_graph, check_layers
from qi.keras.graph import Call, Graph, Value, build_tensors, flatten_model, follow_model
from qi.keras.holder import KerasActivationQuantizationHolder
from qi.keras.in_place_quantize import calibrate_in_place, prepare_in_place
from qi.keras.inputs import Watch
from qi.keras.links import asks_scaling, cap_grids, open_caps, scalable_values
from qi.keras.merges import split_merges
from qi.keras.parts import AdaptWithin, Part, inner_parts, quantizers_within
from qi.keras.plan import plan_activations
from qi.keras.rows import original_weights
from qi.keras.running import fixed_batch
from qi.keras.separable import split_separable
from qi.keras.ties import tied_paths
from qi.keras.verify import check_copies
from qi.keras.weights import has_policy, weight_quantizers
from qi.keras.wrapper import KerasQuantizationWrapper
from qi.observers import CalibratedStatistics, TensorStatistics, load_statistics
from qi.recipes import RecipeLike, RuleBook, get_recipe
from qi.recipes.plan import ActivationPlan, group_statistics

__all__ = ["Prepared", "calibrate", "gather_statistics", "prepare", "stored_statistics"]

_QUANTIZED = (KerasActivationQuantizationHolder, KerasQuantizationWrapper, ExactGrid, ExactRows, ExactSums)
_MEASURED_ELEMENTS = 2**24  # activations held at once to measure errors: 64 MiB a model


@dataclass(eq=False)
class Prepared:
    """A model on its way: its graph as given, the folded one of copies, the recipe's decisions, the activations' plan.

    `kept` says why normalizations weren't folded and attentions not taken apart, by path; `inner` holds what is quantized within
    layers that are called as a whole, by their paths; `watch` is what calibration has to see beside the values with ranges.
    """

    given: Graph
    graph: Graph
    book: RuleBook
    plan: ActivationPlan
    kept: dict[str, str]
    notes: dict[str, str]
    tensors: dict[int, Any]
    inner: dict[str, dict[str, Part]] = field(default_factory=dict)
    watch: Watch = field(default_factory=Watch)

    @property
    def watched(self) -> list[Value]:
        """Values that calibration has to see."""
        return [value for group in self.plan.groups if group.fixed is None for value in group.observed]

    @property
    def parts(self) -> dict[str, Part]:
        """What is quantized within layers, by path."""
        return {part.path: part for parts in self.inner.values() for part in parts.values()}

    def within(self, adapt: AdaptWithin | None = None) -> dict[str, Within]:
        """The quantizers within each layer by its path; `adapt` makes others of the inferable ones."""
        return {path: quantizers_within(parts, adapt) for path, parts in self.inner.items()}

    @property
    def needs_data(self) -> bool:
        """Whether calibration has to find any range."""
        return bool(self.watched or self.watch.seen) or any(part.watched for part in self.parts.values())


Planner = Callable[[Graph, RuleBook], ActivationPlan]


def prepare(
    model: keras.Model,
    recipe: RecipeLike,
    *,
    graph: Graph | None = None,
    train_norms: bool = False,
    planner: Planner | None = None,
    scales: bool = False,
) -> Prepared:
    """The model's graph, ready for quantizers.

    Args:
        model: it is only read.
        recipe: as of `qi.quantize_model`.
        graph: the model's, where that is known already; it is only read.
        train_norms: leaves batch normalizations that can be folded later, without touching a code, to train.
        planner: makes the plan of activations in place of the recipe; it may change the graph first.
        scales: whether channels may be scaled, as algorithms of the recipe ask: clamps at 6 then get a cap for each channel.

    Raises:
        UnsupportedError: an already quantized model; a call that can't be followed on symbolic tensors.
        InputError: an unbuilt model, or one with NaN in its weights.
        ConfigError: an unknown recipe.
    """
    given = flatten_model(model) if graph is None else graph
    check_layers(model)
    check_graph(given)
    graph = given.copy()
    _check_float(model, graph)
    chosen = get_recipe(recipe)
    book = chosen.resolve()
    later: set[str] = set()
    tied = tied_paths({calls[0].path: calls[0].op for calls in graph.calls_of().values()})
    whole = {path: call.op for call in graph.calls if (path := call.path) in tied}

    def keep(layer: Call, norm: Call) -> str:
        if layer.path in tied:
            return f"its layer's weights are those of {tied[layer.path]} too"
        if not train_norms or not _folds_into_scales(layer, norm, chosen.resolve()):
            return ""
        later.add(norm.path)
        return "trains as it is; conversion folds it"

    kept = fold_batch_norms(graph, keep)
    for call in graph.calls:
        for kind, _, path in (name.partition(" ") for name in call.fused):
            book.folded(path, kind, call.path)
    kept |= split_attention(graph)  # whatever the recipe: nothing but its parts has a policy or runs elsewhere
    probe = chosen.resolve()  # a book of its own: asking marks rules as used
    if any(probe.activations_for(call.path, call.kind).spec is not None for call in graph.calls):
        split_activations(graph, has_policy)
        split_separable(graph)
        split_merges(graph)
    _check_ties(graph, whole, tied)
    if scales and any(step.stage == "scaling" for spec in chosen.all_weights() for step in spec.algorithms):
        open_caps(graph, partial(asks_scaling, chosen.resolve()))
    plan = plan_activations(graph, book, later) if planner is None else planner(graph, book)
    cap_grids(graph, plan)
    notes = copy_layers(graph, plan)
    ready = Prepared(given, graph, book, plan, kept, notes, build_tensors(graph))
    for call in graph.calls:
        if call.path not in ready.inner and call.path not in notes:
            ready.inner[call.path] = inner_parts(call.op, call.path, book, kept.get(call.path, ""))
    _leave_shared_parts(ready)
    return ready


def _check_float(model: keras.Model, graph: Graph) -> None:
    done = [call.path for call in graph.calls if isinstance(call.op, _QUANTIZED)]
    if done:
        raise UnsupportedError(
            f"expected a float model; received {model.name!r}, in which {len(done)} layers are quantized ({done[0]!r}...); "
            "do start from the float model"
        )


def _leave_shared_parts(ready: Prepared) -> None:
    """Leaves in float what layers give that are called from elsewhere too: one hook would see the calls of all."""
    ops = {id(call.op) for call in ready.graph.calls}
    first: dict[int, Part] = {}
    for part in ready.parts.values():
        other = first.setdefault(id(part.layer), part)
        if id(part.layer) in ops:
            part.spec, part.reason = None, "the model calls this layer itself, too: there its output is quantized"
        elif other is not part:
            other.spec, other.reason = None, f"{part.path!r} is the same layer"
            part.spec, part.reason = None, f"{other.path!r} is the same layer"


def _check_ties(graph: Graph, whole: Mapping[str, Any], tied: Mapping[str, str]) -> None:
    """Refuses layers that were taken apart though others hold their weights too: the parts have weights of their own."""
    left = {id(call.op) for call in graph.calls}
    for path, op in whole.items():
        if id(op) not in left:
            raise UnsupportedError(
                f"expected layers that are taken apart to share no weights; received {path!r} of class "
                f"{type(op).__name__}, which shares some with {tied[path]}; do give each its own, or call one layer twice"
            )


def _folds_into_scales(layer: Call, norm: Call, book: RuleBook) -> bool:
    """Whether a fold will change a quantized kernel's scales only: one for each channel of g, and codes of either sign."""
    found = fold_gain(layer, norm.op)
    if found is None:
        return False
    path, gain = found
    weights = original_weights(layer.op)
    quantizer = weight_quantizers(layer.op, layer.path, weights, book, "")[0].get(path)
    negative = np.full(gain.shape, -1.0)  # in training g may take either sign
    return quantizer is not None and folds_into_scales(quantizer, weights[path].shape, negative)


def gather_statistics(
    model: keras.Model, ready: Prepared, data: Any, statistics: Any, batch_size: int, progress: bool
) -> Calibration:
    """What the data, or an earlier calibration, tell of the activations; the copied layers are checked on it as well.

    Raises:
        InputError: illegal data, or both; a layer that computes something else once it is rebuilt.
        ConfigError: statistics of another model.
    """
    if statistics is None:
        calibration = _new_statistics(ready, data, batch_size, progress)
    else:
        calibration = stored_statistics(model, data, statistics)
        for part in ready.parts.values():
            part.take(calibration.statistics)
    check_copies(ready.given, ready.graph, calibration.sample)
    return calibration


def calibrate(
    model: keras.Model,
    data: Any,
    recipe: RecipeLike = "w8a8",
    *,
    moments: bool = True,
    batch_size: int = 64,
    progress: bool = True,
) -> CalibratedStatistics:
    """Collects the statistics from which any recipe's ranges, and most algorithms, can be redone later with no data at hand.

    Args:
        model: as of `quantize_model`; it is only read.
        data: see `quantize_model`.
        recipe: decides which values are watched; recipes that quantize the same tensors can use the result.
        moments: whether to keep what equalization, GPTQ, bias correction and a search need too: moments of the inputs of all
            layers that multiply by a weight (of at most 4,096 features or so), and ranges of single channels.
        batch_size: for arrays.
        progress: whether to show a progress bar.

    Returns:
        statistics by value name, with the number of samples and a fingerprint of the model: give them to
        ``quantize_model(..., statistics=...)``, or to `qi.observers.save_statistics`.

    Raises:
        ConfigError: a recipe that quantizes no activations, besides what `quantize_model` raises.
    """
    tell_shapes(model, data)
    graph, _ = follow_model(model)
    if graph is None:
        in_place = prepare_in_place(model, recipe)
        _check_watched(bool(in_place.watched), in_place.book)
        calibrate_in_place(in_place, data, None, batch_size, progress)
        return CalibratedStatistics(in_place.statistics, samples=in_place.calibration.samples, model=fingerprint(model))
    ready = prepare(model, recipe, graph=graph)
    weights = ready.book.recipe.all_weights()
    _check_watched(
        ready.needs_data or any(step.needs != "weights" for spec in weights for step in spec.algorithms), ready.book
    )
    if moments:
        ready.watch = Watch.of(ready.graph, channels=scalable_values(ready.graph))
    calibration = gather_statistics(model, ready, data, None, batch_size, progress)
    for group in ready.plan.groups:
        group_statistics(group, calibration.statistics)  # refuses what no recipe could use
    return CalibratedStatistics(
        calibration.statistics,
        samples=calibration.samples,
        model=fingerprint(model),
        inputs=calibration.inputs,
        channels=calibration.channels,
    )


def _check_watched(watched: bool, book: RuleBook) -> None:
    if not watched:
        raise ConfigError(
            f"expected a recipe with activation ranges to choose; received {book.recipe.name!r}, which needs no "
            "statistics; do quantize without them"
        )


def _new_statistics(ready: Prepared, data: Any, batch_size: int, progress: bool) -> Calibration:
    """What one pass over the data gives; nothing where the recipe needs none."""
    if not (ready.plan.groups or ready.parts or ready.watch.seen) or (data is None and not ready.needs_data):
        return Calibration()
    return _collect(ready, data, batch_size, progress)


def stored_statistics(model: keras.Model, data: Any, statistics: Any) -> Calibration:
    """What an earlier calibration gave, checked to be of this model where it says so."""
    if data is not None:
        raise InputError("expected data or statistics; received both; do give one of them")
    found = load_statistics(statistics) if isinstance(statistics, (str, os.PathLike)) else statistics
    if not isinstance(found, Mapping) or not all(isinstance(s, TensorStatistics) for s in found.values()):
        raise InputError(f"expected TensorStatistics by name, as calibrate gives them; received {type(found).__name__}")
    samples, inputs, channels = 0, {}, {}
    if isinstance(found, CalibratedStatistics):
        if found.model and found.model != fingerprint(model):
            raise ConfigError(
                "expected statistics of this very model; received those of a model with other weights or layers; "
                "do calibrate again"
            )
        samples = found.samples or 0
        inputs, channels = dict(found.inputs), dict(found.channels)
    return Calibration(dict(found), samples=samples, source="stored statistics", inputs=inputs, channels=channels)


def _collect(ready: Prepared, data: Any, batch_size: int, progress: bool) -> Calibration:
    sizes = [np.prod([n or 1 for n in v.shape[1:]]) for call in ready.graph.calls for v in call.outputs]
    # Where the inputs fix the batch size, layers may need just as many.
    fixed = fixed_batch([value.shape for value in ready.graph.flat_inputs()])
    keep = fixed or int(np.clip(_MEASURED_ELEMENTS // max(1, int(sum(sizes))), 1, 64))
    return collect(
        ready.graph,
        ready.tensors,
        ready.watched,
        data,
        ready.parts,
        ready.watch,
        batch_size=batch_size,
        progress=progress,
        keep=keep,
    )
