"""Multiply-accumulates of a layer for one sample."""

from __future__ import annotations

from math import prod
from typing import Any

from qi.keras.graph import Call, flatten_model, is_graph_model
from qi.keras.variables import weights_of
from qi.typing import Shape

__all__ = ["multiply_accumulates"]

# Wrappers whose layers each see what the wrapper sees.
_TRANSPARENT = ("Bidirectional", "SpectralNormalization")


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
    if not path.endswith("kernel"):
        return None
    source, result = (value.shape[1:] for value in (call.inputs[0], call.outputs[0]))
    return _count(call.op, path, kernel, source, result)


def _count(
    op: Any, path: str, kernel: Shape, source: tuple[int | None, ...], result: tuple[int | None, ...]
) -> int | None:
    """The count for one sample of the shape `source` that gives one of the shape `result`."""
    sizes = [size for size in source if size is not None]
    places = [size for size in result if size is not None]
    if [len(sizes), len(places)] != [len(source), len(result)]:
        return None
    kind, inner = type(op).__name__, path.partition("/")[2]
    if kind == "TimeDistributed":
        each = _count(op.layer, inner, kernel, source[1:], result[1:])
        return None if each is None else sizes[0] * each
    if kind in _TRANSPARENT:
        return _count(op.forward_layer if kind == "Bidirectional" else op.layer, inner, kernel, source, result)
    if is_graph_model(op):
        return _within(op, path)
    if kind == "EinsumDense":
        return _einsum(op.equation, tuple(sizes), kernel)
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


def _within(model: Any, path: str) -> int | None:
    """The count of a weight of a model that a layer holds: over all calls of its layer there."""
    variable = weights_of(model)[path]
    total = 0
    for call in flatten_model(model).calls:
        for inner, own in weights_of(call.op).items() if hasattr(call.op, "variables") else ():
            if own is variable:
                count = multiply_accumulates(call, inner, tuple(own.shape))
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
