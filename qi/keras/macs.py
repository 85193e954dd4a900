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
        the count; None where a size isn't fixed or the layer only looks rows up.
    """
    kind = call.kind
    source, result = call.inputs[0].shape[1:], call.outputs[0].shape[1:]
    if kind in ("Embedding", "ReversibleEmbedding"):
        return None
    if None in source or None in result:
        return None
    if kind == "EinsumDense":
        return _einsum(call.op.equation, source, kernel)
    if "Conv" in kind:
        channels_first = getattr(call.op, "data_format", "channels_last") == "channels_first"
        places = source if kind.endswith("Transpose") else result
        spatial = prod(places[1:] if channels_first else places[:-1])
        return spatial * prod(kernel)
    return prod(result[:-1]) * prod(kernel) if path.endswith("kernel") else None


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
