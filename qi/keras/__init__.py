"""QI on Keras 3. Importing this package registers every class of ours with Keras' serialization."""

from qi.keras.attention import BandSoftmax
from qi.keras.callbacks import BitWidthSchedule, FreezeBatchNorm, FreezeRanges, StartQuantization
from qi.keras.caps import ChannelCap
from qi.keras.dispatcher import KerasNodeQuantizationDispatcher
from qi.keras.emulate import emulate
from qi.keras.exact import ExactDecode, ExactGrid, ExactPool, ExactSums
from qi.keras.exact_kernels import ExactBilinear, ExactRealBilinear, ExactRows, ExactSoftmax, ExactTable
from qi.keras.exact_softmax import ExactFixedSoftmax
from qi.keras.holder import KerasActivationQuantizationHolder
from qi.keras.inspect import Inspection, inspect_model
from qi.keras.lower import lower
from qi.keras.prepare import calibrate
from qi.keras.ptq import quantize_model
from qi.keras.qat import convert, prepare_qat
from qi.keras.quantizer_log import QuantizationLogger, QuantizerRow
from qi.keras.saving import load_model, save_model
from qi.keras.search import search
from qi.keras.search_result import SearchPoint, SearchResult, WeightChoice
from qi.keras.wrapper import KerasQuantizationWrapper

__all__ = [
    "BandSoftmax",
    "BitWidthSchedule",
    "ChannelCap",
    "ExactBilinear",
    "ExactDecode",
    "ExactFixedSoftmax",
    "ExactGrid",
    "ExactPool",
    "ExactRealBilinear",
    "ExactRows",
    "ExactSoftmax",
    "ExactSums",
    "ExactTable",
    "FreezeBatchNorm",
    "FreezeRanges",
    "Inspection",
    "KerasActivationQuantizationHolder",
    "KerasNodeQuantizationDispatcher",
    "KerasQuantizationWrapper",
    "QuantizationLogger",
    "QuantizerRow",
    "SearchPoint",
    "SearchResult",
    "StartQuantization",
    "WeightChoice",
    "calibrate",
    "convert",
    "emulate",
    "inspect_model",
    "load_model",
    "lower",
    "prepare_qat",
    "quantize_model",
    "save_model",
    "search",
]
