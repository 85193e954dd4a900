"""The Open Inference Protocol at ``/v2``: every instance is a model, for clients that exist already.

A model takes "x" and gives "q", "scale" and "zero_point"; with the request's parameter ``operation`` set to ``dequantize``
it takes "q", with or without the other two, and gives "y"; with ``quantize_dequantize`` it takes "x" and gives "y".
``validate``, ``channel_dim``, ``layer_name`` and ``remember`` are parameters, too. A model's version is its revision.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response

from qi._version import __version__
from qi.engine import QuantizationType
from qi.errors import InputError, QiError
from qi.registry import suggest
from qi.service import calls, operations
from qi.service.admission import memory_of
from qi.service.answers import store_problem
from qi.service.auth import remembering
from qi.service.costs import parsed_bytes
from qi.service.formats import JSON, NPY, PartsResponse
from qi.service.instances import Instance
from qi.service.models import MAX_LAYER_NAME
from qi.service.oip import MAX_HEADER, InferRequest, decode_request, encode_response
from qi.service.problems import Problem, documented, problem_of, problem_response
from qi.service.service import Service
from qi.service.store import MissingError
from qi.service.wire import HEADER_LENGTH, datatype_of

__all__ = ["asked_of", "outputs_of", "router"]

_GIVES = {"quantize": ("q", "scale", "zero_point"), "dequantize": ("y",), "quantize_dequantize": ("y",)}
_TAKES = {"quantize": ("x",), "dequantize": ("q", "scale", "zero_point"), "quantize_dequantize": ("x",)}
_OPTIONS: dict[str, Callable[[Any], bool]] = {
    "operation": lambda value: isinstance(value, str),
    "validate": lambda value: isinstance(value, bool),
    "remember": lambda value: isinstance(value, bool),
    "channel_dim": lambda value: isinstance(value, int) and not isinstance(value, bool) and -64 <= value < 64,
    "layer_name": lambda value: isinstance(value, str) and len(value) <= MAX_LAYER_NAME and "\0" not in value,
}
# What clients send that know servers of other kinds: nothing here depends on it.
_IGNORED = {"binary_data_output", "sequence_id", "sequence_start", "sequence_end", "priority", "timeout"}


def asked_of(request: InferRequest) -> tuple[str, np.ndarray, dict[str, Any]]:
    """What a request asks for: (operation, its array, its options).

    Raises:
        InputError: Inputs, outputs or parameters aren't those of the operation.
    """
    options = _options(request.parameters)
    name = options.pop("operation", "quantize")
    inputs = _inputs(name, request)
    request.wanted(_GIVES[name])
    for option in ("validate", "remember"):
        if option in options and (name == "dequantize" or (option, name) == ("remember", "quantize_dequantize")):
            raise InputError(f"expected no {option} of {name}; received {option}={options[option]}")
    if name == "dequantize":
        return name, inputs["q"], options | _given(inputs, options)
    return name, inputs["x"], options


def outputs_of(
    operation: str, result: operations.Result, revision: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What a model gives: (outputs by name, parameters of the answer)."""
    if operation != "quantize":
        return {"y": result.array}, {"params_rev": revision}
    told = {key: result.meta[key] for key in ("quantization_type", "num_bits", "channel_dim", "params_rev")}
    scale, zero_point = _parameters(result)
    outputs = {"q": result.array, "scale": scale, "zero_point": zero_point}
    return outputs, {key: value for key, value in told.items() if value is not None}


Model = Annotated[str, Path(json_schema_extra={"example": "default"})]


def router(service: Service) -> APIRouter:
    """The routes of the protocol.

    Args:
        service: Whose instances are the models.
    """
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], route_class=_Route)
    missing = documented(400, 404)

    @routes.get("", summary="What this server is", responses=documented(400))
    async def server() -> dict[str, Any]:
        return {"name": "qi", "version": __version__, "extensions": ["binary_tensor_data"]}

    @routes.get("/health/live", summary="Whether the server lives", responses=documented(400))
    async def live() -> dict[str, bool]:
        return {"live": True}

    @routes.get("/health/ready", summary="Whether the server takes work", responses=documented(400, 503))
    async def is_ready() -> dict[str, bool]:
        if not await service.store(service.ready):
            raise Problem(503, "expected a server that takes work; this one is stopping", code="stopping")
        return {"ready": True}

    @routes.get("/models/{model}/versions/{version}", include_in_schema=False)
    async def metadata(model: str, version: str) -> dict[str, Any]:
        return _metadata(await _model(service, model, version))

    @routes.get("/models/{model}", summary="What a model takes and gives", responses=missing)
    async def present_metadata(model: Model) -> dict[str, Any]:
        return await metadata(model, "")

    @routes.get("/models/{model}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(model: str, version: str) -> dict[str, Any]:
        return {"name": (await _model(service, model, version)).id, "ready": True}

    @routes.get("/models/{model}/ready", summary="Whether a model is there", responses=missing)
    async def present_ready(model: Model) -> dict[str, Any]:
        return await model_ready(model, "")

    @routes.post("/models/{model}/versions/{version}/infer", include_in_schema=False)
    async def inference(model: str, request: Request, version: str) -> Response:
        return await _infer(service, await _model(service, model, version), request)

    responses = _ANSWER | documented(400, 404, 409, 415)

    @routes.post("/models/{model}/infer", openapi_extra=_BODY, responses=responses)
    async def present_inference(model: Model, request: Request) -> Response:
        """Quantizes, dequantizes, or both, by JSON or with raw tensors after it."""
        return await inference(model, request, "")

    return routes


# How it is done.


async def _infer(service: Service, instance: Instance, request: Request) -> Response:
    memory, limits = memory_of(request), service.limits
    memory.counts()
    body, length = await request.body(), _length(request.headers.get(HEADER_LENGTH))

    def decode() -> tuple[InferRequest, str, np.ndarray, dict[str, Any]]:
        memory.need(parsed_bytes(memoryview(body)[: None if length is None else min(length, MAX_HEADER)]))
        asked = decode_request(body, length, max_elements=limits.max_elements, max_ndim=limits.max_ndim)
        return asked, *asked_of(asked)

    asked, operation, array, options = await service.work(decode, len(body))
    if operation == "quantize":
        options["remember"] = remembering(request.scope, options.get("remember"))
    binary = all(asked.wanted(_GIVES[operation]).values())
    calls.admit(service, memory, instance, operation, [array], options, NPY if binary else JSON)

    def answer(result: operations.Result) -> Response:
        outputs, parameters = outputs_of(operation, result, instance.revision)
        parts, length = encode_response(instance.id, str(instance.revision), outputs, asked, parameters)
        headers = {} if length is None else {HEADER_LENGTH: str(length)}
        return PartsResponse(parts, JSON if length is None else "application/octet-stream", headers)

    return await calls.operate(service, instance, operation, array, options, answer)


class _Route(APIRoute):
    """A route whose errors have the statuses of the protocol."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except HTTPException as error:
                problem = error
            except QiError as error:
                problem = store_problem(error) or problem_of(error)
                if problem.status_code == 422:  # the protocol knows 400 alone
                    problem = Problem(400, str(problem.detail), code=problem.code)
            return problem_response(request.scope, problem)

        return answer


async def _model(service: Service, id: str, version: str) -> Instance:
    """The instance, if it has this version.

    Raises:
        MissingError: It hasn't, or isn't there.
    """
    instance = await calls.snapshot(service, id)
    if version and version != str(instance.revision):
        raise MissingError(f"expected version {instance.revision} of {id}; received {reprlib.repr(version)}")
    return instance


def _metadata(instance: Instance) -> dict[str, Any]:
    config = instance.config
    codes: np.dtype[Any] = np.dtype("float32")
    if config.quantization_type.integer:
        codes = config.grid.storage_dtype
    elif config.quantization_type is QuantizationType.FLOAT16:
        codes = np.dtype("float16")
    outputs = {"q": datatype_of(codes), "scale": "FP32", "zero_point": "INT32"}
    return {
        "name": instance.id,
        "versions": [str(instance.revision)],
        "platform": "qi",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],
        "outputs": [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in outputs.items()],
    }


def _length(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise InputError(f"expected {HEADER_LENGTH} to be a whole number; received {reprlib.repr(text)}")
    return int(text)


def _options(parameters: Any) -> dict[str, Any]:
    """The checked parameters of a request."""
    options = {name: value for name, value in parameters.items() if name not in _IGNORED}
    for name, value in options.items():
        if name not in _OPTIONS:
            hint = suggest(name[:64], _OPTIONS)
            raise InputError(f"expected parameters of {list(_OPTIONS)}; received {reprlib.repr(name)}.{hint}")
        if not _OPTIONS[name](value):
            raise InputError(f"expected {name} of another kind; received {name}={reprlib.repr(value)}")
    return options


def _inputs(operation: str, request: InferRequest) -> dict[str, np.ndarray]:
    """The inputs of an operation, those that may be missing aside."""
    if operation not in _TAKES:
        hint = suggest(operation[:64], _TAKES)
        raise InputError(f"expected operation to be one of {list(_TAKES)}; received {reprlib.repr(operation)}.{hint}")
    known, given = _TAKES[operation], set(request.inputs)
    if given not in ({known[0]}, set(known)):
        raise InputError(f"expected inputs {list(known)} to {operation}; received {reprlib.repr(sorted(given))}")
    return {
        name: array.astype(np.float32) if array.dtype.name == "bfloat16" else array
        for name, array in request.inputs.items()
    }


def _given(inputs: dict[str, np.ndarray], options: dict[str, Any]) -> dict[str, Any]:
    """Scale and zero point that came along with codes, as options; and the channel dimension that their shape tells."""
    codes, scale, zero_point = inputs["q"], inputs.get("scale"), inputs.get("zero_point")
    if scale is None or zero_point is None:
        return {}
    if scale.shape != zero_point.shape:
        raise InputError(f"expected scale and zero_point of one shape; received {scale.shape}, {zero_point.shape}")
    if scale.size == 1:
        return {"scale": float(scale.flat[0]), "zero_point": float(zero_point.flat[0])}
    given: dict[str, Any] = {"scale": scale.ravel().tolist(), "zero_point": zero_point.ravel().tolist()}
    axes = [axis for axis, size in enumerate(scale.shape) if size != 1]
    if scale.ndim == codes.ndim > 1:
        if len(axes) != 1 or options.get("channel_dim", axes[0]) % codes.ndim != axes[0]:
            raise InputError(f"expected scales along channel_dim alone; received scale of shape {scale.shape}")
        given["channel_dim"] = axes[0]
    return given


def _parameters(result: operations.Result) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point as arrays that broadcast against the codes; 1 and 0 of numbers that are no codes."""
    scale, zero_point, axis = (result.meta[name] for name in ("scale", "zero_point", "channel_dim"))
    if scale is None:
        scale, zero_point = 1.0, 0.0
    shape = [1]
    if axis is not None:
        shape = [1] * result.array.ndim
        shape[axis] = -1
    return np.asarray(scale, np.float32).reshape(shape), np.asarray(zero_point).astype(np.int32).reshape(shape)


_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "datatype": {"type": "string"},
        "parameters": {"type": ["object", "null"]},
        "data": {"type": "array", "items": {}},
    },
}
_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": ["string", "null"]},
        "parameters": {"type": ["object", "null"]},
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {"type": ["array", "null"], "items": {"type": "object", "required": ["name"]}},
    },
}
_EXAMPLE = {"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1.2, 3.4, 5.6, 7.8]}]}
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_BODY = {"requestBody": {"required": True, "content": {JSON: {"schema": _REQUEST, "example": _EXAMPLE}, **_BINARY}}}
_RESPONSE = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "outputs": {"type": "array", "items": _TENSOR},
    },
}
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {"description": "Successful Response", "content": {JSON: {"schema": _RESPONSE}, **_BINARY}}
}
