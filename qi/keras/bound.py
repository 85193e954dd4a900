"""A quantizer bound to a layer: its variables there, and its calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from qi.keras.variables import add_parameter, to_numpy
from qi.quantizers import BaseInferableQuantizer, BaseQuantizer, BaseTrainableQuantizer
from qi.typing import Shape

__all__ = ["Bound", "bind_quantizer"]


@dataclass(eq=False)
class Bound:
    """A quantizer with the variables that a layer keeps for it.

    Attributes:
        quantizer: inferable or trainable.
        variables: by the quantizer's names.
        generator: of the noise that some quantizers need in training.
    """

    quantizer: BaseQuantizer
    variables: dict[str, keras.Variable] = field(default_factory=dict)
    generator: keras.random.SeedGenerator | None = None

    @property
    def trains(self) -> bool:
        """Whether it is a trainable quantizer."""
        return isinstance(self.quantizer, BaseTrainableQuantizer)

    def __call__(self, x: Any, training: Any = None) -> Any:
        """The fake-quantized x."""
        values = {name: variable.value for name, variable in self.variables.items()}
        return self.quantizer.apply(x, values, training=bool(training), noise=self._noise)

    def _noise(self, x: Any) -> Any:
        return keras.random.uniform(keras.ops.shape(x), dtype="float32", seed=self.generator)

    def current(self) -> BaseInferableQuantizer:
        """The inferable quantizer with the parameters that the variables stand for now."""
        return self.quantizer.to_inferable({name: to_numpy(variable) for name, variable in self.variables.items()})

    def record(self) -> BaseQuantizer:
        """What a configuration holds: parameters that never change are in it, those that train are not."""
        return self.quantizer.placeholder() if self.trains else self.current()


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
    bound = Bound(quantizer)
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


def _seed_of(name: str) -> int:
    """A seed that is the same in every run and differs between layers."""
    return sum(ord(letter) * 31**i for i, letter in enumerate(name)) % 2**31
