"""Inferable quantizers of activations: one scale a tensor; symmetric, power-of-two, uniform and look-up tables.

Thresholds and ranges are numbers, or sequences of one. Out-of-range values saturate; NaN stays NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qi.errors import ConfigError
from qi.quantizers.base import numbers
from qi.quantizers.families import LutQuantizer, SymmetricQuantizer, UniformQuantizer, check_power_of_two
from qi.quantizers.registry import QuantizationMethod, QuantizationTarget, mark_quantizer
from qi.typing import Json

__all__ = [
    "ActivationLutPOTInferableQuantizer",
    "ActivationPOTInferableQuantizer",
    "ActivationSymmetricInferableQuantizer",
    "ActivationUniformInferableQuantizer",
]


def _one(name: str, value: Any) -> Any:
    if numbers(name, value).size != 1:
        raise ConfigError(f"expected one {name} (activations have one scale a tensor); received {name}={value!r}")
    return value


def _without_channels(config: Json) -> Json:
    return {k: v for k, v in config.items() if k not in ("per_channel", "channel_axis", "input_rank")}


@mark_quantizer(QuantizationTarget.ACTIVATION, [QuantizationMethod.SYMMETRIC])
class ActivationSymmetricInferableQuantizer(SymmetricQuantizer):
    """Symmetric activations on ``[-t, t - s]`` (signed) or ``[0, t - s]`` (unsigned).

    Args:
        num_bits: 1 to 16.
        threshold: ``t > 0``.
        signed: the step is ``t / 2**(num_bits-1)`` signed, ``t / 2**num_bits`` unsigned.

    Raises:
        ConfigError: an argument out of its range; the message names it and its value.

    Example:
        >>> import numpy as np
        >>> ActivationSymmetricInferableQuantizer(8, threshold=4, signed=False)(np.array([-1.0, 1.005])).tolist()
        [0.0, 1.0]
    """

    def __init__(self, num_bits: int, threshold: Any, signed: bool = True) -> None:
        super().__init__(num_bits, _one("threshold", threshold), signed)

    def get_config(self) -> Json:
        """Constructor arguments as plain JSON values."""
        return _without_channels(super().get_config())


@mark_quantizer(QuantizationTarget.ACTIVATION, [QuantizationMethod.POWER_OF_TWO])
class ActivationPOTInferableQuantizer(ActivationSymmetricInferableQuantizer):
    """As `ActivationSymmetricInferableQuantizer`, for a threshold that is a power of two.

    Raises:
        ConfigError: the threshold is no power of two, or as the parent.

    Example:
        >>> import numpy as np
        >>> ActivationPOTInferableQuantizer(num_bits=2, threshold=2.0, signed=True)(np.array([-9.0, 0.6])).tolist()
        [-2.0, 1.0]
    """

    def _set_threshold(self, threshold: Any, per_channel: bool) -> None:
        super()._set_threshold(threshold, per_channel)
        check_power_of_two(self.threshold)


@mark_quantizer(QuantizationTarget.ACTIVATION, [QuantizationMethod.UNIFORM])
class ActivationUniformInferableQuantizer(UniformQuantizer):
    """Asymmetric activations: ``2**num_bits`` levels on [min_range, max_range] stretched to contain 0.

    Args:
        num_bits: 1 to 16.
        min_range: lower end.
        max_range: upper end, not below min_range.

    Raises:
        ConfigError: an argument out of its range; the message names it and its value.

    Example:
        >>> import numpy as np
        >>> ActivationUniformInferableQuantizer(8, min_range=0.0, max_range=2.55)(np.array([0.012, 7.0])).round(6).tolist()
        [0.01, 2.55]
    """

    def __init__(self, num_bits: int, min_range: Any, max_range: Any) -> None:
        super().__init__(num_bits, _one("min_range", min_range), _one("max_range", max_range))

    def get_config(self) -> Json:
        """Constructor arguments as plain JSON values."""
        return _without_channels(super().get_config())


@mark_quantizer(QuantizationTarget.ACTIVATION, [QuantizationMethod.LUT_POT])
class ActivationLutPOTInferableQuantizer(LutQuantizer):
    """Activations from a look-up table with a power-of-two threshold.

    Args:
        num_bits: bits of an index; at most ``2**num_bits`` table entries.
        lut_values: distinct integers that fit ``lut_values_bitwidth`` bits.
        threshold: a power of two.
        signed: whether the entries are signed: they stand for ``lut / 2**(lut_values_bitwidth - signed) * threshold``.
        lut_values_bitwidth: 1 to 16, not below num_bits.
        eps: accepted and kept for compatibility.

    Raises:
        ConfigError: an argument out of its range; the message names it and its value.

    Example:
        >>> import numpy as np
        >>> q = ActivationLutPOTInferableQuantizer(2, lut_values=[0, 64, 128, 192], threshold=4, signed=False)
        >>> q(np.array([0.6, 2.9, 9.0])).tolist()
        [1.0, 3.0, 3.0]
    """

    def __init__(
        self,
        num_bits: int,
        lut_values: Sequence[float],
        threshold: Any,
        signed: bool = True,
        lut_values_bitwidth: int = 8,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(num_bits, lut_values, _one("threshold", threshold), signed, lut_values_bitwidth, eps)
        check_power_of_two(self.threshold)

    def get_config(self) -> Json:
        """Constructor arguments as plain JSON values."""
        return _without_channels(super().get_config())
