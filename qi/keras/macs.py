"""Multiply-accumulates of a layer for one sample."""

from __future__ import annotations

from math import prod
from typing import Any

from qi.keras.attention import ATTENTIONS
from qi.keras.graph import Call, flatten_model, is_graph_model
from qi.keras.variables import Place, places_of
from qi.typing import Shape

__all__ = ["multiply_accumulates"]

# Wrappers whose layers each see what the wrapper sees.
_TRANSPARENT = ("Bidirectional", "SpectralNormalization")

Sizes = tuple[int | None, ...]
Owners = tuple[tuple[Any, str], ...]


def multiply_accumulates(call: Call, path: str, kernel: Shape) -> int | None:
    """How many multiplications with the weight at `path` one sample takes in this call.

    Args:
        call: the layer's call.
        path: of the weight.
        kernel: its shape.

    Returns:
        the count; None where a size isn't fixed or nothing is multiplied: biases, rows that are looked up. Layers that
        nothing here knows count as if they multiplied every place of their first input with each kernel, as recurrent
        layers do with every step.
    """
    place = _place(call.op, path)
    if place is None or not place.owners[-1][1].endswith("kernel"):
        return None
    source = call.inputs[0]
    if type(call.op).__name__ in ATTENTIONS and path.startswith(("key/", "value/")):
        source = call.inputs[min(1, len(call.inputs) - 1)]  # whoever gives keys of their own gives as many
    return _count(place, 0, kernel, source.shape[1:], call.outputs[0].shape[1:])


def _place(op: Any, path: str) -> Place | None:
    return places_of(op).get(path) if hasattr(op, "variables") else None


def _count(place: Place, depth: int, kernel: Shape, source: Sizes, result: Sizes) -> int | None:
    """The count for one sample of the shape `source` that gives one of the shape `result`, in the owner at that depth."""
    sizes = [size for size in source if size is not None]
    places = [size for size in result if size is not None]
    if [len(sizes), len(places)] != [len(source), len(result)]:
        return None
    op = place.owners[depth][0]
    kind = type(op).__name__
    if kind == "TimeDistributed":
        each = _count(place, depth + 1, kernel, source[1:], result[1:])
        return None if each is None else sizes[0] * each
    if kind in _TRANSPARENT:
        return _count(place, depth + 1, kernel, source, result)
    if is_graph_model(op):
        return _within(op, place)
    if kind == "EinsumDense":
        return _einsum(op.equation, tuple(sizes), kernel)
    if kind == "STFTSpectrogram":
        return _frames(op, sizes) * prod(kernel)
    if "ConvLSTM" in kind:
        return sizes[0] * prod(_windows(op, _spatial(op, sizes[1:]))) * prod(kernel)
    if "Conv" in kind:
        return prod(_spatial(op, sizes if kind.endswith("Transpose") else places)) * prod(kernel)
    return prod(sizes[:-1]) * prod(kernel)


def _spatial(op: Any, sizes: list[int]) -> list[int]:
    """The sizes without that of the channels."""
    return sizes[1:] if getattr(op, "data_format", "channels_last") == "channels_first" else sizes[:-1]


def _windows(op: Any, spatial: list[int]) -> list[int]:
    """How many places a convolution's window takes along each axis; results of wrappers and of last steps don't tell."""
    if op.padding == "same":
        return [-(-size // stride) for size, stride in zip(spatial, op.strides, strict=True)]
    reach = [(size - 1) * rate for size, rate in zip(op.kernel_size, op.dilation_rate, strict=True)]
    return [(size - r - 1) // stride + 1 for size, r, stride in zip(spatial, reach, op.strides, strict=True)]


def _frames(op: Any, sizes: list[int]) -> int:
    """How many windows a spectrogram takes of all channels of a signal."""
    steps, channels = sizes if op.data_format == "channels_last" else sizes[::-1]
    step = op.frame_step or op.frame_length // 2
    return channels * (-(-steps // step) if op.padding == "same" else (steps - op.frame_length) // step + 1)


def _within(model: Any, place: Place) -> int | None:
    """The count of a weight of a model that a layer holds: over all calls of its layer there."""
    total = 0
    for call in flatten_model(model).calls:
        for inner, own in places_of(call.op).items() if hasattr(call.op, "variables") else ():
            if own.variable is place.variable:
                count = multiply_accumulates(call, inner, tuple(own.variable.shape))
                if count is None:
                    return None
                total += count
    return total


def _einsum(equation: str, source: tuple[int, ...], kernel: Shape) -> int | None:
    left = equation.replace(" ", "").split("->")[0]
    first, second = left.split(",")
    if "." in first:
        labels = first.replace("...", "")
        sizes = dict(zip(reversed(labels), reversed(source), strict=False))
        rest = prod(source) // max(1, prod(sizes.values()))
    else:
        sizes, rest = dict(zip(first[1:], source, strict=True)), 1  # the first label is the batch
    sizes |= dict(zip(second, kernel, strict=True))
    return rest * prod(sizes.values())
