"""The dispatcher on torch modules."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from qi.dispatch import NodeQuantizationDispatcher
from qi.dispatch.dispatcher import MAIN
from qi.errors import ConfigError
from qi.quantizers import BaseQuantizer
from qi.torch.policies import module_policy, slots_of
from qi.torch.variables import aliases_of

__all__ = ["PytorchNodeQuantizationDispatcher"]


class PytorchNodeQuantizationDispatcher(NodeQuantizationDispatcher):
    """The quantizers of one torch module; see `qi.NodeQuantizationDispatcher` for what it accepts.

    Paths are torch's own ("weight", "self_attn.in_proj_weight"); a "/" in place of a dot is understood too.

    Example:
        >>> import qi
        >>> w_quantizer = qi.WeightsSymmetricInferableQuantizer(num_bits=8, threshold=2, signed=True, per_channel=True)
        >>> PytorchNodeQuantizationDispatcher(w_quantizer).is_weights_quantization
        True
        >>> dispatcher = PytorchNodeQuantizationDispatcher(
        ...     {"weight": w_quantizer}, [qi.ActivationUniformInferableQuantizer(8, min_range=0, max_range=6)]
        ... )
        >>> dispatcher.num_act_quantizers
        1
    """

    separator: ClassVar[str] = "."

    @staticmethod
    def _path(path: Any) -> str:
        return NodeQuantizationDispatcher._path(path).replace("/", ".")

    def bind_module(self, module: torch.nn.Module) -> dict[str, BaseQuantizer]:
        """The quantizer of each parameter path of a module, with its axes filled in.

        A path of a parameter that modules within share means the first of its paths. A bare quantizer goes to the first
        parameter that the module's policy names.

        Raises:
            ConfigError: as `bind` does.
            InputError: a lazy module before its first call.
        """
        choices = slots_of(module)
        shapes = {path: tuple(choice.place.parameter.shape) for path, choice in choices.items()}
        slots = {path: choice.slot for path, choice in choices.items() if choice.slot is not None}
        first = aliases_of(module)
        main = self._main(module, list(slots))
        own = PytorchNodeQuantizationDispatcher()
        for path, quantizer in self.weight_quantizers.items():
            wanted = main if path == MAIN else first.get(path, path)
            if wanted in own.weight_quantizers:
                raise ConfigError(
                    f"expected one quantizer a weight; received two for {wanted!r} of {type(module).__name__!r}"
                )
            own.weight_quantizers[wanted] = quantizer
        return own.bind(shapes, None, type(module).__name__, slots)

    @staticmethod
    def _main(module: torch.nn.Module, slots: list[str]) -> str:
        """The path of what a bare quantizer is for: MAIN where the policy doesn't say."""
        policy = module_policy(module)
        if policy is None:
            return MAIN
        return next((path for slot in policy.slots for path in slots if policy.slot(path) is slot), MAIN)
