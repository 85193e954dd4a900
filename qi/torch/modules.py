"""Functions that take parameters as their weights, such as ``F.linear(x, self.weight)``, as the modules that do the same.

Only what a module holds is quantized as a weight; a parameter that a function takes would be one more activation.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from qi.torch.graph import Call, Graph
from qi.torch.variables import free_path

__all__ = ["as_modules"]

_CONVOLUTIONS = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "conv3d": nn.Conv3d}
_TRANSPOSED = {
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}
# What functions written in C++ take, by name and position; `inspect` can't tell.
_ARGUMENTS = {
    "linear": "input weight bias".split(),
    **dict.fromkeys(_CONVOLUTIONS, "input weight bias stride padding dilation groups".split()),
    **dict.fromkeys(_TRANSPOSED, "input weight bias stride padding output_padding groups dilation".split()),
}


def as_modules(graph: Graph) -> Graph:
    """Puts modules in the place of linear functions and look-ups whose weight is a parameter that nothing else uses.

    The module gets the function's path and holds the very parameters.

    Args:
        graph: its module is changed in place.

    Returns:
        the graph as it is now.
    """
    changed = False
    for call in graph.calls:
        made = _module_of(graph, call) if call.node.op == "call_function" else None
        if made is None:
            continue
        module, x = made
        held = {name for name, _ in (*graph.module.named_modules(), *graph.module.named_parameters())}
        path = free_path(call.path, held)
        graph.module.add_submodule(path, module.train(graph.module.training))
        with graph.module.graph.inserting_after(call.node):
            node = graph.module.graph.call_module(path, (x,))
        node.meta = dict(call.node.meta)
        call.node.replace_all_uses_with(node)
        graph.module.graph.erase_node(call.node)
        changed = True
    if not changed:
        return graph
    graph.module.graph.eliminate_dead_code()
    graph.module.recompile()
    return Graph.of(graph.module)


def _module_of(graph: Graph, call: Call) -> tuple[nn.Module, fx.Node] | None:
    """The module that does what a call does, and what it takes; None where there is none."""
    kind, given = call.builtin_kind, _arguments(call)
    weight, bias = _parameter(graph, given.get("weight")), _parameter(graph, given.get("bias"))
    lone = weight is not None and (given.get("bias") is None or bias is not None)
    if (
        not lone
        or weight is None
        or any(isinstance(v, fx.Node) for k, v in given.items() if k not in ("input", "weight", "bias"))
    ):
        return None
    options: dict[str, Any] = {"bias": bias is not None, "device": "meta", "dtype": weight.dtype}
    module: Any
    if kind == "linear" and weight.ndim == 2:
        module = nn.Linear(weight.shape[1], weight.shape[0], **options)
    elif kind in _CONVOLUTIONS or kind in _TRANSPOSED:
        module = _convolution(kind, weight, given, options)
    elif kind == "embedding" and not any(given.get(name) for name in ("max_norm", "sparse", "scale_grad_by_freq")):
        module = nn.Embedding(*weight.shape, padding_idx=given.get("padding_idx"), device="meta", dtype=weight.dtype)
    else:
        return None
    module.weight = weight
    if bias is not None:
        module.bias = bias
    return module, given["input"]


def _convolution(kind: str, weight: torch.Tensor, given: dict[str, Any], options: dict[str, Any]) -> nn.Module:
    groups = given.get("groups", 1)
    names = ("stride", "padding", "dilation", "output_padding")
    options |= {"groups": groups} | {name: given[name] for name in names if name in given}
    transposed = kind in _TRANSPOSED
    inner, outer = (
        (weight.shape[0], weight.shape[1] * groups) if transposed else (weight.shape[1] * groups, weight.shape[0])
    )
    cls: Any = (_TRANSPOSED if transposed else _CONVOLUTIONS)[kind]
    made: nn.Module = cls(inner, outer, tuple(weight.shape[2:]), **options)
    return made


def _arguments(call: Call) -> dict[str, Any]:
    """The arguments of a function by name; none of one that isn't known here."""
    names = _ARGUMENTS.get(call.builtin_kind)
    if call.builtin_kind == "embedding":
        names = list(inspect.signature(functional.embedding).parameters)
    if names is None:
        return {}
    return {**dict(zip(names, call.node.args, strict=False)), **call.node.kwargs}


def _parameter(graph: Graph, node: Any) -> nn.Parameter | None:
    """The parameter that a node reads, if nothing else does."""
    if not isinstance(node, fx.Node) or node.op != "get_attr" or len(node.users) != 1:
        return None
    owner, _, name = str(node.target).rpartition(".")
    held = getattr(graph.module.get_submodule(owner), name, None)
    return held if isinstance(held, nn.Parameter) else None
