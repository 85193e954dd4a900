"""Bodies of requests as models: JSON, or an array's bytes with options in the query string."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence, Sized
from functools import partial
from typing import Any, TypeVar, get_origin

import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from qi.errors import QiError
from qi.registry import suggest
from qi.service import schemas
from qi.service.admission import Memory, memory_of
from qi.service.costs import parsed_bytes
from qi.service.formats import JSON, MULTIPART, NPY, Format, Limits, available, format_of, media_type_of
from qi.service.models import MAX_ARRAYS, MAX_MEMBERS, RaggedError, query_options
from qi.service.problems import Problem, problem_of
from qi.service.service import SMALL, service_of

__all__ = [
    "UPLOAD_FORM", "documented_body", "documented_json", "parse_json", "parsing", "reading", "uploaded", "uploaded_npy",
]  # fmt: skip

UPLOAD_FORM: dict[str, Any] = {"requestBody": {"required": True, "content": {MULTIPART: {"schema": schemas.FORM}}}}
"""The `openapi_extra` of a route that reads a file by `uploaded_npy`."""

_UPLOAD = ("operation", "validate", "channel_dim", "layer_name")
_QUERY = "For bodies that aren't JSON; a body in JSON wins."

M = TypeVar("M", bound=BaseModel)


def reading(model: type[M], prefix: str) -> Callable[[Request], Awaitable[M]]:
    """A dependency: the body of a request as a model, whatever form it has.

    Options (every field but `data`) may be in the query string too; those of a body in JSON win. Nothing else may be there.

    Args:
        model: A model with a field `data` that is an array.
        prefix: What the `detail` of errors about the numbers themselves starts with.

    Raises:
        RequestValidationError: JSON that isn't what the model wants, or an option of another name.
        Problem: 400 for bytes that aren't what they claim to be, 415 for a form that isn't known, 503 if they take too
            much memory now.
    """
    names = [own.alias or name for name, own in model.model_fields.items() if name != "data"]

    async def read(request: Request) -> M:
        service, memory = service_of(request), memory_of(request)
        memory.counts()
        _check_query(request, names)
        options = query_options(model, request.query_params)
        content_type = request.headers.get("content-type")
        media_type = media_type_of(content_type)
        if media_type == MULTIPART:
            (_, body), media_type = await uploaded(request, names), NPY
        else:
            body = await request.body()
        if media_type == JSON or media_type.endswith("+json"):
            parse = partial(_from_json, model, options, body, prefix, memory)
        else:
            parse = partial(_from_array, model, options, body, prefix, format_of(media_type), service.limits)
        return parse() if len(body) <= SMALL else await service.work(parse, len(body))

    return read


def parsing(model: type[M]) -> Callable[[Request], Awaitable[M]]:
    """A dependency: a body in JSON as a model of anything but arrays. Long ones don't hold up other requests.

    Args:
        model: Any model.

    Raises:
        RequestValidationError: The body isn't what the model wants.
        Problem: 503, it takes too much memory now.
    """

    async def read(request: Request) -> M:
        service, memory = service_of(request), memory_of(request)
        memory.counts()
        body = await request.body()
        parse = partial(_from_json, model, {}, body, "", memory)
        return parse() if len(body) <= SMALL else await service.work(parse, len(body))

    return read


def parse_json(body: bytes) -> Any:
    """The value that a body in JSON has; NaN and Infinity, which JSON doesn't have, are read as Python writes them.

    Raises:
        RequestValidationError: It is no JSON.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if b"NaN" in body or b"Infinity" in body:
            try:
                return json.loads(body)
            except (ValueError, RecursionError):
                pass
        too_large = "infinity" in error.msg
        where = f"line {error.lineno}, column {error.colno}"
        text = f"JSON decode error at {where}: {error.msg}"
        if too_large:
            text = f"Number too large: at most 1.7976931348623157e308 ({where})"
        problem = {"type": "json_invalid", "loc": ("body", error.pos), "msg": text}
        raise RequestValidationError([problem]) from error


def documented_body(model: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads a model's body: its forms, and the options of the query string."""
    content = _content(model)
    schema = content[JSON]["schema"]
    binary = {"type": "string", "format": "binary"}
    for name in available():
        content[name] = {"schema": binary}
    content[MULTIPART] = {"schema": schemas.FORM}
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": _given(own), "description": _QUERY}
        for name, own in schema["properties"].items()
        if name != "data"
    ]
    return {"requestBody": {"required": True, "content": content}, "parameters": parameters}


def documented_json(model: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads a model by `parsing`."""
    return {"requestBody": {"required": True, "content": _content(model)}}


def _given(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an option that is there: without null, which a query string can't hold."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == len(schema.get("anyOf", ())):
        return dict(schema)
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    return {**kinds[0], **rest} if len(kinds) == 1 else {"anyOf": kinds, **rest}


def _content(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return {JSON: {"schema": schema, "example": schemas.EXAMPLES[model.__name__]}}


def _from_json(model: type[M], options: dict[str, Any], body: bytes, prefix: str, memory: Memory) -> M:
    memory.need(parsed_bytes(body))
    if not body.strip():
        wanted = [name for name, own in model.model_fields.items() if own.is_required()]
        text = f"expected JSON; received an empty body; do: send {_object_of(wanted)}"
        raise RequestValidationError([{"type": "json_invalid", "loc": ("body", 0), "msg": text}])
    return _validated(model, options, parse_json(body), prefix)


def _from_array(model: type[M], options: dict[str, Any], body: bytes, prefix: str, form: Format, limits: Limits) -> M:
    try:
        array = form.decode(body, limits)
    except QiError as error:
        raise problem_of(error, prefix) from error
    data: Any = array
    if get_origin(model.model_fields["data"].annotation) is list:  # of arrays, as in JSON
        if array.ndim > 2:
            _at_most(MAX_ARRAYS, array, "arrays", "data")
        data = list(array) if array.ndim > 2 else [array]
    return _validated(model, options, {"data": data}, prefix)


def _validated(model: type[M], options: dict[str, Any], body: Any, prefix: str) -> M:
    if not isinstance(body, dict):
        problem = {"type": "model_attributes_type", "loc": ("body",), "msg": "Input should be an object"}
        raise RequestValidationError([problem])
    _at_most(MAX_MEMBERS, body, "members")  # each that isn't known would be an error of its own
    hidden: dict[str, Any] = {}  # options that the body has as well
    try:
        found = model.model_validate({**options, **body})
        if hidden := {name: options[name] for name in options if name in body}:
            model.model_validate({"data": getattr(found, "data", None), **hidden})  # wrong ones are errors all the same
        return found
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        for one in errors:
            cause = one.get("ctx", {}).get("error")
            if isinstance(cause, RaggedError):
                raise problem_of(cause, prefix) from error
        given = options if hidden else {name for name in options if name not in body}
        raise RequestValidationError(
            [
                {**one, "loc": ("query" if one["loc"] and one["loc"][0] in given else "body", *one["loc"])}
                for one in errors
            ]
        ) from error


def _at_most(most: int, values: Sized, what: str, *loc: str) -> None:
    if len(values) > most:
        text = f"Expected at most {most} {what}; received {len(values)}"
        raise RequestValidationError([{"type": "too_long", "loc": ("body", *loc), "msg": text}])


def _object_of(names: Sequence[str]) -> str:
    return "{" + ", ".join(f'"{name}": ...' for name in names) + "}"


def _unknown(where: str, name: str, known: Sequence[str]) -> RequestValidationError:
    """The refusal of an option that isn't known, or not there: whoever sent it counts on it."""
    what = "Unknown option" if where == "query" else "Unknown form field, for options go into the query string"
    text = f"{what}; expected one of {', '.join(known)}"
    hint = "" if name in known else suggest(name[:64], known)
    return RequestValidationError([{"type": "extra_forbidden", "loc": (where, name), "msg": f"{text}.{hint}"}])


def _check_query(request: Request, known: Sequence[str]) -> None:
    for name in request.query_params:
        if name not in known:
            raise _unknown("query", name, known)


async def uploaded(request: Request, options: Sequence[str] = ()) -> tuple[str, bytes]:
    """The name and the bytes of the file of a form, whose field is called "file".

    Args:
        request: The request.
        options: What its query string may hold, for those who put it into the form.

    Raises:
        RequestValidationError: The form has other fields.
        Problem: 400, there is none, or the body is no form.
    """
    async with request.form(max_files=1, max_fields=16) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Problem(400, "expected a form with a field 'file' that is a file; received none", code="no-file")
        if others := [name for name in form if name != "file"]:
            raise _unknown("body", others[0], options)
        return file.filename or "", await file.read()


async def uploaded_npy(request: Request) -> bytes:
    """The bytes of the .npy file of a form, the options of which are in the query string.

    Raises:
        Problem: 400, it is no such form, or has options of other names.
    """
    received = media_type_of(request.headers.get("content-type"))
    if received != MULTIPART:
        raise Problem(
            400,
            f"expected a form ({MULTIPART}) with a field 'file'; received Content-Type {received[:100]!a}; "
            f"do: post the bytes of a .npy file to /instances/{{instance_id}}/quantize as {NPY}",
            code="no-file",
        )
    try:
        _check_query(request, _UPLOAD)
        name, body = await uploaded(request, _UPLOAD)
    except RequestValidationError as error:
        (first,) = error.errors()
        raise Problem(400, f"{first['msg']} Received {first['loc'][1][:64]!a}", code="unknown-option") from error
    if not name.lower().endswith(".npy"):
        raise Problem(400, "File must be a .npy file", code="not-npy")
    return body
