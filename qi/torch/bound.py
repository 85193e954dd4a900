"""A quantizer bound to a torch module: its parameters and buffers there, and its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch

from qi.core import QParams
from qi.core.namespace import namespace_of
from qi.errors import ConfigError
from qi.quantizers import BaseInferableQuantizer, BaseQuantizer, BaseTrainableQuantizer
from qi.torch.variables import to_numpy
from qi.typing import Shape

__all__ = ["BoundQuantizer"]

# Types are looked up once, here: compilers can't follow how a new one is.
namespace_of(torch.empty(0), torch.nn.Parameter(torch.empty(0)))


class BoundQuantizer(torch.nn.Module):
    """One quantizer with its variables: trainable ones are parameters of this module, others buffers, named as it names them.

    They are float32 and stay so when a model is moved to another dtype. The computation is float32 too, and the result has
    the input's dtype. In training mode the quantizer does what it does in training.

    Args:
        quantizer: inferable or trainable.
        shape: of the tensor to quantize, (1,) for activations; None for unknown sizes.
        x: its values, where known.
        reshape: the variables' shape, where it isn't that of the parameters.
        device: of the variables.

    Attributes:
        quantizer: as given, or as `replace` set it since.
        variables: the tensors by the quantizer's names.
        enabled: False passes tensors through, and keeps the variables as they are.
        fixed: whether the variables keep the values they have while the model trains.
        probe: gets every tensor before it is quantized; for calls outside of compiled functions.

    Raises:
        ConfigError: not a quantizer, or one that doesn't fit the shape.
        NotCalibratedError: a trainable quantizer whose first range nobody knows.

    Example:
        >>> import qi
        >>> bound = BoundQuantizer(qi.ActivationPOTInferableQuantizer(2, 2.0, signed=True), reshape=())
        >>> bound(torch.tensor([0.6, 5.0])).tolist()
        [1.0, 1.0]
    """

    def __init__(
        self,
        quantizer: BaseQuantizer,
        shape: Shape = (1,),
        x: np.ndarray | None = None,
        *,
        reshape: Shape | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(quantizer, BaseQuantizer):
            raise ConfigError(f"expected a quantizer; received {quantizer!r} of type {type(quantizer).__name__}")
        super().__init__()
        self.quantizer, self.shape = quantizer, tuple(shape)
        self.enabled, self.fixed = True, False
        self.probe: Callable[[Any], None] | None = None
        names = []
        for item in quantizer.declare(self.shape, x) if quantizer.enabled else ():
            value = item.value if reshape is None else np.reshape(item.value, reshape)
            tensor = torch.tensor(np.asarray(value, np.float32), device=device)
            if item.trainable:
                self.register_parameter(item.name, torch.nn.Parameter(tensor))
            else:
                self.register_buffer(item.name, tensor)
            names.append(item.name)
        self._names = tuple(names)
        self._tell()

    def _tell(self) -> None:
        """Tells a trainable quantizer where its variables are."""
        if isinstance(self.quantizer, BaseTrainableQuantizer):
            self.quantizer.bind(_Values(self))

    # Running ------------------------------------------------------------------------------------------------------------

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The fake-quantized x, in x's dtype; float32 for integers."""
        if self.probe is not None:
            self.probe(x)
        if not (self.enabled and self.quantizer.enabled):
            return x if x.is_floating_point() else x.float()
        values = self.variables
        if self.fixed:
            values = {name: value.detach() for name, value in values.items()}
        result: torch.Tensor = self.quantizer.apply(x, values, training=self.training, noise=_noise)
        return result

    @property
    def variables(self) -> dict[str, torch.Tensor]:
        """The tensors by the quantizer's names."""
        return {name: getattr(self, name) for name in self._names}

    @property
    def trains(self) -> bool:
        """Whether it is a trainable quantizer."""
        return isinstance(self.quantizer, BaseTrainableQuantizer)

    def transformed(self, x: torch.Tensor) -> torch.Tensor:
        """What is quantized in place of x: x itself, or what a trainable quantizer makes of it first."""
        if not isinstance(self.quantizer, BaseTrainableQuantizer):
            return x
        result: torch.Tensor = self.quantizer.transform(x, self.variables)
        return result

    def parameters_now(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(scale, zero point) that the variables stand for now; the zero point is a tensor even where it is 0."""
        scale, zero_point = self.quantizer.scale_zero_point(self.variables)
        return scale, torch.zeros_like(scale) if zero_point is None else zero_point

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # What `half`, `bfloat16` and `to(dtype)` call: scales of fewer bits would move codes.
        def moved(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        return super()._apply(moved, recurse)

    # What the variables stand for ---------------------------------------------------------------------------------------

    def current(self) -> BaseInferableQuantizer:
        """The inferable quantizer with the parameters that the variables stand for now.

        Raises:
            ConfigError: the quantizer's configuration disables it.
            InputError: training left NaN or infinities.
        """
        return self.quantizer.to_inferable(dict(_Values(self)))

    def qparams(self, shape: Shape | None = None) -> QParams:
        """Scales and zero points as they are now, for a tensor of a shape: its own by default."""
        shape = self.shape if shape is None else tuple(shape)
        if self.trains:
            return self.current().qparams(shape)
        # As the variables are, for a damaged file may have filled them.
        scale, zero_point = (to_numpy(getattr(self, name)) for name in ("scale", "zero_point"))
        return QParams(scale, zero_point, self.quantizer.grid, self.quantizer.granularity(len(shape)))

    def record(self) -> BaseQuantizer:
        """What a configuration holds: parameters that never change are in it, those that train are not."""
        return self.quantizer.placeholder() if self.trains else self.current()

    # Changing it while it trains ----------------------------------------------------------------------------------------

    def configure(self, *, enabled: bool | None = None, fixed: bool | None = None) -> bool:
        """Sets `enabled` and `fixed` where they are given, and says whether that changed anything.

        Variables that are kept get no gradients from then on, and lose those they have, so that optimizers skip them.
        """
        before = self.enabled, self.fixed
        self.enabled = self.enabled if enabled is None else enabled
        self.fixed = self.fixed if fixed is None else fixed
        if self.fixed or not self.enabled:
            for variable in self.variables.values():
                variable.grad = None
        return before != (self.enabled, self.fixed)

    def with_bits(self, bits: int) -> BaseTrainableQuantizer:
        """The trainable quantizer with other bits, on the range that the variables stand for now; nothing is changed.

        Raises:
            ConfigError: bits that it can't have, or an inferable quantizer.
        """
        if not isinstance(self.quantizer, BaseTrainableQuantizer):
            raise ConfigError(f"expected a trainable quantizer; received {self.quantizer!r}")
        return self.quantizer.with_bits(bits, self.current(), self.shape)

    def replace(self, quantizer: BaseQuantizer) -> None:
        """Takes another quantizer with the same variables, at the values it starts with.

        Raises:
            ConfigError: its variables aren't the same.
        """
        found = {item.name: item.value for item in quantizer.declare(self.shape)}
        sizes = {name: value.size for name, value in found.items()}
        expected = {name: variable.numel() for name, variable in self.variables.items()}
        if sizes != expected:
            raise ConfigError(f"expected a quantizer with variables of sizes {expected}; received one with {sizes}")
        with torch.no_grad():
            for name, variable in self.variables.items():
                variable.copy_(torch.tensor(np.reshape(found[name], tuple(variable.shape))))
        self.quantizer = quantizer
        self._tell()

    def extra_repr(self) -> str:
        """The quantizer, as it was configured."""
        off = not (self.enabled and self.quantizer.enabled)
        return repr(self.quantizer) + (", disabled" if off else "") + (", fixed" if self.fixed else "")


def _noise(x: torch.Tensor) -> torch.Tensor:
    """Uniform numbers of torch's own generator, which ``torch.manual_seed`` seeds."""
    return torch.rand_like(x, dtype=torch.float32)


class _Values(Mapping[str, np.ndarray]):
    """A bound quantizer's variables as numpy arrays, read when they are asked for."""

    def __init__(self, bound: BoundQuantizer) -> None:
        self._bound = bound

    def __getitem__(self, name: str) -> np.ndarray:
        return to_numpy(self._bound.variables[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._bound._names)

    def __len__(self) -> int:
        return len(self._bound._names)
