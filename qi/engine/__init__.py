"""The numpy engine: arrays to codes and back, without a framework.

Steps are rounded to the nearest integer, half to even: ``code = clip(rint(x / scale) + zero_point)`` in float32, and
``x = (code - zero_point) * scale``. A range is stretched to hold 0, which has a code of its own. Arrays may be float16,
bfloat16, float32, float64 or integers. A symmetric `Quantizer` maps the largest magnitude to the last code (127 of int8);
the tensor API (`Quantizer.quantize_tensor`), as its specification has it, to half a step beyond (127.5), which is more
exact with few bits. With the extra `fast`, large arrays go through numba; see `load_fast`.
"""

from __future__ import annotations

from qi.core import QParams as QuantizationParams, QTensor as QuantizedTensor
from qi.engine.config import QuantizationConfig
from qi.engine.fast import load_fast
from qi.engine.files import FileReport, FileRow, dequantize_file, load_quantized, quantize_file
from qi.engine.quantizer import Quantizer
from qi.engine.tensors import DynamicRangeCalibrator, QuantizationAwareTraining
from qi.engine.types import BitWidth, Granularity, QuantizationMode, QuantizationType

__all__ = [
    "BitWidth",
    "DynamicRangeCalibrator",
    "FileReport",
    "FileRow",
    "Granularity",
    "QuantizationAwareTraining",
    "QuantizationConfig",
    "QuantizationMode",
    "QuantizationParams",
    "QuantizationType",
    "QuantizedTensor",
    "Quantizer",
    "dequantize_file",
    "load_fast",
    "load_quantized",
    "quantize_file",
]
