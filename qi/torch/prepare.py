"""The steps before any quantizer: the module traced and folded, the plan of its activations, their statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from qi.errors import ConfigError, InputError, UnsupportedError
from qi.observers import TensorStatistics
from qi.recipes import RecipeLike, RuleBook, get_recipe
from qi.recipes.plan import ActivationPlan, group_statistics, plan_activations
from qi.torch.attention import split_attention
from qi.torch.calibrate import collect
from qi.torch.data import Samples
from qi.torch.fold import fold_batch_norms
from qi.torch.graph import Graph, Value, trace
from qi.torch.holder import PytorchActivationQuantizationHolder
from qi.torch.kinds import CONTAINERS, torch_class
from qi.torch.modules import as_modules
from qi.torch.traits import TRAITS
from qi.torch.variables import parameters_of
from qi.torch.wrapper import PytorchQuantizationWrapper

__all__ = ["Prepared", "check_module", "follow_module", "gather", "prepare"]

_QUANTIZED = (PytorchActivationQuantizationHolder, PytorchQuantizationWrapper)


@dataclass(eq=False)
class Prepared:
    """A module on its way: the folded graph of a copy, the recipe's decisions, the plan of activations.

    Attributes:
        graph: of the copy; its modules are still float.
        book: the recipe's decisions.
        plan: what becomes of each value.
        kept: why batch normalizations weren't folded and attentions not taken apart, by path.
        types: each module's class with what was folded into it, by path.
        samples: the calibration data; None where there are none.
        statistics: of each group of values by its key, once `gather` has run; None where the range is fixed.
        seen: how many samples these come from.
    """

    graph: Graph
    book: RuleBook
    plan: ActivationPlan
    kept: dict[str, str]
    types: dict[str, str]
    samples: Samples | None
    statistics: dict[str, TensorStatistics | None] = field(default_factory=dict)
    seen: int = 0

    @property
    def values(self) -> list[Value]:
        """All values: the inputs, then what each call gives."""
        return [*self.graph.flat_inputs(), *(value for call in self.graph.calls for value in call.outputs)]


def check_module(module: Any) -> None:
    """Refuses what isn't a float module with finite weights.

    Raises:
        ConfigError: no module.
        UnsupportedError: one that is quantized or compiled already.
        InputError: NaN or infinities in its parameters, or lazy ones.
    """
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(f"expected a torch module; received {module!r} of type {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
        raise UnsupportedError(
            f"expected a module that isn't compiled; received a {type(module).__name__}; do give the module that it was made of "
            "(``_orig_mod`` of what torch.compile gives), and compile the result"
        )
    done = [path for path, inner in module.named_modules() if isinstance(inner, _QUANTIZED)]
    if done:
        raise UnsupportedError(
            f"expected a float module; received a {type(module).__name__} in which {len(done)} modules are quantized "
            f"({done[0]!r}...); do start from the float module"
        )
    for path, parameter in parameters_of(module).items():
        if parameter.is_floating_point() and not parameter.is_meta and not bool(torch.isfinite(parameter).all()):
            raise InputError(
                f"expected finite weights; received NaN or infinity in {path!r} of {type(module).__name__}"
            )


def follow_module(module: torch.nn.Module, samples: Samples | None) -> tuple[Graph | None, str, dict[str, str]]:
    """The folded graph of a copy of a module in eval mode, with attentions taken apart; or None and why.

    Returns:
        (graph or None, why it is None, why normalizations and attentions are as they were by path)
    """
    first = samples.first if samples is not None else None
    kind = torch_class(module)
    if kind == "MultiheadAttention" or (kind not in ("", *CONTAINERS) and not list(module.children())):
        return None, f"it is one {type(module).__name__}: there is nothing to follow", {}
    graph, why = trace(module, first.args, first.kwargs) if first is not None else trace(module)
    if graph is None:
        return None, why, {}
    graph, kept = fold_batch_norms(as_modules(graph))
    graph, whole = split_attention(graph)
    return graph, "", kept | whole


def prepare(graph: Graph, kept: Mapping[str, str], recipe: RecipeLike, samples: Samples | None) -> Prepared:
    """The plan for a folded graph.

    Raises:
        ConfigError: an unknown recipe.
        InputError: the recipe quantizes activations, and there are no samples.
    """
    book = get_recipe(recipe).resolve()
    types: dict[str, str] = {}
    for call in graph.calls:
        types.setdefault(call.path, " + ".join([call.kind, *(name.split()[0] for name in call.fused)]))
        for kind, _, path in (name.partition(" ") for name in call.fused):
            book.folded(path, kind, call.path)
    plan = plan_activations(graph, book, TRAITS)
    ready = Prepared(graph, book, plan, dict(kept), types, samples)
    if samples is None and any(group.fixed is None for group in plan.groups):
        raise InputError(
            "expected calibration data; received None; this recipe quantizes activations and needs samples"
        )
    return ready


def gather(ready: Prepared, progress: bool) -> None:
    """Runs the samples through the float graph where any range depends on them.

    Raises:
        InputError: illegal data, data that the module can't be run on, or activations that aren't finite.
    """
    watched = [value for group in ready.plan.groups if group.fixed is None for value in group.observed]
    found: dict[str, TensorStatistics] = {}
    if watched and ready.samples is not None:
        found, ready.seen = collect(ready.graph, watched, ready.samples, progress=progress)
    ready.statistics = {group.key: group_statistics(group, found) for group in ready.plan.groups}


def largest_weight(op: Any) -> float:
    """The largest magnitude in the matrices of an operation; 0 where it has none."""
    held = op.parameters() if isinstance(op, torch.nn.Module) else [op] if isinstance(op, torch.Tensor) else []
    found = [float(p.detach().abs().max()) for p in held if p.ndim > 1 and p.numel() and p.is_floating_point()]
    return float(np.max(found, initial=0.0))
