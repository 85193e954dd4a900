"""Attention taken apart: projections, two matrix products and a softmax, and a grid for every tensor in between."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from qi.keras.graph import Call, Graph, Value
from qi.keras.hidden_masks import HiddenMask, MaskedAs, Unmasked, masked_values, running_order
from qi.keras.layers import NotRebuildableError, rebuild_layer, weight_values

__all__ = ["ATTENTIONS", "BandSoftmax", "split_attention"]

ATTENTIONS = ("MultiHeadAttention", "GroupedQueryAttention", "Attention")
_MASKS = ("query_mask", "value_mask", "key_mask", "attention_mask", "mask")
_GIVEN = ("value_mask", "key_mask", "attention_mask")  # "query_mask", Keras overwrites by the hidden mask of the query


@keras.saving.register_keras_serializable(package="qi")
class BandSoftmax(layers.Layer):
    """Softmax over the last axis of attention scores [..., queries, keys], where each query sees a part of the keys only.

    Query i sees the keys i - `before` to i + `after`, of these the ones that all masks let through; the others get the
    probability 0, whatever their score. It is called with the scores and one tensor for each of `masks`.

    Args:
        before: how many keys before its own place a query sees; None for all.
        after: how many behind it; 0 for a causal mask.
        masks: what masks there are, as `keras.layers.MultiHeadAttention` calls them: "query_mask" [batch, queries], "value_mask"
            and "key_mask" [batch, keys], "attention_mask" [..., queries, keys] of up to the scores' rank, as truth values or
            numbers.
        uniform: whether a query that the masks let see nothing sees all keys alike, as Keras' fused attention has it, instead of
            nothing.
    """

    def __init__(
        self,
        before: int | None = None,
        after: int | None = None,
        masks: Sequence[str] = (),
        uniform: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.before, self.after = before, after
        self.masks, self.uniform = tuple(masks), uniform

    def seen(self, queries: Any, keys: Any) -> Any:
        """Which keys each query sees, [queries, keys], as truth values, before any mask."""
        ahead = keras.ops.arange(keys)[None, :] - keras.ops.arange(queries)[:, None]
        low = ahead >= -(queries if self.before is None else self.before)
        return keras.ops.logical_and(low, ahead <= (keys if self.after is None else self.after))

    def call(self, scores: Any, *masks: Any) -> Any:
        """Probabilities, of the scores' shape and type."""
        queries, keys = keras.ops.shape(scores)[-2:]
        seen = self.seen(queries, keys)
        for name, mask in zip(self.masks, masks, strict=True):
            seen = keras.ops.logical_and(seen, _spread(name, keras.ops.cast(mask, "bool"), len(scores.shape)))
        lowest = -3e4 if keras.backend.standardize_dtype(scores.dtype) == "float16" else -1e9
        found = keras.ops.softmax(keras.ops.where(seen, scores, keras.ops.cast(lowest, scores.dtype)), axis=-1)
        if self.uniform:  # what was masked out among others is 0 already
            return found
        return keras.ops.where(seen, found, keras.ops.cast(0, scores.dtype))  # a query that sees nothing

    def compute_output_shape(self, shape: Any, *masks: Any) -> Any:
        """That of the scores."""
        return shape

    def get_config(self) -> dict[str, Any]:
        """With `before`, `after`, `masks` and `uniform`."""
        own = {"before": self.before, "after": self.after, "masks": list(self.masks), "uniform": self.uniform}
        return super().get_config() | own


def _spread(name: str, mask: Any, rank: int) -> Any:
    """A mask over scores of that rank, [batch, ..., queries, keys]."""
    if name != "attention_mask":
        mask = keras.ops.expand_dims(mask, -1 if name == "query_mask" else -2)
    while len(mask.shape) < rank:
        mask = keras.ops.expand_dims(mask, -3)
    return mask


def split_attention(graph: Graph) -> dict[str, str]:
    """Puts projections, matrix products and a softmax in the place of every attention layer; the float function stays.

    Those of "block/mha" are called "block/mha/query", "/key", "/value", "/scores" (the first product), "/softmax", "/context"
    (the second product) and "/attention_output", with what reshapes in between. The factor 1 / sqrt(key_dim) goes into the
    weights and the bias of the query: what regularizes or constrains these sees them so. Masks become part of the softmax, those
    that layers hand on unseen too ("/query_mask" and so on); as in Keras, the result has the mask of the query, and what runs
    after a MultiHeadAttention doesn't see the masks of that layer's inputs.

    Args:
        graph: changed in place; the layers of the given model are only read.

    Returns:
        why a layer stays whole, by its path: masks of an Attention, calls that also give the scores, inputs that aren't
        sequences. Classes of users stay without a word.

    Raises:
        InputError: a weight holds NaN or an infinity.
    """
    kept: dict[str, str] = {}
    parts: dict[int, _Parts] = {}
    masked = masked_values(graph)
    for calls in graph.calls_of().values():
        if calls[0].builtin_kind not in ATTENTIONS:
            continue
        path = calls[0].path
        kept[path] = _why_whole(calls, masked)
        if kept[path]:
            continue
        try:  # a copy, so that regularizers aren't shared with the given model
            parts[id(calls[0].op)] = _Parts(rebuild_layer(calls[0].op))
        except NotRebuildableError as error:
            kept[path] = str(error)
    order = running_order(graph)
    for place, call in enumerate(order):
        if id(call.op) in parts:
            split = _Split(graph, call, parts[id(call.op)], masked)
            split.run()
            split.erase_masks(order[place + 1 :])
            masked = masked and masked_values(graph)
    return {path: why for path, why in kept.items() if why}


def _arguments(call: Call) -> dict[str, Any]:
    """The arguments of a call by name, values in the place of tensors."""
    args, kwargs = call.arguments(list(call.inputs))
    return dict(inspect.signature(type(call.op).call).bind(call.op, *args, **kwargs).arguments)


def _sources(call: Call) -> list[Value]:
    """Query, value and key of a call."""
    given = _arguments(call)
    found = given["inputs"] if "inputs" in given else [given["query"], given["value"], given.get("key")]
    found = [value for value in found if value is not None]
    return [*found, found[1]][:3]


def _why_whole(calls: list[Call], masked: set[int]) -> str:
    """Why an attention can't be taken apart; "" where it can."""
    op: Any = calls[0].op
    for call in calls:
        given = _arguments(call)
        masks = [name for name in _MASKS if any(m is not None for m in keras.tree.flatten(given.get(name)))]
        if masks and (call.builtin_kind != "MultiHeadAttention" or len(_given_masks(call)) < len(masks)):
            return f"it is called with {masks[0]}"
        if call.builtin_kind == "Attention" and any(id(value) in masked for value in call.inputs):
            return "its inputs carry a mask, which differs from sample to sample"
        if given.get("return_attention_scores"):
            return "it is called with return_attention_scores=True"
        if given.get("training"):
            return "it is called with training=True"
        sources = _sources(call)
        if any(len(value.shape) != 3 for value in sources):
            return f"it takes inputs of rank {len(sources[0].shape)}"
        if call.builtin_kind == "GroupedQueryAttention" and op.num_repeats > 1 and _band(op, given) is not None:
            return "heads share keys under a mask"
    if calls[0].builtin_kind == "Attention":
        plain = op.score_mode == "dot" and not op.use_scale
        return "" if plain else "its scores aren't plain products (score_mode='concat' or use_scale=True)"
    changed = ("lora_enabled", "quantization_mode")  # additions of low rank, and integers
    whole = not any(getattr(part, name, None) for part in op._flatten_layers() for name in changed)
    return "" if whole else "its projections have low-rank additions or are integers already"


def _given_masks(call: Call) -> dict[str, Value]:
    """The masks of a call that are tensors, by the names of its arguments."""
    given = _arguments(call)
    return {name: given[name] for name in _GIVEN if isinstance(given.get(name), Value)}


def _band(op: Any, given: dict[str, Any]) -> tuple[int | None, int | None] | None:
    """(before, after) of the keys that a query sees; None where it sees all."""
    window = getattr(op, "_sliding_window", getattr(op, "sliding_window", None))
    reach = None if window is None else window - 1
    if given.get("use_causal_mask"):
        return reach, 0
    return None if reach is None else (reach, reach)


class _Parts:
    """The operations that stand for one attention layer, made when first asked for and shared by its calls.

    Attributes:
        given: a copy of the layer.
        kind: its class' name.
        groups: how many heads of the query share one of keys and values.
    """

    def __init__(self, given: Any) -> None:
        self.given, self.kind = given, type(given).__name__
        self.groups = getattr(given, "num_repeats", 1)
        self._weights = weight_values(given)
        self._made: dict[tuple[str, str], Any] = {}

    def get(self, part: str, make: Callable[[str], Any], variant: str = "") -> Any:
        """The operation of a part; `make` takes its name."""
        if (part, variant) not in self._made:
            self._made[part, variant] = make(f"{self.given.name}_{part}")
        return self._made[part, variant]

    @property
    def rate(self) -> float:
        """Of dropout."""
        return float(getattr(self.given, "_dropout", getattr(self.given, "dropout", 0.0)))

    def projection(self, part: str, shape: Any) -> Any:
        """The Dense layer of a projection, built, with its weights; it takes inputs of `shape`."""
        return self.get(part, lambda name: self._dense(part, name, shape))

    def heads(self, part: str) -> tuple[int, ...]:
        """The shape of a projection's kernel."""
        return tuple(self._weights[f"{part}/kernel"].shape)

    def _dense(self, part: str, name: str, shape: Any) -> Any:
        kernel, bias = self._weights[f"{part}/kernel"], self._weights.get(f"{part}/bias")
        own = next(layer for layer in self.given._flatten_layers() if layer.name == part)
        inner = kernel.shape[:2] if part == "attention_output" else kernel.shape[:1]
        factor = 1 / math.sqrt(kernel.shape[-1]) if part == "query" else 1.0
        matrix = kernel.reshape(math.prod(inner), -1)
        names = (
            "kernel_regularizer",
            "bias_regularizer",
            "activity_regularizer",
            "kernel_constraint",
            "bias_constraint",
        )
        dense = layers.Dense(
            matrix.shape[1],
            use_bias=bias is not None,
            kernel_initializer=own.kernel_initializer,
            bias_initializer=own.bias_initializer,
            dtype=self.given.dtype_policy,
            trainable=self.given.trainable,
            name=name,
            **{option: getattr(own, option) for option in names},
        )
        dense.build((*shape[:-1], matrix.shape[0]))
        dense.kernel.assign((matrix.astype(np.float64) * factor).astype(matrix.dtype))
        if bias is not None:
            dense.bias.assign((bias.reshape(-1).astype(np.float64) * factor).astype(bias.dtype))
        return dense


class _Split:
    """One call, taken apart; it stays behind as it is: rules speak of it.

    `masked` has the ids of the values that may have a hidden mask.
    """

    def __init__(self, graph: Graph, call: Call, parts: _Parts, masked: set[int]) -> None:
        self.graph, self.call, self.parts, self.masked = graph, call, parts, masked
        self.calls: list[Call] = []
        self._bare: dict[int, tuple[Value, Value]] = {}

    def run(self) -> None:
        """Puts the parts in the place of the call."""
        query, value, key = _sources(self.call)
        if self.parts.kind == "Attention":
            self._attend(query, self._move("key_turned", key, (2, 1)), value, {})
        else:
            masks = self._masks(query, value, key)
            q, v, k = (self._without_mask(*named) for named in (("query", query), ("value", value), ("key", key)))
            y = self._heads(q, v, k, masks)
            if id(query) in self.masked:
                self._add("output_mask", lambda name: MaskedAs(name=name), y, query, listed=True)
        result = self.call.outputs[0]
        self.calls[-1].outputs = [result]
        result.producer = self.calls[-1]
        position = self.graph.calls.index(self.call)
        self.graph.calls[position : position + 1] = self.calls

    def erase_masks(self, later: list[Call]) -> None:
        """Has calls that run later see its inputs without masks, where Keras takes these off the very tensors."""
        op: Any = self.call.op
        if self.parts.kind != "MultiHeadAttention":
            return
        for value, bare in self._bare.values():
            if value.dtype != op.compute_dtype and op.autocast:
                continue  # Keras took the mask off a copy
            for call in later:
                call.inputs = [bare if x is value else x for x in call.inputs]
            bare.name = value.name
            outputs = keras.tree.map_structure(
                lambda x, old=value, new=bare: new if x is old else x, self.graph.outputs
            )
            self.graph.outputs = outputs

    def _masks(self, query: Value, value: Value, key: Value) -> dict[str, Value]:
        """All masks by name: those the call is given, and in the place of others the hidden ones of its inputs."""
        masks = _given_masks(self.call)
        hidden: dict[tuple[int, int], Value] = {}
        for name, x in (("query_mask", query), ("value_mask", value), ("key_mask", key)):
            if id(x) not in self.masked or name in masks or (name == "key_mask" and key is value):
                continue
            repeats = self.parts.groups if name == "query_mask" else 1
            if (id(x), repeats) not in hidden:
                make = lambda part, repeats=repeats: HiddenMask(repeats, name=part)
                hidden[id(x), repeats] = self._add(name, make, x)
            masks[name] = hidden[id(x), repeats]
        return masks

    def _without_mask(self, part: str, x: Value) -> Value:
        """A value without its hidden mask: right behind it, as others may have to take that too."""
        if id(x) not in self.masked:
            return x
        if id(x) not in self._bare:
            bare = self._add(f"{part}_unmasked", lambda name: Unmasked(name=name), x)
            position = 0 if x.producer is None else self.graph.calls.index(x.producer) + 1
            self.graph.calls.insert(position, self.calls.pop())
            self._bare[id(x)] = x, bare
        return self._bare[id(x)][1]

    def _heads(self, query: Value, value: Value, key: Value, masks: dict[str, Value]) -> Value:
        """With heads apart: [batch, heads, queries, size] for the query; those that share a key come one behind the other."""
        groups = self.parts.groups
        gate = None
        if getattr(self.parts.given, "_use_gate", getattr(self.parts.given, "use_gate", False)):
            gate = self._project("gate", query)
            gate = self._add("gate_sigmoid", lambda name: layers.Activation("sigmoid", **self._options(name)), gate)
        q, k, v = (self._project(part, x) for part, x in (("query", query), ("key", key), ("value", value)))
        (_, heads, size), (_, shared, depth) = self.parts.heads("query"), self.parts.heads("value")
        if groups == 1:
            q = self._move("query_heads", self._shape("query_split", q, (-1, heads, size)), (2, 1, 3))
        else:
            q = self._move("query_heads", self._shape("query_split", q, (-1, shared, groups, size)), (2, 3, 1, 4))
            q = self._shape("query_joined", q, (shared, -1, size))
        k = self._move("key_heads", self._shape("key_split", k, (-1, shared, size)), (2, 3, 1))
        v = self._move("value_heads", self._shape("value_split", v, (-1, shared, depth)), (2, 1, 3))
        y = self._attend(q, k, v, masks)
        if groups == 1:
            y = self._move("context_heads", y, (2, 1, 3))
        else:
            y = self._shape("context_split", y, (shared, groups, -1, depth))
            y = self._move("context_heads", y, (3, 1, 2, 4))
        y = self._shape("context_joined", y, (-1, heads * depth))
        if gate is not None:
            y = self._add("gated", lambda name: layers.Multiply(**self._options(name)), y, gate, listed=True)
        y = self._project("attention_output", y)
        shape = self.call.outputs[0].shape
        if len(shape) > 3:
            y = self._shape("output_split", y, (-1, *(n for n in shape[2:] if n is not None)))
        return y

    def _attend(self, query: Value, key: Value, value: Value, masks: dict[str, Value]) -> Value:
        """softmax(query @ key) @ value, the keys with their axes turned around."""
        scores = self._add("scores", lambda name: _matmul(name, query, key), query, key)
        band = _band(self.call.op, _arguments(self.call))
        if band is None and not masks:
            y = self._add("softmax", lambda name: layers.Softmax(**self._options(name)), scores)
        else:
            how = (*(band or (None, None)), tuple(masks), bool(masks) and not self.parts.rate)
            make = lambda name: BandSoftmax(*how, **self._options(name))
            y = self._add("softmax", make, scores, *masks.values(), variant=str(how))
        if self.parts.rate:
            seed = self.parts.given.seed
            y = self._add("dropout", lambda name: layers.Dropout(self.parts.rate, seed=seed, **self._options(name)), y)
        return self._add("context", lambda name: _matmul(name, y, value), y, value)

    def _options(self, name: str) -> dict[str, Any]:
        return {"dtype": self.parts.given.dtype_policy, "name": name}

    def _project(self, part: str, x: Value) -> Value:
        return self._add(part, lambda name: self.parts.projection(part, x.shape), x)

    def _shape(self, part: str, x: Value, shape: tuple[int, ...]) -> Value:
        return self._add(part, lambda name: layers.Reshape(shape, **self._options(name)), x)

    def _move(self, part: str, x: Value, dims: tuple[int, ...]) -> Value:
        return self._add(part, lambda name: layers.Permute(dims, **self._options(name)), x)

    def _add(
        self, part: str, make: Callable[[str], Any], *inputs: Value, listed: bool = False, variant: str = ""
    ) -> Value:
        """Adds a call of a part's operation; gives its result.

        Args:
            part: its name.
            make: gives the operation by its name, the first time.
            inputs: what it takes.
            listed: whether it takes them as one list.
            variant: which of several operations, where the calls of a layer need different ones.
        """
        op = self.parts.get(part, make, variant)
        path = f"{self.call.path}/{part}"
        site = self.call.site.replace(self.call.path, path, 1)
        specs = [keras.KerasTensor(value.shape, value.dtype) for value in inputs]
        spec = op.compute_output_spec(specs) if listed else op.compute_output_spec(*specs)
        call = Call(op, path, site, list(inputs), [], split_from=self.call)
        if listed:
            call.arguments = lambda tensors: ((list(tensors),), {})
        value = Value(tuple(spec.shape), str(spec.dtype), call)
        call.outputs = [value]
        self.calls.append(call)
        return value


def _matmul(name: str, a: Value, b: Value) -> Any:
    """The operation behind `keras.ops.matmul`, which only a symbolic call gives."""
    specs = [keras.KerasTensor(value.shape, value.dtype) for value in (a, b)]
    operation = keras.ops.matmul(*specs)._keras_history.operation
    operation.name = name
    return operation
