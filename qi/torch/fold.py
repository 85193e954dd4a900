"""A rewrite that leaves the float function as it is: batch normalizations folded into the layers before them."""

from __future__ import annotations

import copy
from typing import Any

import torch

from qi.errors import InputError
from qi.torch.graph import Call, Graph
from qi.torch.kinds import torch_class

__all__ = ["fold_batch_norms", "fold_gain"]

_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")
_TRANSPOSED = ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d")
_TAKES = ("Linear", "Conv1d", "Conv2d", "Conv3d", *_TRANSPOSED)


def fold_batch_norms(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """Folds every batch normalization that directly follows a linear layer into that layer's weights.

    ``g = weight / sqrt(running_var + eps)``; ``weight' = weight * g``, ``bias' = norm.bias + (bias - running_mean) * g``, in
    float64. A pair that is called several times, always together, is folded as well. A normalization that keeps no statistics
    stays: it normalizes by each batch.

    Args:
        graph: its module is changed in place: folded layers are copies, under the same path.

    Returns:
        the graph as it is now; calls note in `fused` what was folded into them; and for each normalization that stays, by its
        path, why.

    Raises:
        InputError: a weight or a statistic holds NaN or an infinity.
    """
    kept: dict[str, str] = {}
    for path in dict.fromkeys(call.path for call in graph.calls if call.builtin_kind in _NORMS):
        calls = [call for call in graph.calls if call.path == path]  # of the graph as the last fold left it
        why = _why_not(graph, calls)
        if why:
            kept[path] = why
        else:
            _fold(graph, calls)
            graph = Graph.of(_clean(graph))
    return graph, kept


def fold_gain(layer: torch.nn.Module, norm: Any) -> torch.Tensor:
    """``g`` of a pair, in float64 and a shape that broadcasts to the layer's weight."""
    gain = 1.0 / torch.sqrt(norm.running_var.detach().double() + norm.eps)
    if norm.weight is not None:
        gain = norm.weight.detach().double() * gain
    weight: torch.Tensor = layer.weight
    ones = (1,) * (weight.ndim - 2)
    if torch_class(layer) not in _TRANSPOSED:
        return gain.reshape(-1, 1, *ones)
    # A transposed weight is [inputs, outputs of a group, *window]: the inputs of each group meet other outputs.
    groups: int = layer.groups
    spread = gain.reshape(groups, 1, -1).expand(groups, weight.shape[0] // groups, -1)
    return spread.reshape(weight.shape[0], -1, *ones)


def _why_not(graph: Graph, norms: list[Call]) -> str:
    first = norms[0]
    before = first.inputs[0].producer
    norm: Any = first.op
    if norm.running_mean is None or norm.running_var is None:
        return "it keeps no statistics: it normalizes by each batch"
    if before is None or before.builtin_kind not in _TAKES or not isinstance(before.op, torch.nn.Module):
        what = "the model's input" if before is None else f"{before.kind} {before.path!r}"
        return f"it follows {what}, into which it can't be folded"
    for call in (before, first):
        if _is_watched(call.op):
            return f"{call.path!r} is parametrized or has hooks: its weights aren't what it holds"
    if {id(call.inputs[0].producer) for call in norms} != {id(call) for call in graph.calls_of()[id(before.op)]}:
        return f"it or {before.path!r} is called without the other elsewhere"
    consumers, outputs = graph.consumers(), {id(value) for value in graph.outputs}
    if any(len(consumers[id(call.inputs[0])]) > 1 or id(call.inputs[0]) in outputs for call in norms):
        return f"the output of {before.path!r} is used elsewhere too"
    ranks = {None if call.inputs[0].shape is None else len(call.inputs[0].shape) for call in norms}
    if before.builtin_kind == "Linear" and ranks != {2}:
        return f"it normalizes axis 1, which may not be the features that {before.path!r} gives"
    return _why_not_weights(graph, before, norm)


def _why_not_weights(graph: Graph, before: Call, norm: Any) -> str:
    layer: Any = before.op
    channels = layer.out_features if before.builtin_kind == "Linear" else layer.out_channels
    if channels != norm.num_features:
        return f"it normalizes {norm.num_features} channels, and {before.path!r} gives {channels}"
    own = [parameter for parameter in (layer.weight, layer.bias) if parameter is not None]
    others = [module for module in graph.module.modules() if module is not layer]
    if any(held is parameter for module in others for held in module._parameters.values() for parameter in own):
        return f"{before.path!r} shares its weights with another module"
    read = [call for call in graph.calls if call.node.op == "get_attr" and call.path.startswith(f"{before.path}.")]
    return f"the model uses {read[0].path!r} itself as well" if read else ""


def _is_watched(module: Any) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "parametrizations")
    return any(getattr(module, name, None) for name in hooks)


def _fold(graph: Graph, norms: list[Call]) -> None:
    pairs = [(before, call) for call in norms if (before := call.inputs[0].producer) is not None]
    first, norm = pairs[0][0], pairs[0][1]
    graph.module.set_submodule(first.path, _folded(first, norm))
    for before, call in pairs:
        before.node.meta["qi_fused"] = [*before.fused, f"{call.kind} {call.path}"]
        before.node.meta.update({key: held for key, held in call.node.meta.items() if key in ("qi_shape", "qi_dtype")})
        call.node.replace_all_uses_with(before.node)
        graph.module.graph.erase_node(call.node)


def _folded(before: Call, after: Call) -> torch.nn.Module:
    """A copy of a layer with the normalization in its weights."""
    norm: Any = after.op
    layer: Any = copy.deepcopy(before.op)
    gain = fold_gain(layer, norm)
    weight = layer.weight.detach().double() * gain
    g = norm.weight.detach().double() if norm.weight is not None else 1.0
    flat = g / torch.sqrt(norm.running_var.detach().double() + norm.eps)
    bias = 0.0 if layer.bias is None else layer.bias.detach().double()
    shift = (bias - norm.running_mean.detach().double()) * flat
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    if not (bool(weight.isfinite().all()) and bool(shift.isfinite().all())):
        raise InputError(
            f"expected finite weights and statistics; received NaN or infinity in {before.path!r} or {after.path!r}; "
            "do look at how the model was trained"
        )
    trains = layer.weight.requires_grad
    layer.weight = torch.nn.Parameter(weight.to(layer.weight.dtype), requires_grad=trains)
    layer.bias = torch.nn.Parameter(shift.to(layer.weight.dtype), requires_grad=trains)
    return layer


def _clean(graph: Graph) -> Any:
    graph.module.delete_all_unused_submodules()
    graph.module.recompile()
    return graph.module
