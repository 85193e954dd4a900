"""BaseTrainableQuantizer: learnable parameters in a layer's variables, and the inferable quantizer they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from qi.core import IntGrid, SymmetricRule, asymmetric_params, power_of_two, symmetric_scale
from qi.core.estimators import check_estimator
from qi.core.namespace import NUMPY, namespace_of, to_numpy
from qi.core.training import train_quantize
from qi.errors import ConfigError, InputError, NotCalibratedError
from qi.quantizers.base import BaseInferableQuantizer, BaseQuantizer
from qi.quantizers.config import BaseQuantizerConfig
from qi.quantizers.registry import QuantizationMethod, QuantizationTarget, get_inferable_quantizer_class
from qi.typing import Array, Json, Shape

__all__ = ["BaseTrainableQuantizer", "positive"]

TINY, HUGE = np.float32(2.0**-100), np.float32(2.0**100)
"""The least and the greatest step: beyond any weight's, yet products with codes are neither flushed to 0 nor overflow."""


def positive(variable: Array) -> Array:
    """``|v|`` within 2**-100 and 2**100: a step that stays positive and finite wherever an optimizer takes its variable.

    Every operation is exact, so compiled graphs and the converted quantizer agree bit for bit; ``exp`` and ``softplus`` differ
    between compilers.
    """
    xp = namespace_of(variable)
    # Made here: torch.export takes numpy's numbers outside of a function for inputs, and loses their values.
    return xp.clip(xp.abs(variable), np.float32(2.0**-100), np.float32(2.0**100))


class BaseTrainableQuantizer(BaseQuantizer):
    """A quantizer whose parameters train with the layer's.

    A subclass says which variables it has (`declare`), how (scale, zero point) come from them (`scale_zero_point`,
    differentiable), and in class attributes how it rounds; the rest is here. Its arithmetic should be exact (no exp or log on
    the way to the scale): then what trained and what `convert2inferable` gives agree bit for bit.

    Class attributes:
        rounding: how it rounds while training, a name from `qi.core.rounding.ROUNDINGS`, or "noise"; to nearest otherwise.
        residual: whether rounding errors pull at the scale (see `qi.core.training.train_quantize`).
        learned_range: whether its variables train; False where only the tensor does.

    Args:
        quantization_config: `TrainableQuantizerWeightsConfig` or `TrainableQuantizerActivationConfig`.
        estimator: the gradient estimator: "clipped_ste", "ste", "ewgs" or "dsq".
        estimator_options: its options, such as ``{"delta": 0.1}``.

    Raises:
        ConfigError: not a configuration; one of another target or method; an unknown estimator; illegal options.

    Example:
        >>> import numpy as np
        >>> from qi.quantizers import LSQQuantizer, QuantizationMethod, TrainableQuantizerWeightsConfig
        >>> quantizer = LSQQuantizer(TrainableQuantizerWeightsConfig(QuantizationMethod.SYMMETRIC, 2))
        >>> w = np.array([[0.5, -1.0], [-0.2, 0.7]], "float32")
        >>> inferable = quantizer.initialize(w).convert2inferable()
        >>> bool(np.array_equal(quantizer(w), inferable(w)))
        True
    """

    rounding: ClassVar[str] = "nearest"
    residual: ClassVar[bool] = True
    learned_range: ClassVar[bool] = True

    def __init__(
        self,
        quantization_config: BaseQuantizerConfig,
        *,
        estimator: str = "clipped_ste",
        estimator_options: Mapping[str, float] | None = None,
    ) -> None:
        if not isinstance(quantization_config, BaseQuantizerConfig):
            raise ConfigError(
                "expected a TrainableQuantizerWeightsConfig or TrainableQuantizerActivationConfig; "
                f"received quantization_config={quantization_config!r}"
            )
        spec = quantization_config.spec
        if spec.target not in self.quantization_targets:
            raise ConfigError(
                f"expected a configuration for {' or '.join(t.value for t in self.quantization_targets)}; "
                f"{type(self).__name__} received one for {spec.target.value}"
            )
        if spec.method not in self.quantization_method:
            raise ConfigError(
                f"expected a method of {[m.value for m in self.quantization_method]} for {type(self).__name__}; "
                f"received {spec.method.value!r}"
            )
        self.estimator_options = dict(estimator_options or {})
        check_estimator(estimator, self.estimator_options)
        self.quantization_config, self.spec, self.estimator = quantization_config, spec, estimator
        self.quantization_target, self.enabled = spec.target, spec.enabled
        uniform = spec.method is QuantizationMethod.UNIFORM
        signed = not uniform and bool(spec.params.get("signed", True))
        grid = IntGrid(spec.bits, signed, bool(spec.params.get("narrow_range", False)))
        groups = {key: spec.params[key] for key in ("group_size", "group_axis") if key in spec.params}
        super().__init__(grid, per_channel=spec.per_channel, channel_axis=spec.channel_axis, **groups)
        self.grid: IntGrid = grid
        self._initial: tuple[np.ndarray, np.ndarray] | None = None
        self._bound: Mapping[str, Any] | None = None

    # What a subclass gives ------------------------------------------------------------------------------------------

    def transform(self, x: Array, variables: Mapping[str, Array]) -> Array:
        """What is quantized in place of x; differentiable. Conversion bakes it into the weight."""
        return x

    # What every trainable quantizer does ----------------------------------------------------------------------------

    def initial(self, shape: Shape, x: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The first (scale, zero point), float32 in the parameter shape: calibrated, configured, or from the tensor's values.

        Raises:
            NotCalibratedError: none of the three is known.
        """
        expected = self.granularity(len(shape)).param_shape(tuple(shape))
        found = self._initial or self._configured() or self._measured(x)
        if found is None:
            raise NotCalibratedError(
                f"expected a first range for {type(self).__name__}; received params={dict(self.spec.params)} and no values; "
                "do give threshold (or min_range and max_range) in the configuration's quantization_params, or calibrate"
            )
        scale, zero_point = (np.asarray(a, np.float32) for a in found)
        scale = np.clip(scale, TINY, HUGE)
        if scale.size not in (1, int(np.prod(expected))):
            raise InputError(
                f"expected 1 or {int(np.prod(expected))} thresholds for a tensor of shape {tuple(shape)}; received {scale.size}"
            )
        spread = (lambda a: np.full(expected, a.flat[0])) if scale.size == 1 else (lambda a: a.reshape(expected))
        return spread(scale).astype(np.float32), spread(np.broadcast_to(zero_point, scale.shape)).astype(np.float32)

    def _configured(self) -> tuple[np.ndarray, np.ndarray] | None:
        params = self.spec.params
        if "threshold" in params:
            return self._from_threshold(np.asarray(params["threshold"], np.float64), SymmetricRule.EDGE)
        if "min_range" in params:
            lo, hi = (np.asarray(params[key], np.float64) for key in ("min_range", "max_range"))
            return asymmetric_params(lo, hi, self.grid)
        return None

    def _measured(self, x: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
        if x is None or not np.all(np.isfinite(x)):
            return None
        granularity = self.granularity(x.ndim)
        if self.spec.method is QuantizationMethod.UNIFORM:
            lo, hi = granularity.minmax(x)
            return asymmetric_params(lo, hi, self.grid)
        pot = self.spec.method is QuantizationMethod.POWER_OF_TWO
        return self._from_threshold(granularity.absmax(x), SymmetricRule.EDGE if pot else SymmetricRule.QMAX)

    def _from_threshold(self, threshold: np.ndarray, rule: SymmetricRule) -> tuple[np.ndarray, np.ndarray]:
        threshold = np.maximum(threshold, self.spec.min_threshold)
        if self.spec.method is QuantizationMethod.POWER_OF_TWO:
            threshold = np.where(threshold > 0, power_of_two(threshold), 1.0)
        scale = symmetric_scale(threshold, self.grid, rule)
        return scale, np.zeros(scale.shape, np.float32)

    def with_initial(self, inferable: BaseInferableQuantizer, shape: Shape) -> Self:
        """The same quantizer, starting from the range (and the grid's sign) of an inferable one for a tensor of `shape`."""
        params = dict(self.spec.params)
        if self.spec.method is not QuantizationMethod.UNIFORM and isinstance(inferable.grid, IntGrid):
            params |= {"signed": inferable.grid.signed, "narrow_range": inferable.grid.narrow}
        found = inferable.qparams(shape)
        if found.scale.size == 1:  # short enough to stay in the configuration, where clones find it
            scale, zero = float(found.scale.flat[0]), float(found.zero_point.flat[0])
            if self.spec.method is QuantizationMethod.UNIFORM:
                top = 2**self.num_bits - 1
                params |= {"min_range": -zero * scale, "max_range": (top - zero) * scale}
            else:
                edge = 2 ** (inferable.num_bits - params["signed"])
                params["threshold"] = scale * edge
        config = self.quantization_config.with_params(params)
        return self._with(config, (found.scale, found.zero_point.astype(np.float32)))

    def with_axes(self, channel_axis: int, group_axis: int | None = None) -> Self:
        """The same quantizer with the axes filled in where it left them open."""
        config = self.quantization_config
        if self.per_channel and self.channel_axis is None:
            config = config.with_axis(channel_axis)
        if self.group_size is not None and self.group_axis is None:
            config = config.with_params({**self.spec.params, "group_axis": group_axis})
        if config is self.quantization_config:
            return self
        return self._with(config, self._initial)

    def _with(self, config: BaseQuantizerConfig, initial: tuple[np.ndarray, np.ndarray] | None) -> Self:
        result = type(self).from_config(self.get_config() | {"quantization_config": config.to_dict()})
        result._initial = initial
        return result

    def with_bits(self, bits: int, inferable: BaseInferableQuantizer, shape: Shape) -> Self:
        """The same quantizer with other bits, starting on the range that `inferable` covers for a tensor of `shape`."""
        result = self._with(self.quantization_config.with_bits(bits), None)
        found = inferable.qparams(shape)
        scale, zero_point = found.scale.astype(np.float64), found.zero_point.astype(np.float64)
        if isinstance(inferable.grid, IntGrid) and self.spec.method is not QuantizationMethod.UNIFORM:
            narrow = result.grid.narrow and self.spec.method is QuantizationMethod.SYMMETRIC
            rule = SymmetricRule.QMAX if narrow else SymmetricRule.EDGE  # what the outermost codes stand for
            result._initial = result._from_threshold(scale * rule.divisor(inferable.grid), rule)
        else:
            top = 2**inferable.num_bits - 1
            result._initial = asymmetric_params(-zero_point * scale, (top - zero_point) * scale, result.grid)
        return result

    def apply(
        self,
        x: Array,
        variables: Mapping[str, Array],
        *,
        training: bool = False,
        noise: Callable[[Array], Array] | None = None,
    ) -> Array:
        """Fake-quantizes x with a layer's variables: by this class' rounding in training, to nearest otherwise."""
        if not self.enabled:
            return x
        x = self.transform(x, variables)
        scale, zero_point = self.scale_zero_point(self.prepared(x, variables))
        if self.group_size is not None:
            expand = self.granularity(len(x.shape)).expand
            scale = expand(scale, tuple(x.shape))
            zero_point = None if zero_point is None else expand(zero_point, tuple(x.shape))
        rounding = self.rounding if training else "nearest"
        drawn = None
        if rounding != "nearest":
            if noise is None:
                raise InputError(
                    f"expected a source of noise for rounding {rounding!r} in training; received noise=None"
                )
            drawn = noise(x)
        return train_quantize(
            x,
            scale,
            zero_point,
            self.grid,
            rounding=rounding,
            noise=drawn,
            estimator=self.estimator,
            estimator_options=self.estimator_options,
            residual=self.residual,
        )

    def prepared(self, x: Array, variables: Mapping[str, Array]) -> Mapping[str, Array]:
        """The variables as `scale_zero_point` gets them in a forward pass on x: a subclass may scale their gradients here."""
        return variables

    def to_inferable(self, variables: Mapping[str, Array]) -> BaseInferableQuantizer:
        """The inferable quantizer whose forward pass is bit-equal to this one's outside of training.

        Raises:
            ConfigError: its configuration disables it.
            InputError: a variable holds NaN or infinity.
        """
        if not self.enabled:
            raise ConfigError(f"expected an enabled quantizer; {self!r} leaves its tensor in float")
        values = {name: to_numpy(value) for name, value in variables.items()}
        bad = [name for name, value in values.items() if not np.all(np.isfinite(value))]
        if bad:
            raise InputError(f"expected finite variables; received NaN or infinity in {bad}; training diverged")
        scale, zero_point = self.scale_zero_point(values)
        zeros = np.zeros(np.shape(scale), np.float32)
        return self._inferable().with_qparams(scale, zeros if zero_point is None else zero_point)

    def _inferable(self) -> BaseInferableQuantizer:
        cls: Any = get_inferable_quantizer_class(self.spec.target, self.spec.method)
        arguments: dict[str, Any] = {"num_bits": self.num_bits}
        if self.spec.method is QuantizationMethod.UNIFORM:
            arguments |= {"min_range": 0.0, "max_range": 1.0}
        else:
            arguments |= {"threshold": 1.0, "signed": self.grid.signed}
        if self.spec.target is QuantizationTarget.WEIGHTS:
            arguments |= {"per_channel": self.per_channel, "channel_axis": self.channel_axis}
            if self.group_size is not None:
                arguments |= {"group_size": self.group_size, "group_axis": self.group_axis}
            arguments |= {"narrow_range": True} if self.grid.narrow else {}
        found: BaseInferableQuantizer = cls(**arguments)
        return found

    # By itself, without a layer -------------------------------------------------------------------------------------

    def initialize(self, x: Array) -> Self:
        """Makes variables of its own (numpy arrays) for tensors like x, to be used without a layer."""
        values = to_numpy(x)
        self._bound = {item.name: item.value for item in self.declare(values.shape, values)}
        return self

    def bind(self, variables: Mapping[str, Any]) -> None:
        """Tells where the variables are that `convert2inferable` and a direct call read; layers do this."""
        self._bound = variables

    @property
    def variables(self) -> Mapping[str, Any]:
        """The variables it is bound to, by name.

        Raises:
            NotCalibratedError: neither a layer nor `initialize` gave it any.
        """
        if self._bound is None:
            raise NotCalibratedError(
                f"expected an initialized quantizer; {type(self).__name__} has no variables yet; do wrap a layer with it and "
                "build that, or call initialize(x)"
            )
        return self._bound

    def convert2inferable(self) -> BaseInferableQuantizer:
        """The inferable quantizer for its current variables."""
        return self.to_inferable({name: to_numpy(value) for name, value in self.variables.items()})

    def __call__(self, x: Array, training: bool = False, noise: Callable[[Array], Array] | None = None) -> Array:
        """Fake-quantizes x with the variables it is bound to; see `apply`."""
        return self.apply(
            np.asarray(x) if namespace_of(x) is NUMPY else x, self.variables, training=training, noise=noise
        )

    # Files ----------------------------------------------------------------------------------------------------------

    def placeholder(self) -> Self:
        """The same quantizer without the first ranges of single channels, which files hold as variables."""
        lists = {"threshold", "min_range", "max_range"}
        params = {k: v for k, v in self.spec.params.items() if k not in lists or np.ndim(v) == 0}
        return self._with(self.quantization_config.with_params(params), None)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A quantizer from `get_config`'s mapping."""
        values = dict(config)
        record = values.pop("quantization_config", None)
        made = BaseQuantizerConfig.from_dict(record) if isinstance(record, Mapping) else record
        try:
            return cls(made, **values)
        except TypeError as error:
            raise ConfigError(
                f"expected the arguments of {cls.__name__}; received {sorted(config)} ({error})"
            ) from error

    def get_config(self) -> Json:
        """Constructor arguments as plain JSON values; a subclass with arguments of its own adds them."""
        config: Json = {"quantization_config": self.quantization_config.to_dict(), "estimator": self.estimator}
        return config | ({"estimator_options": self.estimator_options} if self.estimator_options else {})
