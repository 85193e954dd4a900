"""AdaRound: fixed range, and a learned choice between the two codes beside each weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qi.core.gradients import straight_through
from qi.core.namespace import namespace_of
from qi.errors import ConfigError
from qi.quantizers.base import QuantizerVariable
from qi.quantizers.config import BaseQuantizerConfig
from qi.quantizers.registry import QuantizationMethod, QuantizationTarget, mark_quantizer
from qi.quantizers.ste import STEQuantizer
from qi.typing import Array, Shape

__all__ = ["AdaRoundQuantizer"]

_METHODS = [QuantizationMethod.SYMMETRIC, QuantizationMethod.POWER_OF_TWO, QuantizationMethod.UNIFORM]
ZETA, GAMMA = 1.1, -0.1  # where the sigmoid is stretched to, before it is clipped to [0, 1]
_REACH = np.float32((ZETA - GAMMA) / 2)
_LIMIT = np.float32(8.0)  # beyond what is clipped at 0 or 1, which begins at 5


@mark_quantizer(QuantizationTarget.WEIGHTS, _METHODS, "adaround")
class AdaRoundQuantizer(STEQuantizer):
    """Fixed range; whether each weight is rounded down or up is learned.

    In training ``y = s clip(floor(x / s) + h(v), qmin - z, qmax - z)`` with a variable v of the weight's shape and
    ``h(v) = clip((zeta - gamma) sigmoid(v) + gamma, 0, 1)``, zeta = 1.1, gamma = -0.1. Outside of training h is 1 where v > 0 and
    0 where v < 0; where v = 0, as without values to start from, the weight is rounded to nearest. v starts where ``h(v)`` is the
    fraction of ``x / s``, that is, at the float weight. Conversion bakes the rounded values into the weight.

    sigmoid is the algebraic ``(1 + v / (1 + |v|)) / 2`` in place of the logistic one: it takes no exponential, so all
    frameworks compute the same bits. ``dy/dx = 1`` within the range and 0 outside: in `qi.prepare_qat` weights train too; the
    paper keeps them as they are. A variable of the weight's shape fits this one weight only.

    Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, 2020 (arXiv:2004.10568), equation 23.

    Attributes:
        soft: whether h is soft outside of training too, for those who train a model that otherwise runs as at inference.

    Args: as `STEQuantizer`.

    Raises:
        ConfigError: as `BaseTrainableQuantizer`, and for another estimator than "clipped_ste".

    Example:
        >>> import numpy as np
        >>> from qi.quantizers import QuantizationMethod, TrainableQuantizerWeightsConfig
        >>> config = TrainableQuantizerWeightsConfig(QuantizationMethod.SYMMETRIC, 4, {"threshold": 8.0})
        >>> quantizer = AdaRoundQuantizer(config)
        >>> w = np.array([[2.2], [2.4]], "float32")
        >>> quantizer.initialize(w)(w).ravel().tolist()
        [2.0, 2.0]
        >>> quantizer.variables["rounding"][1] = 1.0
        >>> quantizer(w).ravel().tolist()
        [2.0, 3.0]
    """

    rounding = "learned"

    def __init__(
        self, quantization_config: BaseQuantizerConfig, *, rests_in_training: bool = False, **options: Any
    ) -> None:
        super().__init__(quantization_config, rests_in_training=rests_in_training, **options)
        if self.estimator != "clipped_ste":
            raise ConfigError(
                f"expected estimator='clipped_ste' for AdaRoundQuantizer; received estimator={self.estimator!r}"
            )
        self.soft = False

    def declare(self, shape: Shape, x: np.ndarray | None = None) -> list[QuantizerVariable]:
        """Fixed ``scale`` and, for uniform, ``zero_point``; trainable ``rounding`` of the weight's shape, 0 without values."""
        fixed = super().declare(shape, x)
        start = np.zeros(tuple(shape), np.float32)
        if x is not None:
            clipped, _, _, _ = self._steps(np.asarray(x, np.float32), {item.name: item.value for item in fixed})
            away = clipped - _floor(clipped) - np.float32(0.5)
            start = np.asarray(np.nan_to_num(away / (_REACH - np.abs(away))), np.float32)
        return [*fixed, QuantizerVariable("rounding", start, trainable=True)]

    def rounded_up(self, variables: Mapping[str, Array]) -> Array:
        """h(v): how far each weight is rounded up while it trains, from 0 to 1; differentiable."""
        xp = namespace_of(variables["rounding"])
        return xp.clip(_stretched(variables["rounding"])[0], np.float32(0), np.float32(1))

    def _parameters(self, x: Array, variables: Mapping[str, Array]) -> tuple[Array, Array | None]:
        """(scale, zero point) that broadcast against x; they are fixed: huge weights would overflow in gradients."""
        xp = namespace_of(x)
        scale, zero_point = self.scale_zero_point(variables)
        scale = xp.stop_gradient(xp.beside(scale, x))
        zero_point = None if zero_point is None else xp.beside(zero_point, x)
        if self.group_size is None:
            return scale, zero_point
        expand = self.granularity(len(x.shape)).expand
        return expand(scale, tuple(x.shape)), None if zero_point is None else expand(zero_point, tuple(x.shape))

    def _ends(self, zero_point: Array | None) -> tuple[Any, Any]:
        """The least and the greatest code about 0."""
        ends = np.float32(self.grid.qmin), np.float32(self.grid.qmax)
        return ends if zero_point is None else (ends[0] - zero_point, ends[1] - zero_point)

    def _steps(self, x: Array, variables: Mapping[str, Array]) -> tuple[Array, Array, Any, Any]:
        """(x / s within the range, s, the least and the greatest code about 0)."""
        xp = namespace_of(x)
        scale, zero_point = self._parameters(x, variables)
        lo, hi = self._ends(zero_point)
        return xp.clip(xp.divide(xp.cast(x, "float32"), scale), lo, hi), scale, lo, hi

    def transform(self, x: Array, variables: Mapping[str, Array]) -> Array:
        """The rounded weight: on the grid, so that rounding to nearest leaves it alone."""
        xp = namespace_of(x)
        steps, scale, lo, hi = self._steps(x, variables)
        below, v = _floor(steps), xp.cast(xp.beside(variables["rounding"], x), "float32")
        none = xp.zeros_like(steps)
        up = xp.where(v > 0, none + np.float32(1), xp.where(v < 0, none, xp.round(steps) - below))
        return xp.cast(xp.multiply(xp.clip(below + up, lo, hi), scale), _real(xp.dtype(x)))

    def apply(
        self,
        x: Array,
        variables: Mapping[str, Array],
        *,
        training: bool = False,
        noise: Callable[[Array], Array] | None = None,
    ) -> Array:
        """Softly rounded in training, the rounded weight otherwise."""
        if not self.enabled or not (training or self.soft):
            return super().apply(x, variables, training=False, noise=noise)
        return x if self.rests_in_training else self._softly(x, variables)

    def _softly(self, x: Array, variables: Mapping[str, Array]) -> Array:
        """`formula` with its gradients written out: compilers would add three numbers in an order of their own."""
        xp = namespace_of(x)
        scale, zero_point = self._parameters(x, variables)

        def forward(x: Array, v: Array, scale: Array, *rest: Array) -> tuple[Array, Any]:
            lo, hi = self._ends(rest[0] if rest else None)
            steps = xp.divide(x, scale)
            clipped = xp.clip(steps, lo, hi)
            stretched, within = _stretched(v)
            part = xp.clip(stretched, np.float32(0), np.float32(1))
            sum_ = _floor(clipped) + part
            value = xp.clip(sum_, lo, hi)

            def gradient(*args: Any, upstream: Array = None) -> tuple[Array, ...]:
                g = upstream if upstream is not None else args[0]
                none, size = xp.zeros_like(g), xp.abs(within) + np.float32(1)
                g = xp.where(value == sum_, g, none)
                slope = xp.divide(xp.divide(none + _REACH, size), size)
                for_v = xp.where(part == stretched, xp.where(within == v, g * scale * slope, none), none)
                return xp.where(clipped == steps, g, none), for_v, xp.zeros_like(scale), *map(xp.zeros_like, rest)

            return xp.multiply(value, scale), gradient

        given = [x, xp.beside(variables["rounding"], x), scale, *([] if zero_point is None else [zero_point])]
        return xp.cast(xp.custom_gradient(forward, *(xp.cast(a, "float32") for a in given)), _real(xp.dtype(x)))

    def formula(self, x: Array, variables: Mapping[str, Array], noise: Any = None) -> Array:
        """What `apply` gives in training; its gradients are those of this function with ``floor`` passed straight through."""
        xp = namespace_of(x)
        steps, scale, lo, hi = self._steps(x, variables)
        below = straight_through(steps, _floor(steps), xp=xp)
        value = xp.clip(below + self.rounded_up(variables), lo, hi)
        return xp.cast(xp.multiply(value, scale), _real(xp.dtype(x)))


def _stretched(v: Array) -> tuple[Array, Array]:
    """(the stretched sigmoid, not clipped yet; v within the limits where that changes nothing)."""
    xp = namespace_of(v)
    within = xp.clip(xp.cast(v, "float32"), -_LIMIT, _LIMIT)
    # A product, a quotient, a sum: no two that a compiler could fuse to other bits.
    return xp.divide(within * _REACH, xp.abs(within) + np.float32(1)) + np.float32(0.5), within


def _real(dtype: str) -> str:
    return dtype if "float" in dtype else "float32"


def _floor(steps: Array) -> Array:
    """``floor``, of numbers so small that some processors take them for 0 too."""
    xp = namespace_of(steps)
    return xp.floor(xp.where(xp.abs(steps) < np.float32(2.0**-100), xp.zeros_like(steps), steps))
