"""Weights of ONNX Runtime's products with blocks of few bits, as `Constant`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qi.core.packing import unpack
from qi.exporters.vendor import Constant

__all__ = ["ROUNDS_INPUTS", "block_weight"]

ROUNDS_INPUTS = 4
"""The level of accuracy of products whose inputs are rounded to 8 bits, row by row."""
_BITS = (2, 4, 8)


def block_weight(
    name: str, codes: np.ndarray | None, scales: np.ndarray | None, zeros: np.ndarray | None, attrs: Mapping[str, Any]
) -> Constant | None:
    """The weight of a MatMulNBits, [inputs, outputs], with a scale and a zero point for each element.

    Args:
        name: of the weight.
        codes: uint8, [outputs, blocks, bytes], the lower bits of a byte first, the last block filled up.
        scales: one for each output and block.
        zeros: codes, packed, each output's in whole bytes; by default the middle code.
        attrs: of the node: N outputs, K inputs, bits, block_size.

    Returns:
        None for what is no such weight.

    Raises:
        InputError: too few, or too many, bytes.
    """
    bits, size, count, depth = attrs.get("bits", 4), attrs["block_size"], attrs["N"], attrs["K"]
    blocks = -(-depth // size)
    if bits not in _BITS or codes is None or codes.dtype != np.uint8 or scales is None or scales.size != count * blocks:
        return None
    full = unpack(codes.reshape(-1), bits, (count, blocks * size), signed=False)
    offsets = np.full((count, blocks), 1 << (bits - 1), np.int64)
    if zeros is not None:
        row = -(-blocks * bits // 8) * 8 // bits
        offsets = unpack(zeros.reshape(-1), bits, (count, row), signed=False)[:, :blocks].astype(np.int64)
    factors = scales.reshape(count, blocks).astype(np.float32)
    scale, zero_point = (np.repeat(array, size, 1)[:, :depth].T for array in (factors, offsets))
    return Constant(name, full[:, :depth].T, scale, zero_point, bits)
