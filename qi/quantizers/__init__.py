"""Quantizers: one class for numpy, Keras and torch, by target and method."""

from qi.quantizers.activations import (
    ActivationLutPOTInferableQuantizer,
    ActivationPOTInferableQuantizer,
    ActivationSymmetricInferableQuantizer,
    ActivationUniformInferableQuantizer,
)
from qi.quantizers.base import (
    INFERABLE,
    BaseInferableQuantizer,
    QuantizationMethod,
    QuantizationTarget,
    get_inferable_quantizer_class,
    get_quantizer_class,
    mark_quantizer,
    quantizer_classes,
    quantizer_from_dict,
)
from qi.quantizers.weights import (
    WeightsLUTPOTInferableQuantizer,
    WeightsLUTSymmetricInferableQuantizer,
    WeightsPOTInferableQuantizer,
    WeightsSymmetricInferableQuantizer,
    WeightsUniformInferableQuantizer,
)

__all__ = [
    "INFERABLE",
    "ActivationLutPOTInferableQuantizer",
    "ActivationPOTInferableQuantizer",
    "ActivationSymmetricInferableQuantizer",
    "ActivationUniformInferableQuantizer",
    "BaseInferableQuantizer",
    "QuantizationMethod",
    "QuantizationTarget",
    "WeightsLUTPOTInferableQuantizer",
    "WeightsLUTSymmetricInferableQuantizer",
    "WeightsPOTInferableQuantizer",
    "WeightsSymmetricInferableQuantizer",
    "WeightsUniformInferableQuantizer",
    "get_inferable_quantizer_class",
    "get_quantizer_class",
    "mark_quantizer",
    "quantizer_classes",
    "quantizer_from_dict",
]
