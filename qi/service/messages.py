"""What a client says and hears, less the HTTP: paths, conditions, configurations, codes with their parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np

from qi.core import Granularity, IntGrid, PerChannel, PerTensor, QParams, QTensor
from qi.engine import Granularity as GranularityName, QuantizationConfig, QuantizationType
from qi.engine.inputs import array_of, no_tensor
from qi.errors import UnsupportedError

__all__ = ["batch_of", "code_inputs", "condition", "config_body", "path_of", "plain_of", "tensor_of"]

_LOCAL = ("granularity", "eps")  # fields of a configuration that the service doesn't know


def path_of(instance: str, endpoint: str = "", options: Mapping[str, Any] | None = None) -> str:
    """A path, with those options in its query that aren't None.

    Example:
        >>> path_of("a", "quantize", {"validate": True, "channel_dim": None, "layer_name": "b/c"})
        '/instances/a/quantize?validate=true&layer_name=b%2Fc'
    """
    given = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in (options or {}).items()
        if value is not None
    }
    path = f"/instances/{quote(instance, safe='')}" + (f"/{endpoint}" if endpoint else "")
    return path + (f"?{urlencode(given)}" if given else "")


def condition(revision: int | None) -> dict[str, str]:
    """The header that lets a change happen to this revision only; none for None."""
    return {} if revision is None else {"If-Match": f'"{revision}"'}


def config_body(config: Mapping[str, Any] | QuantizationConfig | None) -> bytes:
    """A configuration as JSON.

    Raises:
        UnsupportedError: Groups share a scale in it, which the service doesn't know.
    """
    fields = dict(config.to_dict() if isinstance(config, QuantizationConfig) else config or {})
    if isinstance(config, QuantizationConfig):
        if not isinstance(config.granularity, GranularityName | None):
            raise UnsupportedError(f"expected one scale per tensor or channel; received {config.granularity}")
        fields = {name: value for name, value in fields.items() if name not in _LOCAL and value is not None}
    return json.dumps(fields).encode()


def plain_of(data: Any) -> np.ndarray:
    """An array of numbers that files of numpy can hold.

    Raises:
        UnsupportedError: It is none, or of a dtype without real numbers.

    Example:
        >>> import ml_dtypes
        >>> plain_of(np.ones(2, ml_dtypes.bfloat16)).dtype, plain_of([1, 2]).dtype
        (dtype('float32'), dtype('int64'))
    """
    array = array_of(data, validate=False)
    return array if array.dtype.kind in "fiub" else array.astype(np.float32)


def batch_of(arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """One array that the service takes for these: it takes what has more than two dimensions for a list along the first.

    Returns:
        the array; None if there is no such one, because shapes or dtypes differ.

    Example:
        >>> batch_of([np.ones((2, 3)), np.ones((2, 3))]).shape, batch_of([np.ones(3)]).shape
        ((2, 2, 3), (3,))
    """
    if len(arrays) == 1 and arrays[0].ndim < 3:
        return arrays[0]
    kinds = {(array.shape, array.dtype) for array in arrays}
    return np.stack(arrays) if len(kinds) == 1 and arrays[0].ndim >= 2 else None


def code_inputs(data: Any) -> dict[str, np.ndarray]:
    """Codes as inputs of the protocol, with their parameters if they have any.

    Raises:
        UnsupportedError: It is no array, or groups share a scale.
    """
    if not isinstance(data, QTensor):
        return {"q": array_of(data, validate=False)}
    params = data.qparams
    if not isinstance(params.granularity, PerTensor | PerChannel):
        raise UnsupportedError(f"expected one scale per tensor or channel; received {params.granularity}")
    shape = params.scale.shape or (1,)
    return {"q": data.codes, "scale": params.scale.reshape(shape), "zero_point": params.zero_point.reshape(shape)}


def tensor_of(outputs: Mapping[str, np.ndarray], told: Mapping[str, Any]) -> QTensor:
    """Codes and parameters as one, from the outputs and parameters of an answer.

    Raises:
        ConfigError: The numbers are no codes.
    """
    kind = QuantizationType(told["quantization_type"])
    if not kind.integer:
        raise no_tensor(kind.value)
    scale, zero_point, axis = outputs["scale"], outputs["zero_point"], told.get("channel_dim")
    granularity: Granularity = PerTensor()
    if axis is None:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    else:
        granularity = PerChannel(axis)
    grid = IntGrid(told["num_bits"], signed=kind.signed)
    return QTensor(outputs["q"], QParams(scale, zero_point, grid, granularity))
