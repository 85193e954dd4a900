"""QI on PyTorch: the same quantizers on ``torch.nn.Module``."""

from qi.torch.dispatcher import PytorchNodeQuantizationDispatcher
from qi.torch.holder import PytorchActivationQuantizationHolder
from qi.torch.quantize import quantize_model
from qi.torch.train import convert, prepare_qat
from qi.torch.wrapper import PytorchQuantizationWrapper

__all__ = [
    "PytorchActivationQuantizationHolder",
    "PytorchNodeQuantizationDispatcher",
    "PytorchQuantizationWrapper",
    "convert",
    "prepare_qat",
    "quantize_model",
]
