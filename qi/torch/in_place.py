"""Modules whose forward can't be followed: quantized where they are, weights and outputs, module by module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from qi.core import sqnr_db
from qi.engine.progress import Progress
from qi.errors import InputError
from qi.ledger import Row
from qi.ledger.findings import range_findings, unasked
from qi.ledger.outcomes import in_float, quantized_activation
from qi.observers import TensorStatistics
from qi.quantizers import BaseInferableQuantizer, BaseQuantizer
from qi.recipes import RecipeLike, RuleBook, TensorSpec, get_recipe
from qi.recipes.choose import activation_quantizer
from qi.recipes.plan import Group, Role
from qi.torch.calibrate import same_draws, sample_of
from qi.torch.data import Batch, Samples, quiet
from qi.torch.dispatcher import PytorchNodeQuantizationDispatcher
from qi.torch.graph import Call, Value
from qi.torch.kinds import CONTAINERS, torch_class
from qi.torch.traits import known_range, role_of
from qi.torch.variables import duplicate, exchanged, to_numpy
from qi.torch.weights import original_weights, settle_ties, share_quantizers, weight_quantizers, weight_rows
from qi.torch.wrapper import PytorchQuantizationWrapper

__all__ = [
    "InPlace",
    "Part",
    "measured_on",
    "parts_of",
    "passed_over",
    "prepare_in_place",
    "put_wrappers",
    "quantize_in_place",
]

_MOVES = "it only moves values, and leaves them as they come"
_UNSEEN = "the forward never ran it on the calibration data"
_HELD = "the module holds it itself and computes with it where no quantizer can be put"

Wrap = Callable[[torch.nn.Module, Mapping[str, BaseQuantizer], list[BaseQuantizer]], PytorchQuantizationWrapper]
Adapt = Callable[[BaseInferableQuantizer, bool], BaseQuantizer]


@dataclass(eq=False)
class Part:
    """A module that is quantized as a whole.

    Attributes:
        path: in the model.
        module: of the copy.
        spec: how what it gives is quantized; None in float.
        reason: why in float.
        fixed: the range where it is known beforehand.
        outputs: what was seen of each floating-point tensor that it gives.
        before: these tensors on the first samples.
    """

    path: str
    module: torch.nn.Module
    spec: TensorSpec | None
    reason: str
    fixed: tuple[float, float] | None
    outputs: list[TensorStatistics] = field(default_factory=list)
    before: list[Any] = field(default_factory=list)

    def quantizers(self) -> list[BaseInferableQuantizer]:
        """One for each output; none in float."""
        if self.spec is None:
            return []
        names = [f"{self.path}#{i}" for i in range(len(self.outputs))]
        groups = [Group(self.spec, self.fixed, names=[name]) for name in names]
        return [activation_quantizer(group, seen) for group, seen in zip(groups, self.outputs, strict=True)]


@dataclass(eq=False)
class InPlace:
    """A copy of a module that is quantized in place, with its parts and what was seen of them."""

    module: torch.nn.Module
    parts: dict[str, Part]
    book: RuleBook
    seen: int = 0


def parts_of(module: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The modules that are quantized as wholes, by path: those of `torch.nn`, and of the user's those with none within."""
    found: dict[str, torch.nn.Module] = {}
    known: set[int] = set()

    def walk(owner: torch.nn.Module, path: str) -> None:
        if id(owner) in known:
            return
        known.add(id(owner))
        kind = torch_class(owner)
        children = list(owner.named_children())
        if (kind and kind not in CONTAINERS) or (not children and kind not in CONTAINERS and _computes(owner)):
            found[path] = owner
            return
        for name, child in children:
            walk(child, f"{path}.{name}" if path else name)

    walk(module, "")
    return found


def _computes(module: torch.nn.Module) -> bool:
    return type(module).forward is not torch.nn.Module.forward


def prepare_in_place(module: torch.nn.Module, recipe: RecipeLike, samples: Samples | None, progress: bool) -> InPlace:
    """A copy with its parts, calibrated.

    Raises:
        ConfigError: an unknown recipe.
        InputError: the recipe quantizes activations and there are no samples, or the module can't be run on them.
        UnsupportedError: the module can't be copied.
    """
    made = duplicate(module)
    book = get_recipe(recipe).resolve()
    parts = {path: _part(path, inner, book) for path, inner in parts_of(made).items()}
    ready = InPlace(made, parts, book)
    watched = {path: part for path, part in parts.items() if part.spec is not None}
    if not watched:
        return ready
    if samples is None:
        raise InputError(
            "expected calibration data; received None; this recipe quantizes activations and needs samples"
        )
    with Progress("calibrating", samples.length or 0, show=None if progress else False) as bar, _seeing(watched):
        for batch in samples:
            run(made, batch)
            ready.seen += batch.count
            bar.advance(1)
    for part in watched.values():
        if not part.outputs:
            part.spec, part.reason = None, _UNSEEN
        elif any(not seen.count for seen in part.outputs):
            raise InputError(f"expected finite activations; the float model gave none at {part.path!r}")
    return ready


def run(module: torch.nn.Module, batch: Batch) -> Any:
    """What a module gives on a batch, in eval mode, without gradients.

    Raises:
        InputError: it can't be run on it.
    """
    copied = lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf  # it may change what it is given
    try:
        args, kwargs = pytree.tree_map(copied, (batch.args, batch.kwargs))
        with quiet(module):
            return module(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError) as error:
        text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(f"expected samples that the module can be run on; it fails with: {text}") from error


def _part(path: str, module: torch.nn.Module, book: RuleBook) -> Part:
    node = fx.Graph().placeholder("x")
    call = Call(node, module, path, type(module).__name__, [Value(node, "x", None)])
    spec, reason = book.activations_for(path, type(module).__name__)
    role = role_of(call) if torch_class(module) else Role.OWN
    if spec is not None and role is Role.KEEPS:
        spec, reason = None, _MOVES
    return Part(path, module, spec, reason, known_range(call) if role is Role.FIXED else None)


def floats_of(outputs: Any) -> list[torch.Tensor]:
    """The floating-point tensors of an output, in their order."""
    leaves = pytree.tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


@contextmanager
def _seeing(parts: Mapping[str, Part]) -> Iterator[None]:
    """Records what parts give while a module runs."""

    def see(part: Part, _: Any, __: Any, outputs: Any) -> None:
        given = floats_of(outputs)
        first = not part.outputs
        if first:
            part.outputs = [TensorStatistics() for _ in given]
        for seen, tensor in zip(part.outputs, given, strict=False):
            seen.update(to_numpy(tensor))

    handles = [part.module.register_forward_hook(partial(see, part)) for part in parts.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def put_wrappers(ready: InPlace, wrap: Wrap, adapt: Adapt) -> tuple[torch.nn.Module, list[Row], list[Row]]:
    """Puts wrappers in the place of the parts.

    Args:
        ready: its copy is changed.
        wrap: makes one of a module, quantizers of weights and quantizers of outputs.
        adapt: makes of an inferable quantizer of an output the one that is used; told whether its range is fixed.

    Returns:
        (the module; rows; those of matrices that stay in float though nobody asked for it)
    """
    root, rows, refused = ready.module, [], []
    new: dict[int, torch.nn.Module] = {}
    wanted = ready.book.recipe.weights is not None
    chosen = {}
    for path, part in ready.parts.items():  # before the first is changed: others may hold the same parameters
        originals = original_weights(part.module)
        chosen[path] = originals, *weight_quantizers(part.module, path, originals, ready.book)
    known: dict[int, torch.nn.Module] = {}
    earlier: dict[int, BaseInferableQuantizer | None] = {}
    for path, part in ready.parts.items():
        kind, (originals, quantizers, reasons) = type(part.module).__name__, chosen[path]
        given, shared = part.quantizers(), settle_ties(part.module, quantizers, reasons, earlier)
        originals = {name: array for name, array in originals.items() if name not in shared}
        now: torch.nn.Module = part.module
        if quantizers or given:
            now = wrap(part.module, quantizers, [adapt(q, part.fixed is not None) for q in given])
            now = share_quantizers(now, known)
            new[id(part.module)] = now
        weights = weight_rows(now, path, kind, originals, reasons, {})
        refused += [row for row in weights if not row.quantized and unasked(row, wanted)]
        rows += weights
        if not given:
            rows.append(Row(kind="activation", layer=path, layer_type=kind, name="output", **in_float(part.reason)))
        for i, (quantizer, seen) in enumerate(zip(given, part.outputs, strict=True)):
            found = quantized_activation(quantizer, seen, part.fixed is not None)
            place = f"{path}#{i}" if i else path
            rows.append(Row(kind="activation", layer=place, layer_type=kind, name="output", **found))
    root = exchanged(root, new)
    held = _held(root, ready.book)
    return root, [*rows, *held], [*refused, *(row for row in held if unasked(row, wanted))]


def measured_on(ready: InPlace, samples: Samples | None) -> Batch | None:
    """Some of the samples that a calibrated copy saw, for a look at what it gives; None where it saw none."""
    if samples is None or not ready.seen:
        return None
    return sample_of(samples.first, lambda part: run(ready.module, part))


def passed_over(module: torch.nn.Module, ready: InPlace, batch: Batch | None) -> list[str]:
    """What to tell of parts that the forward doesn't run any more once wrappers stand in their places."""
    if batch is None:
        return []
    wrapped = {path: part for path, part in ready.parts.items() if path and part.outputs}
    run_now = _given(module, wrapped, batch, wrapped=True)
    return [
        f"{path!r} isn't run any more now that a wrapper stands in its place: the forward asks for its class or finds it "
        "elsewhere, and may give other results; do leave it in float by a rule, or ask for something else"
        for path, part in wrapped.items()
        if path not in run_now
    ]


def _held(root: torch.nn.Module, book: RuleBook) -> list[Row]:
    """Rows of the parameters that no part holds."""
    rows = []
    inside = {
        id(parameter)
        for inner in root.modules()
        if isinstance(inner, PytorchQuantizationWrapper)
        or (torch_class(inner) and torch_class(inner) not in CONTAINERS)
        for parameter in inner.parameters()
    }
    for path, parameter in root.named_parameters():
        if id(parameter) in inside:
            continue
        owner, _, name = path.rpartition(".")
        kind = type(root.get_submodule(owner)).__name__
        spec, reason = book.weights_for(owner, kind, name)
        size = parameter.numel() * parameter.element_size()
        outcome = in_float(reason if spec is None else _HELD) | {"size_before": size, "size_after": size}
        rows.append(
            Row(kind="weight", layer=owner, layer_type=kind, name=name, shape=tuple(parameter.shape), **outcome)
        )
    return rows


def frozen_part(
    module: torch.nn.Module, weights: Mapping[str, BaseQuantizer], outputs: list[BaseQuantizer]
) -> PytorchQuantizationWrapper:
    """A wrapper that holds the weights of a module of its own quantized, and quantizes what it gives."""
    wrapper = PytorchQuantizationWrapper(module, PytorchNodeQuantizationDispatcher(dict(weights), outputs))
    return wrapper.freeze(in_place=True)


def quantize_in_place(
    module: torch.nn.Module, recipe: RecipeLike, samples: Samples | None, why: str, progress: bool
) -> tuple[torch.nn.Module, RuleBook, list[Row], list[Row], list[str], dict[str, Any]]:
    """(quantized copy, decisions, rows, refused rows, findings, settings) of a module whose forward can't be followed."""
    ready = prepare_in_place(module, recipe, samples, progress)
    batch = measured_on(ready, samples)
    before = _given(ready.module, ready.parts, batch)
    grids = {path: part.quantizers() for path, part in ready.parts.items()}
    result, rows, refused = put_wrappers(ready, frozen_part, lambda quantizer, fixed: quantizer)
    after = _given(result, {path: part for path, part in ready.parts.items() if grids[path]}, batch, wrapped=True)
    rows = [_with_errors(row, grids, before, after) for row in rows]
    told = [f"quantized in place, module by module, which no file for a runtime can be made of: {why}"]
    told += passed_over(result, ready, batch)
    seen = {part.path: part.outputs[0] for part in ready.parts.values() if part.spec is not None and part.fixed is None}
    told += range_findings(rows, ready.seen, seen)
    return result.eval(), ready.book, rows, refused, told, ({"calibration_samples": ready.seen} if ready.seen else {})


def _given(
    module: torch.nn.Module, parts: Mapping[str, Part], batch: Batch | None, wrapped: bool = False
) -> dict[str, Any]:
    """What parts give the last time that they are called on a batch: the first tensor, by path."""
    found: dict[str, Any] = {}
    if batch is None:
        return found

    def see(path: str, _: Any, __: Any, outputs: Any) -> None:
        given = floats_of(outputs)
        if given:
            found[path] = to_numpy(given[0])

    places = (
        {path: module.get_submodule(path) for path in parts} if wrapped else {p: q.module for p, q in parts.items()}
    )
    handles = [inner.register_forward_hook(partial(see, path)) for path, inner in places.items()]
    try:
        with same_draws():
            run(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _with_errors(
    row: Row, grids: Mapping[str, list[BaseInferableQuantizer]], before: Mapping[str, Any], after: Mapping[str, Any]
) -> Row:
    known = row.kind == "activation" and row.quantized and row.layer in before and row.layer in after
    if not known or before[row.layer].shape != after[row.layer].shape or not before[row.layer].size:
        return row
    exact = before[row.layer]
    own = sqnr_db(exact, grids[row.layer][0](exact))
    return Row.from_dict(row.to_dict() | {"sqnr_db": own, "total_sqnr_db": sqnr_db(exact, after[row.layer])})
