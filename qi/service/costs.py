"""What requests will take of memory, from what is known before the work: upper bounds, by measurement.

Bytes of temporary memory for each element, channel, or value of JSON; what a body itself takes is not among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qi.service.formats import JSON
from qi.typing import Shape

__all__ = ["json_bytes", "parsed_bytes", "work_bytes"]

_ELEMENT = {"quantize": 12, "dequantize": 16, "quantize_dequantize": 16, "calibrate": 12, "compute_params": 12}
"""Results and temporary arrays, by operation."""
_CALL = 1 << 19
"""Blocks that arrays are worked on in, whatever their size."""
_CHANNEL = 1024
"""Parameters as arrays, as Python's numbers and as text."""
_ARRAY, _RANGE = 2048, 48
"""One array among many, and the range of one of its channels, until all have been seen."""
_NUMBER, _ROW = 24, 160
"""An element as text, and a row while it is written."""
_NARROW, _WIDE = 3, 18
"""A byte of JSON: one wide character makes a text as wide, and Python takes more while it finds that out."""
_VALUE, _QUOTE = 112, 32
"""A value of JSON on its way to an array, and what a text takes more at each end."""
_CHUNK = 1 << 20


def work_bytes(operation: str, arrays: Sequence[np.ndarray], *, media_type: str = JSON, channels: int = 1) -> int:
    """What an operation takes, its answer included.

    Args:
        operation: "quantize", "dequantize", "quantize_dequantize", "calibrate" or "compute_params".
        arrays: Its input.
        media_type: Of the answer; numbers in JSON are longer.
        channels: How many have their own parameters.

    Example:
        >>> work_bytes("quantize", [np.zeros((8, 8), np.float32)], media_type="application/x-npy")
        528432
    """
    size = sum(array.size for array in arrays)
    total = _CALL + sum(array.nbytes for array in arrays) + size * _ELEMENT[operation]
    total += channels * _CHANNEL + len(arrays) * (_ARRAY + channels * _RANGE)
    if media_type == JSON and operation not in ("calibrate", "compute_params"):
        total += sum(json_bytes(array.shape) for array in arrays)
    return total


def json_bytes(shape: Shape) -> int:
    """What writing an array as nested lists takes."""
    rows = sum(math.prod(shape[:depth]) for depth in range(len(shape)))
    return _NUMBER * math.prod(shape) + _ROW * rows


def parsed_bytes(body: bytes | memoryview) -> int:
    """What the values of a body in JSON take while they are read, whatever they are.

    Values are counted by the characters around them, which cost a thousandth of their parsing.

    Example:
        >>> parsed_bytes(b"[[],[],[]]") > 3 * parsed_bytes(b"[123456789]")
        True
    """
    flat = np.frombuffer(body, np.uint8)
    values, quotes, wide = 1, 0, False
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        values += sum(_count(chunk, mark) for mark in b"[{,:")
        quotes += _count(chunk, b'"'[0])
        wide = wide or bool(chunk.max() > 127) or b"\\"[0] in chunk
    return (_WIDE if wide else _NARROW) * flat.size + _VALUE * values + _QUOTE * quotes


def _count(chunk: np.ndarray, code: int) -> int:
    return int(np.count_nonzero(chunk == code))
