"""Attention taken apart: projections, two matrix products and a softmax, and a grid for every tensor in between."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn

from qi.torch.dropouts import free_path
from qi.torch.graph import Call, Graph
from qi.torch.kinds import torch_class

__all__ = ["ATTENTIONS", "BandSoftmax", "SplitAttention", "split_attention"]

ATTENTIONS = ("MultiheadAttention", "scaled_dot_product_attention")
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_SCALED = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


class BandSoftmax(nn.Module):
    """Softmax over the last axis of attention scores [..., queries, keys], where each query sees a part of the keys only.

    A query that sees no key at all gets the probability 0 for each. It is called with the scores and one tensor for each of
    `masks`, that broadcasts to the scores.

    Args:
        causal: whether query i sees only the keys up to i.
        masks: what the masks do: "hides" (true where a key isn't seen), "shows" (true where it is), "adds" (numbers, -inf where
            a key isn't seen).

    >>> BandSoftmax(causal=True)(torch.zeros(2, 2))
    tensor([[1.0000, 0.0000],
            [0.5000, 0.5000]])
    """

    def __init__(self, causal: bool = False, masks: Sequence[str] = ()) -> None:
        super().__init__()
        self.causal, self.masks = causal, tuple(masks)

    def forward(self, scores: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
        """Probabilities, of the scores' shape and type."""
        if self.causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        for how, mask in zip(self.masks, masks, strict=True):
            if how == "adds":
                scores = scores + mask.to(scores.dtype)
            else:
                scores = scores.masked_fill(mask if how == "hides" else ~mask, -torch.inf)
        blind = (scores == -torch.inf).all(-1, keepdim=True)
        return torch.softmax(scores.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)

    def extra_repr(self) -> str:
        """What it masks."""
        return f"causal={self.causal}, masks={self.masks}"


class SplitAttention(nn.Module):
    """The parts of an `nn.MultiheadAttention`, with its weights: "q_proj", "k_proj", "v_proj", "out_proj", "dropout".

    The factor 1 / sqrt(head_dim) is in the weights and the bias of the query.
    """

    def __init__(self, given: Any) -> None:
        super().__init__()
        size = given.embed_dim
        weights = (given.q_proj_weight, given.k_proj_weight, given.v_proj_weight)
        if given.in_proj_weight is not None:
            weights = tuple(given.in_proj_weight.detach().split(size))
        biases = (None,) * 3 if given.in_proj_bias is None else given.in_proj_bias.detach().split(size)
        trains = next(p for p in (given.in_proj_weight, given.q_proj_weight) if p is not None).requires_grad
        factors = (1 / math.sqrt(given.head_dim), 1.0, 1.0)
        parts = zip("qkv", weights, biases, factors, strict=True)
        for name, weight, bias, factor in parts:
            scaled = None if bias is None else _times(bias, factor)
            self.add_module(f"{name}_proj", _linear(_times(weight, factor), scaled, trains))
        out = given.out_proj
        self.out_proj = _linear(out.weight, out.bias, out.weight.requires_grad)
        self.dropout = nn.Dropout(given.dropout)
        self.train(given.training)


def _times(tensor: torch.Tensor, factor: float) -> torch.Tensor:
    return (tensor.detach().double() * factor).to(tensor.dtype)


def _linear(weight: Any, bias: Any, trains: bool) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=trains)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=trains)
    return layer


def split_attention(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """Puts projections, matrix products and a softmax in the place of every attention; the float function stays.

    Those of the module "block.attn" are called "block.attn.q_proj", ".k_proj", ".v_proj", ".matmul" (the scores), ".softmax",
    ".matmul_1" (the context) and ".out_proj"; rules speak of "block.attn". Those of a function are called after it:
    "block.scaled_dot_product_attention.matmul". Masks become part of the softmax.

    Args:
        graph: its module is changed in place. It knows its shapes.

    Returns:
        the graph as it is now; and for each attention that stays whole, by its path, why.
    """
    kept: dict[str, str] = {}
    for calls in graph.calls_of().values():
        if torch_class(calls[0].op) == "MultiheadAttention":
            why = next(filter(None, (_why_whole(call) for call in calls)), "")
            if why:
                kept[calls[0].path] = why
                continue
            graph.module.set_submodule(calls[0].path, SplitAttention(calls[0].op))
            for call in calls:
                _Split(graph, call).multihead(call.op)
    for call in graph.calls:
        if call.builtin_kind == "scaled_dot_product_attention":
            why = _why_not_scaled(call)
            if why:
                kept[call.path] = why
            else:
                _Split(graph, call).scaled()
    graph.module.delete_all_unused_submodules()
    graph.module.graph.lint()
    graph.module.recompile()
    return Graph.of(graph.module), kept


def _given(call: Call) -> dict[str, Any]:
    """All arguments of a call by their names."""
    args, kwargs = call.node.args, call.node.kwargs
    if call.node.op == "call_function":
        given = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None}
        return given | dict(zip(_SCALED, args, strict=False)) | dict(kwargs)
    bound = inspect.signature(nn.MultiheadAttention.forward).bind(None, *args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _why_whole(call: Call) -> str:
    op: Any = call.op
    if op._forward_hooks or op._forward_pre_hooks or getattr(op, "parametrizations", None):
        return "it is parametrized or has hooks"
    if op.bias_k is not None or op.add_zero_attn:
        return "it appends keys of its own (add_bias_kv or add_zero_attn)"
    given = _given(call)
    if _rank(given["query"]) not in (2, 3):
        return "the rank of its inputs isn't known: do trace with sample inputs"
    if given["is_causal"] and given["attn_mask"] is None:
        return "it is called with is_causal=True and no mask"
    return _why_not_masks(given["attn_mask"], given["key_padding_mask"])


def _why_not_scaled(call: Call) -> str:
    given = _given(call)
    if given.get("enable_gqa"):
        return "heads share keys (enable_gqa=True)"
    if not isinstance(given["dropout_p"], (int, float)) or given["dropout_p"]:
        return "it drops out in eval mode as well"
    if not isinstance(given["is_causal"], bool):
        return "whether it is causal is computed"
    return _why_not_masks(given["attn_mask"])


def _why_not_masks(*masks: Any) -> str:
    for mask in masks:
        if mask is not None and _dtype(mask) not in (*_FLOATS, "bool"):
            return "the type of its mask isn't known: do trace with sample inputs"
    return ""


def _rank(node: Any) -> int:
    shape = node.meta.get("qi_shape") if isinstance(node, fx.Node) else None
    return 0 if shape is None else len(shape)


def _dtype(node: Any) -> str:
    return str(node.meta.get("qi_dtype", "")) if isinstance(node, fx.Node) else ""


class _Split:
    """Writes the nodes that stand for one attention, in front of it."""

    def __init__(self, graph: Graph, call: Call) -> None:
        self.graph, self.call, self.node = graph, call, call.node
        self.nodes = graph.module.graph

    def multihead(self, op: Any) -> None:
        """A call of an `nn.MultiheadAttention`."""
        given = _given(self.call)
        rank, heads, size = _rank(given["query"]), op.num_heads, op.head_dim
        turned = not op.batch_first and rank == 3
        held: dict[Any, fx.Node] = {}
        for node in (given["query"], given["key"], given["value"]):
            if node not in held:
                held[node] = self._method("transpose", node, 0, 1) if turned else node
        widths = (op.embed_dim, op.embed_dim, op.embed_dim)
        named = zip("qkv", ("query", "key", "value"), widths, strict=True)
        q, k, v = (self._part(f"{name}_proj", held[given[which]], width) for name, which, width in named)
        q, k, v = (self._method("unflatten", x, -1, (heads, size)) for x in (q, k, v))
        q, v = (self._method("transpose", x, -3, -2) for x in (q, v))
        k = self._method("permute", k, *((0, 2, 3, 1) if rank == 3 else (1, 2, 0)))
        weights = self._weights(q, k, self._masks(given, heads, rank), causal=False)
        if op.dropout:
            weights = self._part("dropout", weights)
        y = self._method("transpose", self._function(torch.matmul, weights, v), -3, -2)
        y = self._part("out_proj", self._method("flatten", y, -2), op.embed_dim)
        if turned:
            y = self._method("transpose", y, 0, 1)
        shown: Any = None
        if given["need_weights"]:
            shown = self._method("mean", weights, -3) if given["average_attn_weights"] else weights
        self._replace_pair(y, shown)

    def scaled(self) -> None:
        """A call of `torch.nn.functional.scaled_dot_product_attention`."""
        given = _given(self.call)
        q, mask, scale = given["query"], given["attn_mask"], given["scale"]
        if scale is None:
            shape = q.meta.get("qi_shape")
            scale = 1 / math.sqrt(shape[-1]) if shape is not None else None
        if scale is None:
            scale = self._function(math.pow, self._method("size", q, -1), -0.5)
        q = self._function(torch.mul, q, scale)
        k = self._method("transpose", given["key"], -2, -1)
        masks = [] if mask is None else [("shows" if _dtype(mask) == "bool" else "adds", mask)]
        weights = self._weights(q, k, masks, given["is_causal"])
        if rate := self.node.meta.get("qi_dropout"):
            name = free_path(self.graph.module, f"{self.call.path}.dropout")
            self.graph.module.add_submodule(name, nn.Dropout(rate).train(self.graph.module.training))
            weights = self._node("call_module", name, (weights,), lambda t: t)
        y = self._function(torch.matmul, weights, given["value"])
        self.node.replace_all_uses_with(y)
        self.nodes.erase_node(self.node)

    def _masks(self, given: dict[str, Any], heads: int, rank: int) -> list[tuple[str, fx.Node]]:
        """What hides keys, each in a shape that broadcasts to the scores."""
        found = []
        mask, padding = given["attn_mask"], given["key_padding_mask"]
        if mask is not None:
            how = "hides" if _dtype(mask) == "bool" else "adds"
            if _rank(mask) == 3 and rank == 3:
                mask = self._method("unflatten", mask, 0, (-1, heads))
            found.append((how, mask))
        if padding is not None:
            how = "hides" if _dtype(padding) == "bool" else "adds"
            spread = self._method("unsqueeze", padding, -2)
            found.append((how, self._method("unsqueeze", spread, -2)))
        return found

    def _weights(self, q: fx.Node, k: fx.Node, masks: list[tuple[str, fx.Node]], causal: bool) -> fx.Node:
        scores = self._function(torch.matmul, q, k)
        if not masks and not causal:
            return self._function(torch.softmax, scores, -1)
        module = self.graph.module
        name = free_path(module, f"{self.call.path}.softmax")
        module.add_submodule(name, BandSoftmax(causal, [how for how, _ in masks]))
        return self._node("call_module", name, (scores, *(mask for _, mask in masks)), lambda s, *_: s)

    def _part(self, name: str, x: fx.Node, width: int | None = None) -> fx.Node:
        """A call of one of the parts: a linear layer that gives `width` features, or what keeps the shape."""
        path = f"{self.call.path}.{name}"
        return self._node(
            "call_module", path, (x,), lambda t: t if width is None else t.new_empty((*t.shape[:-1], width))
        )

    def _method(self, name: str, x: fx.Node, *args: Any) -> fx.Node:
        return self._node("call_method", name, (x, *args), lambda t, *rest: getattr(t, name)(*rest))

    def _function(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        return self._node("call_function", function, args, function)

    def _node(self, op: str, target: Any, args: tuple[Any, ...], shape_of: Callable[..., Any]) -> fx.Node:
        """A node in front of the attention, with its path and, where those of its arguments are known, its shape."""
        with self.nodes.inserting_before(self.node):
            node = self.nodes.create_node(op, target, args)
        within = dict(self.node.meta.get("nn_module_stack") or {})
        node.meta["nn_module_stack"] = within | {self.call.path: (self.call.path, type(self.call.op))}
        node.meta["qi_split"] = self.call.place
        taken = node.all_input_nodes
        if all(other.meta.get("qi_shape") is not None for other in taken):
            found = shape_of(*fx.node.map_arg(args, _stand_in))
            node.meta["qi_shape"], node.meta["qi_dtype"] = tuple(found.shape), str(found.dtype).removeprefix("torch.")
        return node

    def _replace_pair(self, result: fx.Node, weights: Any) -> None:
        """Puts the result and the weights, or None, in the place of the pair that the attention gives."""
        pair = (result, weights)
        for user in list(self.node.users):
            if (
                user.op == "call_function"
                and len(user.args) == 2
                and user.args[0] is self.node
                and isinstance(user.args[1], int)
            ):
                chosen = pair[user.args[1]]
                for further in list(user.users):
                    _exchange(further, user, chosen)
                self.nodes.erase_node(user)
            else:
                _exchange(user, self.node, pair)
        self.nodes.erase_node(self.node)


def _stand_in(node: fx.Node) -> torch.Tensor:
    return torch.empty(node.meta["qi_shape"], dtype=getattr(torch, node.meta["qi_dtype"]), device="meta")


def _exchange(user: fx.Node, old: fx.Node, new: Any) -> None:
    user.args = fx.node.map_arg(user.args, lambda node: new if node is old else node)
    user.kwargs = fx.node.map_arg(user.kwargs, lambda node: new if node is old else node)
