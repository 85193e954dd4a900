"""The application as the documented module has it: ``uvicorn qi.service.main:app``, and the names beside it."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import numpy as np
from fastapi import HTTPException

from qi.engine import Quantizer
from qi.service.app import create_app
from qi.service.instances import DEFAULT
from qi.service.models import (
    CalibrationRequest,
    DequantizationRequest,
    ImportExportParams,
    QuantizationParamsRequest,
    QuantizationRequest,
    QuantizationResponse,
    QuantizerConfigModel,
    RaggedError,
    ScaleZeroPointResponse,
    StatsResponse,
)
from qi.service.service import Service
from qi.service.store import MissingError

__all__ = [
    "CalibrationRequest",
    "DequantizationRequest",
    "ImportExportParams",
    "QuantizationParamsRequest",
    "QuantizationRequest",
    "QuantizationResponse",
    "QuantizerConfigModel",
    "ScaleZeroPointResponse",
    "StatsResponse",
    "app",
    "create_app",
    "get_quantizer",
    "list_to_numpy",
    "numpy_to_list",
    "quantizer_instances",
]

app = create_app(log=True)


class _Quantizers(MutableMapping[str, Quantizer]):
    """The quantizers of `app` by name. Setting one stores its configuration and parameters."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def __getitem__(self, id: str) -> Quantizer:
        try:
            return self._service.instances.get(id).quantizer
        except MissingError as error:
            raise KeyError(id) from error

    def __setitem__(self, id: str, quantizer: Quantizer) -> None:
        self._service.instances.put(id, quantizer)

    def __delitem__(self, id: str) -> None:
        try:
            self._service.instances.delete(id)
        except MissingError as error:
            raise KeyError(id) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._service.instances.ids())

    def __len__(self) -> int:
        return len(self._service.instances.ids())


quantizer_instances: MutableMapping[str, Quantizer] = _Quantizers(app.state.service)


def get_quantizer(instance_id: str = DEFAULT) -> Quantizer:
    """The quantizer of an instance of `app`.

    Args:
        instance_id: Its name.

    Raises:
        HTTPException: 404, there is none.
    """
    try:
        return quantizer_instances[instance_id]
    except KeyError:
        raise HTTPException(404, f"Quantizer instance {instance_id} not found") from None


def numpy_to_list(arr: Any) -> Any:
    """An array as nested lists; anything else as it is.

    Example:
        >>> numpy_to_list(np.eye(2, dtype=np.int8))
        [[1, 0], [0, 1]]
    """
    return arr.tolist() if isinstance(arr, np.ndarray | np.generic) else arr


def list_to_numpy(data: Any, dtype: Any = np.float32) -> np.ndarray:
    """Nested lists as an array.

    Raises:
        InputError: Rows differ in length.

    Example:
        >>> list_to_numpy([[1, 2], [3, 4]]).dtype
        dtype('float32')
    """
    try:
        return np.asarray(data, dtype=dtype)
    except ValueError as error:
        raise RaggedError("expected rows of numbers, of one length; received others") from error
