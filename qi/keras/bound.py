"""A quantizer bound to a layer: its variables there, and its calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from qi.core import QParams
from qi.errors import ConfigError
from qi.keras.variables import add_parameter, to_numpy
from qi.quantizers import BaseInferableQuantizer, BaseQuantizer, BaseTrainableQuantizer
from qi.typing import Shape

__all__ = ["Bound", "WeightBinding", "bind_quantizer"]


@dataclass(eq=False)
class Bound:
    """A quantizer with the variables that a layer keeps for it.

    Attributes:
        quantizer: inferable or trainable.
        variables: by the quantizer's names.
        generator: of the noise that some quantizers need in training.
        shape: of the tensor that it quantizes, (1,) for activations; None for unknown sizes.
        enabled: False passes tensors through, and keeps the variables as they are.
        fixed: whether the variables keep the values they have while the model trains.
        probe: gets every tensor before it is quantized; for calls outside of compiled functions.
    """

    quantizer: BaseQuantizer
    variables: dict[str, keras.Variable] = field(default_factory=dict)
    generator: keras.random.SeedGenerator | None = None
    shape: Shape = (1,)
    enabled: bool = True
    fixed: bool = False
    probe: Callable[[Any], None] | None = None

    @property
    def trains(self) -> bool:
        """Whether it is a trainable quantizer."""
        return isinstance(self.quantizer, BaseTrainableQuantizer)

    @property
    def state(self) -> dict[str, keras.Variable]:
        """All that training changes, by name: the variables, and the state of the noise, which Keras would not save."""
        return self.variables | ({"noise": self.generator.state} if self.generator is not None else {})

    def __call__(self, x: Any, training: Any = None) -> Any:
        """The fake-quantized x."""
        if self.probe is not None:
            self.probe(x)
        values = {name: variable.value for name, variable in self.variables.items()}
        if not self.enabled:
            return _pass_through(x, values)
        if self.fixed:
            values = {name: _without_gradient(value) for name, value in values.items()}
        return self.quantizer.apply(x, values, training=bool(training), noise=self._noise)

    def parameters(self) -> tuple[Any, Any]:
        """(scale, zero point) that the variables stand for now, as tensors; the zero point is one even where it is 0."""
        values = {name: keras.ops.convert_to_tensor(variable) for name, variable in self.variables.items()}
        scale, zero_point = self.quantizer.scale_zero_point(values)
        return scale, keras.ops.zeros_like(scale) if zero_point is None else zero_point

    def _noise(self, x: Any) -> Any:
        return keras.random.uniform(keras.ops.shape(x), dtype="float32", seed=self.generator)

    def configure(self, *, enabled: bool | None = None, fixed: bool | None = None) -> bool:
        """Sets `enabled` and `fixed` where they are given, and says whether that changed anything.

        Functions that were compiled before don't notice. Variables that are kept don't leave the optimizer: they get gradients
        of 0, and a constraint that undoes what momentum or weight decay did.
        """
        before = self.enabled, self.fixed
        self.enabled = self.enabled if enabled is None else enabled
        self.fixed = self.fixed if fixed is None else fixed
        if before != (self.enabled, self.fixed):
            self._keep()
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
        expected = {name: int(np.prod(variable.shape)) for name, variable in self.variables.items()}
        if sizes != expected:
            raise ConfigError(f"expected a quantizer with variables of sizes {expected}; received one with {sizes}")
        for name, variable in self.variables.items():
            variable.assign(np.reshape(found[name], tuple(variable.shape)))
        self.quantizer = quantizer
        if isinstance(quantizer, BaseTrainableQuantizer):
            quantizer.bind(_Values(self.variables))
        self._keep()

    def _keep(self) -> None:
        """Has optimizers leave the variables alone, at the values they have now, or lets go of them."""
        kept = self.fixed or not self.enabled
        for variable in self.variables.values():
            if variable.trainable:
                variable.constraint = _Kept(to_numpy(variable)) if kept else None

    def transformed(self, x: Any) -> Any:
        """What is quantized in place of x: x itself, or what a trainable quantizer makes of it first."""
        if not isinstance(self.quantizer, BaseTrainableQuantizer):
            return x
        return self.quantizer.transform(x, {name: variable.value for name, variable in self.variables.items()})

    def current(self) -> BaseInferableQuantizer:
        """The inferable quantizer with the parameters that the variables stand for now."""
        return self.quantizer.to_inferable({name: to_numpy(variable) for name, variable in self.variables.items()})

    def record(self) -> BaseQuantizer:
        """What a configuration holds: parameters that never change are in it, those that train are not."""
        return self.quantizer.placeholder() if self.trains else self.current()


@dataclass(eq=False)
class WeightBinding:
    """One quantized weight of a layer.

    Attributes:
        bound: its quantizer with that one's variables.
        variable: the weight.
        frozen: holds the quantized value; the weight itself when the wrapper owns the layer.
        beside: the variable made for a frozen value outside the layer.
    """

    bound: Bound
    variable: keras.Variable
    frozen: keras.Variable | None = None
    beside: keras.Variable | None = None

    def qparams(self) -> QParams:
        """Scales and zero points as they are now."""
        if self.bound.trains:
            return self.bound.current().qparams(tuple(self.variable.shape))
        # As the variables are, for a damaged file may have filled them.
        quantizer, variables = self.bound.quantizer, self.bound.variables
        scale, zero_point = (to_numpy(variables[name]) for name in ("scale", "zero_point"))
        return QParams(scale, zero_point, quantizer.grid, quantizer.granularity(len(self.variable.shape)))

    def source(self) -> np.ndarray:
        """What the inferable quantizer is applied to: the weight, or what a trainable one makes of it."""
        values = to_numpy(self.variable)
        # On the backend, as in training: tanh, say, isn't the same everywhere.
        return to_numpy(self.bound.transformed(keras.ops.convert_to_tensor(values))) if self.bound.trains else values


def bind_quantizer(
    layer: keras.layers.Layer,
    quantizer: BaseQuantizer,
    shape: Shape,
    x: np.ndarray | None = None,
    *,
    prefix: str = "",
    reshape: Shape | None = None,
) -> Bound:
    """Makes a quantizer's variables in a layer.

    Args:
        layer: gets the variables.
        quantizer: says which.
        shape: of the tensor to quantize; None for unknown sizes.
        x: its values, where known.
        prefix: of the variables' names.
        reshape: the variables' shape, where it isn't that of the parameters.
    """
    bound = Bound(quantizer, shape=tuple(shape))
    for item in quantizer.declare(shape, x):
        value = item.value if reshape is None else np.reshape(item.value, reshape)
        bound.variables[item.name] = add_parameter(layer, prefix + item.name, value, trainable=item.trainable)
    if quantizer.needs_noise:
        bound.generator = keras.random.SeedGenerator(seed=_seed_of(layer.name + prefix))
        setattr(layer, f"_{prefix}noise", bound.generator)  # Keras tracks what is an attribute
    if isinstance(quantizer, BaseTrainableQuantizer):
        quantizer.bind(_Values(bound.variables))
    return bound


class _Values(Mapping[str, np.ndarray]):
    """A layer's variables as numpy arrays, read when they are asked for."""

    def __init__(self, variables: Mapping[str, keras.Variable]) -> None:
        self._variables = variables

    def __getitem__(self, name: str) -> np.ndarray:
        return to_numpy(self._variables[name])

    def __iter__(self) -> Any:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)


@dataclass(frozen=True, eq=False)
class _Kept:
    """A constraint, which optimizers apply after each update: the value that a variable had, whatever it has now."""

    value: np.ndarray

    def __call__(self, variable: Any) -> Any:
        return keras.ops.convert_to_tensor(self.value)


def _without_gradient(value: Any) -> Any:
    """The value with gradients of 0; with none at all, as `stop_gradient` gives, optimizers warn or refuse."""

    def forward(value: Any) -> tuple[Any, Any]:
        return value, lambda *args, upstream=None: keras.ops.zeros_like(value)

    return keras.ops.custom_gradient(forward)(keras.ops.convert_to_tensor(value))


def _pass_through(x: Any, values: Mapping[str, Any]) -> Any:
    """The tensor itself, in a floating-point type; the values get gradients of 0."""

    def forward(x: Any, *rest: Any) -> tuple[Any, Any]:
        def gradient(*args: Any, upstream: Any = None) -> tuple[Any, ...]:
            return args[0] if upstream is None else upstream, *map(keras.ops.zeros_like, rest)

        return x, gradient

    x = keras.ops.convert_to_tensor(x)
    if "float" not in keras.backend.standardize_dtype(x.dtype):
        x = keras.ops.cast(x, "float32")
    return keras.ops.custom_gradient(forward)(x, *map(keras.ops.convert_to_tensor, values.values()))


def _seed_of(name: str) -> int:
    """A seed that is the same in every run and differs between layers."""
    return sum(ord(letter) * 31**i for i, letter in enumerate(name)) % 2**31
