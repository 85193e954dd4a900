"""The Open Inference Protocol as a client speaks it: arrays into the body of a request, and out of that of an answer.

A body is a JSON header, after which the raw bytes of the tensors follow, little-endian and row by row; the HTTP header
`HEADER_LENGTH` says where the former ends. `qi.service.oip` is the other side.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from qi.errors import FileFormatError, UnsupportedError

__all__ = [
    "DATATYPES",
    "HEADER_LENGTH",
    "array_of",
    "bytes_of",
    "datatype_of",
    "decode_response",
    "encode_request",
    "padded",
]

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The HTTP header with the length of the JSON in a body that goes on in binary."""

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""The protocol's datatypes, less BYTES, which are no numbers."""

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a numpy dtype.

    Raises:
        UnsupportedError: It has none.

    Example:
        >>> datatype_of(np.dtype("float32")), datatype_of(np.dtype(">i2"))
        ('FP32', 'INT16')
    """
    try:
        return _NAMES[dtype.newbyteorder("<")]
    except KeyError:
        known = [str(each) for each in DATATYPES.values()]
        raise UnsupportedError(f"expected a dtype of {known}; received dtype={dtype}") from None


def bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of an array as they are sent: a view of it, unless order or byte order are others."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


def array_of(raw: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """The array that bytes are; a view of them where they lie as the processor wants them.

    Args:
        raw: As many bytes as the shape asks for.
        dtype: One of `DATATYPES`.
        shape: Any.
    """
    if not raw.nbytes:
        return np.empty(shape, dtype)
    if dtype.kind == "b":  # whatever isn't 0 is true
        return np.asarray(np.frombuffer(raw, np.uint8).reshape(shape) != 0)
    return np.require(np.frombuffer(raw, dtype).reshape(shape), dtype.newbyteorder("="), ["A"])


def padded(header: bytes) -> bytes:
    """A JSON header of a length that lets what follows lie as a processor wants it."""
    return header + b" " * (-len(header) % 16)


def encode_request(
    inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Any] | None = None
) -> tuple[list[bytes | memoryview], int]:
    """Writes a request that wants its answer in binary, too.

    Args:
        inputs: Arrays by name.
        parameters: The request's own; JSON.

    Returns:
        (body in pieces, length of its JSON, which is the first of them).

    Raises:
        UnsupportedError: An array's dtype has no name in the protocol.

    Example:
        >>> parts, length = encode_request({"x": np.int8([1, 2])})
        >>> json.loads(parts[0])["inputs"]
        [{'name': 'x', 'shape': [2], 'datatype': 'INT8', 'parameters': {'binary_data_size': 2}}]
        >>> bytes(parts[1]).hex(), length == len(parts[0])
        ('0102', True)
    """
    described = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": datatype_of(array.dtype),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in inputs.items()
    ]
    own = {"binary_data_output": True, **(parameters or {})}
    header = padded(json.dumps({"parameters": own, "inputs": described}, separators=(",", ":")).encode())
    return [header, *(bytes_of(array) for array in inputs.values())], len(header)


def decode_response(body: bytes | bytearray, header_length: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads an answer in binary.

    Args:
        body: All of it.
        header_length: The value of the HTTP header `HEADER_LENGTH`.

    Returns:
        (arrays by name, views of the body where they can be; the answer's parameters).

    Raises:
        FileFormatError: It isn't one.
    """
    try:
        header = json.loads(body[:header_length])
        start, arrays = header_length, {}
        for output in header["outputs"]:
            dtype, shape = DATATYPES[output["datatype"]], output["shape"]
            end = start + output["parameters"]["binary_data_size"]
            if end - start != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{end - start} bytes of shape {shape}")
            if end > len(body):
                raise ValueError(f"{len(body)} bytes instead of {end}")
            arrays[output["name"]] = array_of(memoryview(body)[start:end], dtype, tuple(shape))
            start = end
        if start != len(body):
            raise ValueError(f"{len(body) - start} bytes too many")
        return arrays, dict(header.get("parameters", {}))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise FileFormatError(
            f"expected an answer of the Open Inference Protocol; received other bytes: {error}"
        ) from error
