"""What an operation of PyTorch does to the grid of its input: modules, functions and methods of tensors alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from qi.recipes.plan import Role, Traits
from qi.torch.attention import BandSoftmax
from qi.torch.graph import Call, Graph, Value
from qi.torch.masks import masked_scores

__all__ = [
    "TRAITS",
    "argument",
    "clamp_of",
    "fuses_activation",
    "is_fusable_activation",
    "is_softmax",
    "known_range",
    "multiplies",
    "role_of",
]

_KEEPS = frozenset(
    # modules
    "MaxPool1d MaxPool2d MaxPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d FractionalMaxPool2d FractionalMaxPool3d "
    "Flatten Unflatten Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout ZeroPad1d ZeroPad2d "
    "ZeroPad3d ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d CircularPad1d "
    "CircularPad2d CircularPad3d PixelShuffle PixelUnshuffle ChannelShuffle Unfold UpsamplingNearest2d "
    # functions and methods
    "max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d flatten unflatten view reshape "
    "permute transpose t movedim squeeze unsqueeze ravel chunk split split_with_sizes tensor_split unbind getitem select narrow "
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout contiguous clone detach expand "
    "broadcast_to repeat repeat_interleave tile pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle amax amin "
    "max min flip fliplr flipud roll rot90 unfold tril triu diagonal atleast_1d atleast_2d atleast_3d to float type".split()
)
_SAME = frozenset(
    "AvgPool1d AvgPool2d AvgPool3d avg_pool1d avg_pool2d avg_pool3d UpsamplingBilinear2d index_select gather take "
    "take_along_dim".split()
)
_ADAPTIVE = frozenset(
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d".split()
)
_JOINS = frozenset("cat stack hstack vstack dstack column_stack row_stack".split())
_CHOOSES = frozenset("maximum minimum max min fmax fmin".split())  # JOINS, where all that they choose from are tensors
_FIXED = {"softmax": (0.0, 1.0), "softmax2d": (0.0, 1.0), "sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}
_LINEAR = frozenset(
    "Linear Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d linear conv1d conv2d conv3d conv_transpose1d "
    "conv_transpose2d conv_transpose3d".split()
)
_NORMS = frozenset("BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm batch_norm".split())
# Kernels of these take a clamp (ReLU, ReLU6) into themselves.
_TAKES_ACTIVATION = _LINEAR | _NORMS | {"add", "sub", "mul"}
_PADS_WITH_CONSTANTS = frozenset("ConstantPad1d ConstantPad2d ConstantPad3d".split())
# Where biases and what belongs to a normalization stand among the arguments of functions.
_IN_FLOAT = {
    **{name: {"bias": 2} for name in _LINEAR if name.islower()},
    "batch_norm": {"running_mean": 1, "running_var": 2, "weight": 3, "bias": 4},
    "instance_norm": {"running_mean": 1, "running_var": 2, "weight": 3, "bias": 4},
    "layer_norm": {"weight": 2, "bias": 3},
    "group_norm": {"weight": 2, "bias": 3},
    "rms_norm": {"weight": 2},
    "prelu": {"weight": 1},
}
_LOOKS_UP = {
    **dict.fromkeys("Embedding EmbeddingBag embedding embedding_bag one_hot".split(), 0),
    **dict.fromkeys("getitem index_select gather take take_along_dim index_add scatter scatter_add".split(), 1),
}  # the first of its tensors that is an index
_CASTS = frozenset("long int short to type clamp".split())
_ANGLE_OF = frozenset("sin cos tan".split())
_ANGLE_BY = frozenset(  # what positions and frequencies become angles by
    "mul div add sub neg outer einsum matmul cat stack cumsum deg2rad float double half bfloat16 type_as to type".split()
)
_COMPARES = frozenset("eq ne lt gt le ge isnan isinf isfinite logical_not bool".split())
_ANGLE = "an angle, or what one is made of: a grid that reaches beyond a few turns tells none of them apart"
_COMPARED = "only compared: no kernel computes with it"
_MASKED = "a mask's large numbers stand among scores: no grid has room for both"
_INDICES = "holds indices into a table"
_BIAS = "a bias or part of a normalization: computed in float here, in 32 bits by integer kernels"


def argument(call: Call, name: str, position: int, default: Any = None) -> Any:
    """An argument of a function's or method's call, wherever it stands; nodes for what is computed."""
    if len(call.node.args) > position:
        return call.node.args[position]
    return call.node.kwargs.get(name, default)


def _function_of(call: Call) -> str:
    """The activation function that a call is, in lower case."""
    return "softmax" if isinstance(call.op, BandSoftmax) else call.builtin_kind.lower()


def role_of(call: Call) -> Role:
    """The role of a call; one of a class or function of the user's own is OWN, whatever its name."""
    kind = call.builtin_kind
    if kind in _ADAPTIVE:
        return Role.OWN if _pools_all(call) else Role.SAME
    if kind in ("Upsample", "interpolate", "upsample"):
        return _resizes(call)
    if kind in _PADS_WITH_CONSTANTS or kind == "pad":
        return Role.KEEPS if _pads_within(call) else Role.OWN
    if kind in _KEEPS and len(call.inputs) == 1:
        return Role.KEEPS
    if kind in _SAME or (kind == "getitem" and len(call.inputs) > 1):
        return Role.SAME
    if kind in _JOINS or (kind in _CHOOSES and len(call.inputs) > 1):
        return Role.JOINS
    return Role.FIXED if _function_of(call) in _FIXED else Role.OWN


def known_range(call: Call) -> tuple[float, float] | None:
    """The range that a FIXED operation's grid covers."""
    return _FIXED.get(_function_of(call))


def clamp_of(call: Call) -> tuple[float | None, float | None] | None:
    """(least, greatest) result of a clamp, None where it has no such; None for what is none, or clamps to tensors."""
    kind, op = call.builtin_kind, call.op
    if kind in ("ReLU", "relu"):
        return 0.0, None
    if kind in ("ReLU6", "relu6"):
        return 0.0, 6.0
    if isinstance(op, torch.nn.Hardtanh):
        return float(op.min_val), float(op.max_val)
    if kind == "hardtanh":
        ends = argument(call, "min_val", 1, -1.0), argument(call, "max_val", 2, 1.0)
    elif kind == "clamp":
        ends = argument(call, "min", 1), argument(call, "max", 2)
    elif kind == "clamp_min":
        ends = argument(call, "min", 1), None
    elif kind == "clamp_max":
        ends = None, argument(call, "max", 1)
    else:
        return None
    if any(end is not None and not isinstance(end, (int, float)) for end in ends):
        return None
    low, high = (None if end is None else float(end) for end in ends)
    return low, high


def is_fusable_activation(call: Call) -> bool:
    """Whether a call is a clamp that the kernel before it can take over: ReLU or ReLU6, in any of their forms."""
    return clamp_of(call) in ((0.0, None), (0.0, 6.0))


def is_softmax(call: Call) -> bool:
    """Whether a call is a softmax, as a module, a function or a method."""
    return _function_of(call) in ("softmax", "softmax2d")


def multiplies(call: Call) -> bool:
    """Whether a call is a product of two matrices neither of which is a weight."""
    weights = [value.producer is not None and value.producer.kind == "Parameter" for value in call.inputs]
    return call.builtin_kind in ("matmul", "einsum") and len(call.inputs) == 2 and not any(weights)


def fuses_activation(call: Call) -> bool:
    """Whether a call's kernel takes over a clamp that follows it."""
    return call.builtin_kind in _TAKES_ACTIVATION


def _pools_all(call: Call) -> bool:
    """Whether an adaptive pooling gives one number for each channel: the mean, of which a grid of its own is finer."""
    given = call.op.output_size if isinstance(call.op, torch.nn.Module) else argument(call, "output_size", 1)
    sizes = given if isinstance(given, (tuple, list)) else (given,)
    return all(isinstance(size, int) and size == 1 for size in sizes)


def _resizes(call: Call) -> Role:
    mode = call.op.mode if isinstance(call.op, torch.nn.Module) else argument(call, "mode", 3, "nearest")
    if str(mode).startswith("nearest"):
        return Role.KEEPS if len(call.inputs) == 1 else Role.OWN
    return Role.OWN if mode == "bicubic" else Role.SAME  # a cubic reaches beyond what it lies between


def _pads_within(call: Call) -> bool:
    """Whether a padding brings no number that its input's grid may lack."""
    if isinstance(call.op, torch.nn.Module):
        return call.op.value == 0
    return argument(call, "mode", 2, "constant") != "constant" or not argument(call, "value", 3, None)


def _place_of(value: Value) -> tuple[str, str]:
    call = value.producer
    return (value.name, "InputLayer") if call is None else call.place


def _exempt(graph: Graph) -> Iterable[tuple[str, Iterable[Value]]]:
    scores = masked_scores(graph, is_softmax, lambda call: role_of(call) is Role.KEEPS)
    return (
        (_MASKED, [*scores, *_attention_masks(graph)]),
        (_INDICES, _indices(graph)),
        (_BIAS, _biases(graph)),
        (_ANGLE, _made_into(graph, lambda call: call.builtin_kind in _ANGLE_OF, _turns)),
        (
            _COMPARED,
            _made_into(graph, lambda call: call.builtin_kind in _COMPARES, lambda call: role_of(call) is Role.KEEPS),
        ),
    )


def _turns(call: Call) -> bool:
    """Whether a call makes angles of positions: those of networks that learn them come out of modules."""
    moves = not isinstance(call.op, torch.nn.Module) and role_of(call) is Role.KEEPS
    return moves or (call.builtin_kind in _ANGLE_BY and not isinstance(call.op, torch.nn.Module))


def _made_into(graph: Graph, ends: Callable[[Call], bool], passes: Callable[[Call], bool]) -> list[Value]:
    """The values that end in some calls only, through others: those whose every result does so too."""
    consumers, found = graph.consumers(), dict[int, Value]()
    given = {id(value) for value in graph.outputs}
    for value in reversed([*graph.inputs, *(value for call in graph.calls for value in call.outputs)]):
        after = consumers.get(id(value), [])
        through = [call for call in after if not ends(call)]
        only = all(
            passes(call) and call.outputs and all(id(held) in found for held in call.outputs) for call in through
        )
        if after and only and id(value) not in given:
            found[id(value)] = value
    return list(found.values())


def _attention_masks(graph: Graph) -> list[Value]:
    """What attention adds to its scores, back to where it comes from: zeros today may be -inf tomorrow."""
    found: dict[int, Value] = {}
    for call in reversed(graph.calls):
        taken: list[Value] = []
        if isinstance(call.op, BandSoftmax):
            taken = call.inputs[1:]
        elif role_of(call) is Role.KEEPS and any(id(value) in found for value in call.outputs):
            taken = call.inputs
        found.update((id(value), value) for value in taken)
    return list(found.values())


def _indices(graph: Graph) -> list[Value]:
    """Values that are looked up, or become so once they were moved; some networks hand in indices as real numbers."""
    found: dict[int, Value] = {}
    for call in reversed(graph.calls):
        moved = role_of(call) is Role.KEEPS or call.kind in _CASTS
        if moved and any(id(value) in found for value in call.outputs):
            found.update((id(value), value) for value in call.inputs[:1])
        first = _LOOKS_UP.get(call.builtin_kind)
        if first is not None:
            indices = call.inputs[:1] if first == 0 else call.inputs[1:]
            found.update((id(value), value) for value in indices)
    return list(found.values())


def _biases(graph: Graph) -> list[Value]:
    """Parameters and buffers that serve only as biases of functions and in normalizations."""
    consumers = graph.consumers()
    found = []
    for value in [value for call in graph.calls if call.kind in ("Parameter", "Buffer") for value in call.outputs]:
        after = consumers.get(id(value), [])
        if after and all(_in_float(call, value) for call in after):
            found.append(value)
    return found


def _in_float(call: Call, value: Value) -> bool:
    places = _IN_FLOAT.get(call.builtin_kind, {})
    return any(argument(call, name, position) is value.node for name, position in places.items())


TRAITS = Traits(
    role_of,
    known_range,
    fuses_activation,
    is_fusable_activation,
    multiplies,
    lambda value: value.name,
    _place_of,
    _exempt,
)
