"""The documented endpoints: what they take and answer. What they do is in `qi.service.operations`."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, File, Header, Path, Query, Response, UploadFile
from fastapi.routing import APIRoute

from qi.service import operations
from qi.service.answers import answering, etag, respond, revision_of
from qi.service.bodies import documented_body, reading
from qi.service.formats import FORMATS, NPY
from qi.service.instances import Instance
from qi.service.models import (
    CalibrationRequest,
    CalibrationResponse,
    DequantizationRequest,
    DequantizationResponse,
    ImportExportParams,
    LayerParamsResponse,
    MessageResponse,
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
from qi.service.service import Service, service_of

__all__ = ["router"]

InstanceId = Annotated[str, Path(description="Name of an instance", max_length=1024)]
Accept = Annotated[str | None, Header(include_in_schema=False)]
IfMatch = Annotated[str | None, Header(description="The ETag that the instance must have")]
ServiceDep = Annotated[Service, Depends(service_of)]

QUANTIZING, DEQUANTIZING, SIMULATING = "Quantization error", "Dequantization error", "Quantize-dequantize error"
CALIBRATING, COMPUTING = "Calibration error", "Error computing parameters"
CREATING, UPDATING = "Error creating quantizer instance", "Error updating configuration"
IMPORTING, PROCESSING = "Error importing parameters", "Error processing file"


def _arrays(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses of a route whose result is an array."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    found = {"description": "Successful Response", "content": {name: dict(binary) for name in FORMATS}}
    return {200: found, **documented(*statuses)}


def _name(route: APIRoute) -> str:
    return route.name


_NEXT = ("get_config", "update_config", "quantize_data", "calibrate_quantizer", "export_parameters", "delete_instance")
_LINKS: dict[int | str, dict[str, Any]] = {
    200: {
        "links": {
            name: {"operationId": name, "parameters": {"instance_id": "$request.path.instance_id"}} for name in _NEXT
        }
    }
}
"""What can be done with a new instance."""

router = APIRouter(generate_unique_id_function=_name)
"""Every documented endpoint below ``/instances``."""


# Creation, deletion and configuration.


@router.get("/instances", tags=["instances"])
async def get_instances(
    service: ServiceDep, limit: Annotated[int | None, Query(ge=1, description="Most names")] = None
) -> list[str]:
    """Names of all instances, in the order of their creation."""
    ids = await service.store(service.instances.ids)
    return ids[:limit]


@router.post("/instances/{instance_id}", tags=["instances"], responses=_LINKS | documented(400, 409, 422, 429))
async def create_instance(
    instance_id: InstanceId,
    config: Annotated[QuantizerConfigModel, Body()],
    service: ServiceDep,
    response: Response,
) -> MessageResponse:
    """Makes an instance; ``{}`` stands for the documented defaults."""
    with answering(CREATING):
        create = partial(service.instances.create, instance_id, config.to_config())
        instance = await service.store(create)
    response.headers.update({**etag(instance.revision), "Location": f"/instances/{instance_id}/config"})
    return MessageResponse(message=f"Quantizer instance {instance_id} created successfully")


@router.delete("/instances/{instance_id}", tags=["instances"], responses=documented(403, 404, 412))
async def delete_instance(instance_id: InstanceId, service: ServiceDep, if_match: IfMatch = None) -> MessageResponse:
    """Deletes an instance other than the default one."""
    with answering("Error deleting quantizer instance", conditional=if_match is not None):
        await service.store(partial(service.instances.delete, instance_id, revision_of(if_match)))
    return MessageResponse(message=f"Quantizer instance {instance_id} deleted successfully")


@router.get("/instances/{instance_id}/config", tags=["instances"], responses=documented(404))
async def get_config(instance_id: InstanceId, service: ServiceDep, response: Response) -> QuantizerConfigModel:
    """The configuration, as ``PUT`` takes it."""
    instance = await _instance(service, instance_id)
    response.headers.update(etag(instance.revision))
    return QuantizerConfigModel.from_config(instance.config)


@router.put("/instances/{instance_id}/config", tags=["instances"], responses=documented(400, 404, 409, 412, 422))
async def update_config(
    instance_id: InstanceId,
    config: Annotated[QuantizerConfigModel, Body()],
    service: ServiceDep,
    response: Response,
    if_match: IfMatch = None,
) -> MessageResponse:
    """Replaces the configuration; a calibrated range stays where it can."""
    with answering(UPDATING, conditional=if_match is not None):
        change = partial(service.instances.configure, instance_id, config.to_config(), revision_of(if_match))
        instance = await service.store(change)
    response.headers.update(etag(instance.revision))
    return _updated(instance_id)


@router.patch("/instances/{instance_id}/config", tags=["instances"], responses=documented(400, 404, 409, 412, 422))
async def patch_config(
    instance_id: InstanceId,
    changes: Annotated[QuantizerConfigPatch, Body()],
    service: ServiceDep,
    response: Response,
    if_match: IfMatch = None,
) -> MessageResponse:
    """Changes some fields of the configuration."""
    with answering(UPDATING, conditional=if_match is not None):
        change = partial(service.instances.configure, instance_id, changes.apply, revision_of(if_match))
        instance = await service.store(change)
    response.headers.update(etag(instance.revision))
    return _updated(instance_id)


# The work on arrays.


@router.post(
    "/instances/{instance_id}/quantize", tags=["operations"], response_model=QuantizationResponse,
    responses=_arrays(400, 404, 406, 409, 415, 422), openapi_extra=documented_body(QuantizationRequest),
)  # fmt: skip
async def quantize_data(
    instance_id: InstanceId,
    request: Annotated[QuantizationRequest, Depends(reading(QuantizationRequest, QUANTIZING))],
    service: ServiceDep,
    accept: Accept = None,
) -> Response:
    """Real numbers to codes. Scale and zero point come with them."""
    options = {
        "validate": request.validate_input,
        "channel_dim": request.channel_dim,
        "layer_name": request.layer_name,
        "remember": request.remember,
    }
    return await _operate(service, instance_id, "quantize", request.data, options, accept, QUANTIZING)


@router.post(
    "/instances/{instance_id}/dequantize", tags=["operations"], response_model=DequantizationResponse,
    responses=_arrays(400, 404, 406, 409, 415, 422), openapi_extra=documented_body(DequantizationRequest),
)  # fmt: skip
async def dequantize_data(
    instance_id: InstanceId,
    request: Annotated[DequantizationRequest, Depends(reading(DequantizationRequest, DEQUANTIZING))],
    service: ServiceDep,
    accept: Accept = None,
) -> Response:
    """Codes to real numbers, by the scale and zero point sent along, or else by fixed or the latest ones."""
    options = request.model_dump(exclude={"data"})
    return await _operate(service, instance_id, "dequantize", request.data, options, accept, DEQUANTIZING)


@router.post(
    "/instances/{instance_id}/quantize_dequantize", tags=["operations"], response_model=DequantizationResponse,
    responses=_arrays(400, 404, 406, 409, 415, 422), openapi_extra=documented_body(QuantizationRequest),
)  # fmt: skip
async def quantize_dequantize_data(
    instance_id: InstanceId,
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
    return await _operate(service, instance_id, "quantize_dequantize", request.data, options, accept, SIMULATING)


# Calibration, and parameters without quantization.


@router.post(
    "/instances/{instance_id}/calibrate", tags=["parameters"], response_model=CalibrationResponse,
    responses=documented(400, 404, 409, 412, 415, 422), openapi_extra=documented_body(CalibrationRequest),
)  # fmt: skip
async def calibrate_quantizer(
    instance_id: InstanceId,
    request: Annotated[CalibrationRequest, Depends(reading(CalibrationRequest, CALIBRATING))],
    service: ServiceDep,
    response: Response,
    if_match: IfMatch = None,
) -> CalibrationResponse:
    """Fixes scale and zero point by representative data; the mode becomes CALIBRATED."""

    def work() -> dict[str, Any]:
        with answering(CALIBRATING, conditional=if_match is not None):
            arrays = [_checked(service, array) for array in request.data]
            return operations.calibrate(
                service.instances, instance_id, arrays,
                channel_dim=request.channel_dim, revision=revision_of(if_match),
            )  # fmt: skip

    found = await service.work(work, sum(array.nbytes for array in request.data))
    response.headers.update(etag(found.pop("params_rev")))
    return CalibrationResponse(message="Calibration successful", **found)


@router.post(
    "/instances/{instance_id}/compute_params", tags=["parameters"], response_model=ScaleZeroPointResponse,
    responses=documented(400, 404, 415, 422), openapi_extra=documented_body(QuantizationParamsRequest),
)  # fmt: skip
async def compute_scale_zero_point(
    instance_id: InstanceId,
    request: Annotated[QuantizationParamsRequest, Depends(reading(QuantizationParamsRequest, COMPUTING))],
    service: ServiceDep,
) -> ScaleZeroPointResponse:
    """The scale and zero point that numbers ask for; nothing changes."""

    def work() -> dict[str, float]:
        with answering(COMPUTING):
            return operations.compute_params(
                service.instances.get(instance_id), _checked(service, request.data),
                channel_idx=request.channel_idx, layer_name=request.layer_name,
            )  # fmt: skip

    return ScaleZeroPointResponse(**await service.work(work, request.data.nbytes))


# Counters and cache.


@router.get("/instances/{instance_id}/stats", tags=["statistics"], responses=documented(404))
async def get_stats(instance_id: InstanceId, service: ServiceDep) -> StatsResponse:
    """Counters since the last reset, of the process that answers."""
    return StatsResponse(**operations.stats(await _instance(service, instance_id)))


@router.post("/instances/{instance_id}/clear_cache", tags=["statistics"], responses=documented(404))
async def clear_cache(instance_id: InstanceId, service: ServiceDep) -> MessageResponse:
    """Forgets kept results."""
    (await _instance(service, instance_id)).quantizer.clear_cache()
    return MessageResponse(message="Cache cleared successfully")


@router.post("/instances/{instance_id}/reset_stats", tags=["statistics"], responses=documented(404))
async def reset_stats(instance_id: InstanceId, service: ServiceDep) -> MessageResponse:
    """Sets all counters to 0."""
    (await _instance(service, instance_id)).quantizer.reset_stats()
    return MessageResponse(message="Statistics reset successfully")


# Export and import of parameters.


@router.get("/instances/{instance_id}/parameters", tags=["parameters"], responses=documented(404, 422))
async def export_parameters(instance_id: InstanceId, service: ServiceDep, response: Response) -> dict[str, Any]:
    """The parameters, as ``POST`` takes them."""
    with answering("Error exporting parameters"):
        instance = service.instances.get(instance_id)
        found = await service.store(partial(operations.export_parameters, instance))
    response.headers.update(etag(instance.revision))
    return found


@router.post("/instances/{instance_id}/parameters", tags=["parameters"], responses=documented(400, 404, 409, 412, 422))
async def import_parameters(
    instance_id: InstanceId,
    request: Annotated[ImportExportParams, Body()],
    service: ServiceDep,
    response: Response,
    if_match: IfMatch = None,
) -> MessageResponse:
    """Takes over exported parameters, of this or another instance, all or none."""
    with answering(IMPORTING, conditional=if_match is not None):
        load = partial(service.instances.load, instance_id, request.parameters, revision_of(if_match))
        instance = await service.store(load)
    response.headers.update(etag(instance.revision))
    return MessageResponse(message="Parameters imported successfully")


@router.get("/instances/{instance_id}/layer_params/{layer_name:path}", tags=["parameters"], responses=documented(404))
async def get_layer_params(
    instance_id: InstanceId, layer_name: Annotated[str, Path(max_length=512)], service: ServiceDep
) -> LayerParamsResponse:
    """What a layer gets; its name may hold slashes."""
    return LayerParamsResponse(**operations.layer_params(await _instance(service, instance_id), layer_name))


# Files.


@router.post(
    "/instances/{instance_id}/upload_numpy", tags=["operations"], response_model=UploadResponse,
    response_model_exclude_none=True, responses=_arrays(400, 404, 406, 409, 422),
)  # fmt: skip
async def upload_numpy(
    instance_id: InstanceId,
    service: ServiceDep,
    file: Annotated[UploadFile, File(description="A .npy file")],
    operation: Annotated[
        str, Query(description="Operation to perform: quantize, dequantize, or quantize_dequantize")
    ] = "quantize",
    validate: Annotated[bool, Query(description="Whether to validate input")] = True,
    channel_dim: Annotated[
        int | None, Query(ge=-32, lt=32, description="Dimension index for per-channel operation")
    ] = None,
    layer_name: Annotated[
        str | None, Query(max_length=512, description="Layer name for mixed precision handling")
    ] = None,
    accept: Accept = None,
) -> Response:
    """Works on a .npy file. The answer describes the result, or is it: ``Accept: application/x-npy``."""
    if operation not in operations.OPERATIONS:
        known = ", ".join(operations.OPERATIONS)
        raise Problem(400, f"Invalid operation: expected one of {known}", code="invalid-operation")
    if not (file.filename or "").lower().endswith(".npy"):
        raise Problem(400, "File must be a .npy file", code="not-npy")
    body = await file.read()
    options: dict[str, Any] = {"channel_dim": channel_dim, "layer_name": layer_name}
    if operation != "dequantize":
        options["validate"] = validate

    def work() -> Response:
        with answering(PROCESSING):
            instance = service.instances.get(instance_id)
            array = FORMATS.get(NPY).decode(body, service.limits)
            result = operations.OPERATIONS[operation](instance, array, **options)
            return respond(result, accept, told=_described(operation, result))

    return await service.work(work, len(body))


async def _operate(
    service: Service,
    instance_id: str,
    operation: str,
    array: Any,
    options: dict[str, Any],
    accept: str | None,
    prefix: str,
) -> Response:
    """Works on an array and makes the answer, both in one go."""

    def work() -> Response:
        with answering(prefix):
            instance = service.instances.get(instance_id)
            checked = _checked(service, array)
            return respond(operations.OPERATIONS[operation](instance, checked, **options), accept)

    return await service.work(work, array.nbytes)


def _checked(service: Service, array: Any) -> Any:
    limits = service.limits
    return operations.check_array(array, max_elements=limits.max_elements, max_ndim=limits.max_ndim)


async def _instance(service: Service, instance_id: str) -> Instance:
    with answering("Error"):
        return await service.store(partial(service.instances.get, instance_id))


def _updated(instance_id: str) -> MessageResponse:
    return MessageResponse(message=f"Configuration for quantizer instance {instance_id} updated successfully")


def _described(operation: str, result: Result) -> dict[str, Any]:
    done = {"quantize": "quantized", "dequantize": "dequantized", "quantize_dequantize": "quantized and dequantized"}
    told = {
        "message": f"Array {done[operation]} successfully",
        "shape": list(result.array.shape),
        "dtype": result.array.dtype.name,
    }
    return told | {name: value for name, value in result.meta.items() if value is not None}
