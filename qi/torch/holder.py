"""PytorchActivationQuantizationHolder: a module that quantizes a tensor between modules."""

from __future__ import annotations

from typing import Any

import torch

from qi.errors import ConfigError, InputError
from qi.quantizers import BaseQuantizer, QuantizationTarget
from qi.torch.bound import BoundQuantizer

__all__ = ["PytorchActivationQuantizationHolder"]


class PytorchActivationQuantizationHolder(torch.nn.Module):
    """Fake-quantizes its input with an activation quantizer.

    Scale and zero point are float32 buffers (parameters where they train), whatever dtype the model is moved to; the
    computation is float32 and the result has the input's dtype. Called several times, it shares its parameters.

    Args:
        quantizer: an activation quantizer.

    Raises:
        ConfigError: not an activation quantizer.

    Example:
        >>> import qi
        >>> holder = PytorchActivationQuantizationHolder(qi.ActivationPOTInferableQuantizer(2, 2.0, signed=True))
        >>> holder(torch.tensor([0.6, 5.0])).tolist()
        [1.0, 1.0]
    """

    def __init__(self, quantizer: BaseQuantizer) -> None:
        if not isinstance(quantizer, BaseQuantizer) or (
            quantizer.quantization_target is not QuantizationTarget.ACTIVATION
        ):
            raise ConfigError(f"expected an activation quantizer; received {quantizer!r}")
        super().__init__()
        self.bound = BoundQuantizer(quantizer, reshape=())

    @property
    def quantizer(self) -> BaseQuantizer:
        """The quantizer: as given, or as it was replaced since."""
        return self.bound.quantizer

    def forward(self, x: Any) -> Any:
        """The fake-quantized input; None stays None.

        Raises:
            InputError: x is no tensor of real numbers.
        """
        if x is None:
            return None
        if not isinstance(x, torch.Tensor):
            several = f" of {len(x)}" if isinstance(x, (list, tuple, dict)) else ""
            raise InputError(
                f"expected one tensor; received {type(x).__name__}{several}; do use one holder for each tensor"
            )
        return self.bound(x)

    def convert2inferable(self) -> PytorchActivationQuantizationHolder:
        """A holder with the inferable quantizer that the variables stand for now, on the same device and in the same mode.

        Raises:
            ConfigError: its quantizer is inferable already.
        """
        if not self.bound.trains:
            raise ConfigError(f"expected a trainable quantizer; received {self.quantizer!r}")
        result = PytorchActivationQuantizationHolder(self.bound.current()).train(self.training)
        return result.to(next(iter(self.bound.variables.values())).device)
