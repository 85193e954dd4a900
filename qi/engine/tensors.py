"""The tensor API: functions of a tensor and a configuration, and what trains and calibrates with them by layer names.

Any number of dimensions; channels are the first axis. A symmetric scale is ``2 * absmax / (qmax - qmin)``, that is
absmax / 127.5 for 8 bits, as this API has always had it: the greatest number may round to a code that is clipped, half a step
away. Rounding is half to even, as everywhere in QI.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import numpy as np

from qi.core import PerTensor, QParams, QTensor, SymmetricRule, blocked
from qi.core.affine import fake_quantize as differentiable_fake_quantize
from qi.core.metrics import mse
from qi.core.namespace import NUMPY, namespace_of
from qi.engine.config import QuantizationConfig, checked_config, checked_flag
from qi.engine.inputs import array_of, check_unmasked, refuse
from qi.engine.ranges import params_of, see
from qi.errors import ConfigError, InputError, NotCalibratedError, UnsupportedError
from qi.typing import Array

__all__ = [
    "DynamicRangeCalibrator",
    "QuantizationAwareTraining",
    "compression_ratio",
    "dequantize_tensor",
    "quantization_error",
    "quantize_tensor",
]


def quantize_tensor(tensor: np.ndarray, config: QuantizationConfig) -> QTensor:
    """Codes and parameters of a tensor.

    Args:
        tensor: Real array of any shape; computed in float32.
        config: How; its range is the tensor's own.

    Raises:
        TypeError: tensor is no array of real numbers.
        ValueError: It holds NaN or infinity where the configuration takes them for errors.

    Example:
        >>> tensor = np.array([[-1.875, 0.25], [0.5, 15.0]], np.float32)
        >>> quantized = quantize_tensor(tensor, QuantizationConfig.int4_per_channel())
        >>> quantized.data.tolist(), quantized.params.scale.tolist(), quantized.nbytes
        ([[-8, 1], [0, 7]], [[0.25], [2.0]], 10)
    """
    x = array_of(tensor, validate=True)
    params = _params(x, config)
    return params.quantize_counted(x)[0]


def dequantize_tensor(quantized: QTensor) -> np.ndarray:
    """The real numbers, float32, that a quantized tensor stands for."""
    if not isinstance(quantized, QTensor):
        raise UnsupportedError(f"expected a QuantizedTensor; received {type(quantized).__name__}")
    return quantized.dequantize(dtype="float32")


def compression_ratio(config: QuantizationConfig) -> float:
    """32 bits of float32 over the bits of a code; what a tensor really has is `QuantizedTensor.compression_ratio`.

    Example:
        >>> compression_ratio(QuantizationConfig.int4_per_channel())
        8.0
    """
    return 32 / checked_config(config).bits


def quantization_error(original: np.ndarray, quantized: QTensor) -> float:
    """Mean squared error of a quantized tensor; 0 for empty ones.

    Raises:
        ValueError: Shapes differ.
    """
    x, numbers = array_of(original, validate=False), dequantize_tensor(quantized)
    return mse(x, numbers) if x.size or numbers.size else 0.0


def _params(x: np.ndarray, config: QuantizationConfig) -> QParams:
    config = checked_config(config)
    sharing = config.sharing()
    seen = see(x, sharing, config)
    refuse(seen.nans, seen.infs, config)
    return replace(params_of(seen.lo, seen.hi, sharing, config, SymmetricRule.SPAN), config=config)


class QuantizationAwareTraining:
    """Fake quantization by layer names.

    Args:
        simulate_quantization: Whether `fake_quantize` does anything.

    Example:
        >>> qat = QuantizationAwareTraining(True)
        >>> qat.register_layer("fc1", QuantizationConfig.int8_symmetric())
        >>> qat.fake_quantize(np.float32([0.0, 1.01, 1.9921875]), "fc1").tolist()
        [0.0, 1.015625, 1.984375]
    """

    def __init__(self, simulate_quantization: bool = True) -> None:
        self.simulate_quantization = checked_flag("simulate_quantization", simulate_quantization)
        self._configs: dict[str, QuantizationConfig] = {}

    @classmethod
    def new(cls, simulate_quantization: bool) -> Self:
        """The constructor by its other name."""
        return cls(simulate_quantization)

    def register_layer(self, layer_name: str, config: QuantizationConfig) -> None:
        """Gives a layer a configuration; another replaces it."""
        self._configs[_name(layer_name)] = checked_config(config)

    def fake_quantize(self, tensor: Array, layer_name: str) -> Array:
        """What quantization makes of a tensor, in its own framework and dtype, with the straight-through gradient.

        Gradients pass inside the range and stop outside. The range is the tensor's own, read on the host. A layer that
        isn't registered gets its tensor back, a copy.

        Args:
            tensor: numpy array, or tensor of Keras or torch, not within a compiled function.
            layer_name: The layer.
        """
        config = self._configs.get(_name(layer_name))
        check_unmasked(tensor)
        xp = namespace_of(tensor)
        if config is None or not self.simulate_quantization:
            return np.array(tensor) if xp is NUMPY else tensor
        values = np.asarray(tensor if xp is NUMPY else xp.stop_gradient(tensor))
        params = _params(array_of(values, validate=True), config)
        if xp is NUMPY:
            return blocked.fake_quantize(values, params)[0]
        return differentiable_fake_quantize(tensor, *params.expanded(values.shape), params.grid)

    def get_config(self, layer_name: str) -> QuantizationConfig | None:
        """A layer's configuration, or None."""
        return self._configs.get(_name(layer_name))

    def registered_layers(self) -> list[str]:
        """Names, in the order they were registered."""
        return list(self._configs)


class DynamicRangeCalibrator:
    """The extremes of each layer's tensors.

    Attributes:
        num_samples: How many tensors were collected.

    Example:
        >>> calibrator = DynamicRangeCalibrator()
        >>> calibrator.collect("layer1", np.float32([0.0, 3.0]))
        >>> calibrator.collect("layer1", np.float32([-1.0, 1.0]))
        >>> calibrator.get_range("layer1"), calibrator.num_samples
        ((-1.0, 3.0), 2)
        >>> params = calibrator.finalize_params(QuantizationConfig.int8_asymmetric())
        >>> params["layer1"].scale == np.float32(4 / 255)
        np.True_
    """

    def __init__(self) -> None:
        self._ranges: dict[str, tuple[float, float]] = {}
        self.num_samples = 0

    new = classmethod(lambda cls: cls())

    def collect(self, layer_name: str, tensor: np.ndarray) -> None:
        """Adds one tensor. Numbers that aren't finite don't count.

        Raises:
            TypeError: tensor is no array of real numbers.
            ValueError: There is no finite number in it.
        """
        x = array_of(tensor, validate=True)
        lo, hi, nans, infs = blocked.minmax(x, PerTensor())
        if x.size == nans + infs:
            raise InputError(
                f"expected finite numbers for {layer_name!r}; received an array of shape {x.shape} without"
            )
        self._widen(_name(layer_name), float(lo.flat[0]), float(hi.flat[0]))
        self.num_samples += 1

    def get_range(self, layer_name: str) -> tuple[float, float] | None:
        """(least, greatest) of a layer, or None if nothing was collected."""
        return self._ranges.get(_name(layer_name))

    def finalize(self, default_config: QuantizationConfig) -> dict[str, QuantizationConfig]:
        """The given configuration for each layer that was seen; the ranges are in `finalize_params`."""
        return dict.fromkeys(self._ranges, checked_config(default_config))

    def finalize_params(self, default_config: QuantizationConfig) -> dict[str, QParams]:
        """Parameters that the collected ranges give.

        Raises:
            ConfigError: The configuration isn't per tensor: channels aren't told apart.
            NotCalibratedError: Nothing was collected.
        """
        if checked_config(default_config).per_channel:
            raise ConfigError(
                f"expected a configuration per tensor; received granularity={default_config.granularity!s}"
            )
        if not self._ranges:
            raise NotCalibratedError("expected collected ranges; received none; do: call collect() first")
        return {
            name: replace(params_of(lo, hi, PerTensor(), default_config, SymmetricRule.SPAN), config=default_config)
            for name, (lo, hi) in self._ranges.items()
        }

    def merge(self, other: DynamicRangeCalibrator) -> None:
        """Adds what another calibrator has seen."""
        if not isinstance(other, DynamicRangeCalibrator):
            raise UnsupportedError(f"expected a DynamicRangeCalibrator; received {type(other).__name__}")
        for name, (lo, hi) in list(other._ranges.items()):
            self._widen(name, lo, hi)
        self.num_samples += other.num_samples

    def reset(self) -> None:
        """Forgets everything."""
        self._ranges.clear()
        self.num_samples = 0

    def _widen(self, name: str, lo: float, hi: float) -> None:
        seen = self._ranges.get(name, (lo, hi))
        self._ranges[name] = min(lo, seen[0]), max(hi, seen[1])


def _name(layer_name: str) -> str:
    if not isinstance(layer_name, str):
        raise UnsupportedError(f"expected the name of a layer; received {layer_name!r}")
    return layer_name
