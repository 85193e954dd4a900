"""Packing of 1- to 16-bit codes into bytes.

Layout: the codes, in C order, form one little-endian bit stream. Code ``i`` occupies bits ``i*b`` to
``i*b + b - 1`` of the stream, least significant bit first; bit ``k`` of the stream is bit ``k % 8`` of byte
``k // 8``. Signed codes are two's complement of ``b`` bits. The last byte is padded with zero bits. So 4-bit
codes ``c0, c1`` make the byte ``c0 | c1 << 4`` (low nibble first, as LiteRT and ONNX store int4), and 8- and
16-bit codes are plain little-endian integers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from qi.core.tiles import boxes
from qi.errors import InputError
from qi.typing import Shape

__all__ = ["Packer", "join", "pack", "packed_nbytes", "unpack", "unpack_range"]


def _piece(bits: int) -> int:
    """Codes at a time, so that little is taken beside the result; widths between bytes take 16 bytes a code."""
    return 1 << (15 if bits in (1, 2, 4, 8, 16) else 13)


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
    codes = np.asarray(codes)
    if codes.dtype.kind not in "iu":
        raise InputError(f"expected integer codes; received dtype={codes.dtype}")
    least, greatest = (int(codes.min()), int(codes.max())) if codes.size else (0, 0)
    if least < -(2 ** (bits - 1)) or greatest >= 2**bits:
        raise InputError(f"expected codes that fit {bits} bits; received {least} to {greatest}")
    if least < 0 and greatest >= 2 ** (bits - 1):
        raise InputError(f"expected codes all signed or all unsigned; received {least} to {greatest} for {bits} bits")
    packer = Packer(bits, np.empty(packed_nbytes(codes.size, bits), np.uint8))
    for piece in _pieces(codes, _piece(bits)):
        packer.add(piece)
    return packer.finish()


def _pieces(codes: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """The codes in C order, piece by piece."""
    if codes.flags.c_contiguous:
        codes = codes.reshape(-1)
    for box in boxes(codes.shape, size, (1,) * codes.ndim):
        yield codes[box].ravel()


def join(codes: np.ndarray, bits: int, out: np.ndarray) -> None:
    """Writes the bytes of a multiple of eight codes to `out`."""
    step = _piece(bits)
    for start in range(0, codes.size, step):
        end = min(start + step, codes.size)
        _join(codes[start:end], bits, out[start * bits // 8 : end * bits // 8])


def _join(codes: np.ndarray, bits: int, out: np.ndarray) -> None:
    if bits == 16:
        out[:] = codes.astype("<u2").view(np.uint8)
        return
    if bits > 8:
        pairs = codes.astype("<u2").view(np.uint8).reshape(-1, 2)
        out[:] = np.packbits(np.unpackbits(pairs, axis=1, bitorder="little")[:, :bits].ravel(), bitorder="little")
        return
    small = codes.view(np.uint8) if codes.dtype.itemsize == 1 and codes.flags.c_contiguous else codes.astype(np.uint8)
    if bits == 8:
        out[:] = small
    elif bits == 4:
        pairs = np.bitwise_and(small.view("<u2"), np.uint16(0x0F0F))
        np.bitwise_or(pairs, pairs >> np.uint16(4), out=pairs)
        np.copyto(out, pairs, casting="unsafe")
    elif bits == 2:
        fours = np.bitwise_and(small.view("<u4"), np.uint32(0x03030303))  # 000000dd 000000cc 000000bb 000000aa
        np.bitwise_or(fours, fours >> np.uint32(6), out=fours)
        np.bitwise_or(fours, fours >> np.uint32(12), out=fours)
        np.copyto(out, fours, casting="unsafe")
    elif bits == 1:
        out[:] = np.packbits(small & np.uint8(1), bitorder="little")
    else:  # eight codes make exactly `bits` bytes: joined in a 64-bit word, they are its low bytes
        words = (small & np.uint8(2**bits - 1)).reshape(-1, 8).astype(np.uint64)
        joined = np.bitwise_or.reduce(words << _shifts(bits), axis=1).astype("<u8")
        out.reshape(-1, bits)[:] = joined.view(np.uint8).reshape(-1, 8)[:, :bits]


class Packer:
    """Packs codes that come piece by piece, in the layout of this module.

    Args:
        bits: 1 to 16.
        out: uint8 array for all bytes.
        join: writes the bytes of a multiple of eight codes to its last argument.

    Example:
        >>> packer = Packer(4, np.empty(2, np.uint8))
        >>> packer.add(np.array([1], np.int8))
        >>> packer.add(np.array([-1, 7], np.int8))
        >>> packer.finish().tolist()
        [241, 7]
    """

    def __init__(self, bits: int, out: np.ndarray, join: Callable[[np.ndarray, int, np.ndarray], None] = join) -> None:
        _check(bits)
        self._bits, self._out, self._done, self._join = bits, out, 0, join
        self._kept: np.ndarray = np.empty(0, np.uint16)

    def add(self, codes: np.ndarray) -> None:
        """Takes the next codes, a one-dimensional array of integers that fit."""
        if self._kept.size:  # eight codes end with a byte
            missing = 8 - self._kept.size
            self._kept = np.concatenate([self._kept, codes[:missing].astype(np.uint16)])
            if self._kept.size < 8:
                return
            self._write(self._kept)
            codes = codes[missing:]
        whole = codes.size - codes.size % 8
        self._write(codes[:whole])
        self._kept = codes[whole:].astype(np.uint16)

    def _write(self, codes: np.ndarray) -> None:
        count = codes.size // 8 * self._bits
        self._join(codes, self._bits, self._out[self._done : self._done + count])
        self._done += count

    def finish(self) -> np.ndarray:
        """All bytes."""
        rest = self._out.size - self._done
        if rest:
            last = np.zeros(8, np.uint16)
            last[: self._kept.size] = self._kept
            whole = np.empty(self._bits, np.uint8)
            join(last, self._bits, whole)
            self._out[self._done :] = whole[:rest]
        return self._out


def _separate(data: np.ndarray, bits: int) -> np.ndarray:
    """The codes, without sign, of `bits` bytes for each eight: the inverse of `join`."""
    if bits == 16:
        wide: np.ndarray = np.ascontiguousarray(data).view("<u2").astype(np.uint16)
        return wide
    if bits > 8:
        single = np.unpackbits(data, bitorder="little").reshape(-1, bits)
        widened = np.zeros((len(single), 16), np.uint8)
        widened[:, :bits] = single
        return np.packbits(widened, bitorder="little").view("<u2").astype(np.uint16)
    if bits == 8:
        return data
    if bits == 1:
        return np.unpackbits(data, bitorder="little")
    if bits == 2:
        fours = data.astype("<u4")
        fours |= fours << np.uint32(12)
        fours |= fours << np.uint32(6)
        fours &= np.uint32(0x03030303)
        return fours.view(np.uint8)
    if bits == 4:
        pairs = data.astype("<u2")
        pairs |= pairs << np.uint16(4)
        pairs &= np.uint16(0x0F0F)
        return pairs.view(np.uint8)
    words = np.zeros((data.size // bits, 8), np.uint8)
    words[:, :bits] = data.reshape(-1, bits)
    codes: np.ndarray = (words.view("<u8") >> _shifts(bits)).astype(np.uint8).ravel()
    codes &= np.uint8(2**bits - 1)
    return codes


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
    kind = np.dtype("uint8" if bits <= 8 else "uint16")
    codes = np.empty(count, kind)
    whole = count - count % 8
    step = _piece(bits)
    for start in range(0, whole, step):
        end = min(start + step, whole)
        codes[start:end] = _separate(data[start * bits // 8 : end * bits // 8], bits)
        _sign(codes[start:end], bits, signed)
    if whole < count:
        last = np.zeros(bits, np.uint8)
        last[: data.size - whole * bits // 8] = data[whole * bits // 8 :]
        codes[whole:] = _separate(last, bits)[: count - whole]
        _sign(codes[whole:], bits, signed)
    return codes.view(f"int{kind.itemsize * 8}" if signed else kind).reshape(shape)


def unpack_range(data: np.ndarray, bits: int, start: int, stop: int, *, signed: bool) -> np.ndarray:
    """Codes `start` to `stop` of packed ones, flat, without a look at the others.

    Example:
        >>> unpack_range(np.array([241, 7], np.uint8), 4, 1, 3, signed=True).tolist()
        [-1, 7]
    """
    first = start - start % 8  # eight codes begin with a byte, whatever their bits
    begin, count = first * bits // 8, stop - first
    return unpack(data[begin : begin + packed_nbytes(count, bits)], bits, (count,), signed=signed)[start - first :]


def _sign(codes: np.ndarray, bits: int, signed: bool) -> None:
    """Extends the sign bit, in place: two's complement of `bits` bits to that of the whole integer."""
    if signed and bits not in (8, 16):
        sign = codes.dtype.type(2 ** (bits - 1))
        np.bitwise_xor(codes, sign, out=codes)
        np.subtract(codes, sign, out=codes)
