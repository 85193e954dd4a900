"""PytorchQuantizationWrapper: runs any torch module with quantized weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch.utils import _pytree as pytree

from qi.core import QTensor
from qi.dispatch import NodeQuantizationDispatcher
from qi.errors import ConfigError, FileFormatError, InputError
from qi.quantizers import BaseInferableQuantizer
from qi.torch import packed
from qi.torch.bound import BoundQuantizer
from qi.torch.dispatcher import PytorchNodeQuantizationDispatcher
from qi.torch.kinds import torch_class
from qi.torch.variables import call_with, duplicate, parameter_at, parameters_of, to_numpy, to_tensor, with_values

__all__ = ["PytorchQuantizationWrapper"]


def _checked(module: Any, dispatcher: Any) -> PytorchNodeQuantizationDispatcher:
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(f"expected a torch module; received module={module!r} of type {type(module).__name__}")
    if isinstance(module, PytorchQuantizationWrapper):
        raise ConfigError(
            f"expected a module that isn't wrapped yet; received a wrapper of {type(module.module).__name__}"
        )
    if not isinstance(dispatcher, NodeQuantizationDispatcher):
        raise ConfigError(
            f"expected a PytorchNodeQuantizationDispatcher; received dispatcher={dispatcher!r}; "
            "do wrap quantizers in qi.PytorchNodeQuantizationDispatcher(...)"
        )
    if dispatcher.is_inner_quantization:
        raise ConfigError(
            f"expected no inner_quantizers; received some for {sorted(dispatcher.inner_quantizers)}; "
            "do wrap the modules within, each by itself"
        )
    if isinstance(dispatcher, PytorchNodeQuantizationDispatcher):
        return dispatcher
    return PytorchNodeQuantizationDispatcher(dispatcher.weight_quantizers, dispatcher.activation_quantizers)


def _called_by_itself(*args: Any) -> None:
    """Does nothing, as a hook: where a part has one, torch's TransformerEncoderLayer doesn't run its fused form.

    That form takes the weights of its parts and never calls them, so that their outputs would stay in float.
    """


class PytorchQuantizationWrapper(torch.nn.Module):
    """Stands in for a module and emulates it with quantized weights (and outputs).

    The module is run by ``torch.func.functional_call`` with quantized values for its parameters: every module works, its own
    parameters stay as they are, ``requires_grad`` included, and gradients reach them through the straight-through estimator.
    Other modules may share it or its parameters. What isn't found on the wrapper is looked up on the module, quantized
    parameters with their quantized values: a module around it that reads ``linear.weight`` reads what `forward` uses, and further
    methods of a class of the user's own compute with it.

    After `freeze` the weights are quantized once and for all instead of at every call; they no longer train, and a
    ``state_dict`` holds packed codes and scales in place of floats. `qi.torch.quantize_model` gives frozen wrappers.

    The quantizers' own parameters and buffers are float32, whatever dtype the wrapper is moved to.

    Args:
        module: the module to wrap. Lazy modules have to be called once before.
        dispatcher: which quantizer goes to which parameter and output (see `qi.PytorchNodeQuantizationDispatcher`). Activation
            quantizers go to the floating-point tensors of the output in their order, however they are nested; other values
            pass through.

    Attributes:
        module: the wrapped module; a copy of it once frozen.
        dispatcher: as given.
        weight_quantizers: `BoundQuantizer` by parameter path, with "/" in place of dots.
        activation_quantizers: `BoundQuantizer` of each output.

    Raises:
        ConfigError: not a module, not a dispatcher, a wrapper already, a path that the module doesn't have (the message lists
            those it has), or parameters that don't fit a weight's shape.
        InputError: a lazy module before its first call.

    Example:
        >>> import torch, qi
        >>> module = torch.nn.Linear(3, 2, bias=False)
        >>> _ = torch.nn.init.constant_(module.weight, 0.3)
        >>> quantizer = qi.WeightsSymmetricInferableQuantizer(num_bits=2, threshold=1, per_channel=True)
        >>> wrapper = PytorchQuantizationWrapper(module, PytorchNodeQuantizationDispatcher(quantizer))
        >>> wrapper(torch.ones(1, 3)).tolist()
        [[1.5, 1.5]]
    """

    def __init__(self, module: torch.nn.Module, dispatcher: NodeQuantizationDispatcher) -> None:
        super().__init__()
        self.dispatcher = _checked(module, dispatcher)
        parameters = parameters_of(module)
        bound = self.dispatcher.bind_module(module)
        self._frozen = False
        self._paths = tuple(path for path, quantizer in bound.items() if quantizer.enabled)
        self.module = module
        self.weight_quantizers = torch.nn.ModuleDict()
        for path in self._paths:
            parameter = parameters[path]
            values = None if parameter.is_meta else to_numpy(parameter)
            self.weight_quantizers[packed.key_of(path)] = BoundQuantizer(
                bound[path], tuple(parameter.shape), values, device=parameter.device
            )
        device = next((parameter.device for parameter in parameters.values()), None)
        self.activation_quantizers = torch.nn.ModuleList(
            BoundQuantizer(quantizer, reshape=(), device=device) for quantizer in self.dispatcher.activation_quantizers
        )
        self._take_mode(module.training)
        self.register_state_dict_post_hook(packed.pack_codes)
        if self.activation_quantizers:
            self.register_forward_hook(_called_by_itself)

    def _take_mode(self, training: bool) -> None:
        """Sets the mode of what is the wrapper's own, not that of the module."""
        self.training = training
        self.weight_quantizers.train(training)
        self.activation_quantizers.train(training)

    @property
    def layer(self) -> torch.nn.Module:
        """Another name of `module`, as `qi.KerasQuantizationWrapper` has it."""
        return self.module

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in modules or name in self.__dict__.get("_parameters", {}) or "module" not in modules:
            return super().__getattr__(name)
        if name in self._paths:
            return self.quantized_weight(name)
        found = getattr(modules["module"], name)
        own = inspect.ismethod(found) and found.__self__ is modules["module"]
        if not own or self._frozen or not self._paths or torch_class(modules["module"]):
            return found
        return with_values(modules["module"], found, self._values)

    # Running ------------------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output with quantized weights, quantized itself where activation quantizers are bound.

        Raises:
            ConfigError: there isn't one activation quantizer for each floating-point tensor of the output.
        """
        if self._frozen or not self._paths:
            outputs = self.module(*args, **kwargs)
        else:
            outputs = call_with(self.module, self._values(), args, kwargs)
        return self._quantize_outputs(outputs) if len(self.activation_quantizers) else outputs

    def _values(self) -> dict[str, torch.Tensor]:
        return {path: self.quantized_weight(path) for path in self._paths}

    def _quantize_outputs(self, outputs: Any) -> Any:
        leaves, structure = pytree.tree_flatten(outputs)
        floats = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
        self.dispatcher.check_outputs(len(floats), type(self.module).__name__)
        for i, bound in zip(floats, self.activation_quantizers, strict=True):
            leaves[i] = bound(leaves[i])
        return pytree.tree_unflatten(leaves, structure)

    def quantized_weight(self, path: str) -> torch.Tensor:
        """The fake-quantized value of a bound parameter; differentiable unless it is frozen."""
        value = parameter_at(self.module, path)
        if self._frozen:
            return value
        result: torch.Tensor = self.weight_quantizers[packed.key_of(path)](value)
        return result

    # Quantized weights --------------------------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """Whether the weights are quantized once and for all."""
        return self._frozen

    @property
    def trains(self) -> bool:
        """Whether any of its quantizers is trainable, of those that their configuration enables."""
        return any(bound.trains and bound.quantizer.enabled for bound in self.bounds.values())

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the quantized parameters."""
        return self._paths

    @property
    def bounds(self) -> dict[str, BoundQuantizer]:
        """Its quantizers with their variables: by parameter path, and "output_0"... of outputs."""
        weights = {path: self.weight_quantizers[packed.key_of(path)] for path in self._paths}
        return weights | {f"output_{i}": bound for i, bound in enumerate(self.activation_quantizers)}

    @property
    def quantizers(self) -> dict[str, BaseInferableQuantizer]:
        """The weight quantizers by path, with their axes and current parameters."""
        return {path: self.bounds[path].current() for path in self._paths}

    @property
    def output_quantizers(self) -> list[BaseInferableQuantizer]:
        """The activation quantizers of the outputs with their current parameters; without those that are disabled."""
        return [bound.current() for bound in self.activation_quantizers if bound.quantizer.enabled]

    def get_source(self, path: str) -> np.ndarray:
        """What the quantizer of a parameter quantizes: the values, or what a trainable quantizer makes of them first."""
        with torch.no_grad():
            return to_numpy(self.bounds[path].transformed(parameter_at(self.module, path)))

    def get_quantized_weights(self) -> dict[str, np.ndarray]:
        """The quantized value of every bound parameter by path, as numpy arrays (float32 for bfloat16)."""
        found = {}
        for path, tensor in self.get_quantized_tensors().items():
            found[path] = to_numpy(to_tensor(tensor.dequantize(dtype="float32"), parameter_at(self.module, path)))
        return found

    def get_quantized_tensors(self) -> dict[str, QTensor]:
        """Integer codes with scale and zero point of every bound parameter by path.

        Raises:
            InputError: a weight holds NaN, or was changed after `freeze`.
        """
        return {path: packed.frozen_tensor(self, path) if self._frozen else self._tensor(path) for path in self._paths}

    def _tensor(self, path: str) -> QTensor:
        source = self.get_source(path)
        if np.isnan(source).any():
            raise InputError(f"expected finite weights; received NaN in {path!r} of {type(self.module).__name__}")
        return self.bounds[path].qparams().quantize(source)

    def freeze(self, *, in_place: bool = False) -> Self:
        """Quantizes the weights now, once, instead of at every call. Frozen again, it puts changed weights back on their grid.

        Args:
            in_place: True writes the quantized values into the wrapped module itself, which saves memory, and ends the
                training of these parameters; False takes a copy of the module first and leaves the original alone.

        Returns:
            the wrapper.

        Raises:
            ConfigError: a weight quantizer trains.
            InputError: a weight holds NaN.
        """
        training = [path for path in self._paths if self.bounds[path].trains]
        if training:
            raise ConfigError(
                f"expected inferable quantizers to freeze; {training} of {type(self.module).__name__} train; "
                "do call convert2inferable() first"
            )
        values = {path: self._tensor(path).dequantize(dtype="float32") for path in self._paths}
        if not in_place and not self._frozen:
            self.module = duplicate(self.module)
        packed.fill(self.module, values)
        self._frozen = True
        return self

    def convert2inferable(self) -> PytorchQuantizationWrapper:
        """A wrapper around the same module, with the inferable quantizers that the trainable ones became.

        Where a quantizer quantizes something made of the weight (DoReFa), the new wrapper's module is a copy that holds that.

        Raises:
            ConfigError: none of its quantizers trains.
            InputError: training left NaN or infinities.
        """
        if not self.trains:
            raise ConfigError("expected trainable quantizers in the wrapper; they all are inferable already")
        module, changed = self.module, {}
        for path in self._paths:
            source = self.get_source(path)
            if self.bounds[path].trains and not np.array_equal(source, to_numpy(parameter_at(module, path))):
                changed[path] = source
        if changed:
            module = duplicate(module)
            with torch.no_grad():
                for path, value in changed.items():
                    parameter_at(module, path).copy_(torch.from_numpy(value))
        outputs = [
            bound.current() if bound.quantizer.enabled else bound.quantizer for bound in self.activation_quantizers
        ]
        dispatcher = PytorchNodeQuantizationDispatcher(self.quantizers, outputs)
        result = PytorchQuantizationWrapper(module, dispatcher)
        result._take_mode(self.training)
        return result

    # State --------------------------------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # Frozen weights that change their dtype are made of their codes anew: coming back from fewer bits, they are exact.
        if not self._frozen:
            return super()._apply(fn, recurse)
        before = {path: parameter_at(self.module, path) for path in self._paths}
        dtypes = {path: tensor.dtype for path, tensor in before.items()}
        codes = {} if any(t.is_meta for t in before.values()) else self.get_quantized_tensors()
        result = super()._apply(fn, recurse)
        after = {path: parameter_at(self.module, path) for path in self._paths}
        changed = [path for path in codes if after[path].dtype != dtypes[path] and not after[path].is_meta]
        packed.fill(self.module, {path: codes[path].dequantize(dtype="float32") for path in changed})
        return result

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        _, _, missing_keys, _, error_msgs = args
        packed.unpack_codes(self, state_dict, prefix, missing_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def get_config(self) -> dict[str, Any]:
        """A JSON record of the quantizers; arrays of frozen weights and of what trains are in the state dict instead."""
        record = self.dispatcher.get_config()
        weights = {path: self.bounds[path] for path in self._paths}
        record["weight_quantizers"] = {
            path: (bound.quantizer.placeholder() if self._frozen else bound.record()).to_dict()
            for path, bound in weights.items()
        }
        record["activation_quantizers"] = [bound.quantizer.to_dict() for bound in self.activation_quantizers]
        return {"dispatcher": record, "frozen": self._frozen}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], module: torch.nn.Module) -> Self:
        """A wrapper around a module like the one that `get_config`'s record is of; `load_state_dict` gives it its values.

        Raises:
            FileFormatError: a record that this release can't read.
            ConfigError: another module.
        """
        if not isinstance(config, Mapping) or not isinstance(config.get("dispatcher"), Mapping):
            raise FileFormatError(f"expected a wrapper's record with 'dispatcher' and 'frozen'; received {config!r}")
        result = cls(module, PytorchNodeQuantizationDispatcher.from_config(config["dispatcher"]))
        return result.freeze() if config.get("frozen") else result

    def extra_repr(self) -> str:
        """Whether it is frozen."""
        return "frozen" if self._frozen else ""
