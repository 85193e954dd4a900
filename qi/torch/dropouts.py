"""What ``training=self.training`` asks for: a graph follows one mode, so dropout by functions becomes dropout by modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qi.torch.kinds import kind_of

__all__ = ["drops_out", "free_path", "restore_dropout"]

_MODULES: dict[str, Any] = {
    "dropout": torch.nn.Dropout,
    "dropout1d": torch.nn.Dropout1d,
    "dropout2d": torch.nn.Dropout2d,
    "dropout3d": torch.nn.Dropout3d,
    "alpha_dropout": torch.nn.AlphaDropout,
    "feature_alpha_dropout": torch.nn.FeatureAlphaDropout,
}
_SCALED = "scaled_dot_product_attention"
_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


def drops_out(nodes: fx.Graph) -> bool:
    """Whether a graph calls functions that drop out in training."""
    return any(node.op == "call_function" and kind_of(node) in (*_MODULES, _SCALED) for node in nodes.nodes)


def restore_dropout(module: fx.GraphModule, training: fx.Graph) -> bool:
    """Makes dropout that a graph lost because it follows the eval mode a part of it again.

    Args:
        module: traced in eval mode; functions that drop out in training only become modules that do. Attention notes its
            rate, for whoever takes it apart.
        training: the same, traced in training.

    Returns:
        whether the two do the same otherwise.
    """
    pairs = list(zip(module.graph.nodes, training.nodes, strict=False))
    same = len(module.graph.nodes) == len(training.nodes)
    same = same and all((a.op, a.target) == (b.op, b.target) for a, b in pairs)
    if not same:
        return False
    found = []
    for node, other in pairs:
        differs = str((node.args, node.kwargs)) != str((other.args, other.kwargs))
        if differs and not _differs_in_dropout(node, other):
            return False
        found += [(node, other)] if differs else []
    for node, other in found:
        _restore(module, node, other)
    module.recompile()
    return True


def free_path(module: torch.nn.Module, path: str) -> str:
    """A path that no submodule has: the given one, or that with "_1", "_2"..."""
    taken = dict(module.named_modules(remove_duplicate=False))
    number, free = 0, path
    while free in taken:
        number += 1
        free = f"{path}_{number}"
    return free


def _options(node: fx.Node) -> dict[str, Any]:
    """The arguments of a function by their names, nodes by theirs; a trace gives most of them so."""
    names = _ARGUMENTS if kind_of(node) == _SCALED else ("input", "p", "training", "inplace")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return {key: str(held) if isinstance(held, fx.Node) else held for key, held in given.items()}


def _differs_in_dropout(node: fx.Node, other: fx.Node) -> bool:
    if node.op != "call_function":
        return False
    kind, own, its = kind_of(node), _options(node), _options(other)
    changed = {key for key in {*own, *its} if own.get(key) != its.get(key)}
    return changed == ({"training"} if kind in _MODULES else {"dropout_p"} if kind == _SCALED else set())


def _restore(module: fx.GraphModule, node: fx.Node, other: fx.Node) -> None:
    kind, options = kind_of(node), _options(other)
    if kind == _SCALED:
        node.meta["qi_dropout"] = float(options["dropout_p"])
        return
    within = [path for path, *_ in (node.meta.get("nn_module_stack") or {}).values()]
    name = free_path(module, ".".join(part for part in (*within[-1:], kind) if part))
    made = _MODULES[kind](options.get("p", 0.5), options.get("inplace", False))
    module.add_submodule(name, made.train(module.training))
    with module.graph.inserting_before(node):
        new = module.graph.call_module(name, (node.args[0] if node.args else node.kwargs["input"],))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    module.graph.erase_node(node)
