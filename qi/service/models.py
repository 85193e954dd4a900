"""What goes over the wire: the models of the documented interface, by its names."""

from __future__ import annotations

import itertools
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError, WithJsonSchema

from qi.engine import QuantizationConfig
from qi.errors import ConfigError, InputError

__all__ = [
    "CalibrationRequest",
    "CalibrationResponse",
    "DequantizationRequest",
    "DequantizationResponse",
    "HealthResponse",
    "ImportExportParams",
    "LayerParamsResponse",
    "MessageResponse",
    "QuantizationParamsRequest",
    "QuantizationRequest",
    "QuantizationResponse",
    "QuantizerConfigModel",
    "QuantizerConfigPatch",
    "RaggedError",
    "ScaleZeroPointResponse",
    "StatsResponse",
    "UploadResponse",
    "array_from_json",
]

_MAX_NESTED = 32
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_ARRAY_SCHEMA: dict[str, Any] = {
    "description": "Numbers in any number of dimensions; rows of one length.",
    "anyOf": [
        {"type": "array", "items": _NUMBERS},
        _NUMBERS,
        {"type": "array", "items": {"type": "array", "items": _NUMBERS}},
        {"type": "array", "items": {"type": "array", "items": {"type": "array"}}},
        {"type": "number"},
    ],
    "examples": [[[1.2, 3.4, 5.6], [7.8, 9.0, 2.1]]],
}


class RaggedError(InputError):
    """Rows differ in length."""


def array_from_json(value: Any) -> np.ndarray:
    """Nested lists of numbers as an array: whole numbers as integers, others as float64.

    Args:
        value: What a parser of JSON gave, or an array.

    Raises:
        RaggedError: Rows differ in length.
        InputError: Something is no number, or there are too many dimensions.

    Example:
        >>> array_from_json([[1, 2], [3, 4]]).shape
        (2, 2)
    """
    if isinstance(value, np.ndarray):
        return value
    shape: list[int] = []
    level: list[Any] = [value]
    while (kinds := set(map(type, level))) == {list}:
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise RaggedError(f"expected rows of one length; received {min(lengths)} and {max(lengths)} numbers")
        if len(shape) == _MAX_NESTED:
            raise InputError(f"expected at most {_MAX_NESTED} dimensions; received more")
        shape.append(lengths.pop())
        level = list(itertools.chain.from_iterable(level))
    if list in kinds:
        raise RaggedError("expected rows of one length; received numbers beside rows")
    if not kinds <= {int, float}:
        names = sorted(_KINDS.get(kind, "others") for kind in kinds - {int, float})
        raise InputError(f"expected numbers; received {', '.join(names)}")
    try:
        array = np.array(level, np.int64 if kinds == {int} else np.float64)
    except OverflowError as error:
        raise InputError("expected numbers of at most 64 bits; received a larger one") from error
    return array.reshape(shape)


_KINDS: dict[type, str] = {str: "text", bool: "true or false", type(None): "null", dict: "objects"}

ArrayField = Annotated[
    np.ndarray,
    PlainValidator(array_from_json),
    PlainSerializer(lambda array: array.tolist(), when_used="json"),
    WithJsonSchema(_ARRAY_SCHEMA),
]

LayerName = Annotated[str, Field(max_length=512)]
Layers = Annotated[list[LayerName], Field(max_length=4096)]
ScaleOrScales = Annotated[float | list[float], Field(description="One number, or one for each channel.")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, populate_by_name=True)


class QuantizerConfigModel(_Model):
    """How an instance quantizes. Names of types and modes may be in any case; they are told in upper case.

    `num_bits` is that of the type (16 for INT16) unless it is given.
    """

    quantization_type: str = Field(
        default="INT8", description="INT8, UINT8, INT16, UINT16, INT4, ..., FLOAT16, NONE or MIXED"
    )
    quantization_mode: str = Field(default="DYNAMIC", description="DYNAMIC, SYMMETRIC, STATIC, CALIBRATED, ...")
    num_bits: int = Field(default=8, ge=1, le=32, description="Bits of one number: 2 to those of the type")
    symmetric: bool = False
    enable_cache: bool = True
    cache_size: int = Field(default=1000, ge=0, le=1 << 20)
    enable_mixed_precision: bool = False
    per_channel: bool = False
    buffer_size: int = Field(default=0, ge=0, le=1 << 24)
    use_percentile: bool = False
    min_percentile: float = Field(default=0.01, ge=0, le=100)
    max_percentile: float = Field(default=99.99, ge=0, le=100)
    error_on_nan: bool = True
    error_on_inf: bool = True
    optimize_memory: bool = False
    enable_requantization: bool = False
    requantization_threshold: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    outlier_threshold: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    skip_layers: Layers = []
    quantize_bias: bool = True
    quantize_weights_only: bool = False
    mixed_precision_layers: Layers = []
    custom_quantization_config: Annotated[dict[LayerName, dict[str, Any]], Field(max_length=4096)] = {}

    def to_config(self) -> QuantizationConfig:
        """The engine's configuration.

        Raises:
            ConfigError: Values that don't go together.
        """
        fields = self.model_dump()
        if "num_bits" not in self.model_fields_set:
            fields["num_bits"] = None
        return QuantizationConfig(**fields)

    @classmethod
    def from_config(cls, config: QuantizationConfig) -> QuantizerConfigModel:
        """The model of a configuration; `to_config` gives the configuration again."""
        plain = config.to_dict()
        names = {
            "quantization_type": config.quantization_type.name,
            "quantization_mode": config.quantization_mode.name,
        }
        return cls(**{name: plain[name] for name in cls.model_fields} | names)


class QuantizerConfigPatch(_Model):
    """Some fields of `QuantizerConfigModel`, of which the others stay as they are."""

    model_config = ConfigDict(extra="allow")

    def apply(self, config: QuantizationConfig) -> QuantizationConfig:
        """The configuration with these fields changed; a new type brings its own bits.

        Raises:
            ConfigError: A field is unknown, or its value impossible.
        """
        changes = dict(self.model_extra or {})
        fields = QuantizerConfigModel.from_config(config).model_dump()
        if "quantization_type" in changes:
            del fields["num_bits"]
        try:
            return QuantizerConfigModel.model_validate(fields | changes).to_config()
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ConfigError(f"{'.'.join(map(str, first['loc']))[:100]}: {first['msg']}") from error


class QuantizationRequest(_Model):
    """Numbers to quantize."""

    data: ArrayField
    validate_input: bool = Field(default=True, alias="validate", description="Whether NaN and infinities may be errors")
    channel_dim: int | None = Field(default=None, ge=-32, lt=32, description="The channel dimension, 0 by default")
    layer_name: LayerName | None = None
    remember: bool = Field(default=True, description="Whether dequantize uses these parameters by default from now on")


class DequantizationRequest(_Model):
    """Codes to dequantize: whole numbers, unless the type is FLOAT16 or NONE."""

    data: ArrayField
    channel_dim: int | None = Field(default=None, ge=-32, lt=32)
    layer_name: LayerName | None = None
    scale: ScaleOrScales | None = Field(default=None, description="As quantize answered; the latest ones by default")
    zero_point: ScaleOrScales | None = None


class CalibrationRequest(_Model):
    """Arrays of any shapes to calibrate with."""

    data: Annotated[list[ArrayField], Field(min_length=1, max_length=65536)]
    channel_dim: int | None = Field(default=None, ge=-32, lt=32)


class QuantizationParamsRequest(_Model):
    """Numbers to compute parameters for."""

    data: ArrayField
    channel_idx: int | None = Field(default=None, ge=0, lt=1 << 31)
    layer_name: LayerName | None = None


class ImportExportParams(_Model):
    """Parameters, as ``GET /instances/{instance_id}/parameters`` answers."""

    parameters: dict[str, Any]


class HealthResponse(BaseModel):
    """That the service runs."""

    status: str
    service: str


class MessageResponse(BaseModel):
    """What was done."""

    message: str


class ScaleZeroPointResponse(BaseModel):
    """Scale, and the integer code of 0."""

    scale: float
    zero_point: float


class CalibrationResponse(MessageResponse, ScaleZeroPointResponse):
    """What calibration fixed; of channels, the pair that their whole range would have, and each channel's own."""

    scales: list[float] | None = None
    zero_points: list[float] | None = None
    channel_dim: int | None = None


class QuantizationResponse(BaseModel):
    """Codes, and what is needed to read them; ``x = (code - zero_point) * scale``."""

    data: Any = Field(description="Nested lists of numbers, in the shape of the input")
    quantization_type: str
    original_shape: list[int]
    scale: ScaleOrScales | None = None
    zero_point: ScaleOrScales | None = None
    channel_dim: int | None = None
    num_bits: int | None = None
    dtype: str | None = None
    params_rev: int | None = Field(default=None, description="Revision of the instance")


class DequantizationResponse(BaseModel):
    """Numbers in the shape of the input."""

    data: Any = Field(description="Nested lists of numbers, in the shape of the input")
    original_shape: list[int]


class UploadResponse(BaseModel):
    """What was done to an uploaded array; ask for the array itself by ``Accept: application/x-npy``."""

    message: str
    shape: list[int]
    dtype: str
    original_shape: list[int]
    quantization_type: str | None = None
    scale: ScaleOrScales | None = None
    zero_point: ScaleOrScales | None = None
    channel_dim: int | None = None
    num_bits: int | None = None
    params_rev: int | None = None


class LayerParamsResponse(BaseModel):
    """What a layer gets."""

    bits: int
    type: str
    skip: bool


class StatsResponse(BaseModel):
    """Counters of one process since the last reset."""

    clipped_values: int
    total_values: int
    quantize_calls: int
    dequantize_calls: int
    cache_hits: int
    cache_misses: int
    last_scale: float
    last_zero_point: float
    processing_time_ms: float
