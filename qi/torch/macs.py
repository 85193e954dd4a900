"""Multiply-accumulates of a module for one sample."""

from __future__ import annotations

from math import prod

from qi.torch.graph import Call
from qi.torch.kinds import torch_class
from qi.typing import Shape

__all__ = ["multiply_accumulates"]

_LOOKED_UP = ("Embedding", "EmbeddingBag")


def multiply_accumulates(call: Call, name: str, shape: Shape) -> int | None:
    """How many multiplications with a parameter one sample takes in a call.

    Args:
        call: the module's.
        name: of the parameter.
        shape: of the parameter.

    Returns:
        the count; None where shapes aren't known or nothing is multiplied: biases, factors, rows that are looked up.
    """
    kind = torch_class(call.op) if not isinstance(call.op, str) else ""
    source = call.inputs[0].shape if call.inputs else None
    result = call.outputs[0].shape if call.outputs else None
    if len(shape) < 2 or kind in _LOOKED_UP or not source or "weight" not in name.rpartition(".")[2]:
        return None
    if "ConvTranspose" in kind:
        return prod(source[2:]) * prod(shape)
    if "Conv" in kind:
        return None if result is None else prod(result[2:]) * prod(shape)
    if kind in ("LSTM", "GRU", "RNN"):  # one product a step
        steps = source[1] if getattr(call.op, "batch_first", False) else source[0]
        return (steps if len(source) == 3 else 1) * prod(shape)
    return prod(source[1:-1]) * prod(shape)  # one product for each place but those of the channels
