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
_CHANNEL = 1024
"""Parameters as arrays, as Python's numbers and as text."""
_ARRAY, _RANGE = 2048, 48
"""One array among many, and the range of one of its channels, until all have been seen."""
_NUMBER, _ROW = 16, 160
"""An element as text, and a row while it is written."""
_BYTE, _VALUE, _LIST, _OBJECT, _QUOTE = 5, 80, 80, 240, 32
"""Of JSON: a byte of text, as a text of wide characters; a value; and what some values take more."""
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
        4144
    """
    size = sum(array.size for array in arrays)
    total = sum(array.nbytes for array in arrays) + size * _ELEMENT[operation]
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
    counted = dict.fromkeys(b'[{,:"', 0)
    flat = np.frombuffer(body, np.uint8)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        for code in counted:
            counted[code] += int(np.count_nonzero(chunk == code))
    lists, objects, commas, colons, quotes = counted.values()
    values = 1 + lists + objects + commas + colons
    return _BYTE * flat.size + _VALUE * values + _LIST * lists + _OBJECT * objects + _QUOTE * quotes
