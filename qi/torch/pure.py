"""A traced module without operations in place: what a tensor holds never changes, so that quantizers can sit on it."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import fx

from qi.torch.kinds import kind_of

__all__ = ["drop_in_place", "keep_detached"]

_OPERATORS = {
    operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul, operator.itruediv: operator.truediv,
    operator.imatmul: operator.matmul, operator.ifloordiv: operator.floordiv, operator.ipow: operator.pow,
    operator.imod: operator.mod, operator.iand: operator.and_, operator.ior: operator.or_, operator.ixor: operator.xor,
}  # fmt: skip
# What may give the memory of what it takes.
_VIEWS = frozenset(
    "getitem view reshape flatten unflatten transpose permute squeeze unsqueeze expand chunk split unbind select narrow t "
    "contiguous to float type dropout identity detach movedim view_as expand_as reshape_as ravel dropout1d dropout2d dropout3d "
    "alphadropout".split()
)


def drop_in_place(module: fx.GraphModule) -> str:
    """Puts operations that give a new tensor in the place of those that change one; says why where that can't be.

    Args:
        module: changed; who takes a tensor after its change takes the new one.
    """
    nodes = list(module.graph.nodes)
    order = {node: index for index, node in enumerate(nodes)}
    changing = {node for node in nodes if _changes(module, node)}  # a module's mark goes with its first call
    roots: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        taken = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        roots[node] = roots[taken] if taken is not None and _views(module, node) else node
        if node.kwargs.get("out") is not None and node.op == "call_function":
            return f"{node.name!r} writes into a tensor by out=: do let it give its result"
        if node not in changing or taken is None:
            continue
        roots[node] = node
        if roots[taken].op == "get_attr":
            return f"{node.name!r} changes a parameter or buffer in place"
        others = [other for other in nodes[: order[node]] if roots[other] is roots[taken] and other is not taken]
        if any(order[user] > order[node] for other in others for user in other.users):
            return f"{node.name!r} changes a tensor in place that is used under another name too: do use what gives a new one"
        for user in [user for user in taken.users if order[user] > order[node]]:
            user.replace_input_with(taken, node)
        problem = _make_pure(module, node)
        if problem:
            return problem
    module.recompile()
    return ""


def keep_detached(module: fx.GraphModule) -> None:
    """Keeps gradients out of what was computed under `torch.no_grad`: its results are detached where others use them."""
    for node in list(module.graph.nodes):
        if not node.meta.get("qi_no_grad") or node.op in ("placeholder", "output"):
            continue
        users = [user for user in node.users if not user.meta.get("qi_no_grad") and user.target is not operator.getitem]
        if users:
            with module.graph.inserting_after(node):
                detached = module.graph.call_method("detach", (node,))
            detached.meta = {key: held for key, held in node.meta.items() if key == "nn_module_stack"}
            for user in users:
                user.replace_input_with(node, detached)
    module.recompile()


def _views(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__.lower() in _VIEWS
    return node.op in ("call_function", "call_method") and kind_of(node) in _VIEWS


def _position(node: fx.Node) -> int | None:
    """Where a function of `torch.nn.functional` takes ``inplace``."""
    try:
        names = list(inspect.signature(node.target).parameters)
    except (TypeError, ValueError):  # one of the functions that C++ brings
        return None
    return names.index("inplace") if "inplace" in names else None


def _changes(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node changes its first argument."""
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
    if node.op != "call_function":
        return False
    position = _position(node)
    if position is not None:
        given = node.args[position] if position < len(node.args) else node.kwargs.get("inplace", False)
        return bool(given)
    if getattr(node.target, "__module__", "") == "_operator":  # `and_` and `not_` change nothing
        return node.target in _OPERATORS
    return getattr(node.target, "__name__", "").endswith("_")


def _make_pure(module: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        module.get_submodule(str(node.target)).inplace = False
        return ""
    if node.op == "call_method":
        name = str(node.target)[:-1]
        if not hasattr(torch.Tensor, name):
            return (
                f"{node.name!r} changes a tensor in place, and there is no form of {node.target!r} that gives a new one"
            )
        node.target = name
        return ""
    target: Any = node.target
    if target in _OPERATORS:
        node.target = _OPERATORS[target]
        return ""
    position = _position(node)
    if position is not None:
        node.args = node.args[:position]
        node.kwargs = {key: held for key, held in node.kwargs.items() if key != "inplace"}
        return ""
    name = target.__name__[:-1]
    pure = getattr(torch, name, None) or getattr(torch.nn.functional, name, None)
    if pure is None:
        return (
            f"{node.name!r} changes a tensor in place, and there is no form of {target.__name__!r} that gives a new one"
        )
    node.target = pure
    return ""
