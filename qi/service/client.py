"""A client of the service: arrays in and out in binary, by the standard library's HTTP alone.

    from qi.service.client import Client

    with Client("http://127.0.0.1:8000") as client:
        codes = client.quantize(array)

Arrays travel by the Open Inference Protocol with its binary extension, because there scales are arrays as well: as many
of them as there are channels go both ways, and none is rounded to a text.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, overload
from urllib.parse import quote

import numpy as np

from qi.core import QTensor
from qi.engine import QuantizationConfig
from qi.engine.inputs import array_of
from qi.service.connection import (
    AccessError,
    Backoff,
    BadRequestError,
    ConflictError,
    Connection,
    NotFoundError,
    NotReadyError,
    Reply,
    ServiceError,
    UnreachableError,
)
from qi.service.messages import batch_of, code_inputs, condition, config_body, path_of, plain_of, tensor_of
from qi.service.npy import npy_parts
from qi.service.wire import HEADER_LENGTH, decode_response, encode_request

__all__ = [
    "AccessError",
    "Backoff",
    "BadRequestError",
    "Client",
    "ConflictError",
    "NotFoundError",
    "NotReadyError",
    "ServiceError",
    "UnreachableError",
]

_ACCEPT = "application/json, application/problem+json"
_JSON = {"Content-Type": "application/json"}
_NPY = {"Content-Type": "application/x-npy"}


class Client:
    """A service, and its quantizers by name.

    Any number of threads may use one client. What fails on the way is tried again where that is safe: a request that
    the service turned away because it was busy, and any request that may be done twice if the connection broke.

    Args:
        url: Where the service is.
        api_key: The key to show, if the service wants one.
        timeout: Seconds that the service may be silent.
        backoff: How often and when a request is sent again.

    Raises:
        ConfigError: The URL or the key can't be one.

    Example:
        >>> Client("https://quantizer.example/below", api_key="correct-horse")
        Client('https://quantizer.example/below')
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        *,
        timeout: float = 60.0,
        backoff: Backoff | None = None,
    ) -> None:
        key = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._connection = Connection(url, {"Accept": _ACCEPT, **key}, timeout=timeout, backoff=backoff)

    def __repr__(self) -> str:
        return f"Client({self._connection.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections. Using the client opens others."""
        self._connection.close()

    # Arrays.

    @overload
    def quantize(
        self, data: Any, *, instance: str = ..., validate: bool = ..., channel_dim: int | None = ...,
        layer_name: str | None = ..., remember: bool | None = ..., return_tensor: Literal[False] = ...,
    ) -> np.ndarray: ...  # fmt: skip

    @overload
    def quantize(
        self, data: Any, *, instance: str = ..., validate: bool = ..., channel_dim: int | None = ...,
        layer_name: str | None = ..., remember: bool | None = ..., return_tensor: Literal[True],
    ) -> QTensor: ...  # fmt: skip

    def quantize(
        self,
        data: Any,
        *,
        instance: str = "default",
        validate: bool = True,
        channel_dim: int | None = None,
        layer_name: str | None = None,
        remember: bool | None = None,
        return_tensor: bool = False,
    ) -> np.ndarray | QTensor:
        """Real numbers to codes.

        Args:
            data: Real array of any shape and dtype, or nested lists.
            instance: Which quantizer.
            validate: Whether NaN and infinities are errors where the configuration says so.
            channel_dim: The channel dimension, where the configuration is per channel; 0 if None.
            layer_name: The layer it belongs to.
            remember: Whether `dequantize` uses these parameters by default from now on; None: as the service's store does,
                which is True in memory and SQLite, False in Redis and PostgreSQL. With a key for reading they never are, and
                True is refused.
            return_tensor: Whether codes and parameters come back together, as a `QuantizedTensor`.

        Returns:
            codes in the type's dtype, and data's shape.

        Raises:
            BadRequestError: The array can't be quantized.
            NotReadyError: Fixed parameters are wanted and there are none.
            ServiceError: See its other subclasses.
        """
        options = {"validate": validate, "channel_dim": channel_dim, "layer_name": layer_name, "remember": remember}
        outputs, told = self._infer(instance, "quantize", {"x": array_of(data, validate=False)}, options)
        return tensor_of(outputs, told) if return_tensor else outputs["q"]

    def dequantize(
        self,
        data: Any,
        *,
        instance: str = "default",
        channel_dim: int | None = None,
        layer_name: str | None = None,
    ) -> np.ndarray:
        """Codes to real numbers.

        Args:
            data: Codes. A `QuantizedTensor` is read with its own parameters, which are sent along; others with the
                instance's fixed ones, or those of its latest array.
            instance: Which quantizer.
            channel_dim: The channel dimension, if it differs from that of the parameters.
            layer_name: The layer it belongs to.

        Returns:
            float32 array of data's shape.

        Raises:
            BadRequestError: Something is no code of the instance's type.
            NotReadyError: There are no parameters.
            ServiceError: See its other subclasses.
        """
        options = {"channel_dim": channel_dim, "layer_name": layer_name}
        outputs, _ = self._infer(instance, "dequantize", code_inputs(data), options)
        return outputs["y"]

    def quantize_dequantize(
        self,
        data: Any,
        *,
        instance: str = "default",
        validate: bool = True,
        channel_dim: int | None = None,
        layer_name: str | None = None,
    ) -> np.ndarray:
        """What quantization makes of real numbers.

        Args, Raises: as `quantize`.

        Returns:
            float32 array of data's shape.
        """
        options = {"validate": validate, "channel_dim": channel_dim, "layer_name": layer_name}
        outputs, _ = self._infer(instance, "quantize_dequantize", {"x": array_of(data, validate=False)}, options)
        return outputs["y"]

    def upload_numpy(
        self,
        path: str | os.PathLike[str],
        operation: str = "quantize",
        *,
        instance: str = "default",
        validate: bool = True,
        channel_dim: int | None = None,
        layer_name: str | None = None,
    ) -> dict[str, Any]:
        """Works on a .npy file as a form of a web page would send it, and tells about the result.

        Args:
            path: The file.
            operation: ``"quantize"``, ``"dequantize"`` or ``"quantize_dequantize"``.
            instance: Which quantizer.
            validate: As in `quantize`.
            channel_dim: As in `quantize`.
            layer_name: As in `quantize`.

        Returns:
            dict of message, shape, dtype, original_shape; of codes also quantization_type, scale, zero_point and others.

        Raises:
            OSError: The file can't be read.
            BadRequestError: It is no .npy file, or its array can't be used.
            ServiceError: See its other subclasses.
        """
        options = {"operation": operation, "validate": validate, "channel_dim": channel_dim, "layer_name": layer_name}
        border = uuid.uuid4().hex
        head = (
            f'--{border}\r\nContent-Disposition: form-data; name="file"; filename="array.npy"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        parts = [head.encode(), Path(path).read_bytes(), f"\r\n--{border}--\r\n".encode()]
        headers = {"Content-Type": f"multipart/form-data; boundary={border}"}
        return self._json("POST", path_of(instance, "upload_numpy", options), parts, headers)

    # Parameters.

    def calibrate(
        self,
        calibration_data: Sequence[Any],
        *,
        instance: str = "default",
        channel_dim: int | None = None,
        revision: int | None = None,
    ) -> dict[str, Any]:
        """Fixes scale and zero point by representative data; the instance's mode becomes CALIBRATED.

        Args:
            calibration_data: At most 4096 arrays of any shapes. They are sent in binary if they have one shape, else as JSON,
                which the service takes less of.
            instance: Which quantizer.
            channel_dim: The channel dimension, where the configuration is per channel.
            revision: The instance must have it; None: any.

        Returns:
            dict of scale and zero_point; of channels also scales, zero_points and channel_dim.

        Raises:
            BadRequestError: The data can't be used. The instance is as it was.
            ConflictError: It has another revision.
            ServiceError: See its other subclasses.
        """
        given = [calibration_data] if isinstance(calibration_data, np.ndarray) else calibration_data
        arrays = [plain_of(x) for x in given]
        expected = condition(revision)
        batch = batch_of(arrays)
        if batch is not None:
            path = path_of(instance, "calibrate", {"channel_dim": channel_dim})
            return self._json("POST", path, npy_parts(batch), {**_NPY, **expected})
        body = {"data": [x.tolist() for x in arrays], "channel_dim": channel_dim}
        return self._json("POST", path_of(instance, "calibrate"), [json.dumps(body).encode()], {**_JSON, **expected})

    def compute_params(
        self, data: Any, *, instance: str = "default", channel_idx: int | None = None, layer_name: str | None = None
    ) -> tuple[float, float]:
        """The scale and zero point that an array asks for; changes nothing.

        Args:
            data: Real array, or nested lists.
            instance: Which quantizer.
            channel_idx: An index of the first dimension: the parameters are of that part only.
            layer_name: Whose configuration to use.

        Raises:
            BadRequestError: The array can't be quantized, or has no such channel.
            ServiceError: See its other subclasses.
        """
        path = path_of(instance, "compute_params", {"channel_idx": channel_idx, "layer_name": layer_name})
        found = self._json("POST", path, npy_parts(plain_of(data)), _NPY)
        return found["scale"], found["zero_point"]

    def export_parameters(self, *, instance: str = "default") -> dict[str, Any]:
        """The instance's parameters as plain values, which `load_parameters` takes, and `qi.engine.Quantizer`'s too."""
        return self._json("GET", path_of(instance, "parameters"))

    def load_parameters(
        self, params: Mapping[str, Any], *, instance: str = "default", revision: int | None = None
    ) -> None:
        """Takes over exported parameters, of this or another instance or quantizer.

        Raises:
            BadRequestError: Something in it is missing or impossible. The instance is as it was.
            ConflictError: It has another revision.
            ServiceError: See its other subclasses.
        """
        body = json.dumps({"parameters": dict(params)}).encode()
        self._call("POST", path_of(instance, "parameters"), [body], {**_JSON, **condition(revision)})

    def layer_params(self, layer_name: str, *, instance: str = "default") -> dict[str, Any]:
        """What a layer gets: ``bits``, ``type`` and ``skip``."""
        return self._json("GET", path_of(instance, "layer_params") + f"/{quote(layer_name, safe='')}")

    # Instances.

    def instances(self) -> list[str]:
        """Names of all instances, in the order of their creation."""
        return list(self._call("GET", "/instances").json())

    def create(self, instance: str, config: Mapping[str, Any] | QuantizationConfig | None = None) -> None:
        """Makes an instance.

        Args:
            instance: Its name: letters, digits, '.', '_' and '-'.
            config: Fields that differ from the service's defaults, or all of them.

        Raises:
            ConflictError: There is one of this name already.
            BadRequestError: The name or the configuration is impossible.
            ServiceError: See its other subclasses.
        """
        self._call("POST", path_of(instance), [config_body(config)], _JSON, repeatable=False)

    def delete(self, instance: str, *, revision: int | None = None) -> None:
        """Deletes an instance.

        Raises:
            AccessError: It is the default one.
            NotFoundError: There is none of this name.
            ConflictError: It has another revision.
            ServiceError: See its other subclasses.
        """
        self._call("DELETE", path_of(instance), headers=condition(revision), repeatable=False)

    def config(self, instance: str = "default") -> dict[str, Any]:
        """The configuration, as `update_config` takes it."""
        return self._json("GET", path_of(instance, "config"))

    def revision(self, instance: str = "default") -> int:
        """A number that grows with every change of the instance's configuration or fixed parameters.

        Given to what changes the instance, it says that nobody else has changed it in between.
        """
        return int(self._call("GET", path_of(instance, "config")).headers["etag"].strip('"'))

    def update_config(
        self,
        config: Mapping[str, Any] | QuantizationConfig,
        *,
        instance: str = "default",
        revision: int | None = None,
        partial: bool = False,
    ) -> None:
        """Changes the configuration; a calibrated range stays where it can.

        Args:
            config: The new one; fields that are left out get the service's defaults.
            instance: Whose.
            revision: The instance must have it; None: any.
            partial: Whether fields that are left out stay as they are instead.

        Raises:
            BadRequestError: It is impossible. The instance is as it was.
            ConflictError: It has another revision.
            ServiceError: See its other subclasses.
        """
        method = "PATCH" if partial else "PUT"
        self._call(method, path_of(instance, "config"), [config_body(config)], {**_JSON, **condition(revision)})

    # Statistics, cache and health.

    def stats(self, *, instance: str = "default") -> dict[str, Any]:
        """Counters since the last reset, of the process that answers."""
        return self._json("GET", path_of(instance, "stats"))

    def reset_stats(self, *, instance: str = "default") -> None:
        """Sets all counters to 0."""
        self._call("POST", path_of(instance, "reset_stats"))

    def clear_cache(self, *, instance: str = "default") -> None:
        """Forgets kept results."""
        self._call("POST", path_of(instance, "clear_cache"))

    def health(self) -> dict[str, Any]:
        """What a service that lives says of itself."""
        return self._json("GET", "/")

    def ready(self) -> bool:
        """Whether the service is there and takes work."""
        try:
            self._call("GET", "/health/ready")
        except UnreachableError:
            return False
        return True

    def documentation(self) -> dict[str, Any]:
        """Every endpoint, with examples."""
        return self._json("GET", "/documentation")

    # How it is done.

    def _call(
        self,
        method: str,
        path: str,
        parts: Sequence[bytes | memoryview] = (),
        headers: Mapping[str, str] | None = None,
        *,
        repeatable: bool = True,
    ) -> Reply:
        # A condition makes a change one that can't be repeated: after the first time it doesn't hold.
        repeatable = repeatable and "If-Match" not in (headers or {})
        return self._connection.call(method, path, parts, headers, repeatable=repeatable)

    def _json(
        self, method: str, path: str, parts: Sequence[bytes | memoryview] = (), headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        return dict(self._call(method, path, parts, headers).json())

    def _infer(
        self, instance: str, operation: str, inputs: Mapping[str, np.ndarray], options: Mapping[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        given = {name: value for name, value in options.items() if value is not None}
        parts, length = encode_request(inputs, {"operation": operation, **given})
        headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(length)}
        reply = self._call("POST", f"/v2/models/{quote(instance, safe='')}/infer", parts, headers)
        return decode_response(reply.body, int(reply.headers.get(HEADER_LENGTH.lower(), 0)))
