"""QI on Keras 3. Importing this package registers every class of ours with Keras' serialization."""

from qi.keras.dispatcher import KerasNodeQuantizationDispatcher
from qi.keras.holder import KerasActivationQuantizationHolder
from qi.keras.inspect import Inspection, inspect_model
from qi.keras.prepare import calibrate
from qi.keras.ptq import quantize_model
from qi.keras.qat import convert, prepare_qat
from qi.keras.saving import load_model, save_model
from qi.keras.wrapper import KerasQuantizationWrapper

__all__ = [
    "Inspection",
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
]
