"""Generated requests made into ones that the service must accept.

A schema can't say that rows have one length, that codes are whole numbers of a type, or which parameters go together; what it
leaves open is decided here, by numbers that follow from the request itself. What was generated to break the schema stays.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orjson

from qi.engine import QuantizationConfig, Quantizer
from qi.service.formats import FORMATS
from qi.service.npy import write_npy

INSTANCES: dict[str, dict[str, Any]] = {
    "int8": {},
    "int4": {"quantization_type": "INT4", "quantization_mode": "SYMMETRIC"},
    "uint8.channels": {"quantization_type": "UINT8", "per_channel": True},
    "int16": {"quantization_type": "INT16", "use_percentile": True},
    "halves": {"quantization_type": "FLOAT16"},
    "plain": {"quantization_type": "NONE"},
    "layers": {"enable_mixed_precision": True, "mixed_precision_layers": ["a"], "skip_layers": ["b/c"]},
    **{f"spare-{number}": {} for number in range(40)},
}
"""Instances that are there, with their configurations; the spare ones are to be deleted."""

_CHANNELS = ("uint8.channels",)  # what they remember is for arrays of as many channels
_UNFIT = {
    "calibrate": ("halves", "plain"),
    "dequantize": _CHANNELS,
    "upload_numpy": _CHANNELS,
    "infer": _CHANNELS,
}
_TYPES = ("INT8", "UINT8", "INT16", "UINT16", "INT4", "FLOAT16", "NONE", "MIXED")
_MODES = ("DYNAMIC", "SYMMETRIC", "ASYMMETRIC")
_SHAPES: tuple[Callable[[int], tuple[int, ...]], ...] = (
    lambda n: (n,),
    lambda n: (1, n),
    lambda n: (n, 1),
    lambda n: (1, 1, n),
    lambda n: (n, 1, 1, 1),
)


def mend(case: Any, pick: random.Random, *, paths: bool = True) -> dict[str, Any]:
    """Changes a case of schemathesis where it wasn't made to break the schema.

    Args:
        case: The request.
        pick: Decides.
        paths: Whether its path may change.

    Returns:
        arguments of its `call`: a body that is no JSON, and in a form a file that has a name.
    """
    meta = case.meta
    broken = {at.name for at in meta.components if meta.is_negative_at(at)}
    if meta.generation.mode.is_negative:
        mutations = getattr(meta.phase.data, "mutations", ())
        found = (meta.phase.data.parameter_location, *(mutation.parameter_location for mutation in mutations))
        broken |= {at.name for at in found if at}
    parts = {"PATH", "HEADER", "QUERY", "BODY"} - broken
    if paths and "PATH" in parts and case.path_parameters:
        case.path_parameters = _path(case.path_parameters, case.path, case.method, pick)
    if "HEADER" in parts and "if-match" in case.headers:
        case.headers["if-match"] = "*"
    if "QUERY" in parts and case.query:
        case.query = _query(case.query, case.path, pick)
    if "BODY" in parts and case.media_type:
        if case.media_type == "multipart/form-data":
            return {"files": {"file": ("x.npy", write_npy(_array(pick)))}}
        if case.media_type != "application/json":
            return {"data": _bytes(case.media_type, pick), "headers": {"Content-Type": case.media_type}}
        case.body = _body(case.body, case.path, pick, rank=int("channel_dim" in (case.query or {})))
    return {}


def _path(values: dict[str, Any], path: str, method: str, pick: random.Random) -> dict[str, Any]:
    unfit = _UNFIT.get(path.rpartition("/")[2], ())
    names = [name for name in INSTANCES if name not in unfit and "spare" not in name]
    if path == "/instances/{instance_id}":
        names = (
            [name for name in INSTANCES if "spare" in name] if method == "DELETE" else [f"New.{pick.randrange(10**9)}"]
        )
    return {name: pick.choice(names) if name in ("instance_id", "model") else value for name, value in values.items()}


def _query(values: dict[str, Any], path: str, pick: random.Random) -> dict[str, Any]:
    values = dict(values)
    if path.endswith("/upload_numpy"):
        values["operation"] = pick.choice(("quantize", "dequantize", "quantize_dequantize"))
    return _fitting(values, 1)


def _bytes(media_type: str, pick: random.Random) -> bytes:
    if media_type in FORMATS.names():
        array = _array(pick)
        return b"".join(FORMATS.get(media_type).encode(array.astype(array.dtype.newbyteorder("="))))
    return orjson.dumps(_inference({}, pick))


def _body(body: Any, path: str, pick: random.Random, rank: int) -> Any:
    operation = path.rpartition("/")[2]
    if operation == "infer":
        return _inference(body, pick)
    if operation == "parameters":
        return {"parameters": _exported(pick)}
    if operation == "config" or path == "/instances/{instance_id}":
        return _config(body, pick)
    whole = operation == "dequantize"
    if operation == "calibrate":
        rows = _rows(body["data"][:1], whole, pick) or [1.5]
        return _fitting({**body, "data": [rows] * len(body["data"][:5])}, 1)
    rows = _rows(body["data"], whole, pick)
    rows = [rows] if rank > np.ndim(rows) else rows
    return _fitting({**body, "data": rows}, np.ndim(rows))


def _array(pick: random.Random) -> np.ndarray:
    """Codes of every type, as numbers of any: 0 to 7."""
    shape = pick.choice(((2, 3), (4,), (1, 2, 1), (3, 1)))
    dtype = pick.choice(("f2", "f4", ">f8", "i1", "u1", "<i2", ">u4", "i8"))
    return np.array([pick.randrange(8) for _ in range(np.prod(shape))], dtype).reshape(shape)


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, list):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _rows(value: Any, whole: bool, pick: random.Random) -> Any:
    """The numbers of a value, in rows of one length, within what halves hold; whole ones as codes of any type."""
    found = [min(max(number, -6e4), 6e4) for number in _numbers(value)]
    if not isinstance(value, list):
        return int(abs(found[0])) % 8 if whole else found[0]
    if not found:
        return []
    if whole:
        found = [int(abs(number)) % 8 for number in found]
    return np.array(found, object).reshape(pick.choice(_SHAPES)(len(found))).tolist()


def _fitting(options: dict[str, Any], rank: int) -> dict[str, Any]:
    """Options that go together, for arrays of at least so many dimensions."""
    if {"scale", "zero_point"} & options.keys():
        options = {name: value for name, value in options.items() if name not in ("scale", "zero_point")}
        options |= {"scale": 0.5, "zero_point": 3}
    if "channel_dim" in options and options["channel_dim"] is not None:
        options["channel_dim"] = -1 if rank else None
    if options.get("channel_idx") is not None:
        options["channel_idx"] = 0
    return {name: value for name, value in options.items() if value is not None}


def _config(body: Any, pick: random.Random) -> Any:
    known = QuantizationConfig().to_dict().keys()
    config = {name: value for name, value in body.items() if name in known and name not in ("num_bits", "per_channel")}
    for name, values in (("quantization_type", _TYPES), ("quantization_mode", _MODES)):
        if name in config:
            config[name] = pick.choice(values)
    if {"min_percentile", "max_percentile"} & config.keys():
        config |= {"min_percentile": 0.5, "max_percentile": 99}
    if "custom_quantization_config" in config:
        config["custom_quantization_config"] = {
            name: {"bits": 4} for name in config["custom_quantization_config"] if "\0" not in name
        }
    return config or {"symmetric": True}


def _exported(pick: random.Random) -> dict[str, Any]:
    quantizer = Quantizer()
    quantizer.calibrate([np.float32([pick.random(), -1])])
    return quantizer.export_parameters()


def _inference(body: Any, pick: random.Random) -> Any:
    codes = _array(pick)
    operation, name = pick.choice((("quantize", "x"), ("quantize_dequantize", "x"), ("dequantize", "q")))
    tensor = {"name": name, "shape": list(codes.shape), "datatype": pick.choice(("FP32", "FP64", "INT8", "UINT8"))}
    request = {"parameters": {"operation": operation}, "inputs": [{**tensor, "data": codes.astype(int).tolist()}]}
    return request | ({"id": body["id"]} if isinstance(body, dict) and isinstance(body.get("id"), str) else {})
