"""Multiply-accumulates of a layer for one sample."""

from __future__ import annotations

from math import prod

from qi.keras.graph import Call
from qi.typing import Shape

__all__ = ["multiply_accumulates"]


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
    kind = call.kind
    shapes = [value.shape[1:] for value in (call.inputs[0], call.outputs[0])]
    source, result = (tuple(size for size in shape if size is not None) for shape in shapes)
    if [len(source), len(result)] != [len(shape) for shape in shapes]:
        return None
    if kind == "EinsumDense":
        return _einsum(call.op.equation, source, kernel)
    if "Conv" in kind and "LSTM" not in kind:
        channels_first = getattr(call.op, "data_format", "channels_last") == "channels_first"
        places = source if kind.endswith("Transpose") else result
        spatial = prod(places[1:] if channels_first else places[:-1])
        return spatial * prod(kernel)
    return prod(source[:-1]) * prod(kernel)


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
