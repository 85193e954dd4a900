"""From what a recipe asks for and what was seen to a quantizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from qi.core import IntGrid, SymmetricRule, power_of_two, symmetric_scale
from qi.errors import ConfigError
from qi.observers import TensorStatistics, select_range, select_weight_threshold
from qi.quantizers import (
    BaseInferableQuantizer,
    QuantizationMethod,
    QuantizationTarget,
    get_inferable_quantizer_class,
)
from qi.recipes.plan import Group
from qi.recipes.spec import TensorSpec

__all__ = ["Axes", "activation_quantizer", "weight_quantizer"]


class Axes(Protocol):
    """Where a weight's channels lie, and along which axis groups run; `qi.dispatch.Slot` is one."""

    @property
    def channel_axis(self) -> int:
        """The axis with a scale an index."""
        ...

    @property
    def input_axis(self) -> int | None:
        """The axis of groups; None where they make no sense."""
        ...


def weight_quantizer(weight: np.ndarray, spec: TensorSpec, slot: Axes) -> BaseInferableQuantizer:
    """The quantizer of a weight as its spec asks.

    Symmetric weights lie on a narrow grid (-127..127), which integer kernels need; their scale is absmax / qmax.

    Args:
        weight: float array.
        spec: bits, method, granularity and range.
        slot: the weight's axes. Groups along an axis that the slot doesn't name fall back to channels.
    """
    found: Any = get_inferable_quantizer_class(QuantizationTarget.WEIGHTS, QuantizationMethod(spec.method))
    cls: Callable[..., BaseInferableQuantizer] = found
    arguments: dict[str, Any] = {"num_bits": spec.bits, "input_rank": weight.ndim}
    if spec.granularity != "per_tensor":
        arguments |= {"per_channel": True, "channel_axis": slot.channel_axis % weight.ndim}
    if spec.granularity == "per_group" and slot.input_axis is not None:
        arguments |= {"group_size": spec.group_size, "group_axis": slot.input_axis % weight.ndim}
    if spec.method == "uniform":
        if spec.range != "minmax":
            raise ConfigError(
                f"expected range='minmax' for weights with method='uniform'; received range={spec.range!r}"
            )
        probe = cls(min_range=-1.0, max_range=1.0, **arguments)
        lo, hi = probe.granularity(weight.ndim).minmax(weight)
        return cls(min_range=lo.tolist(), max_range=hi.tolist(), **arguments)
    narrow = spec.bits > 1
    probe = cls(threshold=1.0, narrow_range=narrow, **arguments)
    grid, granularity = IntGrid(spec.bits, narrow=narrow), probe.granularity(weight.ndim)
    rule, options = _search(spec)
    absmax = select_weight_threshold(weight, spec.range, grid, granularity, rule, **options)
    if spec.method == "power_of_two":
        threshold = np.where(absmax > 0, power_of_two(absmax), 1.0)
    else:
        threshold = symmetric_scale(absmax, grid, rule).astype(np.float64) * grid.edge
    return cls(threshold=threshold.tolist(), narrow_range=narrow, **arguments)


def activation_quantizer(
    group: Group, statistics: TensorStatistics | None, dormant: float = 0.0
) -> BaseInferableQuantizer:
    """The quantizer of a group of activations from its fixed range or its statistics.

    Args:
        group: how it is quantized.
        statistics: what was seen of its values.
        dormant: the magnitude that the range reaches, either way, where all that was seen is 0; 0 leaves it at scale 1.
    """
    spec = group.spec
    found: Any = get_inferable_quantizer_class(QuantizationTarget.ACTIVATION, QuantizationMethod(spec.method))
    cls: Callable[..., BaseInferableQuantizer] = found
    symmetric = spec.method != "uniform"
    grid = IntGrid(spec.bits, signed=symmetric)
    if group.fixed is not None:
        lo, hi = group.fixed
        if symmetric:
            return cls(num_bits=spec.bits, threshold=max(-lo, hi))
        step = (hi - lo) / grid.levels  # 1/256 and 1/128 at 8 bits: the highest code lies one step below the end
        return cls(num_bits=spec.bits, min_range=lo, max_range=hi - step)
    if statistics is None:
        raise ConfigError(f"expected statistics for {group.key!r}; received none; do calibrate with this model")
    rule, options = _search(spec)
    if spec.range == "mse":
        options["rule"] = rule
    ends = select_range(statistics, spec.range, grid, symmetric=symmetric, **options)
    lo, hi = (float(end) for end in ends)
    if lo == hi == 0:
        lo, hi = -dormant, dormant
    if not symmetric:
        return cls(num_bits=spec.bits, min_range=lo, max_range=hi)
    if spec.method == "power_of_two":
        return cls(num_bits=spec.bits, threshold=float(power_of_two(max(-lo, hi))) or 1.0)
    scale = symmetric_scale(max(-lo, hi), grid, rule)
    return cls(num_bits=spec.bits, threshold=float(scale) * grid.edge)


def _search(spec: TensorSpec) -> tuple[SymmetricRule, dict[str, Any]]:
    """The rule of the scale, and the options of the range: a search among powers of two where thresholds must be some."""
    options: dict[str, Any] = dict(spec.range_options)
    if spec.method != "power_of_two":
        return SymmetricRule.QMAX, options
    return SymmetricRule.EDGE, options | ({"power_of_two": True} if spec.range == "mse" else {})
