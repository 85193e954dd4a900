"""The Open Inference Protocol's bodies: JSON, and its binary extension, to named arrays and back.

A body is a JSON header, after which the raw bytes (little-endian, row by row) of those tensors follow that have a
``binary_data_size``; the HTTP header `qi.service.wire.HEADER_LENGTH` then says where the former ends. Pure functions: what
is asked for, and of whom, is the business of `qi.service.oip_routes`.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from qi.errors import InputError, UnsupportedError
from qi.registry import suggest
from qi.service.wire import DATATYPES, HEADER_LENGTH, array_of, bytes_of, datatype_of, padded

__all__ = ["MAX_HEADER", "InferRequest", "decode_request", "encode_response"]

MAX_HEADER = 1 << 20
"""Bytes of JSON before binary data, at most: what describes tensors is short."""

MAX_TENSORS = 16

_SHARED_MEMORY = "shared_memory_region"
_MAX_NESTED = 32


@dataclass(frozen=True, eq=False)
class InferRequest:
    """What a body asks for.

    Attributes:
        inputs: Arrays by name; read-only views of the body where they came in binary.
        parameters: The request's own.
        id: To be sent back.
        outputs: The outputs asked for, each with whether it is wanted in binary; None: all.
        binary: Whether outputs are wanted in binary that don't say so themselves.
    """

    inputs: Mapping[str, np.ndarray]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    outputs: Mapping[str, bool] | None = None
    binary: bool = False

    def wanted(self, available: Sequence[str]) -> dict[str, bool]:
        """The outputs to send, in order, and whether in binary.

        Raises:
            InputError: One is asked for that there isn't.
        """
        if self.outputs is None:
            return dict.fromkeys(available, self.binary)
        for name in self.outputs:
            if name not in available:
                hint = suggest(name, available)
                raise InputError(f"expected outputs of {list(available)}; received {reprlib.repr(name)}.{hint}")
        return dict(self.outputs)


def decode_request(
    body: bytes, header_length: int | None = None, *, max_elements: int = 1 << 26, max_ndim: int = 8
) -> InferRequest:
    """Reads the body of an inference request.

    Args:
        body: All of it.
        header_length: The value of the HTTP header `qi.service.wire.HEADER_LENGTH`; None: the body is JSON alone.
        max_elements: Most numbers that all tensors together may have.
        max_ndim: Most dimensions that one may have.

    Returns:
        The request.

    Raises:
        InputError: It isn't what it claims to be, or too large.
        UnsupportedError: It asks for what isn't offered: texts, shared memory.

    Example:
        >>> body = b'{"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2.5]}]}'
        >>> decode_request(body).inputs["x"].tolist()
        [1.0, 2.5]
    """
    if header_length is not None and not 0 <= header_length <= min(len(body), MAX_HEADER):
        raise InputError(f"expected {HEADER_LENGTH} from 0 to {min(len(body), MAX_HEADER)}; received {header_length}")
    end = len(body) if header_length is None else header_length
    view = memoryview(body)
    header = _object("the request", _json(view[:end]))
    parameters = _parameters(header)
    given = header.get("id")
    if given is not None and not isinstance(given, str):
        raise InputError(f"expected id to be text; received id={reprlib.repr(given)}")
    binary = bool(parameters.get("binary_data_output", False))
    inputs = _inputs(header.get("inputs"), view[end:], max_elements, max_ndim)
    return InferRequest(inputs, parameters, given, _outputs(header.get("outputs"), binary), binary)


def encode_response(
    model: str,
    version: str,
    outputs: Mapping[str, np.ndarray],
    request: InferRequest,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[list[bytes | memoryview], int | None]:
    """Writes the body of an answer.

    Args:
        model: The model's name.
        version: Its version.
        outputs: All outputs there are, by name; those that were asked for are sent.
        request: What was asked for.
        parameters: The answer's own.

    Returns:
        (body in pieces, length of its JSON); the latter is None where there is nothing but JSON.

    Raises:
        InputError: An output is asked for that there isn't.
        UnsupportedError: An output's dtype has no name in the protocol.

    Example:
        >>> encode_response("m", "1", {"q": np.int8([1, -2])}, InferRequest({}))
        ([b'{"model_name":"m","model_version":"1","outputs":[{"name":"q","datatype":"INT8","shape":[2],"data":[1,-2]}]}'],
        None)
    """
    described: list[dict[str, Any]] = []
    parts: list[bytes | memoryview] = []
    for name, binary in request.wanted(list(outputs)).items():
        array = outputs[name]
        tensor: dict[str, Any] = {"name": name, "datatype": datatype_of(array.dtype), "shape": list(array.shape)}
        if binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            parts.append(bytes_of(array))
        else:
            tensor["data"] = array.ravel() if array.dtype.kind in "iub" else array.ravel().astype(np.float64)
        described.append(tensor)
    header: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        header["id"] = request.id
    if parameters:
        header["parameters"] = dict(parameters)
    text = orjson.dumps({**header, "outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)
    if not parts:
        return [text], None
    text = padded(text)
    return [text, *parts], len(text)


# How it is done.


def _json(text: memoryview) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if not text:
            raise InputError('expected JSON; received an empty body; do: send {"inputs": [...]}') from None
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"expected JSON; received what is none: {error.msg} at {where}") from None


def _object(what: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"expected {what} to be an object; received {reprlib.repr(value)}")
    return value


def _parameters(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of a request or tensor; some clients write null for none."""
    found = value.get("parameters")
    return {} if found is None else _object("parameters", found)


def _named(what: str, values: Any) -> dict[str, Mapping[str, Any]]:
    """A list of objects with a name each, by their names."""
    if not isinstance(values, list) or len(values) > MAX_TENSORS:
        raise InputError(f"expected {what} to be a list of at most {MAX_TENSORS}; received {reprlib.repr(values)}")
    named: dict[str, Mapping[str, Any]] = {}
    for value in values:
        name = _object(f"each of {what}", value).get("name")
        if not isinstance(name, str) or name in named:
            raise InputError(f"expected {what} with names of their own; received name={reprlib.repr(name)}")
        if _SHARED_MEMORY in _parameters(value):
            raise UnsupportedError(f"expected {what} within the body; received {_SHARED_MEMORY}")
        named[name] = value
    return named


def _outputs(values: Any, binary: bool) -> dict[str, bool] | None:
    if not values and values in (None, []):
        return None
    return {
        name: bool(_parameters(value).get("binary_data", binary)) for name, value in _named("outputs", values).items()
    }


def _inputs(values: Any, rest: memoryview, max_elements: int, max_ndim: int) -> dict[str, np.ndarray]:
    """The arrays of a request; `rest` is what follows its JSON, and has to be used up."""
    arrays: dict[str, np.ndarray] = {}
    start = 0
    for name, value in _named("inputs", values).items():
        dtype = _dtype(value.get("datatype"))
        shape = _shape(value.get("shape"), max_elements, max_ndim)
        count = math.prod(shape)
        max_elements -= count
        size = _parameters(value).get("binary_data_size")
        if size is None:
            arrays[name] = _from_list(name, value.get("data"), dtype, shape)
            continue
        expected = count * dtype.itemsize
        if isinstance(size, bool) or not isinstance(size, int) or size != expected or value.get("data") is not None:
            raise InputError(
                f"expected binary_data_size={expected} of input {reprlib.repr(name)}, of shape {list(shape)}, "
                f"and no data beside it; received {reprlib.repr(size)}"
            )
        if len(rest) - start < size:
            raise InputError(f"expected {size} bytes of input {reprlib.repr(name)}; received {len(rest) - start}")
        arrays[name] = array_of(rest[start : start + size], dtype, shape)
        start += size
    if start != len(rest):
        raise InputError(f"expected {start} bytes after the JSON; received {len(rest)}")
    return arrays


def _dtype(datatype: Any) -> np.dtype[Any]:
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        hint = suggest(datatype, DATATYPES) if isinstance(datatype, str) else ""
        raise UnsupportedError(
            f"expected a datatype of {list(DATATYPES)}; received datatype={reprlib.repr(datatype)}.{hint}"
        )
    return DATATYPES[datatype]


def _shape(shape: Any, max_elements: int, max_ndim: int) -> tuple[int, ...]:
    """A checked shape, every dimension of which is within the limit, too: (0, 10**18) is no honest one."""
    if not isinstance(shape, list) or len(shape) > max_ndim:
        raise InputError(f"expected a shape of at most {max_ndim} dimensions; received {reprlib.repr(shape)}")
    for size in shape:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= max_elements:
            raise InputError(f"expected dimensions from 0 to {max_elements}; received shape={reprlib.repr(shape)}")
    if math.prod(shape) > max_elements:
        raise InputError(f"expected at most {max_elements} numbers; received shape={reprlib.repr(shape)}")
    return tuple(shape)


def _kinds(values: list[Any]) -> set[type]:
    """The kinds of what lists in lists hold; `list` is one of them where they are too deep for an array."""
    level, found = values, set[type]()
    for _ in range(_MAX_NESTED):
        kinds = set(map(type, level))
        found |= kinds - {list}
        if list not in kinds:
            return found
        level = [one for inner in level if type(inner) is list for one in inner]
    return found | {list}


def _from_list(name: str, data: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """An array of numbers that were written as text, flat or in the array's own shape."""
    what = f"data of input {reprlib.repr(name)}"
    if not isinstance(data, list):
        raise InputError(f"expected {what} to be a list, or binary; received {type(data).__name__}")
    if not _kinds(data) <= {int, float, bool}:  # numpy would make every number as wide as the longest text
        raise InputError(f"expected {what} to be of {datatype_of(dtype)}; received others")
    try:
        raw = np.asarray(data)
    except (ValueError, OverflowError):  # rows of different lengths, or too deep
        raise InputError(f"expected {what} in rows of one length; received others") from None
    kinds = {"b": "b", "i": "iu", "u": "iu"}.get(dtype.kind, "iuf")
    if raw.size and raw.dtype.kind not in kinds:
        raise InputError(f"expected {what} to be of {datatype_of(dtype)}; received others")
    if raw.shape != shape and raw.shape != (math.prod(shape),):
        raise InputError(f"expected {what} of shape {list(shape)}, or flat; received {list(raw.shape)}")
    if raw.size and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if raw.min() < limits.min or raw.max() > limits.max:
            raise InputError(f"expected {what} from {limits.min} to {limits.max}; received others")
    with np.errstate(over="ignore"):  # infinity, which the quantizer judges
        return raw.astype(dtype).reshape(shape)
