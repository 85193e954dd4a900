"""QI: quantization infrastructure for Keras 3.

The public names are loaded when first used (PEP 562), so `import qi` costs milliseconds and imports no
framework; `_MODULE_TO_NAMES` is the one table that says which module each comes from.

Example:
    >>> import qi
    >>> qi.IntGrid(bits=8, signed=True).levels
    256
"""

from __future__ import annotations

import importlib
from typing import Any

from qi._version import __version__ as __version__

_MODULE_TO_NAMES = {
    "qi.core": (
        "IntGrid",
        "LutGrid",
        "PerChannel",
        "PerGroup",
        "PerTensor",
        "QParams",
        "QTensor",
        "SymmetricRule",
    ),
    "qi.engine": (
        "BitWidth",
        "DynamicRangeCalibrator",
        "QuantizationAwareTraining",
        "QuantizationConfig",
        "QuantizationMode",
        "QuantizationType",
        "Quantizer",
    ),
    "qi.quantizers": (
        "ActivationLutPOTInferableQuantizer",
        "ActivationPOTInferableQuantizer",
        "ActivationSymmetricInferableQuantizer",
        "ActivationUniformInferableQuantizer",
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
        "quantizer_classes",
        "training_methods",
    ),
    "qi.ir": ("QGraph",),
    "qi.exporters.deploy": ("export",),
    "qi.exporters.import_ranges": ("import_ranges",),
    "qi.exporters.report": ("ExportReport",),
    "qi.exporters.verify": ("Verification", "verify"),
    "qi.dispatch": ("NodeQuantizationDispatcher",),
    "qi.recipes": ("Recipe", "Rule", "TensorSpec"),
    "qi.ledger": ("QuantizationReport",),
    "qi.keras": (
        "BitWidthSchedule",
        "FreezeBatchNorm",
        "FreezeRanges",
        "KerasActivationQuantizationHolder",
        "KerasNodeQuantizationDispatcher",
        "KerasQuantizationWrapper",
        "QuantizationLogger",
        "SearchResult",
        "StartQuantization",
        "calibrate",
        "convert",
        "inspect_model",
        "load_model",
        "prepare_qat",
        "quantize_model",
        "save_model",
    ),
    "qi.torch": (
        "PytorchActivationQuantizationHolder",
        "PytorchNodeQuantizationDispatcher",
        "PytorchQuantizationWrapper",
    ),
    # Modules that share a name with their function: whoever imports one by itself hides the other in `qi.keras`.
    "qi.keras.emulate": ("emulate",),
    "qi.keras.lower": ("lower",),
    "qi.keras.search": ("search",),
    "qi.errors": (
        "ConfigError",
        "ContractError",
        "FileFormatError",
        "InputError",
        "MissingDependencyError",
        "NotCalibratedError",
        "QiError",
        "QuantizationWarning",
        "StrictError",
        "UnsupportedError",
    ),
}
# Reached as attributes, without an import of their own: `qi.recipes.get_recipe`.
_PACKAGES = (
    "algorithms",
    "core",
    "dispatch",
    "engine",
    "exporters",
    "ir",
    "keras",
    "ledger",
    "observers",
    "quantizers",
    "recipes",
    "report",
    "testing",
    "torch",
)
_EXPORTS = {name: module for module, names in _MODULE_TO_NAMES.items() for name in names}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"qi.{name}")
    module = _EXPORTS.get(name)
    if module is None:
        from qi.registry import suggest

        raise AttributeError(f"module 'qi' has no attribute {name!r}.{suggest(name, __all__)}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
