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
    "qi.quantizers": (
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
        "mark_quantizer",
    ),
    "qi.dispatch": ("NodeQuantizationDispatcher",),
    "qi.recipes": ("Recipe", "Rule", "TensorSpec"),
    "qi.ledger": ("QuantizationReport",),
    "qi.keras": (
        "KerasActivationQuantizationHolder",
        "KerasNodeQuantizationDispatcher",
        "KerasQuantizationWrapper",
        "calibrate",
        "convert",
        "inspect_model",
        "load_model",
        "prepare_qat",
        "quantize_model",
        "save_model",
    ),
    "qi.errors": (
        "ConfigError",
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
_EXPORTS = {name: module for module, names in _MODULE_TO_NAMES.items() for name in names}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        from qi.registry import suggest

        raise AttributeError(f"module 'qi' has no attribute {name!r}.{suggest(name, __all__)}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
