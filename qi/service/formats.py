"""Arrays on the wire: which bytes a media type stands for, and which of them a client wants back.

Every format is one entry of `FORMATS`; what a client may send and receive besides JSON follows from it.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qi.errors import FileFormatError, UnsupportedError
from qi.optional import DISTRIBUTION, require
from qi.registry import Registry
from qi.service.npy import MAX_ELEMENTS, MAX_NDIM, check_shape, npy_parts, plain, read_npy
from qi.service.problems import Problem
from qi.typing import Shape

__all__ = [
    "ARROW", "FORMATS", "JSON", "MAX_CHANNELS", "MULTIPART", "NPY", "SAFETENSORS", "ArrayResponse", "Format", "Limits",
    "PartsResponse", "available", "format_of", "media_type_of", "negotiate",
]  # fmt: skip

JSON = "application/json"
MULTIPART = "multipart/form-data"
NPY = "application/x-npy"
SAFETENSORS = "application/x-safetensors"
ARROW = "application/vnd.apache.arrow.tensor"

Parts = Sequence[bytes | memoryview]
"""What to send, one after the other; views of the array where it needs no copy."""

MAX_CHANNELS = 1 << 16
"""Channels of an array, if the operator sets no other limit."""

_MAX_ACCEPT = 100  # entries that are looked at
_MAX_HEADER = 4096
_FEW, _PIECE = 1 << 16, 1 << 20
_QUALITY = re.compile(r"\s*q\s*=\s*(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What an array may have.

    Attributes:
        max_elements: Elements, and the length of a dimension.
        max_ndim: Dimensions.
        max_channels: Channels with parameters of their own: hundreds of bytes each, and more in an answer.
    """

    max_elements: int = MAX_ELEMENTS
    max_ndim: int = MAX_NDIM
    max_channels: int = MAX_CHANNELS


@dataclass(frozen=True)
class Format:
    """A way to write one array as bytes.

    Attributes:
        media_type: What HTTP calls it.
        decode: Bytes to array; raises FileFormatError alone.
        encode: Array to bytes; raises UnsupportedError for a dtype that the format doesn't hold.
        module: The package that it needs, if any.
        extra: The extra of QI that installs it.
    """

    media_type: str
    decode: Callable[[bytes, Limits], np.ndarray]
    encode: Callable[[np.ndarray], Parts]
    module: str = ""
    extra: str = ""


FORMATS: Registry[Format] = Registry("array format")


def available() -> tuple[str, ...]:
    """The media types that can be used here, in alphabetical order."""
    return tuple(name for name, form in FORMATS.items() if not form.module or _installed(form.module))


def media_type_of(content_type: str | None) -> str:
    """The media type of a header, without parameters, in lower case; "" if there is none."""
    return (content_type or "").partition(";")[0].strip().lower()


def format_of(content_type: str | None) -> Format:
    """The format of a body.

    Raises:
        Problem: 415; it lists those that there are.

    Example:
        >>> format_of("Application/X-NPY; version=1").media_type
        'application/x-npy'
    """
    name = media_type_of(content_type)
    if name not in available():
        known = ", ".join((JSON, *available(), MULTIPART))
        raise Problem(
            415,
            f"expected a Content-Type among {known}; received {name[:100]!a}{_lacking([name])}",
            code="unsupported-media-type",
            headers={"Accept": known},
        )
    return FORMATS.get(name)


def negotiate(accept: str | None, offered: Sequence[str]) -> str:
    """The media type to answer with.

    Args:
        accept: The Accept header, with q values and wildcards; None or "" takes anything.
        offered: What there is, the preferred first.

    Raises:
        Problem: 406, if the client accepts none of them.

    Example:
        >>> negotiate("application/x-npy, application/json;q=0.5", ["application/json", "application/x-npy"])
        'application/x-npy'
        >>> negotiate("*/*", ["application/json", "application/x-npy"])
        'application/json'
    """
    if not (accept or "").strip():
        return offered[0]
    ranges = [_range(entry) for entry in (accept or "").split(",")[:_MAX_ACCEPT]]
    qualities = [_quality(name, ranges) for name in offered]
    if not max(qualities):
        raise Problem(
            406,
            f"expected an Accept header that takes one of {', '.join(offered)}; received another"
            f"{_lacking(name for name, _ in ranges)}",
            code="not-acceptable",
        )
    return offered[qualities.index(max(qualities))]


class PartsResponse(Response):
    """Bytes that are sent in pieces, so that no connection holds another copy of them; few bytes go as one.

    Args:
        parts: What to send.
        media_type: What it is.
        headers: Headers of the answer.
    """

    def __init__(self, parts: Parts, media_type: str, headers: Mapping[str, str] | None = None) -> None:
        self.parts = parts
        length = sum(len(part) for part in parts)
        super().__init__(None, 200, {**(headers or {}), "content-length": str(length)}, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        last = b""
        if sum(len(part) for part in self.parts) <= _FEW:
            last = b"".join(self.parts)
        else:
            for piece in self._pieces():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": last, "more_body": False})

    def _pieces(self) -> Iterator[memoryview]:
        for part in self.parts:
            view = memoryview(part)
            for start in range(0, len(view), _PIECE):
                yield view[start : start + _PIECE]


class ArrayResponse(PartsResponse):
    """An array as it lies in memory.

    Args:
        array: What to send.
        media_type: The name of a format.
        headers: Headers of the answer.

    Raises:
        UnsupportedError: The format doesn't hold the array's dtype.
    """

    def __init__(self, array: np.ndarray, media_type: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(FORMATS.get(media_type).encode(array), media_type, headers)


@functools.cache
def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _range(entry: str) -> tuple[str, float]:
    """A media range and its q; one that can't be read counts for nothing."""
    name, *params = entry.split(";")
    quality = 1.0
    for param in params:
        if param.strip().lower().startswith("q"):
            found = _QUALITY.fullmatch(param)
            quality = float(found[1]) if found else 0.0
    return name.strip().lower(), quality


def _lacking(names: Iterable[str]) -> str:
    """What has to be installed here for the first of these formats that could be used then."""
    for name in names:
        if name in FORMATS and name not in available():
            form = FORMATS.get(name)
            return (
                f"; do: pip install '{DISTRIBUTION}[{form.extra}]' where the service runs, for it needs {form.module}"
            )
    return ""


def _quality(name: str, ranges: Iterable[tuple[str, float]]) -> float:
    """The q of the most specific range that matches."""
    order = {"*/*": 0, f"{name.partition('/')[0]}/*": 1, name: 2}
    matching = [(order[text], q) for text, q in ranges if text in order]
    return max(matching)[1] if matching else 0.0


def _decode_npy(data: bytes, limits: Limits) -> np.ndarray:
    return read_npy(data, max_elements=limits.max_elements, max_ndim=limits.max_ndim)


_DTYPES = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8",
    "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_NAMES = {descr: name for name, descr in _DTYPES.items()}


def _decode_safetensors(data: bytes, limits: Limits) -> np.ndarray:
    """The tensor of a .safetensors file that holds one, under any name."""
    (length,) = struct.unpack("<Q", data[:8]) if len(data) >= 8 else (0,)
    if not 0 < length <= min(_MAX_HEADER, len(data) - 8):
        raise FileFormatError("expected a .safetensors file with a short header; received other bytes")
    start = 8 + length
    dtype, shape = _tensor(data[8:start])
    check_shape(shape, max_elements=limits.max_elements, max_ndim=limits.max_ndim)
    expected = math.prod(shape) * dtype.itemsize
    if len(data) - start != expected:
        raise FileFormatError(
            f"expected {expected} bytes for shape={shape} and dtype={dtype}; received {len(data) - start}"
        )
    return plain((np.frombuffer(data, dtype, offset=start) if expected else np.empty(0, dtype)).reshape(shape))


def _tensor(header: bytes) -> tuple[np.dtype, Shape]:
    """The dtype and the shape of the one tensor that a header states; its place is the rest of the file."""
    try:
        found = orjson.loads(header)
    except ValueError:
        found = None
    entries = [v for k, v in found.items() if k != "__metadata__"] if isinstance(found, dict) else []
    if len(entries) != 1 or not isinstance(entries[0], dict):
        raise FileFormatError(f"expected a header with one tensor; received {len(entries)}")
    name, shape, offsets = (entries[0].get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(name, str) or name not in _DTYPES:
        raise FileFormatError(f"expected a dtype among {', '.join(_DTYPES)}; received {str(name)[:20]!a}")
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        raise FileFormatError("expected a shape of whole numbers; received another")
    dtype = np.dtype(_DTYPES[name])
    if offsets != [0, math.prod(shape) * dtype.itemsize]:
        raise FileFormatError("expected offsets that fit the shape; received others")
    return dtype, tuple(shape)


def _encode_safetensors(array: np.ndarray) -> Parts:
    descr = array.dtype.newbyteorder("<").str
    if descr not in _NAMES:
        raise UnsupportedError(f"expected real numbers of at most 8 bytes; received dtype={array.dtype}")
    flat = np.ascontiguousarray(array, descr).reshape(-1).view(np.uint8)
    entry = {"dtype": _NAMES[descr], "shape": list(array.shape), "data_offsets": [0, flat.size]}
    text = orjson.dumps({"data": entry})
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, flat.data


def _decode_arrow(data: bytes, limits: Limits) -> np.ndarray:
    """An Arrow tensor message. Its strides may repeat bytes, so that a short body could stand for a huge array."""
    arrow = require("pyarrow", extra="arrow", feature="the Arrow tensor format")
    try:
        tensor = arrow.ipc.read_tensor(arrow.py_buffer(data))
        check_shape(tuple(tensor.shape), max_elements=limits.max_elements, max_ndim=limits.max_ndim)
        if not tensor.is_contiguous:
            raise FileFormatError("expected a tensor in C or Fortran order; received other strides")
        array = tensor.to_numpy()
    except FileFormatError:
        raise
    except (arrow.ArrowException, ValueError, OSError, NotImplementedError, MemoryError) as error:
        raise FileFormatError("expected an Arrow tensor message; received other bytes") from error
    if array.dtype.kind not in "fiub" or array.nbytes > len(data):
        raise FileFormatError(f"expected real numbers of at most 8 bytes; received dtype={array.dtype}")
    return plain(array)


def _encode_arrow(array: np.ndarray) -> Parts:
    arrow = require("pyarrow", extra="arrow", feature="the Arrow tensor format")
    sink = arrow.BufferOutputStream()
    try:
        native = np.require(array, array.dtype.newbyteorder("="), "C")
        arrow.ipc.write_tensor(arrow.Tensor.from_numpy(native), sink)
    except arrow.ArrowException as error:
        raise UnsupportedError(f"expected numbers that an Arrow tensor holds; received dtype={array.dtype}") from error
    return (memoryview(sink.getvalue()).cast("B"),)


for _format in (
    Format(NPY, _decode_npy, npy_parts),
    Format(SAFETENSORS, _decode_safetensors, _encode_safetensors),
    Format("application/vnd.safetensors", _decode_safetensors, _encode_safetensors),
    Format(ARROW, _decode_arrow, _encode_arrow, module="pyarrow", extra="arrow"),
):
    FORMATS.register(_format.media_type)(_format)
