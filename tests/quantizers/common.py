"""What the tests of trainable quantizers share: configurations, gradients on TensorFlow, and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from qi.quantizers import (
    BaseTrainableQuantizer,
    QuantizationMethod,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
)
from tests.backends import BACKENDS

SYMMETRIC, POT, UNIFORM = (
    QuantizationMethod.SYMMETRIC,
    QuantizationMethod.POWER_OF_TWO,
    QuantizationMethod.UNIFORM,
)
X = (np.random.default_rng(0).normal(size=(40, 3)) * [0.5, 1.0, 3.0]).astype(np.float32)
UPSTREAM = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)


def weights(
    cls: type[BaseTrainableQuantizer], method: Any, bits: int = 3, per_channel: bool = False, **more: Any
) -> Any:
    """A quantizer of weights; `more` are quantization parameters."""
    return cls(TrainableQuantizerWeightsConfig(method, bits, more, weights_per_channel_threshold=per_channel))


def activations(cls: type[BaseTrainableQuantizer], method: Any, bits: int = 3, **more: Any) -> Any:
    """A quantizer of activations; `more` are quantization parameters."""
    return cls(TrainableQuantizerActivationConfig(method, bits, more))


def gradients(
    quantizer: BaseTrainableQuantizer, variables: dict[str, Any], x: Any = X, upstream: Any = UPSTREAM
) -> Any:
    """(gradient of x, gradients of the variables by name) of a training step."""
    names = list(variables)
    noise = np.random.default_rng(2).random(np.shape(x), dtype=np.float32)

    def function(x: Any, *values: Any) -> Any:
        return quantizer.apply(x, dict(zip(names, values, strict=True)), training=True, noise=lambda _: noise)

    arrays = [np.float32(variables[name]) for name in names]
    for_x, *rest = BACKENDS[0].gradients(function, np.float32(x), *arrays, upstream=np.float32(upstream))
    return for_x, dict(zip(names, rest, strict=True))


def declared(quantizer: BaseTrainableQuantizer, x: Any = X) -> dict[str, np.ndarray]:
    """The first variables for a tensor."""
    return {item.name: item.value for item in quantizer.declare(np.shape(x), x)}
