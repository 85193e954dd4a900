"""The numpy engine: arrays to codes and back, without a framework."""

from __future__ import annotations

from qi.core import QParams as QuantizationParams, QTensor as QuantizedTensor
from qi.engine.config import QuantizationConfig
from qi.engine.quantizer import Quantizer
from qi.engine.tensors import DynamicRangeCalibrator, QuantizationAwareTraining
from qi.engine.types import BitWidth, Granularity, QuantizationMode, QuantizationType

__all__ = [
    "BitWidth",
    "DynamicRangeCalibrator",
    "Granularity",
    "QuantizationAwareTraining",
    "QuantizationConfig",
    "QuantizationMode",
    "QuantizationParams",
    "QuantizationType",
    "QuantizedTensor",
    "Quantizer",
]
