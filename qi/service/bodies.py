"""Bodies of requests as models: JSON, or an array's bytes with options in the query string."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sized
from functools import partial
from typing import Any, TypeVar, get_origin

import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from qi.errors import QiError
from qi.service.admission import Memory, memory_of
from qi.service.costs import parsed_bytes
from qi.service.formats import JSON, NPY, Format, Limits, available, format_of, media_type_of
from qi.service.models import MAX_ARRAYS, MAX_MEMBERS, RaggedError, query_options
from qi.service.problems import Problem, problem_of
from qi.service.service import SMALL, service_of

__all__ = ["MULTIPART", "documented_body", "documented_json", "parse_json", "parsing", "reading", "uploaded"]

MULTIPART = "multipart/form-data"

_QUERY = "For bodies that aren't JSON; a body in JSON wins."

M = TypeVar("M", bound=BaseModel)


def reading(model: type[M], prefix: str) -> Callable[[Request], Awaitable[M]]:
    """A dependency: the body of a request as a model, whatever form it has.

    Options (every field but `data`) may be in the query string too; those of a body in JSON win.

    Args:
        model: A model with a field `data` that is an array.
        prefix: What the `detail` of errors about the numbers themselves starts with.

    Raises:
        RequestValidationError: JSON that isn't what the model wants.
        Problem: 400 for bytes that aren't what they claim to be, 415 for a form that isn't known, 503 if they take too
            much memory now.
    """

    async def read(request: Request) -> M:
        service, memory = service_of(request), memory_of(request)
        memory.counts()
        options = query_options(model, request.query_params)
        content_type = request.headers.get("content-type")
        media_type = media_type_of(content_type)
        if media_type == MULTIPART:
            (_, body), media_type = await uploaded(request), NPY
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
        text = "Number too large: at most 1.7976931348623157e308" if too_large else "JSON decode error"
        problem = {"type": "json_invalid", "loc": ("body", error.pos), "msg": text}
        raise RequestValidationError([problem]) from error


def documented_body(model: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads a model's body: its forms, and the options of the query string."""
    schema = _schema(model)
    content: dict[str, Any] = {JSON: {"schema": schema}}
    binary = {"type": "string", "format": "binary"}
    for name in available():
        content[name] = {"schema": binary}
    content[MULTIPART] = {
        "schema": {"type": "object", "properties": {"file": binary}, "required": ["file"]},
    }
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": _given(own), "description": _QUERY}
        for name, own in schema["properties"].items()
        if name != "data"
    ]
    return {"requestBody": {"required": True, "content": content}, "parameters": parameters}


def documented_json(model: type[BaseModel]) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads a model by `parsing`."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": _schema(model)}}}}


def _given(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an option that is there: without null, which a query string can't hold."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == len(schema.get("anyOf", ())):
        return dict(schema)
    rest = {name: value for name, value in schema.items() if name not in ("anyOf", "default")}
    return {**kinds[0], **rest} if len(kinds) == 1 else {"anyOf": kinds, **rest}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return schema


def _from_json(model: type[M], options: dict[str, Any], body: bytes, prefix: str, memory: Memory) -> M:
    memory.need(parsed_bytes(body))
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


async def uploaded(request: Request) -> tuple[str, bytes]:
    """The name and the bytes of the file of a form, whose field is called "file".

    Raises:
        Problem: 400, there is none, or the body is no form.
    """
    async with request.form(max_files=1, max_fields=16) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Problem(400, "expected a form with a field 'file' that is a file; received none", code="no-file")
        return file.filename or "", await file.read()
