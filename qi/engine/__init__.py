"""The numpy engine: arrays to codes and back, without a framework."""

from __future__ import annotations

from qi.core import QParams as QuantizationParams, QTensor as QuantizedTensor
from qi.engine.config import QuantizationConfig
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
    "load_quantized",
    "quantize_file",
]
