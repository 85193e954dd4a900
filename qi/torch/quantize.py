"""Post-training quantization of torch modules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from qi.errors import warn
from qi.ledger import QuantizationReport, Row
from qi.ledger.findings import check_strict, range_findings, unasked
from qi.ledger.outcomes import in_float, quantized_activation
from qi.quantizers import BaseInferableQuantizer, BaseQuantizer
from qi.recipes import RecipeLike, RuleBook
from qi.recipes.dormant import activation_quantizers
from qi.recipes.efforts import check_no_algorithms
from qi.torch.calibrate import errors_of, sample_of, values_of, watch
from qi.torch.data import Batch, Samples, predict
from qi.torch.dispatcher import PytorchNodeQuantizationDispatcher
from qi.torch.holder import PytorchActivationQuantizationHolder
from qi.torch.in_place import quantize_in_place
from qi.torch.macs import multiply_accumulates
from qi.torch.prepare import Prepared, check_module, follow_module, gather, largest_weight, prepare
from qi.torch.variables import free_path
from qi.torch.weights import original_weights, settle_ties, share_quantizers, weight_quantizers, weight_rows
from qi.torch.wrapper import PytorchQuantizationWrapper

__all__ = ["Weights", "frozen_wrapper", "insert_holders", "quantize_model", "wrap_modules"]

Wrap = Callable[[torch.nn.Module, Mapping[str, BaseInferableQuantizer]], PytorchQuantizationWrapper]


@dataclass(eq=False)
class Weights:
    """What became of the parameters: rows, and those matrices that stay float though nobody asked for it."""

    rows: list[Row] = field(default_factory=list)
    refused: list[Row] = field(default_factory=list)


def quantize_model(
    module: torch.nn.Module,
    recipe: RecipeLike = "w8a8",
    data: Any = None,
    *,
    strict: bool = False,
    batch_size: int = 64,
    progress: bool = True,
) -> tuple[torch.nn.Module, QuantizationReport]:
    """Quantizes a trained torch module: same arguments, same outputs, low-precision weights and activations.

    As `qi.quantize_model` does for Keras: batch normalizations are folded, attentions taken apart, every matrix gets its own
    scales, and one quantizer sits between any two operations that a deployed integer graph would fuse. The given module is left
    as it is.

    Args:
        module: any. Its forward is followed by `torch.fx`, in eval mode; what comes back is a `torch.fx.GraphModule` with the
            paths of the given module and takes the arguments that the data give: others are fixed at their defaults. Sizes that
            a condition of the forward compares have to compare as those of the data; a graph refuses others. Where the forward
            can't be followed (it branches on values, say), the copy keeps its class, and the modules that it is made of are
            quantized where they are, weights and outputs; a warning tells why.
        recipe: as of `qi.quantize_model`; rules name modules by their paths in ``named_modules()``.
        data: samples that calibrate the activations, see `qi.torch.data.Samples`; weight-only recipes need none.
        strict: raise where a weight matrix stays in float although no rule says so.
        batch_size: for tensors, arrays and data sets.
        progress: whether to show a progress bar when it takes long.

    Returns:
        (quantized module in eval mode, report). Its ``state_dict`` holds packed codes; `qi.torch.save_model` writes it.

    Raises:
        ConfigError: no module, an unknown recipe, an illegal batch size.
        UnsupportedError: an already quantized module; a recipe with algorithms, which are for Keras models so far.
        StrictError: with strict, a weight matrix stays in float; all are listed.
        InputError: NaN in weights or data, data that the module can't be run on, or none where it is needed.

    Example:
        >>> import torch, qi
        >>> _ = torch.manual_seed(0)
        >>> module = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> x = torch.randn(64, 8)
        >>> qmodule, report = qi.torch.quantize_model(module, "w8a8", x, progress=False)
        >>> bool((qmodule(x) - module(x)).abs().max() < 0.05)
        True
        >>> [row.path for row in report.unquantized]
        ['0/bias', '2/bias']
    """
    check_no_algorithms(recipe, "torch modules")
    check_module(module)
    samples = None if data is None else Samples(data, module, batch_size)
    graph, why, kept = follow_module(module, samples)
    if graph is None:
        result, book, rows, refused, found, settings = quantize_in_place(module, recipe, samples, why, progress)
        check_strict(refused, strict)
    else:
        ready = prepare(graph, kept, recipe, samples)
        gather(ready, progress)
        quantizers = activation_quantizers(ready.graph, ready.plan, ready.statistics, largest_weight)
        batch = None if samples is None else sample_of(samples.first, lambda part: watch(ready.graph, part, {}))
        before = _measured(ready, batch)
        weights = wrap_modules(ready, frozen_wrapper)
        check_strict(weights.refused, strict)
        rows_of = partial(_activation_rows, ready, quantizers)
        held = insert_holders(ready, quantizers)
        result = ready.graph.module.eval()
        rows = _in_order(ready, weights.rows, rows_of(_errors(ready, quantizers, before, held, batch)))
        seen = {key: statistics for key, statistics in ready.statistics.items() if statistics is not None}
        found = range_findings(rows, ready.seen, seen)
        book, settings = ready.book, ({"calibration_samples": ready.seen} if ready.seen else {})
    return result, _report(module, result, book, rows, found, settings)


def frozen_wrapper(
    module: torch.nn.Module, quantizers: Mapping[str, BaseInferableQuantizer]
) -> PytorchQuantizationWrapper:
    """A wrapper that holds the weights of a module of its own quantized."""
    wrapper = PytorchQuantizationWrapper(module, PytorchNodeQuantizationDispatcher(dict(quantizers)))
    return wrapper.freeze(in_place=True)


def wrap_modules(ready: Prepared, wrap: Wrap) -> Weights:
    """Wraps every module of the graph of which the recipe quantizes weights.

    Args:
        ready: its graph's modules are replaced at their paths.
        wrap: makes the wrapper of a module and its quantizers.
    """
    result, graph = Weights(), ready.graph
    several = list(graph.calls_of().values())
    chosen = []
    for calls in several:  # before the first is changed: others may hold the same parameters
        module, path = calls[0].op, calls[0].path
        originals = original_weights(module)
        found = weight_quantizers(module, path, originals, ready.book, ready.kept.get(path, ""), calls[0].place)
        chosen.append((originals, *found))
    held: dict[int, BaseInferableQuantizer | None] = {}
    shared_quantizers: dict[int, torch.nn.Module] = {}
    for calls, (originals, quantizers, reasons) in zip(several, chosen, strict=True):
        module, path = calls[0].op, calls[0].path
        shared = settle_ties(module, quantizers, reasons, held)
        macs = {name: _macs(calls, name, array.shape) for name, array in originals.items()}
        kind = ready.types.get(path, type(module).__name__)
        now = module
        if quantizers:
            now = share_quantizers(wrap(module, quantizers), shared_quantizers)
            graph.module.set_submodule(path, now)
        shown = {name: array for name, array in originals.items() if name not in shared}
        rows = weight_rows(now, path, kind, shown, reasons, macs)
        result.rows += rows
        wanted = ready.book.recipe.weights is not None
        result.refused += [row for row in rows if not row.quantized and unasked(row, wanted)]
    graph.module.recompile()
    return result


def _macs(calls: list[Any], name: str, shape: tuple[int, ...]) -> int | None:
    counts = [multiply_accumulates(call, name, shape) for call in calls]
    return None if any(count is None for count in counts) else sum(count for count in counts if count is not None)


def insert_holders(ready: Prepared, quantizers: Mapping[int, BaseQuantizer]) -> dict[str, Any]:
    """Inserts one holder a group, called on each of its values that need it.

    Args:
        ready: its graph is changed.
        quantizers: by ``id(group)``.

    Returns:
        the node that gives the quantized value, by the value's name.
    """
    graph, modules = ready.graph, dict(ready.graph.module.named_modules())
    taken = set(modules)
    wrapped = {path for path, module in modules.items() if isinstance(module, PytorchQuantizationWrapper)}
    holders: dict[int, tuple[str, PytorchActivationQuantizationHolder]] = {}
    device = next((p.device for p in graph.module.parameters()), None)
    held = {}
    for value in ready.values:
        group = ready.plan.quantized.get(id(value))
        if group is None:
            continue
        if id(group) not in holders:
            name = free_path(_holder_name(value.name, wrapped), taken)
            taken.add(name)
            holders[id(group)] = name, PytorchActivationQuantizationHolder(quantizers[id(group)]).to(device)
        name, holder = holders[id(group)]
        held[value.name] = graph.insert_after(value, holder, name, recompile=False).node
    graph.module.recompile()
    return held


def _holder_name(value: str, wrapped: Collection[str]) -> str:
    """The path of a holder behind a value, without dots where it would lie within a wrapper.

    What becomes of a wrapper holds its own module alone.
    """
    parts = value.split(".")
    within = any(".".join(parts[:count]) in wrapped for count in range(1, len(parts)))
    name = value.replace(".", "_") if within else value
    return name.replace("#", "_").replace(":", "_") + "_quant"


def _measured(ready: Prepared, batch: Batch | None) -> dict[str, np.ndarray]:
    """The values in the float graph that will be on a grid."""
    if batch is None:
        return {}
    nodes = {value.name: value.node for value in ready.values if ready.plan.group_of(value) is not None}
    return values_of(ready.graph, nodes, batch)


def _errors(
    ready: Prepared,
    quantizers: Mapping[int, BaseInferableQuantizer],
    before: Mapping[str, np.ndarray],
    held: Mapping[str, Any],
    batch: Batch | None,
) -> dict[str, tuple[float, float]]:
    if batch is None or not before:
        return {}
    nodes, grids = {}, {}
    for value in _of_the_plan(ready):
        group = ready.plan.group_of(value)
        if group is not None and value.name in before:
            nodes[value.name] = held.get(value.name, value.node)
            grids[value.name] = quantizers[id(group)]
    return errors_of(before, values_of(ready.graph, nodes, batch), grids)


def _of_the_plan(ready: Prepared) -> Iterator[Any]:
    """All values that the plan knows, holders' results not among them."""
    yield from ready.graph.flat_inputs()
    for call in ready.graph.calls:
        if not isinstance(call.op, PytorchActivationQuantizationHolder):
            yield from call.outputs


def _activation_rows(
    ready: Prepared,
    quantizers: Mapping[int, BaseInferableQuantizer],
    errors: Mapping[str, tuple[float, float]],
) -> list[Row]:
    rows = []
    for value in _of_the_plan(ready):
        if id(value) in ready.plan.fused:
            continue
        call, group = value.producer, ready.plan.group_of(value)
        own, total = errors.get(value.name, (None, None))
        if group is None:
            outcome: dict[str, Any] = in_float(ready.plan.floats.get(id(value), "not planned"))
        else:
            seen = ready.statistics.get(group.key)
            outcome = quantized_activation(quantizers[id(group)], seen, group.fixed is not None)
            outcome |= {"sqnr_db": own, "total_sqnr_db": total}
        kind = "Input" if call is None else ready.types.get(call.path, call.kind)
        name, shape = ("input" if call is None else "output"), value.shape and (None, *value.shape[1:])
        rows.append(Row(kind="activation", layer=value.name, layer_type=kind, name=name, shape=shape, **outcome))
    return rows


def _in_order(ready: Prepared, weights: list[Row], activations: list[Row]) -> list[Row]:
    """The rows as data flow: the inputs, then each module's weights and what it gives."""
    first: dict[str, int] = {}
    made: dict[str, int] = {}
    for place, call in enumerate(ready.graph.calls, start=1):
        first.setdefault(call.path, place)
        made |= {value.name: place for value in call.outputs}
    placed = [(first.get(row.layer, 0), row) for row in weights]
    placed += [(0 if row.name == "input" else made.get(row.layer, 0), row) for row in activations]
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]


def _report(
    module: torch.nn.Module,
    result: torch.nn.Module,
    book: RuleBook,
    rows: list[Row],
    found: list[str],
    settings: dict[str, Any],
) -> QuantizationReport:
    recipe = book.recipe
    report = QuantizationReport(
        recipe=recipe.name,
        model=type(module).__name__,
        description=str(recipe),
        rows=tuple(rows),
        unused_rules=book.unused_rules(),
        warnings=found,
        settings=settings,
        float_file_bytes=_bytes(module),
        quantized_file_bytes=_bytes(result),
    )
    for line in report.all_warnings:
        warn(line)
    report.attach(float_model=module, quantized_model=result, predict=predict)
    return report


def _bytes(module: torch.nn.Module) -> int:
    """Bytes of all tensors that a file of the state holds, shared ones once."""
    held = {t.untyped_storage().data_ptr(): t for t in module.state_dict().values() if isinstance(t, torch.Tensor)}
    return sum(t.numel() * t.element_size() for t in held.values())
