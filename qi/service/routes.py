"""The documented endpoints: what they take and answer. What they do is in `qi.service.operations`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from qi.service import calls, latest, operations
from qi.service.admission import memory_of
from qi.service.answers import accepted, answering, respond
from qi.service.auth import remembering
from qi.service.bodies import UPLOAD_FORM, documented_body, documented_json, parsing, reading, uploaded_npy
from qi.service.conditions import etag, revisions_of
from qi.service.formats import FORMATS, JSON, NPY, available
from qi.service.instances import Instance
from qi.service.models import (
    CalibrationRequest,
    CalibrationResponse,
    DequantizationRequest,
    DequantizationResponse,
    ImportExportParams,
    LayerName,
    LayerParamsResponse,
    MessageResponse,
    ParametersResponse,
    QuantizationParamsRequest,
    QuantizationRequest,
    QuantizationResponse,
    QuantizerConfigModel,
    QuantizerConfigPatch,
    ScaleZeroPointResponse,
    StatsResponse,
    UploadResponse,
)
from qi.service.operations import Result
from qi.service.problems import Problem, documented
from qi.service.service import SMALL, Service, service_of

__all__ = ["router"]

InstanceId = Annotated[
    str, Path(description="Name of an instance", max_length=1024, json_schema_extra={"example": "default"})
]
OtherId = Annotated[
    str, Path(description="Name of an instance of your own", max_length=1024, json_schema_extra={"example": "mine"})
]
Accept = Annotated[str | None, Header(include_in_schema=False)]
Limit = Annotated[Annotated[int, Field(ge=1)] | SkipJsonSchema[None], Query(description="Most names")]


async def _if_match(
    request: Request,
    if_match: Annotated[
        str | SkipJsonSchema[None],
        Header(
            description='The ETag that the instance must have, or one of several, or "*" for any',
            json_schema_extra={"example": "*"},
        ),
    ] = None,
) -> str | None:
    return None if if_match is None else ",".join(request.headers.getlist("if-match"))  # several headers are one list


IfMatch = Annotated[str | None, Depends(_if_match)]


async def _service(request: Request) -> Service:
    return service_of(request)  # as a coroutine, for which no thread is needed


ServiceDep = Annotated[Service, Depends(_service)]
LayerNameInPath = Annotated[LayerName, Path()]

QUANTIZING, DEQUANTIZING, SIMULATING = "Quantization error", "Dequantization error", "Quantize-dequantize error"
CALIBRATING, COMPUTING = "Calibration error", "Error computing parameters"
CREATING, UPDATING = "Error creating quantizer instance", "Error updating configuration"
IMPORTING, PROCESSING = "Error importing parameters", "Error processing file"


def _arrays(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses of a route whose result is an array."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    text = "The result in JSON; the bytes of the array itself for Accept: application/x-npy"
    found = {"description": text, "content": {name: dict(binary) for name in available()}}
    return {200: found, **documented(*statuses)}


def _name(route: APIRoute) -> str:
    return route.name


def _links(names: tuple[str, ...] = (), **bodies: Any) -> dict[int | str, dict[str, Any]]:
    """What can be done next with the same instance, and with which body."""
    parameters = {"instance_id": "$request.path.instance_id"}
    links: dict[str, dict[str, Any]] = {
        name: {"operationId": name, "parameters": parameters} for name in (*names, *bodies)
    }
    for name, body in bodies.items():
        links[name]["requestBody"] = body
    return {200: {"links": links}}


_NEXT = ("get_config", "update_config", "quantize_data", "calibrate_quantizer", "export_parameters", "delete_instance")

router = APIRouter(generate_unique_id_function=_name)
"""Every documented endpoint below ``/instances``."""


# Creation, deletion and configuration.


@router.get("/instances", tags=["instances"], responses=documented(400, 422))
async def get_instances(service: ServiceDep, limit: Limit = None) -> list[str]:
    """Names of all instances, in the order of their creation."""
    ids = await service.store(service.instances.ids)
    return ids[:limit]


@router.post(
    "/instances/{instance_id}", tags=["instances"], responses=_links(_NEXT) | documented(400, 409, 415, 422, 429),
    openapi_extra=documented_json(QuantizerConfigModel),
)  # fmt: skip
async def create_instance(
    instance_id: OtherId,
    http: Request,
    config: Annotated[QuantizerConfigModel, Depends(parsing(QuantizerConfigModel))],
    service: ServiceDep,
    response: Response,
) -> MessageResponse:
    """Makes an instance; ``{}`` stands for the documented defaults."""
    with answering(CREATING):
        instance = await calls.create(service, instance_id, config.to_config)
    response.headers.update({**etag(instance.revision), "Location": f"{http.url.path}/config"})
    return MessageResponse(message=f"Quantizer instance {instance_id} created successfully")


@router.delete("/instances/{instance_id}", tags=["instances"], responses=documented(400, 403, 404, 412, 422))
async def delete_instance(instance_id: OtherId, service: ServiceDep, if_match: IfMatch) -> MessageResponse:
    """Deletes an instance other than the default one."""
    with answering("Error deleting quantizer instance", conditional=if_match is not None):
        await service.store(partial(service.instances.delete, instance_id, revisions_of(if_match)))
    return MessageResponse(message=f"Quantizer instance {instance_id} deleted successfully")


@router.get(
    "/instances/{instance_id}/config", tags=["instances"], response_model=QuantizerConfigModel,
    responses=_links(update_config="$response.body") | documented(400, 404, 422),
)  # fmt: skip
async def get_config(instance_id: InstanceId, service: ServiceDep) -> Response:
    """The configuration, as ``PUT`` takes it."""
    instance = await _instance(service, instance_id)

    def told() -> bytes:
        return QuantizerConfigModel.from_config(instance.config).model_dump_json().encode()

    return await _told(service, instance, told)


@router.put(
    "/instances/{instance_id}/config", tags=["instances"], responses=documented(400, 404, 409, 412, 415, 422),
    openapi_extra=documented_json(QuantizerConfigModel),
)  # fmt: skip
async def update_config(
    instance_id: InstanceId,
    config: Annotated[QuantizerConfigModel, Depends(parsing(QuantizerConfigModel))],
    service: ServiceDep,
    response: Response,
    if_match: IfMatch,
) -> MessageResponse:
    """Replaces the configuration; a calibrated range stays where it can."""
    return await _configured(service, instance_id, lambda present: config.to_config(), response, if_match)


@router.patch(
    "/instances/{instance_id}/config", tags=["instances"], responses=documented(400, 404, 409, 412, 415, 422),
    openapi_extra=documented_json(QuantizerConfigPatch),
)  # fmt: skip
async def patch_config(
    instance_id: InstanceId,
    changes: Annotated[QuantizerConfigPatch, Depends(parsing(QuantizerConfigPatch))],
    service: ServiceDep,
    response: Response,
    if_match: IfMatch,
) -> MessageResponse:
    """Changes some fields of the configuration."""
    return await _configured(service, instance_id, changes.apply, response, if_match)


# The work on arrays.


@router.post(
    "/instances/{instance_id}/quantize", tags=["operations"], response_model=QuantizationResponse,
    responses=_arrays(400, 404, 406, 409, 415, 422), openapi_extra=documented_body(QuantizationRequest),
)  # fmt: skip
async def quantize_data(
    instance_id: InstanceId,
    http: Request,
    request: Annotated[QuantizationRequest, Depends(reading(QuantizationRequest, QUANTIZING))],
    service: ServiceDep,
    accept: Accept = None,
) -> Response:
    """Real numbers to codes. Scale and zero point come with them."""
    options = {
        "validate": request.validate_input,
        "channel_dim": request.channel_dim,
        "layer_name": request.layer_name,
        "remember": remembering(http.scope, request.remember),
    }
    return await _operate(service, http, instance_id, "quantize", request.data, options, accept, QUANTIZING)


@router.post(
    "/instances/{instance_id}/dequantize", tags=["operations"], response_model=DequantizationResponse,
    responses=_arrays(400, 404, 406, 409, 415, 422), openapi_extra=documented_body(DequantizationRequest),
)  # fmt: skip
async def dequantize_data(
    instance_id: InstanceId,
    http: Request,
    request: Annotated[DequantizationRequest, Depends(reading(DequantizationRequest, DEQUANTIZING))],
    service: ServiceDep,
    accept: Accept = None,
) -> Response:
    """Codes to real numbers, by the scale and zero point sent along, or else by fixed or the latest ones."""
    options = request.model_dump(exclude={"data"})
    return await _operate(service, http, instance_id, "dequantize", request.data, options, accept, DEQUANTIZING)


@router.post(
    "/instances/{instance_id}/quantize_dequantize", tags=["operations"], response_model=DequantizationResponse,
    responses=_arrays(400, 404, 406, 409, 415, 422), openapi_extra=documented_body(QuantizationRequest),
)  # fmt: skip
async def quantize_dequantize_data(
    instance_id: InstanceId,
    http: Request,
    request: Annotated[QuantizationRequest, Depends(reading(QuantizationRequest, SIMULATING))],
    service: ServiceDep,
    accept: Accept = None,
) -> Response:
    """What quantization makes of real numbers."""
    options = {
        "validate": request.validate_input,
        "channel_dim": request.channel_dim,
        "layer_name": request.layer_name,
    }
    return await _operate(service, http, instance_id, "quantize_dequantize", request.data, options, accept, SIMULATING)


# Calibration, and parameters without quantization.


@router.post(
    "/instances/{instance_id}/calibrate", tags=["parameters"], response_model=CalibrationResponse,
    responses=documented(400, 404, 409, 412, 415, 422), openapi_extra=documented_body(CalibrationRequest),
)  # fmt: skip
async def calibrate_quantizer(
    instance_id: InstanceId,
    http: Request,
    request: Annotated[CalibrationRequest, Depends(reading(CalibrationRequest, CALIBRATING))],
    service: ServiceDep,
    response: Response,
    if_match: IfMatch,
) -> CalibrationResponse:
    """Fixes scale and zero point by representative data; the mode becomes CALIBRATED.

    Where it is answered 504 or 503, it may still have taken effect: ask for the configuration, or send If-Match.
    """
    arrays, options = request.data, {"channel_dim": request.channel_dim}
    with answering(CALIBRATING, conditional=if_match is not None):
        revisions = revisions_of(if_match)
        instance = await calls.snapshot(service, instance_id, revisions)
        admit = partial(calls.admit, service, memory_of(http), instance, "calibrate", arrays, options)
        await service.work(admit, SMALL + len(arrays))  # many take time
        change = operations.calibrating(arrays, request.channel_dim)
        instance = await calls.change(service, instance_id, change, revisions)
        found = await service.work(partial(operations.calibrated, instance), instance.nbytes)
    response.headers.update(etag(found.pop("params_rev")))
    return CalibrationResponse(message="Calibration successful", **found)


@router.post(
    "/instances/{instance_id}/compute_params", tags=["parameters"], response_model=ScaleZeroPointResponse,
    responses=documented(400, 404, 415, 422), openapi_extra=documented_body(QuantizationParamsRequest),
)  # fmt: skip
async def compute_scale_zero_point(
    instance_id: InstanceId,
    http: Request,
    request: Annotated[QuantizationParamsRequest, Depends(reading(QuantizationParamsRequest, COMPUTING))],
    service: ServiceDep,
) -> ScaleZeroPointResponse:
    """The scale and zero point that numbers ask for; nothing changes."""
    array = request.data
    with answering(COMPUTING):
        instance = await calls.snapshot(service, instance_id)
        calls.admit(service, memory_of(http), instance, "compute_params", [array])
        compute = partial(
            operations.compute_params, instance, array, channel_idx=request.channel_idx, layer_name=request.layer_name
        )
        return ScaleZeroPointResponse(**await service.work(compute, array.nbytes))


# Counters and cache.


@router.get("/instances/{instance_id}/stats", tags=["statistics"], responses=documented(400, 404, 422))
async def get_stats(instance_id: InstanceId, service: ServiceDep) -> StatsResponse:
    """Counters since the last reset, of the process that answers."""
    instance = await _instance(service, instance_id)
    return StatsResponse(**await service.work(partial(operations.stats, instance), instance.nbytes))


@router.post("/instances/{instance_id}/clear_cache", tags=["statistics"], responses=documented(400, 404, 412, 422))
async def clear_cache(instance_id: InstanceId, service: ServiceDep, if_match: IfMatch) -> MessageResponse:
    """Forgets kept results."""
    (await _instance(service, instance_id, if_match)).quantizer.clear_cache()
    return MessageResponse(message="Cache cleared successfully")


@router.post("/instances/{instance_id}/reset_stats", tags=["statistics"], responses=documented(400, 404, 412, 422))
async def reset_stats(instance_id: InstanceId, service: ServiceDep, if_match: IfMatch) -> MessageResponse:
    """Sets all counters to 0."""
    (await _instance(service, instance_id, if_match)).quantizer.reset_stats()
    return MessageResponse(message="Statistics reset successfully")


# Export and import of parameters.


@router.get(
    "/instances/{instance_id}/parameters", tags=["parameters"], response_model=ParametersResponse,
    responses=_links(import_parameters={"parameters": "$response.body"}) | documented(400, 404, 422),
)  # fmt: skip
async def export_parameters(instance_id: InstanceId, service: ServiceDep) -> Response:
    """The parameters, as ``POST`` takes them."""
    with answering("Error exporting parameters"):
        instance = await calls.snapshot(service, instance_id)
        found = await service.store(partial(instance.store.recall_all, instance.record))
        more = sum(len(one.parameters) for one in found.values())
        return await _told(service, instance, lambda: orjson.dumps(latest.exported(instance, found)), more)


@router.post(
    "/instances/{instance_id}/parameters", tags=["parameters"], responses=documented(400, 404, 409, 412, 415, 422),
    openapi_extra=documented_json(ImportExportParams),
)  # fmt: skip
async def import_parameters(
    instance_id: InstanceId,
    request: Annotated[ImportExportParams, Depends(parsing(ImportExportParams))],
    service: ServiceDep,
    response: Response,
    if_match: IfMatch,
) -> MessageResponse:
    """Takes over exported parameters, of this or another instance, all or none."""
    with answering(IMPORTING, conditional=if_match is not None):
        load = operations.loading(request.parameters, service.limits)
        instance = await calls.change(service, instance_id, load, revisions_of(if_match))
    response.headers.update(etag(instance.revision))
    return MessageResponse(message="Parameters imported successfully")


@router.get(
    "/instances/{instance_id}/layer_params/{layer_name:path}", tags=["parameters"], responses=documented(400, 404, 422)
)
async def get_layer_params(
    instance_id: InstanceId, layer_name: LayerNameInPath, service: ServiceDep
) -> LayerParamsResponse:
    """What a layer gets; its name may hold slashes."""
    instance = await _instance(service, instance_id)
    found = await service.work(partial(operations.layer_params, instance, layer_name), instance.nbytes)
    return LayerParamsResponse(**found)


# Files.


@router.post(
    "/instances/{instance_id}/upload_numpy", tags=["operations"], response_model=UploadResponse,
    response_model_exclude_none=True, responses=_arrays(400, 404, 406, 409, 415, 422), openapi_extra=UPLOAD_FORM,
)  # fmt: skip
async def upload_numpy(
    instance_id: InstanceId,
    http: Request,
    service: ServiceDep,
    operation: Annotated[
        str,
        Query(
            description="Operation to perform: quantize, dequantize, or quantize_dequantize",
            json_schema_extra={"enum": list(operations.OPERATIONS)},
        ),
    ] = "quantize",
    validate: Annotated[bool, Query(description="Whether to validate input")] = True,
    channel_dim: Annotated[
        Annotated[int, Field(ge=-32, lt=32)] | SkipJsonSchema[None],
        Query(description="Dimension index for per-channel operation"),
    ] = None,
    layer_name: Annotated[
        LayerName | SkipJsonSchema[None], Query(description="Layer name for mixed precision handling")
    ] = None,
    accept: Accept = None,
) -> Response:
    """Works on a .npy file. The answer describes the result, or is it: ``Accept: application/x-npy``."""
    media_type = accepted(accept)
    if operation not in operations.OPERATIONS:
        known = ", ".join(operations.OPERATIONS)
        raise Problem(400, f"Invalid operation: expected one of {known}", code="invalid-operation")
    body = await uploaded_npy(http)
    options: dict[str, Any] = {"channel_dim": channel_dim, "layer_name": layer_name}
    if operation != "dequantize":
        options["validate"] = validate
    if operation == "quantize":
        options["remember"] = remembering(http.scope, None)
    with answering(PROCESSING):
        array = await service.work(partial(FORMATS.get(NPY).decode, body, service.limits), len(body))

    def answer(result: Result) -> Response:
        return respond(result, media_type, told=_described(operation, result))

    # What is told of the array in JSON is short.
    return await _operate(service, http, instance_id, operation, array, options, NPY, PROCESSING, answer)


async def _operate(
    service: Service,
    http: Request,
    instance_id: str,
    operation: str,
    array: Any,
    options: dict[str, Any],
    accept: str | None,
    prefix: str,
    answer: Callable[[Result], Response] | None = None,
) -> Response:
    """Works on an array and makes the answer, both in one go, if there is an answer that the client accepts."""
    media_type = accepted(accept)
    with answering(prefix):
        instance = await calls.snapshot(service, instance_id)
        calls.admit(service, memory_of(http), instance, operation, [array], options, media_type)
        make = answer or (lambda result: respond(result, media_type))
        return await calls.operate(service, instance, operation, array, options, make)


async def _configured(
    service: Service, instance_id: str, config: Any, response: Response, if_match: str | None
) -> MessageResponse:
    """Gives an instance the configuration that a function makes of the present one."""
    with answering(UPDATING, conditional=if_match is not None):
        change = operations.configuring(config)
        instance = await calls.change(service, instance_id, change, revisions_of(if_match))
    response.headers.update(etag(instance.revision))
    return MessageResponse(message=f"Configuration for quantizer instance {instance_id} updated successfully")


async def _instance(service: Service, instance_id: str, if_match: str | None = None) -> Instance:
    with answering("Error", conditional=if_match is not None):
        return await calls.snapshot(service, instance_id, revisions_of(if_match))


async def _told(service: Service, instance: Instance, text: Callable[[], bytes], more: int = 0) -> Response:
    """An answer in JSON that may be as long as the instance, and `more`."""
    body = await service.work(text, instance.nbytes + more)
    return Response(body, headers=etag(instance.revision), media_type=JSON)


def _described(operation: str, result: Result) -> dict[str, Any]:
    done = {"quantize": "quantized", "dequantize": "dequantized", "quantize_dequantize": "quantized and dequantized"}
    told = {
        "message": f"Array {done[operation]} successfully",
        "shape": list(result.array.shape),
        "dtype": result.array.dtype.name,
    }
    return told | {name: value for name, value in result.meta.items() if value is not None}
