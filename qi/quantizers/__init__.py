"""Quantizers: one class for numpy, Keras and torch, by target and method."""

from qi.quantizers.activations import (
    ActivationLutPOTInferableQuantizer,
    ActivationPOTInferableQuantizer,
    ActivationSymmetricInferableQuantizer,
    ActivationUniformInferableQuantizer,
)
from qi.quantizers.adaround import AdaRoundQuantizer
from qi.quantizers.base import BaseInferableQuantizer, BaseQuantizer, QuantizerVariable
from qi.quantizers.config import (
    BaseQuantizerConfig,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
)
from qi.quantizers.dorefa import DoReFaActivationQuantizer, DoReFaWeightsQuantizer
from qi.quantizers.learned_range import AdditiveNoiseQuantizer, LearnedRangeQuantizer
from qi.quantizers.lsq import LSQPlusQuantizer, LSQQuantizer
from qi.quantizers.pact import PACTQuantizer
from qi.quantizers.registry import (
    INFERABLE,
    QuantizationMethod,
    QuantizationTarget,
    get_inferable_quantizer_class,
    get_quantizer_class,
    mark_quantizer,
    quantizer_classes,
    quantizer_from_dict,
    training_methods,
)
from qi.quantizers.ste import STEQuantizer, StochasticQuantizer
from qi.quantizers.tqt import TQTQuantizer
from qi.quantizers.trainable import BaseTrainableQuantizer, positive
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
    "AdaRoundQuantizer",
    "AdditiveNoiseQuantizer",
    "BaseInferableQuantizer",
    "BaseQuantizer",
    "BaseQuantizerConfig",
    "BaseTrainableQuantizer",
    "DoReFaActivationQuantizer",
    "DoReFaWeightsQuantizer",
    "LSQPlusQuantizer",
    "LSQQuantizer",
    "LearnedRangeQuantizer",
    "PACTQuantizer",
    "QuantizationMethod",
    "QuantizationTarget",
    "QuantizerVariable",
    "STEQuantizer",
    "StochasticQuantizer",
    "TQTQuantizer",
    "TrainableQuantizerActivationConfig",
    "TrainableQuantizerWeightsConfig",
    "WeightsLUTPOTInferableQuantizer",
    "WeightsLUTSymmetricInferableQuantizer",
    "WeightsPOTInferableQuantizer",
    "WeightsSymmetricInferableQuantizer",
    "WeightsUniformInferableQuantizer",
    "get_inferable_quantizer_class",
    "get_quantizer_class",
    "mark_quantizer",
    "positive",
    "quantizer_classes",
    "quantizer_from_dict",
    "training_methods",
]
