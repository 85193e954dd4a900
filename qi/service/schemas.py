"""JSON Schemas of what pydantic can't describe: nested numbers, settings of layers, parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qi.engine import QuantizationMode, QuantizationType

__all__ = [
    "ARRAY", "EXAMPLES", "FORM", "LAYER", "LAYERS", "MAX_LAYERS", "MAX_NAME", "MODES", "NAME", "PARAMETERS", "RESULT", "TYPES",
]  # fmt: skip

TYPES = [kind.name for kind in QuantizationType]
MAX_NAME = 512
"""Characters of a layer's name."""
MAX_LAYERS = 4096
"""Layers in one list or object."""
NAME = r"^[^\x00]*$"
MODES = [mode.name for mode in QuantizationMode]

_MAX_NESTED = 8


def _nested(item: Mapping[str, Any], description: str) -> dict[str, Any]:
    """The schema of numbers in up to so many dimensions as there may be by default, two of them first."""
    levels: list[Any] = [item]
    for _ in range(_MAX_NESTED):
        levels.append({"type": "array", "items": levels[-1]})
    return {
        "description": description,
        "anyOf": [levels[2], *levels[1::-1], *levels[3:]],
        "examples": [[[1.2, 3.4, 5.6], [7.8, 9.0, 2.1]]],
    }


ARRAY = _nested({"type": "number"}, "Numbers in any number of dimensions; rows of one length.")
RESULT = _nested({"type": ["number", "null"]}, "Numbers in the shape of the input; null for NaN and infinities.")


LAYER: dict[str, Any] = {
    "type": "object",
    "description": "What one layer has instead of the instance's own.",
    "properties": {
        "type": {"type": "string", "enum": TYPES},
        "bits": {"type": "integer", "minimum": 2, "maximum": 32},
        "mode": {"type": "string", "enum": MODES},
        "symmetric": {"type": "boolean"},
        "per_channel": {"type": "boolean"},
    },
    "additionalProperties": False,
}


LAYERS: dict[str, Any] = {
    "type": "object",
    "maxProperties": MAX_LAYERS,
    "propertyNames": {"maxLength": MAX_NAME, "pattern": NAME},
    "additionalProperties": LAYER,
}
_NUMBERS: dict[str, Any] = {
    "anyOf": [
        {"type": "object", "additionalProperties": {"type": "number"}},
        {"type": "array", "items": {"type": "number"}},
        {"type": "null"},
    ]
}
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "description": "As exported; what is left out stays as it is. All together are taken over, or none.",
    "properties": {
        "global_scale": {"type": "number", "exclusiveMinimum": 0},
        "global_zero_point": {"type": "number"},
        "per_channel_scales": _NUMBERS,
        "per_channel_zero_points": _NUMBERS,
        "channel_dim": {"type": ["integer", "null"]},
        "has_parameters": {"type": "boolean"},
        "quantization_type": {"type": ["string", "null"]},
        "quantization_mode": {"type": ["string", "null"]},
        "num_bits": {"type": ["integer", "null"]},
        "symmetric": {"type": ["boolean", "null"]},
        "is_calibrated": {"type": "boolean"},
        "calibration": {"type": ["object", "null"]},
        "qmin": {"type": ["integer", "null"]},
        "qmax": {"type": ["integer", "null"]},
        "layers": {"type": "object", "additionalProperties": {"type": "object"}},
    },
    "required": ["global_scale"],
    "additionalProperties": False,
    "examples": [{"global_scale": 0.5, "global_zero_point": 3}],
}

FORM: dict[str, Any] = {
    "type": "object",
    "properties": {"file": {"type": "string", "format": "binary", "description": "A .npy file"}},
    "required": ["file"],
    "additionalProperties": False,
}
"""The form that holds an array."""

_ROWS = [[1.2, 3.4, 5.6], [7.8, 9.0, 2.1]]
EXAMPLES: dict[str, dict[str, Any]] = {
    "QuantizerConfigModel": {"quantization_type": "INT8", "quantization_mode": "SYMMETRIC", "symmetric": True},
    "QuantizerConfigPatch": {"per_channel": True},
    "QuantizationRequest": {"data": _ROWS},
    "DequantizationRequest": {"data": [[-94, -32, 31], [93, 127, -69]], "scale": 0.0353, "zero_point": -128},
    "CalibrationRequest": {"data": [_ROWS, [[0.0, 1.5, 3.0]]]},
    "QuantizationParamsRequest": {"data": _ROWS},
    "ImportExportParams": {"parameters": PARAMETERS["examples"][0]},
}
"""A whole body for each model of a request, which a new instance takes as it stands: pages fill their forms with it."""
