"""What goes over the wire: the models of the documented interface, by its names."""

from __future__ import annotations

import contextlib
import itertools
from array import array
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import orjson
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)

from qi.engine import QuantizationConfig
from qi.errors import ConfigError, InputError
from qi.service import schemas

__all__ = [
    "MAX_ARRAYS",
    "MAX_LAYER_NAME",
    "MAX_MEMBERS",
    "CalibrationRequest",
    "CalibrationResponse",
    "DequantizationRequest",
    "DequantizationResponse",
    "HealthResponse",
    "ImportExportParams",
    "LayerParamsResponse",
    "MessageResponse",
    "ParametersResponse",
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
    "is_layer_name",
    "query_options",
]

MAX_LAYER_NAME = schemas.MAX_NAME
"""Characters of a layer's name."""
MAX_ARRAYS = 4096
"""Arrays to calibrate with at once: each takes time, however short it is."""
MAX_MEMBERS = 64
"""Members of an object in a request, at most: more than any has, and few enough to tell of each."""

_MAX_NESTED = 32


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
    found = _plain_rows(value)
    if found is not None:
        return found
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


_CODES = {float: "d", int: "q"}


def _plain_rows(value: Any) -> np.ndarray | None:
    """The array of rows that all hold numbers, without a list of them all; None for what has to be looked at closer."""
    shape: list[int] = []
    level: list[Any] = [value]
    while len(shape) < _MAX_NESTED and type(level[0]) is list and set(map(type, level)) == {list}:
        lengths = set(map(len, level))
        length = lengths.pop()
        if lengths or not length:
            return None
        shape.append(length)
        code = _CODES.get(type(level[0][0]))
        if code is None:
            level = list(itertools.chain.from_iterable(level))
            continue
        numbers = array(code)
        try:
            for row in level:
                numbers.fromlist(row)
        except (TypeError, OverflowError):
            return None
        rows = np.frombuffer(numbers, code).reshape(-1, length)
        bits = np.flatnonzero(((rows == 0) | (rows == 1)).any(axis=1))  # which true and false are, too
        if any(bool in set(map(type, level[index])) for index in bits.tolist()):
            return None
        return rows.reshape(shape)
    return None


_KINDS: dict[type, str] = {str: "text", bool: "true or false", type(None): "null", dict: "objects"}

ArrayField = Annotated[
    np.ndarray,
    PlainValidator(array_from_json),
    PlainSerializer(lambda array: array.tolist(), when_used="json"),
    WithJsonSchema(schemas.ARRAY),
]


def _whole(value: Any) -> Any:
    """8.0 as 8, which are one number to JSON."""
    return int(value) if type(value) is float and value.is_integer() else value


# Strict: neither true nor "1" is a number.
Flag = Annotated[bool, Field(strict=True)]
_WHOLE = BeforeValidator(_whole)
Number = Annotated[float, Field(strict=True)]
LayerName = Annotated[str, Field(max_length=schemas.MAX_NAME, pattern=schemas.NAME)]
"""Without the character 0, which not every store can keep."""
# Each wrong entry would be an error of its own, of a kilobyte: the first is enough.
Layers = Annotated[list[LayerName], Field(max_length=schemas.MAX_LAYERS, fail_fast=True)]
Numbers = Annotated[list[Number], Field(fail_fast=True)]
ScaleOrScales = Annotated[Number | Numbers, Field(description="One number, or one for each channel.")]
ChannelDim = Annotated[int, Field(strict=True, ge=-32, lt=32), _WHOLE]
ResultField = Annotated[Any, WithJsonSchema(schemas.RESULT)]


def is_layer_name(text: str) -> bool:
    """Whether a layer can have this name: short, and without what not every store can keep."""
    if len(text) > schemas.MAX_NAME or "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:  # half a character
        return False
    return True


def _settings_of_layers(value: Any) -> Any:
    """Refuses at the first wrong entry; what each one means is the engine's business."""
    if not isinstance(value, dict) or len(value) > schemas.MAX_LAYERS:
        raise ValueError(f"expected an object of at most {schemas.MAX_LAYERS} layers")
    if not all(map(is_layer_name, value)):
        raise ValueError(f"expected names of at most {schemas.MAX_NAME} characters, without NUL")
    if not all(isinstance(own, dict) and len(own) <= MAX_MEMBERS for own in value.values()):
        raise ValueError(f"expected an object of at most {MAX_MEMBERS} members for each layer")
    return value


def _few_members(value: Any) -> Any:
    if isinstance(value, dict) and len(value) > MAX_MEMBERS:
        raise ValueError(f"expected at most {MAX_MEMBERS} members; received {len(value)}")
    return value


_TEXTS, _FLAGS = ("layer_name",), ("validate", "remember")
_FLAG = TypeAdapter(bool)


def query_options(model: type[BaseModel], query: Mapping[str, str]) -> dict[str, Any]:
    """Options in a query string, as the values that they would have in JSON; what can't be read stays a text.

    Args:
        model: Whose fields, `data` aside, may be options.
        query: The query string's texts.

    Example:
        >>> query_options(DequantizationRequest, {"scale": "[0.5,1]", "layer_name": "7", "other": "1"})
        {'scale': [0.5, 1], 'layer_name': '7'}
    """
    names = {field.alias or name for name, field in model.model_fields.items()} - {"data"}
    return {name: text if name in _TEXTS else _read(name, text) for name, text in query.items() if name in names}


def _read(name: str, text: str) -> Any:
    with contextlib.suppress(ValidationError):
        if name in _FLAGS:
            return _FLAG.validate_python(text)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return text if value is None else value  # no option is left out by a word


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, populate_by_name=True)


class QuantizerConfigModel(_Model):
    """How an instance quantizes. Names of types and modes may be in any case; they are told in upper case.

    `num_bits` is that of the type (16 for INT16) unless it is given.
    """

    quantization_type: str = Field(
        default="INT8",
        description="INT8, UINT8, INT16, UINT16, INT4, ..., FLOAT16, NONE or MIXED",
        json_schema_extra={"enum": [*schemas.TYPES]},
    )
    quantization_mode: str = Field(
        default="DYNAMIC",
        description="DYNAMIC, SYMMETRIC, STATIC, CALIBRATED, ...",
        json_schema_extra={"enum": [*schemas.MODES]},
    )
    num_bits: Annotated[int, Field(strict=True, ge=2, le=32), _WHOLE] = Field(
        default=8, description="Bits of one number: 2 to those of the type"
    )
    symmetric: Flag = False
    enable_cache: Flag = True
    cache_size: Annotated[int, Field(strict=True, ge=0, le=1 << 20), _WHOLE] = 1000
    enable_mixed_precision: Flag = False
    per_channel: Flag = False
    buffer_size: Annotated[int, Field(strict=True, ge=0, le=1 << 24), _WHOLE] = 0
    use_percentile: Flag = False
    min_percentile: Number = Field(default=0.01, ge=0, le=100, description="Below max_percentile")
    max_percentile: Number = Field(default=99.99, ge=0, le=100)
    error_on_nan: Flag = True
    error_on_inf: Flag = True
    optimize_memory: Flag = False
    enable_requantization: Flag = False
    requantization_threshold: Number = Field(default=0.01, ge=0, allow_inf_nan=False)
    outlier_threshold: Annotated[Number, Field(gt=0, allow_inf_nan=False)] | None = None
    skip_layers: Layers = []
    quantize_bias: Flag = True
    quantize_weights_only: Flag = False
    mixed_precision_layers: Layers = []
    custom_quantization_config: Annotated[
        dict[str, dict[str, Any]], PlainValidator(_settings_of_layers), WithJsonSchema(schemas.LAYERS)
    ] = {}

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


def _patching(schema: dict[str, Any]) -> None:
    """Describes the fields that may be changed; without defaults, for what is left out stays."""
    fields = QuantizerConfigModel.model_json_schema()["properties"]
    for own in fields.values():
        del own["default"]
    schema |= {"properties": fields, "additionalProperties": False}


class QuantizerConfigPatch(_Model):
    """Some fields of `QuantizerConfigModel`, of which the others stay as they are."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_patching)

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
    validate_input: Flag = Field(default=True, alias="validate", description="Whether NaN and infinities may be errors")
    channel_dim: ChannelDim | None = Field(default=None, description="The channel dimension, 0 by default")
    layer_name: LayerName | None = None
    remember: Flag | None = Field(
        default=None,
        description="Whether dequantize uses these parameters by default from now on; null: as the store does, which is "
        "true in memory and SQLite, false in Redis and PostgreSQL. For an API key of scope read it is always false, and true "
        "is refused with 403: such keys change nothing that others get",
    )


class DequantizationRequest(_Model):
    """Codes to dequantize: whole numbers, unless the type is FLOAT16 or NONE."""

    data: ArrayField
    channel_dim: ChannelDim | None = None
    layer_name: LayerName | None = None
    scale: ScaleOrScales | None = Field(default=None, description="As quantize answered; the latest ones by default")
    zero_point: ScaleOrScales | None = None


class CalibrationRequest(_Model):
    """Arrays of any shapes to calibrate with; more than 4096 have to be joined before."""

    data: Annotated[list[ArrayField], Field(min_length=1, max_length=MAX_ARRAYS, fail_fast=True)] = Field(
        description="A list of arrays: each element is one array, so that one array of two rows is [[[1, 2], [3, 4]]]"
    )
    channel_dim: ChannelDim | None = None


class QuantizationParamsRequest(_Model):
    """Numbers to compute parameters for."""

    data: ArrayField
    channel_idx: Annotated[int, Field(strict=True, ge=0, lt=1 << 31), _WHOLE] | None = None
    layer_name: LayerName | None = None


class LayerScales(BaseModel):
    """What the latest array of a layer was quantized with; lists where channels differ."""

    scale: ScaleOrScales
    zero_point: ScaleOrScales
    channel_dim: int | None


class ParametersResponse(BaseModel):
    """All parameters of an instance; see `qi.engine.parameters`. Indices of channels are keys."""

    global_scale: float
    global_zero_point: float
    per_channel_scales: dict[str, float]
    per_channel_zero_points: dict[str, float]
    channel_dim: int | None
    has_parameters: bool
    quantization_type: str
    quantization_mode: str
    num_bits: int
    symmetric: bool
    is_calibrated: bool
    calibration: dict[str, Any] | None
    qmin: int | None
    qmax: int | None
    layers: dict[str, LayerScales]


class ImportExportParams(_Model):
    """Parameters, as ``GET /instances/{instance_id}/parameters`` answers."""

    parameters: Annotated[dict[str, Any], BeforeValidator(_few_members), WithJsonSchema(schemas.PARAMETERS)]


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

    data: ResultField
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

    data: ResultField
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
