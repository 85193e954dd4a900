"""The ways to configure a quantizer class that the contract tries, and the numbers it tries them on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qi.errors import ConfigError
from qi.quantizers import (
    BaseTrainableQuantizer,
    QuantizationMethod,
    QuantizationTarget,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
)

__all__ = ["Case", "awkward", "cases_of", "fitting"]

ROWS, CHANNELS = 12, 3
_WEIGHTS = QuantizationTarget.WEIGHTS
_UNIFORM = QuantizationMethod.UNIFORM


@dataclass(frozen=True)
class Case:
    """One way to configure a trainable quantizer.

    Attributes:
        cls: the class.
        target: weights or activations.
        method: symmetric, power of two or uniform.
        bits: 1 to 16.
        layout: "tensor", "channel" (one range a channel), "narrow" (that, without the lowest code) or "unsigned".
        options: more constructor arguments.
    """

    cls: type[BaseTrainableQuantizer]
    target: QuantizationTarget
    method: QuantizationMethod
    bits: int
    layout: str = "tensor"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.cls.__name__}({self.target.value}, {self.method.value}, {self.bits} bits, {self.layout})"

    def quantizer(self) -> BaseTrainableQuantizer:
        """A new quantizer; one of activations has its first range in the configuration."""
        if self.target is _WEIGHTS:
            narrow = {"narrow_range": True} if self.layout == "narrow" else {}
            weights = TrainableQuantizerWeightsConfig(
                self.method, self.bits, narrow, weights_per_channel_threshold=self.layout != "tensor"
            )
            return self.cls(weights, **self.options)
        params: dict[str, Any] = (
            {"min_range": -0.9, "max_range": 2.1} if self.method is _UNIFORM else {"threshold": 1.7}
        )
        params |= {"signed": False} if self.layout == "unsigned" else {}
        return self.cls(TrainableQuantizerActivationConfig(self.method, self.bits, params), **self.options)

    def values(self, seed: int = 0) -> np.ndarray:
        """float32 numbers [ROWS, CHANNELS] with another spread in each channel."""
        spread = np.array([0.3, 1.0, 4.0], np.float32)
        return np.random.default_rng(seed).normal(size=(ROWS, CHANNELS)).astype(np.float32) * spread

    def start(self, x: np.ndarray | None = None) -> tuple[BaseTrainableQuantizer, dict[str, np.ndarray]]:
        """A quantizer and its first variables, for a weight x (`values` by default) or an activation."""
        quantizer = self.quantizer()
        if self.target is _WEIGHTS:
            weight = self.values() if x is None else x
            declared = quantizer.declare(weight.shape, weight)
        else:
            declared = quantizer.declare((1,), None)
        return quantizer, {item.name: np.asarray(item.value) for item in declared}

    def trainable(self) -> tuple[str, ...]:
        """The names of its trainable variables."""
        quantizer, weight = self.quantizer(), self.values()
        shape, x = (weight.shape, weight) if self.target is _WEIGHTS else ((1,), None)
        return tuple(item.name for item in quantizer.declare(shape, x) if item.trainable)

    def moved(self, variables: Mapping[str, np.ndarray], seed: int = 1) -> dict[str, np.ndarray]:
        """The variables as training might leave them: the trainable ones up to a third away."""
        rng, names = np.random.default_rng(seed), self.trainable()
        return {
            name: value * rng.uniform(0.7, 1.3, value.shape).astype(np.float32) if name in names else value
            for name, value in variables.items()
        }


def awkward(scale: Any, zero_point: Any, qmin: int, qmax: int, seed: int = 2) -> np.ndarray:
    """float32 numbers [4 ROWS, CHANNELS]: codes, ties, the clip's edges, their neighbours, 0, and the tiny and the huge."""
    rng, shape = np.random.default_rng(seed), (4 * ROWS, CHANNELS)
    scale = np.broadcast_to(np.asarray(scale, np.float64), shape)
    zero = np.broadcast_to(np.asarray(0 if zero_point is None else zero_point, np.float64), shape)
    steps = rng.integers(qmin - 2, qmax + 3, shape) - zero + rng.choice([0.0, 0.5, 0.3], shape)
    edges = np.where(rng.random(shape) < 0.5, qmin, qmax) - zero + rng.choice([-0.5, 0.0, 0.5], shape)
    steps = np.where(rng.random(shape) < 0.3, edges, steps)
    exact = (steps * scale).astype(np.float32)
    x = np.nextafter(exact, rng.choice(np.array([-np.inf, np.inf], np.float32), shape))
    x = np.asarray(np.where(rng.random(shape) < 0.6, exact, x), np.float32)
    special = np.array([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, 3e38, -3e38], np.float32)
    where = rng.random(shape) < 0.2
    x[where] = rng.choice(special, int(where.sum()))
    certain = [qmin - 0.5, qmin, qmin + 0.5, qmax - 0.5, qmax, qmax + 0.5]
    x[: len(certain)] = ((np.asarray(certain)[:, None] - zero[0]) * scale[0]).astype(np.float32)
    x[len(certain)] = 0
    return x


def cases_of(
    cls: type[BaseTrainableQuantizer], bits: Sequence[int] = (2, 4, 8), options: Mapping[str, Any] | None = None
) -> list[Case]:
    """Every target, method and layout of a class with each number of bits.

    Raises:
        ConfigError: not a registered trainable quantizer class.
    """
    if not (isinstance(cls, type) and issubclass(cls, BaseTrainableQuantizer)):
        raise ConfigError(f"expected a subclass of BaseTrainableQuantizer; received {cls!r}")
    if "registered_name" not in vars(cls):
        raise ConfigError(f"expected a registered class; received {cls.__name__}; do decorate it with @mark_quantizer")
    found = []
    for target in cls.quantization_targets:
        for method in cls.quantization_method:
            for count in bits:
                layouts = ["tensor", "channel"] if target is _WEIGHTS else ["tensor"]
                if method is not _UNIFORM:
                    layouts += ["unsigned"] if target is not _WEIGHTS else ["narrow"] if count > 1 else []
                found += [Case(cls, target, method, count, layout, dict(options or {})) for layout in layouts]
    return found


def fitting(x: np.ndarray, variables: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The numbers in arrays that variables fit: all at once, or in weights where a variable has the weight's shape."""
    rows = ROWS if any(np.shape(value) == (ROWS, CHANNELS) for value in variables.values()) else len(x)
    return [x[start : start + rows] for start in range(0, len(x), rows)]
