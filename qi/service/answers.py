"""Results as responses: JSON or an array's bytes, as the client accepts; and errors as the documented statuses."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import orjson
from starlette.responses import Response

from qi.errors import QiError
from qi.service.formats import JSON, ArrayResponse, PartsResponse, available, negotiate
from qi.service.instances import ForbiddenError
from qi.service.operations import Result
from qi.service.problems import Problem, problem_of
from qi.service.store import ExistsError, FullError, MissingError, RevisionError, UnavailableError

__all__ = ["STATUSES", "accepted", "answering", "metadata_headers", "respond", "store_problem"]

STATUSES: dict[type[QiError], tuple[int, str]] = {
    ForbiddenError: (403, "default-instance"),
    MissingError: (404, "no-such-instance"),
    ExistsError: (409, "instance-exists"),
    RevisionError: (409, "instance-changed"),
    FullError: (429, "too-many-instances"),
    UnavailableError: (503, "store-unavailable"),
}
"""Errors that aren't about what a client wants computed, with their status and code."""

_HEADERS = {
    "quantization_type": "QI-Quantization-Type",
    "original_shape": "QI-Original-Shape",
    "scale": "QI-Scale",
    "zero_point": "QI-Zero-Point",
    "channel_dim": "QI-Channel-Dim",
    "num_bits": "QI-Num-Bits",
    "params_rev": "QI-Params-Rev",
}
_LONG = 1 << 20  # bytes of JSON that are sent in pieces, as arrays are
_MAX_HEADER = 4096  # what proxies pass on


def store_problem(error: QiError, *, conditional: bool = False) -> Problem | None:
    """What a client is told of an error of `STATUSES`; None for others.

    Args:
        error: The error.
        conditional: Whether the client asked for a revision (``If-Match``), so that another one is 412.
    """
    found = STATUSES.get(type(error))
    if found is None:
        return None
    status, code = found
    if conditional and isinstance(error, RevisionError):
        status = 412
    if isinstance(error, UnavailableError):  # the reason may name a path of the machine: for the operator alone
        logging.getLogger("qi.service.store").error("%s", error)
        return Problem(
            status, "expected a store that can be used; do try again", code=code, headers={"Retry-After": "1"}
        )
    return Problem(status, str(error), code=code)


@contextlib.contextmanager
def answering(prefix: str, *, conditional: bool = False) -> Iterator[None]:
    """A block in which errors of QI become the client's.

    Args:
        prefix: What `detail` starts with, where the work itself failed.
        conditional: See `store_problem`.

    Raises:
        Problem: With the documented status.
    """
    try:
        yield
    except QiError as error:
        raise store_problem(error, conditional=conditional) or problem_of(error, prefix) from error


def accepted(accept: str | None) -> str:
    """The media type in which a client wants an array; to be asked before the work, which a refusal must not do.

    Raises:
        Problem: 406, the client accepts nothing that there is.

    Example:
        >>> accepted("*/*"), accepted("application/x-npy")
        ('application/json', 'application/x-npy')
    """
    return negotiate(accept, (JSON, *available()))


def respond(result: Result, accept: str | None, *, told: Mapping[str, Any] | None = None) -> Response:
    """An array and what is told about it, as the client accepts it: JSON by default.

    Args:
        result: Both.
        accept: The Accept header, or what `accepted` made of it.
        told: What to say in JSON instead of the array; its bytes are sent to those who ask for them.

    Raises:
        Problem: 406, the client accepts nothing that there is.
        UnsupportedError: The format doesn't hold the array's dtype.
    """
    media_type = accepted(accept)
    vary = {"Vary": "Accept"}
    if media_type != JSON:
        return ArrayResponse(result.array, media_type, {**metadata_headers(result.meta), **vary})
    if told is not None:
        return Response(orjson.dumps(told), headers=vary, media_type=JSON)
    array = result.array
    if array.dtype.kind == "f" and (count := array.size - int(np.isfinite(array).sum())):
        vary["QI-Nonfinite"] = str(count)  # null in JSON
    body = {"data": _jsonable(array), **result.meta}
    text = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    if len(text) > _LONG:
        return PartsResponse([text], JSON, vary)
    return Response(text, headers=vary, media_type=JSON)


def metadata_headers(meta: Mapping[str, Any]) -> dict[str, str]:
    """What is told about an array, as headers; lists that are too long for one are left out.

    Example:
        >>> metadata_headers({"scale": 0.5, "zero_point": [0.0, 1.0], "num_bits": None})
        {'QI-Scale': '0.5', 'QI-Zero-Point': '[0.0,1.0]'}
    """
    texts = {
        header: meta[name] if isinstance(meta[name], str) else orjson.dumps(meta[name]).decode()
        for name, header in _HEADERS.items()
        if meta.get(name) is not None
    }
    return {header: text for header, text in texts.items() if len(text) <= _MAX_HEADER}


def _jsonable(array: np.ndarray) -> Any:
    """What orjson writes as nested lists."""
    if array.ndim == 0:
        value = array.item()
        return value if array.dtype.kind != "f" or np.isfinite(value) else None
    if array.dtype.itemsize > 8 or not array.dtype.isnative:
        array = array.astype(np.float64)
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)
