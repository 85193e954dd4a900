"""Quantization-aware training of torch modules: trainable quantizers into a module, inferable ones out of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from qi.errors import ConfigError, warn
from qi.ledger import Row
from qi.ledger.findings import check_strict
from qi.quantizers import BaseInferableQuantizer, BaseQuantizer
from qi.quantizers.trainables import TrainingMethods, trainable_quantizer
from qi.recipes import RecipeLike
from qi.recipes.dormant import activation_quantizers
from qi.recipes.efforts import check_no_algorithms
from qi.torch.data import Samples
from qi.torch.dispatcher import PytorchNodeQuantizationDispatcher
from qi.torch.follow import same_in_training
from qi.torch.holder import PytorchActivationQuantizationHolder
from qi.torch.in_place import measured_on, passed_over, prepare_in_place, put_wrappers
from qi.torch.kinds import kind_of
from qi.torch.prepare import check_module, follow_module, gather, largest_weight, prepare
from qi.torch.quantize import insert_holders, wrap_modules
from qi.torch.variables import duplicate, exchanged
from qi.torch.wrapper import PytorchQuantizationWrapper

__all__ = ["convert", "prepare_qat"]


def prepare_qat(
    module: torch.nn.Module,
    recipe: RecipeLike = "w8a8",
    data: Any = None,
    *,
    method: str = "lsq",
    activation_method: str | None = None,
    estimator: str = "clipped_ste",
    estimator_options: Mapping[str, float] | None = None,
    strict: bool = False,
    batch_size: int = 64,
    progress: bool = True,
) -> torch.nn.Module:
    """A copy of a module with trainable quantizers, to be trained like any other.

    The same tensors get quantizers as in `qi.torch.quantize_model`, and each starts as that would have left it; batch
    normalizations are folded with their statistics as they are. Ranges that operations fix (softmax, say) stay. `convert` turns
    the trained module into an inferable one.

    Args:
        module: any; one that does otherwise in training than in eval mode (beyond what modules such as `torch.nn.Dropout` do), or
            whose forward can't be followed, is prepared in place: see `qi.torch.quantize_model`.
        recipe: as of `qi.quantize_model`.
        data: samples that calibrate the activations; weight-only recipes need none.
        method: how quantizers train, as of `qi.prepare_qat`: "lsq", "lsq_plus", "ste", "ste_learned", "pact", "tqt", "dorefa",
            "noise", "stochastic", or that of a quantizer of your own.
        activation_method: another one for activations.
        estimator: the gradient of rounding: "clipped_ste", "ste", "ewgs" or "dsq".
        estimator_options: its options.
        strict: raise where a weight matrix stays in float although no rule says so; a warning tells otherwise.
        batch_size: for tensors, arrays and data sets.
        progress: whether to show a progress bar when it takes long.

    Returns:
        the module in training mode; the quantizers' parameters are among its ``parameters()``.

    Raises:
        ConfigError: no module, an unknown recipe, method or estimator.
        UnsupportedError: an already quantized module; a recipe with algorithms, which are for Keras models so far.
        InputError, StrictError: as `qi.torch.quantize_model`.

    Example:
        >>> import torch, qi
        >>> _ = torch.manual_seed(0)
        >>> module = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> x = torch.randn(64, 8)
        >>> qat = qi.torch.prepare_qat(module, "w4a8", x, progress=False)
        >>> optimizer = torch.optim.Adam(qat.parameters())
        >>> torch.nn.functional.mse_loss(qat(x), x[:, :2]).backward()
        >>> optimizer.step()
        >>> qmodule = qi.torch.convert(qat)
        >>> bool(torch.equal(qmodule(x), qat.eval()(x)))
        True
    """
    methods = TrainingMethods(method, activation_method, estimator, dict(estimator_options or {}))
    check_no_algorithms(recipe, "torch modules")
    check_module(module)
    samples = None if data is None else Samples(data, module, batch_size)
    graph, _, kept = follow_module(module, samples)
    first = samples.first if samples is not None else None
    wrap = partial(_trainable_wrapper, methods=methods)
    if graph is None or not same_in_training(module, *((first.args, first.kwargs) if first is not None else ())):
        ready = prepare_in_place(module, recipe, samples, progress)
        batch = measured_on(ready, samples)
        result, _, refused = put_wrappers(
            ready, wrap, lambda quantizer, fixed: trainable_quantizer(quantizer, (1,), methods, fixed=fixed)
        )
        _tell_refused(refused, strict)
        for line in passed_over(result, ready, batch):
            warn(line)
        return result.train()
    traced = prepare(graph, kept, recipe, samples)
    gather(traced, progress)
    starts = activation_quantizers(traced.graph, traced.plan, traced.statistics, largest_weight)
    last = {id(value) for value in traced.graph.flat_outputs()}
    trained = {}
    for group in traced.plan.groups:
        fixed = group.fixed is not None
        # A loss takes the logarithm of the last softmax: what its grid makes 0 would teach nothing.
        rests = fixed and all(id(value) in last for value in group.observed)
        trained[id(group)] = trainable_quantizer(starts[id(group)], (1,), methods, fixed=fixed, rests=rests)
    _tell_refused(wrap_modules(traced, wrap).refused, strict)
    insert_holders(traced, trained)
    _rest_unreached(traced.graph.module)
    return traced.graph.module.train()


def _rest_unreached(module: torch.fx.GraphModule) -> None:
    """Lets the quantizers rest that no gradient reaches: what is detached after them, or only compared or looked up.

    Who waits for the gradient of every parameter, as `torch.nn.parallel.DistributedDataParallel` does, would wait forever.
    """
    reached: set[torch.fx.Node] = set()
    for node in reversed(module.graph.nodes):
        stops = kind_of(node) == "detach" if node.op in ("call_function", "call_method") else False
        real = node.meta.get("qi_dtype", "float")  # tuples hold what is real
        if node.op == "output" or (node in reached and not stops and ("float" in real or real == "tuple")):
            reached.update(node.all_input_nodes)
    learns = {str(node.target) for node in reached if node.op == "call_module"}
    for path, held in module.named_modules():
        if isinstance(held, PytorchActivationQuantizationHolder) and path not in learns:
            held.requires_grad_(False)


def _trainable_wrapper(
    module: torch.nn.Module,
    found: Mapping[str, BaseInferableQuantizer],
    outputs: list[BaseQuantizer] | None = None,
    *,
    methods: TrainingMethods,
) -> PytorchQuantizationWrapper:
    """The module with trainable quantizers that start as the inferable ones found for it."""
    parameters = dict(module.named_parameters())
    trained = {path: trainable_quantizer(q, tuple(parameters[path].shape), methods) for path, q in found.items()}
    wrapper = PytorchQuantizationWrapper(module, PytorchNodeQuantizationDispatcher(trained, outputs))
    for path, bound in wrapper.bounds.items():
        if path in parameters and not parameters[path].requires_grad:
            bound.requires_grad_(False)  # the scales of what is frozen rest with it
    return wrapper


def _tell_refused(refused: list[Row], strict: bool) -> None:
    check_strict(refused, strict)
    if refused:
        row = refused[0]
        warn(f"{len(refused)} weight matrices stay in float: {row.layer}/{row.name} ({row.reason})")


def convert(module: torch.nn.Module) -> torch.nn.Module:
    """The inferable module that a trained one became: same outputs, bit for bit, frozen weights, packed in its state.

    Args:
        module: from `prepare_qat`, trained or not, or a module of your own with trainable wrappers and holders. It is only
            read.

    Returns:
        a module like those of `qi.torch.quantize_model`, in eval mode.

    Raises:
        ConfigError: no module, or one without trainable quantizers, as one that is converted already.
        InputError: training left NaN or infinities.
    """
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(f"expected a torch module; received {module!r} of type {type(module).__name__}")
    made = duplicate(module)
    if not any(_trains(inner) for inner in made.modules()):
        raise ConfigError(
            f"expected a module with trainable quantizers; received a {type(module).__name__}, which has none or is converted "
            "already; do give what prepare_qat returned"
        )
    new = {id(inner): _inferable(inner) for inner in list(made.modules()) if _is_ours(inner)}
    for inner in new.values():  # once all are made: some quantize what they make of a weight that others hold too
        if isinstance(inner, PytorchQuantizationWrapper) and not inner.frozen:
            inner.freeze(in_place=True)
    return exchanged(made, new).eval()


def _is_ours(module: torch.nn.Module) -> bool:
    return isinstance(module, (PytorchQuantizationWrapper, PytorchActivationQuantizationHolder))


def _trains(module: torch.nn.Module) -> bool:
    if isinstance(module, PytorchActivationQuantizationHolder):
        return module.bound.trains
    return isinstance(module, PytorchQuantizationWrapper) and module.trains


def _inferable(module: Any) -> torch.nn.Module:
    """A wrapper or holder with what its quantizers became; a disabled holder lets everything pass."""
    if isinstance(module, PytorchActivationQuantizationHolder):
        if not module.bound.trains:
            return module
        return module.convert2inferable() if module.quantizer.enabled else torch.nn.Identity()
    return module.convert2inferable() if module.trains else module
