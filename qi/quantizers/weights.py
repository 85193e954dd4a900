"""Inferable quantizers of weights: symmetric, power-of-two, uniform and look-up tables.

Arguments common to all (after the ones that each documents):

* ``per_channel``: one parameter for each index along ``channel_axis``; a scalar or a list of one is broadcast.
* ``channel_axis``: that axis, negative from the end; None lets the layer's policy choose (-1 when called directly).
* ``input_rank``: checks the rank of what is quantized.
* ``group_size``, ``group_axis``: besides, one parameter for each run of ``group_size`` indices along ``group_axis``.

Out-of-range values saturate, infinities too; NaN stays NaN. The grids are those of `qi.core.IntGrid` and `qi.core.LutGrid`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qi.quantizers.families import LutQuantizer, SymmetricQuantizer, UniformQuantizer, check_power_of_two
from qi.quantizers.registry import QuantizationMethod, QuantizationTarget, mark_quantizer

__all__ = [
    "WeightsLUTPOTInferableQuantizer",
    "WeightsLUTSymmetricInferableQuantizer",
    "WeightsPOTInferableQuantizer",
    "WeightsSymmetricInferableQuantizer",
    "WeightsUniformInferableQuantizer",
]


@mark_quantizer(QuantizationTarget.WEIGHTS, [QuantizationMethod.SYMMETRIC])
class WeightsSymmetricInferableQuantizer(SymmetricQuantizer):
    """Symmetric weights on ``[-t, t - s]`` with step ``s = t / 2**(num_bits-1)``.

    Args:
        num_bits: 1 to 16.
        threshold: ``t > 0``; a number, or one a channel (list, tuple or array).
        per_channel, channel_axis, input_rank, group_size, group_axis: see the module.
        signed: False gives ``[0, t - s]`` with ``s = t / 2**num_bits``.
        narrow_range: drops the lowest code, so the range is ``[-(t - s), t - s]``, which integer kernels need.

    Raises:
        ConfigError: an argument out of its range; the message names it and its value.

    Example:
        >>> import numpy as np
        >>> q = WeightsSymmetricInferableQuantizer(num_bits=8, threshold=2, signed=True, per_channel=True)
        >>> q(np.array([[-3.0, 0.01, 1.999]])).tolist()
        [[-2.0, 0.015625, 1.984375]]
    """

    def __init__(
        self,
        num_bits: int,
        threshold: Any,
        per_channel: bool = False,
        channel_axis: int | None = None,
        input_rank: int | None = None,
        *,
        signed: bool = True,
        narrow_range: bool = False,
        group_size: int | None = None,
        group_axis: int | None = None,
    ) -> None:
        super().__init__(
            num_bits,
            threshold,
            signed,
            narrow_range,
            per_channel=per_channel,
            channel_axis=channel_axis,
            input_rank=input_rank,
            group_size=group_size,
            group_axis=group_axis,
        )


@mark_quantizer(QuantizationTarget.WEIGHTS, [QuantizationMethod.POWER_OF_TWO])
class WeightsPOTInferableQuantizer(WeightsSymmetricInferableQuantizer):
    """As `WeightsSymmetricInferableQuantizer`, for thresholds that are powers of two (scales become bit shifts).

    Raises:
        ConfigError: a threshold is no power of two, or as the parent.

    Example:
        >>> import numpy as np
        >>> WeightsPOTInferableQuantizer(num_bits=3, threshold=4)(np.array([0.6, 9.0])).tolist()
        [1.0, 3.0]
    """

    def _set_threshold(self, threshold: Any, per_channel: bool) -> None:
        super()._set_threshold(threshold, per_channel)
        check_power_of_two(self.threshold)


@mark_quantizer(QuantizationTarget.WEIGHTS, [QuantizationMethod.UNIFORM])
class WeightsUniformInferableQuantizer(UniformQuantizer):
    """Asymmetric weights: ``2**num_bits`` levels on [min_range, max_range].

    The range is stretched to contain 0 and shifted by at most half a step, so that 0 is represented exactly.

    Args:
        num_bits: 1 to 16.
        min_range: lower end; a number, or one a channel.
        max_range: upper end, not below min_range, shaped alike.
        per_channel, channel_axis, input_rank, group_size, group_axis: see the module.

    Raises:
        ConfigError: an argument out of its range; the message names it and its value.

    Example:
        >>> import numpy as np
        >>> WeightsUniformInferableQuantizer(2, min_range=-1, max_range=2)(np.array([-5.0, 0.0, 0.7, 5.0])).tolist()
        [-1.0, 0.0, 1.0, 2.0]
    """

    def __init__(
        self,
        num_bits: int,
        min_range: Any,
        max_range: Any,
        per_channel: bool = False,
        channel_axis: int | None = None,
        input_rank: int | None = None,
        *,
        group_size: int | None = None,
        group_axis: int | None = None,
    ) -> None:
        super().__init__(
            num_bits,
            min_range,
            max_range,
            per_channel=per_channel,
            channel_axis=channel_axis,
            input_rank=input_rank,
            group_size=group_size,
            group_axis=group_axis,
        )


@mark_quantizer(QuantizationTarget.WEIGHTS, [QuantizationMethod.LUT_SYM])
class WeightsLUTSymmetricInferableQuantizer(LutQuantizer):
    """Weights from a look-up table: the nearest of ``lut_values / 2**(lut_values_bitwidth-1) * threshold``.

    Args:
        num_bits: bits of an index; at most ``2**num_bits`` table entries.
        lut_values: distinct integers that fit ``lut_values_bitwidth`` bits, signed.
        threshold: ``t > 0``; a number, or one a channel.
        per_channel, channel_axis, input_rank: see the module.
        lut_values_bitwidth: 1 to 16, not below num_bits.
        eps: accepted and kept for compatibility; thresholds are positive, so nothing has to be guarded.

    Raises:
        ConfigError: an argument out of its range; the message names it and its value.

    Example:
        >>> import numpy as np
        >>> q = WeightsLUTSymmetricInferableQuantizer(num_bits=2, lut_values=[-64, 0, 32, 100], threshold=1.28)
        >>> q(np.array([-9.0, 0.1, 0.9])).round(2).tolist()
        [-0.64, 0.0, 1.0]
    """

    def __init__(
        self,
        num_bits: int,
        lut_values: Sequence[float],
        threshold: Any,
        per_channel: bool = False,
        channel_axis: int | None = None,
        input_rank: int | None = None,
        lut_values_bitwidth: int = 8,
        eps: float = 1e-8,
        *,
        signed: bool = True,
    ) -> None:
        super().__init__(
            num_bits,
            lut_values,
            threshold,
            signed,
            lut_values_bitwidth,
            eps,
            per_channel=per_channel,
            channel_axis=channel_axis,
            input_rank=input_rank,
        )


@mark_quantizer(QuantizationTarget.WEIGHTS, [QuantizationMethod.LUT_POT])
class WeightsLUTPOTInferableQuantizer(WeightsLUTSymmetricInferableQuantizer):
    """As `WeightsLUTSymmetricInferableQuantizer`, for thresholds that are powers of two.

    Raises:
        ConfigError: a threshold is no power of two, or as the parent.

    Example:
        >>> import numpy as np
        >>> WeightsLUTPOTInferableQuantizer(1, lut_values=[-64, 64], threshold=2)(np.array([-0.1, 0.1])).tolist()
        [-1.0, 1.0]
    """

    def _set_threshold(self, threshold: Any, per_channel: bool) -> None:
        super()._set_threshold(threshold, per_channel)
        check_power_of_two(self.threshold)
