"""The `.npy` format, read as if every byte were hostile.

`numpy.load` guesses what a file is, allocates what the header claims before it looks at the length, and fails with seven
kinds of exceptions. `read_npy` knows one format, looks at the bytes that are there, and fails with one.
"""

from __future__ import annotations

import math
import re
import struct

import numpy as np

from qi.errors import FileFormatError, UnsupportedError
from qi.typing import Shape

__all__ = ["MAX_ELEMENTS", "MAX_NDIM", "check_shape", "npy_parts", "plain", "read_npy", "write_npy"]

MAX_ELEMENTS = 64 << 20
"""Elements of an array, if the caller sets no other limit."""
MAX_NDIM = 8
"""Dimensions of an array, likewise."""

_MAGIC = b"\x93NUMPY"
_LENGTH = {b"\x01\x00": "<H", b"\x02\x00": "<I"}  # by version
_MAX_HEADER = 4096
_ITEM = re.compile(
    r"""\s*(?P<q>['"])(?P<key>descr|fortran_order|shape)(?P=q)\s*:\s*
    (?: (?P<p>['"])(?P<text>[^'"\\]{1,16})(?P=p) | (?P<flag>True|False) | \((?P<dims>[0-9,L\s]*)\) )
    \s*(?:,|(?=\}))""",
    re.VERBOSE,
)
_DIMS = re.compile(r"\s*(?:(?:[0-9]{1,20}L?\s*,\s*)+(?:[0-9]{1,20}L?\s*)?)?")  # (), (3,), (3, 4); Python 2 wrote 3L
_DESCR = re.compile(r"[<>](?:f[248]|[iu][1248]|b1)|\|(?:[iu]1|b1)")


def read_npy(
    data: bytes | bytearray | memoryview, *, max_elements: int = MAX_ELEMENTS, max_ndim: int = MAX_NDIM
) -> np.ndarray:
    """Reads the array of a `.npy` file.

    Args:
        data: The whole file; versions 1.0 and 2.0 of the format, real numbers of at most 8 bytes.
        max_elements: The most elements, and the longest dimension, it may have.
        max_ndim: The most dimensions.

    Returns:
        the array in native byte order and C order: a read-only view of `data` where these already are so.

    Raises:
        FileFormatError: It is anything else, has another length than its header says, or is above a limit.

    Example:
        >>> read_npy(write_npy(np.arange(3, dtype=">i2")))
        array([0, 1, 2], dtype=int16)
    """
    view = memoryview(data).cast("B")
    start, header = _header(view)
    dtype, fortran, shape = _described(header)
    check_shape(shape, max_elements=max_elements, max_ndim=max_ndim)
    expected = math.prod(shape) * dtype.itemsize
    if len(view) - start != expected:
        raise FileFormatError(
            f"expected {expected} bytes after the header, for shape={shape} and dtype={dtype}; "
            f"received {len(view) - start}"
        )
    flat = np.frombuffer(view, dtype, count=math.prod(shape), offset=start) if expected else np.empty(0, dtype)
    return plain(flat.reshape(shape, order="F" if fortran else "C"))


def write_npy(array: np.ndarray) -> bytes:
    """The bytes of a `.npy` file, version 1.0, little-endian, C order.

    Args:
        array: Real numbers of a dtype that `read_npy` takes; any shape of up to 32 dimensions.

    Raises:
        UnsupportedError: It is of another dtype.
    """
    return b"".join(npy_parts(array))


def npy_parts(array: np.ndarray) -> tuple[bytes, memoryview]:
    """The header and the data of a `.npy` file; the data aren't copied where the array is little-endian in C order.

    Raises:
        UnsupportedError: The array isn't of real numbers of at most 8 bytes.
    """
    descr = array.dtype.newbyteorder("<").str
    if not _DESCR.fullmatch(descr):
        raise UnsupportedError(f"expected real numbers of at most 8 bytes; received dtype={array.dtype}")
    shape = f"({', '.join(map(str, array.shape))}{',' if array.ndim == 1 else ''})"
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    pad = -(len(_MAGIC) + 4 + len(header) + 1) % 64  # the data start at a multiple of 64
    text = header.encode("ascii") + b" " * pad + b"\n"
    flat = np.ascontiguousarray(array, dtype=descr).reshape(-1)
    return _MAGIC + b"\x01\x00" + struct.pack("<H", len(text)) + text, flat.view(np.uint8).data


def check_shape(shape: Shape, *, max_elements: int = MAX_ELEMENTS, max_ndim: int = MAX_NDIM) -> None:
    """Refuses a shape above a limit. A dimension of length 0 doesn't hide the others.

    Args:
        shape: Lengths of at least 0.
        max_elements: The most elements, with 1 in the place of 0.
        max_ndim: The most dimensions.

    Raises:
        FileFormatError: It is above one.
    """
    if len(shape) > max_ndim:
        raise FileFormatError(f"expected at most {max_ndim} dimensions; received {len(shape)}")
    if math.prod(max(length, 1) for length in shape) > max_elements:
        raise FileFormatError(f"expected at most {max_elements} elements; received shape={shape}")


def _header(view: memoryview) -> tuple[int, str]:
    """Where the data start, and the text before them."""
    if bytes(view[:6]) != _MAGIC:
        raise FileFormatError("expected a .npy file; received bytes that don't start as one does")
    version = bytes(view[6:8])
    if version not in _LENGTH:
        raise FileFormatError(f"expected version 1.0 or 2.0 of the .npy format; received {tuple(version)}")
    prefix = _LENGTH[version]
    start = 8 + struct.calcsize(prefix)
    if len(view) < start:
        raise FileFormatError(f"expected a header; received a file of {len(view)} bytes")
    (length,) = struct.unpack(prefix, view[8:start])
    if length > _MAX_HEADER or len(view) < start + length:
        raise FileFormatError(
            f"expected a header of at most {min(_MAX_HEADER, len(view) - start)} bytes; received one of {length}"
        )
    return start + length, bytes(view[start : start + length]).decode("latin-1")


def _described(header: str) -> tuple[np.dtype, bool, Shape]:
    """The dtype, whether in Fortran order, and the shape that a header states."""
    text = header.strip()
    found: dict[str, re.Match[str]] = {}
    at = 1
    while text[:1] == "{" and (item := _ITEM.match(text, at)) and item["key"] not in found:
        found[item["key"]] = item
        at = item.end()
    if len(found) != 3 or text[at:].strip() != "}":
        raise FileFormatError("expected a header with descr, fortran_order and shape; received another")
    descr, flag, dims = found["descr"]["text"], found["fortran_order"]["flag"], found["shape"]["dims"]
    if descr is None or not _DESCR.fullmatch(descr):
        received = f"{descr!a}" if descr else "no plain dtype"
        raise FileFormatError(f"expected floats, integers or booleans of at most 8 bytes; received {received}")
    if flag is None or dims is None or not _DIMS.fullmatch(dims):
        raise FileFormatError("expected fortran_order=True or False and a shape of lengths; received others")
    shape = tuple(int(length) for length in dims.replace("L", "").split(",") if length.strip())
    return np.dtype(descr), flag == "True", shape


def plain(array: np.ndarray) -> np.ndarray:
    """The array as the arithmetic wants it: in native byte order and C order, aligned, read-only.

    Args:
        array: Real numbers or booleans; copied where it is anything else.
    """
    if array.dtype.kind == "b":
        array = np.asarray(array.view(np.uint8) != 0)  # a byte of 2 would be neither True nor False
    native = array.dtype.newbyteorder("=")
    result = np.require(array, native, ["C", "A"])
    result.flags.writeable = False
    return result
