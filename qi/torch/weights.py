"""Which parameters of a module are quantized, and why the others are not; the modules that take their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from qi.ledger import Row
from qi.ledger.outcomes import in_float, quantized_weight
from qi.quantizers import BaseInferableQuantizer
from qi.recipes import RuleBook
from qi.recipes.choose import weight_quantizer
from qi.torch.packed import key_of
from qi.torch.policies import SlotChoice, slots_of
from qi.torch.variables import parameter_at, parameters_of, to_numpy
from qi.torch.wrapper import PytorchQuantizationWrapper

__all__ = ["original_weights", "settle_ties", "share_quantizers", "weight_quantizers", "weight_rows"]


def original_weights(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """All parameters of a module by path."""
    return {path: to_numpy(parameter) for path, parameter in parameters_of(module).items()}


def weight_quantizers(
    module: torch.nn.Module,
    path: str,
    weights: Mapping[str, np.ndarray],
    book: RuleBook,
    kept: str = "",
    split_from: tuple[str, str] | None = None,
) -> tuple[dict[str, BaseInferableQuantizer], dict[str, str]]:
    """The quantizer of each parameter that gets one, and the reason of each that doesn't.

    Rules may speak of the module ("encoder", "MultiheadAttention", "out_proj.weight") or of any module within it that holds the
    parameter ("encoder.out_proj", "NonDynamicallyQuantizableLinear", "weight"): the first rule that matches decides.

    Args:
        module: it.
        path: its place in the model.
        weights: its float values by path.
        book: the recipe's decisions.
        kept: why it wasn't folded or taken apart.
        split_from: the path and class of the module of the given model that it is a part of, where that was taken apart.
    """
    quantizers: dict[str, BaseInferableQuantizer] = {}
    reasons: dict[str, str] = {}
    for name, choice in slots_of(module).items():
        array = weights[name]
        own = choice.why if choice.slot is None and _is_small(array) else ""
        if not own and kept and choice.slot is None:
            own = kept
        spec, reason = (None, own) if own else book.weights_for(*_names(name, path, choice, split_from))
        if spec is None:
            reasons[name] = reason
        elif choice.slot is None:
            reasons[name] = choice.why
        elif array.size == 0:
            reasons[name] = "has no elements"
        else:
            quantizers[name] = weight_quantizer(array, spec, choice.slot)
    return quantizers, reasons


def _is_small(array: np.ndarray) -> bool:
    """Biases, factors and slopes: no rule would bring them anything."""
    return array.ndim < 2


def _names(
    name: str, path: str, choice: SlotChoice, split_from: tuple[str, str] | None
) -> tuple[str, str, str, list[tuple[str, str, str]]]:
    """What rules know a parameter by: first by the module of the model, then by each module within that."""
    (first, _), *inner = choice.place.owners
    own = (path, type(first).__name__, name)
    within = []
    for module, below in inner:
        place = ".".join(part for part in (path, name[: -len(below) - 1]) if part)
        within.append((place, type(module).__name__, below))
    if split_from is None or split_from[0] == path:
        return (*own, within)
    return (*split_from, f"{path}.{name}".removeprefix(f"{split_from[0]}."), [own, *within])


def settle_ties(
    module: torch.nn.Module,
    quantizers: dict[str, BaseInferableQuantizer],
    reasons: dict[str, str],
    held: dict[int, BaseInferableQuantizer | None],
) -> set[str]:
    """Has parameters that an earlier module holds too become what they are there: quantized likewise, or float.

    Args:
        module: the later one.
        quantizers: of its parameters, by path; changed in place.
        reasons: why others stay float; changed in place.
        held: what each parameter of earlier modules became, by its ``id``; gets those of this one.

    Returns:
        the paths of those that have their row already.
    """
    shared = set()
    for name, parameter in module.named_parameters():
        if id(parameter) not in held:
            held[id(parameter)] = quantizers.get(name)
            continue
        shared.add(name)
        known = held[id(parameter)]
        quantizers.pop(name, None)
        if known is not None:
            quantizers[name] = known
            reasons.pop(name, None)
    return shared


def share_quantizers(
    wrapper: PytorchQuantizationWrapper, known: dict[int, torch.nn.Module]
) -> PytorchQuantizationWrapper:
    """Gives parameters that an earlier wrapper holds too the very quantizer that they have there, which may train.

    Args:
        wrapper: changed in place, and given back.
        known: the quantizers of earlier wrappers by the ``id`` of the parameter; gets those of this one.
    """
    for path in wrapper.paths:
        key, held = key_of(path), parameter_at(wrapper.module, path)
        wrapper.weight_quantizers[key] = known.setdefault(id(held), wrapper.weight_quantizers[key])
    return wrapper


def weight_rows(
    module: torch.nn.Module,
    path: str,
    kind: str,
    originals: Mapping[str, np.ndarray],
    reasons: Mapping[str, str],
    macs: Mapping[str, int | None],
) -> list[Row]:
    """Rows of one module's parameters.

    Args:
        module: the wrapper, or the module where nothing of it is quantized.
        path: its place in the model.
        kind: its class with what was folded into it.
        originals: float values by path, after folding.
        reasons: why a path stays float.
        macs: multiply-accumulates for one sample, by path.
    """
    wrapped: Any = module if isinstance(module, PytorchQuantizationWrapper) else None
    if wrapped is not None and wrapped.trains:
        wrapped = wrapped.convert2inferable()
    tensors = wrapped.get_quantized_tensors() if wrapped is not None else {}
    quantizers = wrapped.quantizers if wrapped is not None else {}
    rows = []
    for name, array in originals.items():
        if name in tensors:
            outcome = quantized_weight(array, tensors[name], quantizers[name])
        else:
            outcome = in_float(reasons.get(name, "no rule of the recipe covers it")) | {"size_after": array.nbytes}
        common: dict[str, Any] = {"layer": path, "layer_type": kind, "name": name, "shape": array.shape}
        common |= {"size_before": array.nbytes, "macs": macs.get(name)}
        rows.append(Row(kind="weight", **common, **outcome))
    return rows
