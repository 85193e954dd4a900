"""Packing of 1- to 16-bit codes into bytes.

Layout: the codes, in C order, form one little-endian bit stream. Code ``i`` occupies bits ``i*b`` to
``i*b + b - 1`` of the stream, least significant bit first; bit ``k`` of the stream is bit ``k % 8`` of byte
``k // 8``. Signed codes are two's complement of ``b`` bits. The last byte is padded with zero bits. So 4-bit
codes ``c0, c1`` make the byte ``c0 | c1 << 4`` (low nibble first, as LiteRT and ONNX store int4), and 8- and
16-bit codes are plain little-endian integers.
"""

from __future__ import annotations

import math

import numpy as np

from qi.errors import InputError
from qi.typing import Shape

__all__ = ["pack", "packed_nbytes", "unpack"]


def _check(bits: int) -> None:
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not 1 <= bits <= 16:
        raise InputError(f"expected bits to be an integer from 1 to 16; received bits={bits!r}")


def _shifts(bits: int) -> np.ndarray:
    return np.arange(8, dtype=np.uint64) * np.uint64(bits)


def packed_nbytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take.

    Example:
        >>> packed_nbytes(3, 3), packed_nbytes(8, 3)
        (2, 3)
    """
    _check(bits)
    return -(-count * bits // 8)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes to bytes.

    Args:
        codes: integer array of any shape; signed or unsigned codes that fit `bits` bits.
        bits: 1 to 16.

    Returns:
        uint8 array of shape ``[ceil(codes.size * bits / 8)]``.

    Raises:
        InputError: a code doesn't fit, or the dtype isn't integer.

    Example:
        >>> pack(np.array([1, -1, 7], np.int8), 4).tolist()
        [241, 7]
    """
    _check(bits)
    flat = np.asarray(codes).ravel()
    if flat.dtype.kind not in "iu":
        raise InputError(f"expected integer codes; received dtype={flat.dtype}")
    if flat.size and (int(flat.min()) < -(2 ** (bits - 1)) or int(flat.max()) >= 2**bits):
        raise InputError(f"expected codes that fit {bits} bits; received {flat.min()} to {flat.max()}")
    if flat.size and int(flat.min()) < 0 and int(flat.max()) >= 2 ** (bits - 1):
        raise InputError(
            f"expected codes all signed or all unsigned; received {flat.min()} to {flat.max()} for {bits} bits"
        )
    used = packed_nbytes(flat.size, bits)
    if bits > 8:
        pairs = flat.astype(np.int64).astype("<u2").view(np.uint8).reshape(-1, 2)
        stream = np.unpackbits(pairs, axis=1, bitorder="little")[:, :bits]
        return np.packbits(stream.ravel(), bitorder="little")
    # Eight codes make exactly `bits` bytes: join them in a 64-bit word and keep its low bytes.
    words = np.zeros((-(-flat.size // 8), 8), np.uint64)
    words.ravel()[: flat.size] = flat.astype(np.int64).astype(np.uint64) & np.uint64(2**bits - 1)
    joined = np.bitwise_or.reduce(words << _shifts(bits), axis=1).astype("<u8")
    stored: np.ndarray = joined.view(np.uint8).reshape(-1, 8)[:, :bits].ravel()[:used]
    return stored


def unpack(data: np.ndarray, bits: int, shape: Shape, *, signed: bool) -> np.ndarray:
    """Bytes to codes; the inverse of `pack`.

    Args:
        data: uint8 array as `pack` gives.
        bits: 1 to 16.
        shape: of the result.
        signed: whether codes are two's complement.

    Returns:
        array of `shape`, int8/uint8 up to 8 bits, else int16/uint16.

    Raises:
        InputError: the length of data doesn't fit the shape, or the shape is none.

    Example:
        >>> unpack(np.array([241, 7], np.uint8), 4, (3,), signed=True).tolist()
        [1, -1, 7]
    """
    # In Python's integers: a shape read from a broken file can't overflow to a small count.
    count = math.prod(shape)
    data = np.asarray(data)
    if min(shape, default=0) < 0:
        raise InputError(f"expected a shape without negative sizes; received shape={shape}")
    if data.dtype != np.uint8 or data.ndim != 1 or data.size != packed_nbytes(count, bits):
        raise InputError(
            f"expected {packed_nbytes(count, bits)} bytes for {count} codes of {bits} bits; "
            f"received {data.size} of dtype {data.dtype}, shape {data.shape}"
        )
    stream = np.zeros(-(-count // 8) * bits, np.uint8)
    stream[: data.size] = data
    if bits <= 8:
        words = np.zeros((stream.size // bits, 8), np.uint8)
        words[:, :bits] = stream.reshape(-1, bits)
        codes = (words.view("<u8") >> _shifts(bits)).ravel()[:count] & np.uint64(2**bits - 1)
    else:
        single = np.unpackbits(stream, bitorder="little").reshape(-1, bits)[:count]
        codes = single.astype(np.uint64) @ (np.uint64(1) << np.arange(bits, dtype=np.uint64))
    wide = codes.astype(np.int64).reshape(shape)
    if signed:
        wide -= (wide >= 2 ** (bits - 1)).astype(np.int64) << bits
    narrow: np.ndarray = wide.astype(f"{'' if signed else 'u'}int{8 if bits <= 8 else 16}")
    return narrow
