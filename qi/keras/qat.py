"""Quantization-aware training: trainable quantizers into a model, and inferable ones out of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np

from qi.errors import ConfigError, UnsupportedError, warn
from qi.keras.assemble import Weights, Within, frozen_wrapper, insert_holders, wrap_layers
from qi.keras.data import tell_shapes
from qi.keras.dispatcher import KerasNodeQuantizationDispatcher
from qi.keras.dormant import activation_quantizers
from qi.keras.exact_graph import check_exact, make_exact
from qi.keras.exact_plain import exact_target, plain
from qi.keras.fold import fold_batch_norms, fold_gain, folds_into_scales
from qi.keras.given import check_copied
from qi.keras.graph import Graph, build_model, build_tensors, flatten_model, follow_model, is_graph_model
from qi.keras.holder import KerasActivationQuantizationHolder
from qi.keras.in_place import unregistered
from qi.keras.in_place_quantize import (
    calibrate_in_place,
    convert_in_place,
    prepare_in_place,
    put_quantizers,
)
from qi.keras.layers import copy_operation, rebuild_layer
from qi.keras.prepare import Prepared, gather_statistics, prepare, stored_statistics
from qi.keras.ptq import check_not_exact
from qi.keras.rows import describe
from qi.keras.sites import quantizer_sites
from qi.keras.trace import same_in_training
from qi.keras.variables import weights_of
from qi.keras.wrapper import KerasQuantizationWrapper
from qi.ledger.findings import check_strict
from qi.observers import TensorStatistics
from qi.quantizers import BaseInferableQuantizer, BaseTrainableQuantizer
from qi.quantizers.trainables import TrainingMethods, trainable_quantizer, trainable_within
from qi.recipes import RecipeLike
from qi.recipes.efforts import check_no_algorithms
from qi.recipes.plan import group_statistics

__all__ = ["convert", "prepare_qat"]

_NORMS = ("folded", "trained")
_TRAINING = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics", "fit", "compile")


def prepare_qat(
    model: keras.Model,
    recipe: RecipeLike = "w8a8",
    data: Any = None,
    *,
    method: str = "lsq",
    activation_method: str | None = None,
    estimator: str = "clipped_ste",
    estimator_options: Mapping[str, float] | None = None,
    batch_norm: str = "folded",
    exact: str | None = None,
    strict: bool = False,
    statistics: Mapping[str, TensorStatistics] | str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    progress: bool = True,
) -> keras.Model:
    """A copy of a model with trainable quantizers, to be compiled and trained like any other.

    The same tensors get quantizers as in `qi.quantize_model`, and each starts as that would have left it. Ranges that operations
    fix (softmax, say) stay; at the end of the model they rest while it trains, since losses take logarithms there. `qi.convert`
    turns the trained model into an inferable one. The given model is left as it is.

    Args:
        model: a built Keras 3 model, nested to any depth. The class of a Functional subclass (with a ``train_step`` of its own,
            say) is kept; of a model with a call of its own, a Functional one is made of the layers and ``keras.ops`` it calls.
            One that has a ``train_step`` of its own too, trains otherwise than it infers, or whose call can't be followed, is
            prepared in place: see `qi.quantize_model`.
        recipe: as of `qi.quantize_model`.
        data: samples that calibrate the activations; weight-only recipes need none.
        method: how quantizers train: "lsq", "lsq_plus", "ste" (fixed ranges), "ste_learned", "pact", "tqt", "dorefa", "noise",
            "stochastic", or that of a quantizer of your own. Where one isn't defined (PACT for weights, LSQ for powers of two)
            the nearest that is takes its place: "ste" for PACT, "tqt" for powers of two.
        activation_method: another one for activations.
        estimator: the gradient of rounding: "clipped_ste", "ste", "ewgs" or "dsq".
        estimator_options: its options.
        batch_norm: "folded" folds batch normalizations first, with their statistics as they are; "trained" leaves those that
            follow a layer with one scale a channel in place: they learn on, and conversion folds them into the scales, which
            changes no code.
        exact: "litert", "onnxruntime" or "reference": the forward pass computes just as that runtime's kernels will, with the
            gradients of the usual fake quantization, and so does what `qi.convert` gives. While it trains, functions such as
            sigmoid are real functions still, which moves few results by a step. Methods that add noise can't, nor can
            normalizations that train.
        strict: raise where a weight matrix stays in float although no rule says so; a warning tells otherwise.
        statistics: from `qi.calibrate`, in place of data.
        batch_size: for arrays.
        progress: whether to show a progress bar.

    Returns:
        a Functional model, or one of the given class. It saves to ``.keras`` and reloads, in the middle of training too.

    Raises:
        UnsupportedError: a model that is quantized or prepared already; a call that needs several arguments; with exact, a model
            that is prepared in place.
        ConfigError: an unknown recipe, method or estimator, or a method that isn't defined for what the recipe asks.
        InputError, StrictError, FileFormatError, OSError: as `qi.quantize_model`.

    Example:
        >>> import keras, numpy as np, qi
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(2)])
        >>> x = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
        >>> qat = qi.prepare_qat(model, "w4a8", x, progress=False)
        >>> qat.compile("adam", "mse")
        >>> history = qat.fit(x, x[:, :2], epochs=1, verbose=0)
        >>> qmodel = qi.convert(qat)
        >>> bool(np.array_equal(qmodel.predict(x, verbose=0), qat.predict(x, verbose=0)))
        True
    """
    check_exact(exact)
    if batch_norm not in _NORMS:
        raise ConfigError(f"expected batch_norm to be one of {_NORMS}; received batch_norm={batch_norm!r}")
    methods = TrainingMethods(method, activation_method, estimator, dict(estimator_options or {}))
    check_no_algorithms(recipe, "quantization-aware training")
    kind = _model_class(model)
    tell_shapes(model, data)
    graph, _ = follow_model(model)
    if graph is None or _trains_otherwise(model):
        check_not_exact(model, exact)
        stored = None if statistics is None else stored_statistics(model, data, statistics).statistics
        return _prepare_in_place(model, recipe, data, stored, methods, strict, batch_size, progress)
    ready = prepare(model, recipe, graph=graph, train_norms=batch_norm == "trained")
    check_copied(ready.graph, ready.notes)
    seen = gather_statistics(model, ready, data, statistics, batch_size, progress).statistics

    types = {id(call): describe(call) for call in ready.graph.calls}
    activations = _activation_quantizers(ready, seen, methods)
    inner = ready.within(lambda q, part: trainable_within(q, methods, fixed=part.fixed is not None))
    wrap = partial(_wrapped, methods=methods)
    weights = wrap_layers(ready.graph, ready.book, ready.kept, ready.notes, types, wrap, inner)
    _tell_refused(weights, strict)
    insert_holders(ready.graph, ready.plan, activations, one_each=True)
    result = build_model(ready.graph, build_tensors(ready.graph), kind=kind)
    if exact is None:
        return result
    _check_trains_exactly(result, batch_norm)
    return make_exact(result, exact)


def _check_trains_exactly(model: keras.Model, batch_norm: str) -> None:
    """Refuses what no integer kernel does in training."""
    if batch_norm != "folded":
        raise ConfigError(f"expected batch_norm='folded' with exact; received batch_norm={batch_norm!r}")
    noisy = [site.layer for site in quantizer_sites(model) if site.bound.quantizer.needs_noise]
    if noisy:
        raise ConfigError(
            f"expected a method without noise with exact; received one that needs it, in {noisy[0]!r}; do choose 'lsq' or 'ste'"
        )


def _tell_refused(weights: Weights, strict: bool) -> None:
    check_strict(weights.refused, strict)
    if weights.refused:
        row = weights.refused[0]
        warn(f"{len(weights.refused)} weight matrices stay in float: {row.layer}/{row.name} ({row.reason})")


def _wrapped(
    layer: keras.layers.Layer,
    found: Mapping[str, BaseInferableQuantizer],
    within: Within,
    *,
    methods: TrainingMethods,
) -> KerasQuantizationWrapper:
    """The layer with trainable quantizers that start as the inferable ones found for it."""
    shapes = {path: tuple(w.shape) for path, w in weights_of(layer).items()}
    trained = {path: trainable_quantizer(q, shapes[path], methods) for path, q in found.items()}
    dispatcher = KerasNodeQuantizationDispatcher(trained, None, within)
    wrapper = KerasQuantizationWrapper(layer, dispatcher, name=layer.name)
    wrapper.build(None)
    if not layer.trainable:
        wrapper.trainable = False  # the scales of what is frozen rest with it
    return wrapper


def _activation_quantizers(
    ready: Prepared, seen: Mapping[str, TensorStatistics], methods: TrainingMethods
) -> dict[int, BaseTrainableQuantizer]:
    """The trainable quantizer of each group of activations by ``id(group)``."""
    last = {id(value) for value in ready.graph.flat_outputs()}
    found = {}
    merged = {group.key: group_statistics(group, seen) for group in ready.plan.groups}
    starts = activation_quantizers(ready.graph, ready.plan, merged)
    for group in ready.plan.groups:
        fixed = group.fixed is not None
        # A loss takes the logarithm of the last softmax: what its grid makes 0 would teach nothing.
        rests = fixed and all(id(value) in last for value in group.observed)
        found[id(group)] = trainable_quantizer(starts[id(group)], (1,), methods, fixed=fixed, rests=rests)
    return found


def convert(model: keras.Model) -> keras.Model:
    """The inferable model that a trained one became: same predictions, bit for bit, frozen weights, packed when saved.

    Args:
        model: from `prepare_qat`, trained or not, or a model of your own with trainable wrappers and holders. It is only
            read.

    Returns:
        a model like those of `qi.quantize_model`. Normalizations that trained are folded where that changes scales
        only: rounding in float32 aside, nothing changes.

    Raises:
        ConfigError: a model without trainable quantizers, as one that is converted already.
        UnsupportedError: a subclassed model whose call isn't made of layers and ``keras.ops``; do call ``convert2inferable()`` of
            its wrappers and holders.
        InputError: training left NaN or infinities.
    """
    if getattr(model, "quantized_in_place", False):
        return convert_in_place(model)
    kind = _model_class(model)
    graph = flatten_model(model)
    exact = exact_target(graph)
    plain(graph)
    ops = [calls[0].op for calls in graph.calls_of().values()]
    if not any(_trains(op) for op in ops):
        raise ConfigError(
            f"expected a model with trainable quantizers; received {model.name!r}, which has none or is converted already; "
            "do give what prepare_qat returned"
        )
    made: dict[int, _Frozen] = {}
    for calls in graph.calls_of().values():
        op = calls[0].op
        if isinstance(op, KerasActivationQuantizationHolder) and _trains(op):
            if not op.bound.quantizer.enabled:
                for call in calls:
                    graph.replace(call.outputs[0], call.inputs[0])
                    graph.calls.remove(call)
                continue
            new: Any = op.convert2inferable()
        elif isinstance(op, KerasQuantizationWrapper) and (op.trains or not op.frozen):
            new = rebuild_layer(op.layer, {"name": op.name}, op.get_quantized_weights())
            made[id(new)] = _Frozen(op.quantizers, op.output_quantizers, op.inner_quantizers)
        else:
            new, _ = copy_operation(op, op.name)
        for call in calls:
            call.op = new
    _fold(graph, made)
    for calls in graph.calls_of().values():
        found = made.get(id(calls[0].op))
        if found is not None and (found.weights or found.outputs or found.within):
            wrapper = frozen_wrapper(calls[0].op, found.weights, found.within, found.outputs)
            for call in calls:
                call.op = wrapper
    result = build_model(graph, build_tensors(graph), kind=kind)
    return result if exact is None else make_exact(result, exact)


@dataclass(frozen=True)
class _Frozen:
    """The quantizers of a layer that will be wrapped for good."""

    weights: dict[str, BaseInferableQuantizer]
    outputs: list[BaseInferableQuantizer]
    within: Within


def _fold(graph: Graph, made: dict[int, _Frozen]) -> None:
    """Folds the normalizations that trained into the quantized kernels before them: into their scales."""

    def keep(layer: Any, norm: Any) -> str:
        found, fold = made.get(id(layer.op)), fold_gain(layer, norm.op)
        if found is None or fold is None:
            return "its layer isn't quantized"
        path, gain = fold
        if found.outputs or "bias" in found.weights:
            return "its layer's outputs or bias are quantized"
        shape = tuple(weights_of(layer.op)[path].shape)
        own = path not in found.weights or folds_into_scales(found.weights[path], shape, gain)
        return "" if own else "it would change the codes of its layer"

    def on_fold(old: Any, new: Any, path: str, gain: np.ndarray) -> None:
        found = dict(made.pop(id(old)).weights)
        if path in found:
            qparams = found[path].qparams(tuple(weights_of(new)[path].shape))
            scale = np.maximum(qparams.scale * np.abs(gain), np.finfo(np.float32).tiny).astype(np.float32)
            found[path] = found[path].with_qparams(scale, qparams.zero_point)
        made[id(new)] = _Frozen(found, [], {})

    fold_batch_norms(graph, keep, on_fold)


def _trains(op: Any) -> bool:
    """Whether a wrapper or a holder has a trainable quantizer."""
    if isinstance(op, KerasActivationQuantizationHolder):
        return op.bound.trains
    return isinstance(op, KerasQuantizationWrapper) and op.trains


def _model_class(model: Any) -> type[keras.Model]:
    """The class of the model to make: the given one's where that is made of inputs and outputs.

    Raises:
        UnsupportedError: a class of the user's that has a constructor of its own.
    """
    cls = type(model)
    if cls.__module__.partition(".")[0] == "keras" or not isinstance(model, keras.Model):
        return keras.Model
    if not is_graph_model(model):
        return keras.Model
    owner = next(c for c in cls.__mro__ if "__init__" in vars(c))
    if isinstance(model, keras.Sequential) or owner.__module__.partition(".")[0] != "keras":
        raise UnsupportedError(
            f"expected a class that is made of inputs and outputs; received {model.name!r} of class {cls.__name__}, which has a "
            "constructor of its own or is Sequential; do give keras.Model(model.inputs, model.outputs), and make your class of "
            "what comes back"
        )
    return cls


def _trains_otherwise(model: keras.Model) -> bool:
    """Whether a subclassed model trains as no Functional model of its layers would."""
    if not isinstance(model, keras.Model) or is_graph_model(model):
        return False
    own = [name for name in _TRAINING if getattr(type(model), name) is not getattr(keras.Model, name)]
    try:
        return bool(own) or not same_in_training(model)
    except UnsupportedError:  # in training its call can't be followed
        return True


def _prepare_in_place(
    model: keras.Model,
    recipe: RecipeLike,
    data: Any,
    statistics: Mapping[str, TensorStatistics] | None,
    methods: TrainingMethods,
    strict: bool,
    batch_size: int,
    progress: bool,
) -> keras.Model:
    """A copy of its own class, its layers quantized where they are."""
    ready = prepare_in_place(model, recipe)
    calibrate_in_place(ready, data, statistics, batch_size, progress)
    result, weights, _ = put_quantizers(
        ready,
        lambda q, shape, fixed: trainable_quantizer(q, shape, methods, fixed=fixed),
        lambda q, part: trainable_within(q, methods, fixed=part.fixed is not None),
    )
    _tell_refused(weights, strict)
    if line := unregistered(result):
        warn(line)
    return result
