"""QI on PyTorch: the same quantizers on ``torch.nn.Module``."""

from qi.optional import require

require("torch", extra="torch", feature="qi.torch", has="Tensor")  # before the modules below import it

# ruff: noqa: E402
from qi.torch.dispatcher import PytorchNodeQuantizationDispatcher
from qi.torch.holder import PytorchActivationQuantizationHolder
from qi.torch.quantize import quantize_model
from qi.torch.saving import load_model, save_model
from qi.torch.train import convert, prepare_qat
from qi.torch.wrapper import PytorchQuantizationWrapper

__all__ = [
    "PytorchActivationQuantizationHolder",
    "PytorchNodeQuantizationDispatcher",
    "PytorchQuantizationWrapper",
    "convert",
    "load_model",
    "prepare_qat",
    "quantize_model",
    "save_model",
]
