"""Links: a tensor whose channels can be scaled with no change of the function, between the layers that give and take it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import keras
import numpy as np

from qi.keras.caps import ChannelCap
from qi.keras.fold import activation_name
from qi.keras.graph import Call, Graph, Value
from qi.keras.linear import LinearView, linear_views
from qi.keras.ties import holders
from qi.keras.variables import weights_of
from qi.recipes import RuleBook
from qi.recipes.plan import ActivationPlan

__all__ = [
    "Link",
    "Taker",
    "asks_scaling",
    "cap_grids",
    "find_links",
    "open_caps",
    "scalable_values",
]

# f(c x) = c f(x) for every c > 0, channel by channel.
_HOMOGENEOUS = frozenset(
    "ReLU LeakyReLU PReLU Dropout SpatialDropout1D SpatialDropout2D SpatialDropout3D Identity ZeroPadding1D ZeroPadding2D "
    "ZeroPadding3D Cropping1D Cropping2D Cropping3D MaxPooling1D MaxPooling2D MaxPooling3D AveragePooling1D AveragePooling2D "
    "AveragePooling3D GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D "
    "GlobalMaxPooling2D GlobalMaxPooling3D UpSampling1D UpSampling2D UpSampling3D Flatten ActivityRegularization".split()
)
_GIVES = ("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D", "Dense")
_NORMS = ("LayerNormalization", "RMSNormalization", "BatchNormalization", "GroupNormalization")
_TAKES = (*_GIVES, "EinsumDense", "SeparableConv1D", "SeparableConv2D")


@dataclass(frozen=True, eq=False)
class Taker:
    """A layer that multiplies a linked tensor: factors of its features are undone in its weight.

    Attributes:
        call: of the layer.
        linear: the weight.
        channels: for each of its input features in the order of ``weight.view`` ``[G, K]``, which channel of the link it is.
    """

    call: Call
    linear: LinearView
    channels: np.ndarray


@dataclass(eq=False)
class Link:
    """A tensor between layers.

    Attributes:
        giver: the layer that gives it, or the normalization.
        channels: how many.
        between: calls that it goes through, in order.
        values: the tensor and what becomes of it, each with the channels last.
        takers: the layers that it ends in.
        caps: the clamps among `between`.
        factors: by which the channels have been multiplied so far.
    """

    giver: Call
    channels: int
    between: list[Call] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    takers: list[Taker] = field(default_factory=list)
    caps: list[Call] = field(default_factory=list)
    factors: np.ndarray = field(default_factory=lambda: np.ones(0))

    def __post_init__(self) -> None:
        self.factors = np.ones(self.channels)

    @property
    def normalizes(self) -> bool:
        """Whether a normalization gives it."""
        return self.giver.builtin_kind in _NORMS


def find_links(graph: Graph) -> list[Link]:
    """Every link of a graph, in its order.

    A link starts at a layer with weights an output channel (or a normalization with a factor a channel) that is called once, goes
    through operations that positive factors pass (ReLU, PReLU, pooling...) and a `ChannelCap`, and ends where all that take it
    multiply it by weights of their own; every layer concerned is called once, shares its weights with no other, and nothing else
    takes the values.
    """
    consumers, outputs = graph.consumers(), {id(value) for value in graph.flat_outputs()}
    ops = [calls[0].op for calls in graph.calls_of().values()]
    tied = {id(ops[place]) for held in holders(ops).values() for place, _ in held}
    once = {key for key, calls in graph.calls_of().items() if len(calls) == 1} - tied
    links = (_follow(call, consumers, outputs, once) for call in graph.calls if id(call.op) in once)
    return [link for link in links if link is not None]


def scalable_values(graph: Graph) -> list[Value]:
    """The values whose single channels calibration has to see, so that they can be scaled later; clamps at 6 count as open."""
    return [value for link in find_links(graph) for value in link.values]


def _gives(call: Call) -> bool:
    if getattr(call.op, "data_format", "channels_last") != "channels_last":
        return False
    if call.builtin_kind in _GIVES:
        return activation_name(call.op) in ("linear", "relu")
    axis = getattr(call.op, "axis", -1)
    axes = axis if isinstance(axis, (list, tuple)) else [axis]
    last = [a % len(call.outputs[0].shape) for a in axes] == [len(call.outputs[0].shape) - 1]
    return (
        call.builtin_kind in _NORMS
        and last
        and bool(weights_of(call.op))
        and getattr(call.op, "scale", True) is not False
    )


def _follow(call: Call, consumers: dict[int, list[Call]], outputs: set[int], once: set[int]) -> Link | None:
    value = call.outputs[0]
    if not _gives(call) or value.shape[-1] is None or not value.is_float:
        return None
    link = Link(call, int(value.shape[-1]))
    repeats = 1  # how often the channels come one after the other in the features: places, once they were flattened
    while True:
        takers = consumers.get(id(value), [])
        if id(value) in outputs or not takers or any(id(taker.op) not in once for taker in takers):
            return None
        if repeats == 1:
            link.values.append(value)
        found = [_taker(taker, value, link.channels, repeats) for taker in takers]
        ends = [taker for taker in found if taker is not None]
        if len(ends) == len(takers):
            link.takers = ends
            return link
        if len(takers) > 1 or not _passes(takers[0]):
            return None
        (through,) = takers
        link.between.append(through)
        if isinstance(through.op, ChannelCap) or _caps(through):
            link.caps.append(through)
        if through.builtin_kind == "Flatten":
            if None in value.shape[1:]:
                return None
            repeats = prod(int(n) for n in value.shape[1:-1] if n is not None)
        value = through.outputs[0]


def _passes(call: Call) -> bool:
    """Whether factors of channels pass a call."""
    if isinstance(call.op, ChannelCap) or _caps(call):
        return True
    op: Any = call.op
    if getattr(op, "data_format", "channels_last") != "channels_last" or len(call.inputs) != 1:
        return False
    if call.builtin_kind == "ReLU":
        return op.max_value is None and not op.threshold
    if call.builtin_kind == "Activation":
        return activation_name(op) in ("linear", "relu", "leaky_relu")
    return call.builtin_kind in _HOMOGENEOUS or call.builtin_kind in ("Relu", "LeakyRelu")


def _caps(call: Call) -> bool:
    """Whether a call is a clamp between 0 and 6: with caps of its channels it passes factors."""
    if call.builtin_kind == "ReLU":
        op: Any = call.op
        return op.max_value is not None and not op.negative_slope and not op.threshold
    return call.builtin_kind == "Relu6" or (call.builtin_kind == "Activation" and activation_name(call.op) == "relu6")


def _taker(call: Call, value: Value, channels: int, repeats: int) -> Taker | None:
    """The call as one that multiplies the link, if each of its features is one channel."""
    if call.builtin_kind not in _TAKES or getattr(call.op, "data_format", "channels_last") != "channels_last":
        return None
    if [v is value for v in call.inputs] != [True]:
        return None
    for linear in linear_views(call):
        groups, features, _ = linear.view.sizes
        if call.builtin_kind == "EinsumDense":
            if groups != 1 or features != channels or len(linear.view.input_axes) != 1:
                return None
            return Taker(call, linear, np.arange(channels)[None, :])
        if linear.view.group_axes:  # depthwise: a group is a channel
            return Taker(call, linear, np.repeat(np.arange(channels)[:, None], features, 1))
        each = channels // groups  # channels come last among the features, those of a group beside each other
        index = np.arange(groups)[:, None] * each + np.arange(features)[None, :] % each
        return Taker(call, linear, index) if features % each == 0 and (repeats == 1 or groups == 1) else None
    return None


def open_caps(graph: Graph, wanted: Callable[[Link], bool]) -> list[Call]:
    """Puts a ReLU and a `ChannelCap` in the place of each clamp at a fixed number on the links that are wanted.

    The function stays as it is.

    Args:
        graph: changed in place; before its layers are copied.
        wanted: says for which links.

    Returns:
        the calls of the new caps.
    """
    made = []
    for call in [call for link in find_links(graph) if wanted(link) for call in link.caps]:
        if not isinstance(call.op, ChannelCap):
            made.append(_open(graph, call))
    return made


def _open(graph: Graph, call: Call) -> Call:
    """ReLU, then the cap; the cap's output is what the clamp's was."""
    given: Any = call.op
    limit = float(given.max_value) if call.builtin_kind == "ReLU" else 6.0
    dtype = given.dtype_policy if isinstance(given, keras.layers.Layer) else None
    result = call.outputs[0]
    cap = ChannelCap(limit, name=f"{given.name}_cap", dtype=dtype)
    cap.build(result.shape)
    middle = Value(result.shape, result.dtype, call)
    call.split_from = replace(call)  # rules speak of the clamp
    after = Call(cap, call.path, call.site, [middle], [result], split_from=call.split_from)
    call.op = keras.layers.ReLU(name=f"{given.name}_relu", dtype=dtype)
    call.path, call.site = f"{call.path}/relu", f"{call.site}/relu"
    call.arguments = lambda tensors: (tensors, {})
    call.outputs, result.producer = [middle], after
    graph.calls.insert(graph.calls.index(call) + 1, after)
    return after


def cap_grids(graph: Graph, plan: ActivationPlan) -> None:
    """Has a ReLU ahead of a `ChannelCap` share the grid of what the cap leaves of it: that alone makes the range.

    Args:
        graph: with its caps.
        plan: of its activations; changed.
    """
    for call in graph.calls:
        if isinstance(call.op, ChannelCap):
            source = call.inputs[0]
            group = plan.group_of(source)
            if group is not None and group is plan.group_of(call.outputs[0]):
                kept = [(v, n) for v, n in zip(group.observed, group.names, strict=True) if v is not source]
                group.observed, group.names = [v for v, _ in kept], [n for _, n in kept]


def asks_scaling(book: RuleBook, link: Link) -> bool:
    """Whether the recipe names an algorithm that scales for a weight that takes a link.

    Args:
        book: of its own: asking marks rules as used.
        link: of the graph as given.
    """
    specs = [book.weights_for(t.call.path, t.call.kind, t.linear.weight).spec for t in link.takers]
    return any(step.stage == "scaling" for spec in specs if spec is not None for step in spec.algorithms)
