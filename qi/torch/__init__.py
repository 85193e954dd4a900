"""QI on PyTorch: the same quantizers on ``torch.nn.Module``.

The verbs are those of the Keras side, under the same names; `qi.export` and `qi.verify` take modules of both.
"""

from qi.optional import require

require("torch", extra="torch", feature="qi.torch", has="Tensor")  # before the modules below import it

# ruff: noqa: E402
from qi.torch.dispatcher import PytorchNodeQuantizationDispatcher
from qi.torch.emulate import emulate
from qi.torch.holder import PytorchActivationQuantizationHolder
from qi.torch.lower import lower
from qi.torch.quantize import quantize_model
from qi.torch.saving import load_model, save_model
from qi.torch.train import convert, prepare_qat
from qi.torch.wrapper import PytorchQuantizationWrapper

__all__ = [
    "PytorchActivationQuantizationHolder",
    "PytorchNodeQuantizationDispatcher",
    "PytorchQuantizationWrapper",
    "convert",
    "emulate",
    "load_model",
    "lower",
    "prepare_qat",
    "quantize_model",
    "save_model",
]
