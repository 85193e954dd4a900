"""The quantizer base class, its vocabulary and its registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar, TypeVar

import numpy as np

from qi.core import Granularity, Grid, IntGrid, PerChannel, PerGroup, PerTensor, QParams, range_of
from qi.core.affine import fake_quantize
from qi.core.namespace import NUMPY, namespace_of
from qi.errors import ConfigError, FileFormatError, InputError
from qi.registry import suggest
from qi.typing import Array, Json, Shape

__all__ = [
    "INFERABLE",
    "BaseInferableQuantizer",
    "QuantizationMethod",
    "QuantizationTarget",
    "get_inferable_quantizer_class",
    "get_quantizer_class",
    "mark_quantizer",
    "quantizer_classes",
    "quantizer_from_dict",
]

INFERABLE = "inferable"


class QuantizationTarget(Enum):
    """What a quantizer is made for."""

    WEIGHTS = "weights"
    ACTIVATION = "activation"


class QuantizationMethod(Enum):
    """How a range becomes a grid."""

    SYMMETRIC = "symmetric"
    POWER_OF_TWO = "power_of_two"
    UNIFORM = "uniform"
    LUT_SYM = "lut_symmetric"
    LUT_SYM_QUANTIZER = "lut_symmetric"
    LUT_POT = "lut_power_of_two"
    LUT_POT_QUANTIZER = "lut_power_of_two"


_Key = tuple[str, QuantizationTarget, QuantizationMethod]
_BY_ROLE: dict[_Key, type[BaseInferableQuantizer]] = {}
_BY_NAME: dict[str, type[BaseInferableQuantizer]] = {}
_C = TypeVar("_C", bound="type[BaseInferableQuantizer]")


def mark_quantizer(
    quantization_target: QuantizationTarget,
    quantization_method: Sequence[QuantizationMethod],
    identifier: str = INFERABLE,
    package: str | None = None,
) -> Callable[[_C], _C]:
    """Class decorator that registers a quantizer for look-up and for saved files.

    Args:
        quantization_target: weights or activations.
        quantization_method: the methods it implements.
        identifier: "inferable", or the name of a training method.
        package: prefix in saved files (``package>Name``); the class' top-level module by default.

    Raises:
        ConfigError: another class holds the same role or the same saved name.

    Example:
        >>> from qi.quantizers import WeightsSymmetricInferableQuantizer
        >>> WeightsSymmetricInferableQuantizer.registered_name
        'qi>WeightsSymmetricInferableQuantizer'
    """
    if not isinstance(quantization_target, QuantizationTarget):
        raise ConfigError(f"expected a QuantizationTarget; received quantization_target={quantization_target!r}")
    methods = tuple(quantization_method)
    if not methods or not all(isinstance(m, QuantizationMethod) for m in methods):
        raise ConfigError(
            f"expected a list of QuantizationMethod; received quantization_method={quantization_method!r}"
        )

    def mark(cls: _C) -> _C:
        name = f"{package or cls.__module__.partition('.')[0]}>{cls.__name__}"
        taken = {_BY_ROLE.get((identifier, quantization_target, m)) for m in methods} | {_BY_NAME.get(name)}
        for other in taken - {None}:
            if other.__qualname__ != cls.__qualname__ or other.__module__ != cls.__module__:  # type: ignore[union-attr]
                raise ConfigError(
                    f"expected a free role; {other.__name__} already is the {identifier!r} quantizer "  # type: ignore[union-attr]
                    f"for {quantization_target.value} and {[m.value for m in methods]}; do give {cls.__name__} another identifier"
                )
        cls.quantization_target, cls.quantization_method = quantization_target, methods
        cls.identifier, cls.registered_name = identifier, name
        _BY_NAME[name] = cls
        _BY_ROLE.update({(identifier, quantization_target, m): cls for m in methods})
        return cls

    return mark


def get_quantizer_class(
    target: QuantizationTarget, method: QuantizationMethod, identifier: str = INFERABLE
) -> type[BaseInferableQuantizer]:
    """The one class registered for a role.

    Raises:
        ConfigError: no class has that role; the message lists those that exist.
    """
    try:
        return _BY_ROLE[identifier, target, method]
    except (KeyError, TypeError):
        known = sorted(f"({i}, {t.value}, {m.value})" for i, t, m in _BY_ROLE)
        raise ConfigError(
            f"expected a registered quantizer; received target={target}, method={method}, identifier={identifier!r}; "
            f"do choose one of {', '.join(known)}"
        ) from None


def get_inferable_quantizer_class(
    quantization_target: QuantizationTarget, quantization_method: QuantizationMethod
) -> type[BaseInferableQuantizer]:
    """The inferable quantizer class of a target and method.

    Example:
        >>> get_inferable_quantizer_class(QuantizationTarget.WEIGHTS, QuantizationMethod.UNIFORM).__name__
        'WeightsUniformInferableQuantizer'
    """
    return get_quantizer_class(quantization_target, quantization_method)


def quantizer_classes() -> dict[str, type[BaseInferableQuantizer]]:
    """All registered classes by saved name."""
    return dict(sorted(_BY_NAME.items()))


def quantizer_from_dict(data: Mapping[str, Any]) -> BaseInferableQuantizer:
    """A quantizer from what `to_dict` gave.

    Raises:
        FileFormatError: an unknown class, with the line that mends it, or a malformed record.
    """
    name = data.get("quantizer") if isinstance(data, Mapping) else None
    if not isinstance(name, str) or not isinstance(data.get("config"), Mapping):
        raise FileFormatError(f"expected a quantizer record with 'quantizer' and 'config'; received {data!r}")
    if name not in _BY_NAME:
        raise FileFormatError(
            f"expected a registered quantizer; received {name!r}; do import the module that defines it first."
            + suggest(name, _BY_NAME)
        )
    return _BY_NAME[name].from_config(dict(data["config"]))


def numbers(name: str, value: Any, *, positive: bool = False) -> np.ndarray:
    """A constructor's numeric parameter as a read-only float64 array, checked."""
    try:
        given = np.asarray(value)
    except (TypeError, ValueError):  # ragged
        given = np.empty(0)
    if given.size == 0 or not (given.dtype.kind in "iuf" or "float" in given.dtype.name):  # ml_dtypes have no kind
        raise ConfigError(f"expected {name} to be a number or a sequence of numbers; received {name}={value!r}")
    array = given.astype(np.float64)
    bad = ~np.isfinite(array) | ((array <= 0) if positive else False)
    if np.any(bad):
        kind = "positive and finite" if positive else "finite"
        raise ConfigError(f"expected {name} to be {kind}; received {name}={array[bad].flat[0]}")
    array.flags.writeable = False
    return array


def flag(name: str, value: Any) -> bool:
    """A constructor's yes-or-no parameter, checked."""
    if not isinstance(value, (bool, np.bool_)):
        raise ConfigError(f"expected {name} to be True or False; received {name}={value!r}")
    return bool(value)


class BaseInferableQuantizer:
    """A quantizer with frozen parameters, for emulating inference: a pure call on numpy, Keras and torch arrays.

    Subclasses give the grid and the two arrays from which (scale, zero_point) derive; everything else is here. A subclass
    is complete with `__init__`, `_scale_zero_point`, `_with`, and the `@mark_quantizer` line.

    Attributes:
        grid: which codes exist.
        per_channel: whether each index along `channel_axis` has its own parameters.
        channel_axis: that axis; None leaves the choice to the layer's policy (-1 when called directly).
        group_size: members of a group along `group_axis`, or None.
    """

    quantization_target: ClassVar[QuantizationTarget]
    quantization_method: ClassVar[tuple[QuantizationMethod, ...]]
    identifier: ClassVar[str]
    registered_name: ClassVar[str]

    def __init__(
        self,
        grid: Grid,
        *,
        per_channel: bool = False,
        channel_axis: int | None = None,
        input_rank: int | None = None,
        group_size: int | None = None,
        group_axis: int | None = None,
    ) -> None:
        for name, value in (("channel_axis", channel_axis), ("input_rank", input_rank), ("group_axis", group_axis)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer))):
                raise ConfigError(f"expected {name} to be an integer or None; received {name}={value!r}")
        self.per_channel = flag("per_channel", per_channel)
        if input_rank is not None and input_rank < 0:
            raise ConfigError(f"expected input_rank >= 0; received input_rank={input_rank}")
        if group_size is None and group_axis is not None:
            raise ConfigError(f"expected group_axis only with group_size; received group_axis={group_axis!r}")
        if group_size is not None:
            PerGroup(0, group_size)
            if not per_channel:
                raise ConfigError(f"expected per_channel=True with group_size; received group_size={group_size!r}")
        if input_rank is not None and channel_axis is not None and not -input_rank <= channel_axis < input_rank:
            raise ConfigError(
                f"expected channel_axis within input_rank={input_rank}; received channel_axis={channel_axis}"
            )
        self.grid: Grid = grid
        self.channel_axis, self.input_rank = channel_axis, input_rank
        self.group_size, self.group_axis = group_size, group_axis
        self._frozen: dict[tuple[str, Shape], tuple[Array, Array]] = {}

    # What a subclass gives ------------------------------------------------------------------------------------------

    def _scale_zero_point(self) -> tuple[np.ndarray, np.ndarray]:
        """(scale float32, zero_point int32), of one value, one a channel, or the full parameter shape."""
        raise TypeError(f"{type(self).__name__} defines no _scale_zero_point")

    def _with(self, scale: np.ndarray, zero_point: np.ndarray) -> Json:
        """The constructor arguments that give exactly this scale and zero point."""
        raise TypeError(f"{type(self).__name__} defines no _with")

    def get_config(self) -> Json:
        """Constructor arguments as plain JSON values."""
        config: Json = {
            "per_channel": self.per_channel,
            "channel_axis": self.channel_axis,
            "input_rank": self.input_rank,
        }
        if self.group_size is not None:
            config |= {"group_size": self.group_size, "group_axis": self.group_axis}
        return config

    # What every quantizer does --------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BaseInferableQuantizer:
        """A quantizer from `get_config`'s mapping.

        Raises:
            ConfigError: an unknown or missing argument.
        """
        try:
            return cls(**config)
        except TypeError as error:
            raise ConfigError(
                f"expected the arguments of {cls.__name__}; received {sorted(config)} ({error})"
            ) from error

    def to_dict(self) -> Json:
        """A JSON record that `quantizer_from_dict` reads."""
        return {"quantizer": self.registered_name, "config": self.get_config()}

    def with_qparams(self, scale: Array, zero_point: Array) -> BaseInferableQuantizer:
        """The same quantizer with other parameters: exactly this float32 scale and this zero point."""
        arguments = self._with(np.asarray(scale, np.float64), np.asarray(zero_point, np.float64))
        return type(self).from_config(self.get_config() | arguments)

    def placeholder(self) -> BaseInferableQuantizer:
        """The same quantizer with one neutral parameter value: its structure without its arrays."""
        return self.with_qparams(np.float32(1), np.int32(0))

    def with_axes(self, channel_axis: int, group_axis: int | None = None) -> BaseInferableQuantizer:
        """The same quantizer with the axes filled in where it left them open."""
        config = self.get_config()
        if self.per_channel and self.channel_axis is None:
            config["channel_axis"] = channel_axis
        if self.group_size is not None and self.group_axis is None:
            config["group_axis"] = group_axis
        return type(self).from_config(config)

    def granularity(self, rank: int) -> Granularity:
        """Which elements share parameters, for a tensor of `rank`."""
        if not self.per_channel:
            return PerTensor()
        axis = -1 if self.channel_axis is None else self.channel_axis
        if self.group_size is None:
            return PerChannel(axis)
        default = rank - 2 if rank and axis % rank == rank - 1 else rank - 1
        return PerGroup(default if self.group_axis is None else self.group_axis, self.group_size, axis)

    def qparams(self, shape: Shape) -> QParams:
        """Scale, zero point, grid and granularity for a tensor of `shape` (None for unknown sizes).

        Raises:
            InputError: the rank, the axis or the number of parameters doesn't fit.
        """
        shape = tuple(shape)
        if self.input_rank is not None and len(shape) != self.input_rank:
            raise InputError(f"expected a tensor of rank input_rank={self.input_rank}; received shape={shape}")
        granularity = self.granularity(len(shape))
        expected = granularity.param_shape(shape)
        if None in expected:
            raise InputError(f"expected a known size along channel_axis={self.channel_axis}; received shape={shape}")
        scale, zero_point = self._scale_zero_point()
        if scale.size != 1 and scale.shape != expected and (scale.ndim > 1 or scale.size != np.prod(expected)):
            raise InputError(
                f"expected 1 or {int(np.prod(expected))} values (shape {expected}) for a tensor of shape {shape} with "
                f"per_channel={self.per_channel}, channel_axis={self.channel_axis}; received {scale.size} (shape {scale.shape})"
            )
        spread = (
            (lambda a: np.broadcast_to(a.reshape(()), expected)) if scale.size == 1 else (lambda a: a.reshape(expected))
        )
        return QParams(spread(scale), spread(np.broadcast_to(zero_point, scale.shape)), self.grid, granularity)

    def parameters(self, shape: Shape) -> dict[str, np.ndarray]:
        """The arrays a layer keeps as non-trainable float32 variables: ``scale`` and ``zero_point``."""
        qparams = self.qparams(shape)
        return {"scale": qparams.scale, "zero_point": qparams.zero_point.astype(np.float32)}

    def apply(self, x: Array, parameters: Mapping[str, Array]) -> Array:
        """Fake-quantizes x with given parameter arrays (variables of a layer) instead of its own."""
        expand = self.granularity(len(x.shape)).expand
        scale, zero_point = (expand(parameters[name], tuple(x.shape)) for name in ("scale", "zero_point"))
        return fake_quantize(x, scale, zero_point, self.grid)

    def __call__(self, x: Array) -> Array:
        """Fake-quantizes x: what quantizing and dequantizing gives, in x's framework and dtype.

        Args:
            x: numpy array, TensorFlow, JAX or torch tensor of any shape.

        Raises:
            InputError: x is symbolic (wrap it in a layer), isn't real, or its shape doesn't fit the parameters.
        """
        xp = namespace_of(x)
        if xp is NUMPY:
            x = np.asarray(x)
        elif type(x).__name__ == "KerasTensor":
            raise InputError(
                "expected a tensor with values; received a symbolic KerasTensor; do use "
                "qi.KerasActivationQuantizationHolder(quantizer)(x) in functional models"
            )
        qparams = self.qparams(tuple(x.shape))
        key = (xp.name, qparams.scale.shape)
        if key not in self._frozen:
            self._frozen[key] = xp.frozen(qparams.scale), xp.frozen(qparams.zero_point.astype(np.float32))
        scale, zero_point = self._frozen[key]
        return self.apply(x, {"scale": scale, "zero_point": zero_point})

    @property
    def num_bits(self) -> int:
        """Bits of one stored code."""
        return self.grid.bits if isinstance(self.grid, IntGrid) else self.grid.index_bits

    @property
    def min_range(self) -> np.ndarray:
        """The least real number of each channel's grid (float64)."""
        return range_of(*self._scale_zero_point(), self.grid)[0]

    @property
    def max_range(self) -> np.ndarray:
        """The greatest real number of each channel's grid (float64)."""
        return range_of(*self._scale_zero_point(), self.grid)[1]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BaseInferableQuantizer):
            return NotImplemented
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((type(self), repr(self.get_config())))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items() if v not in (None, False))
        return f"{type(self).__name__}({arguments if len(arguments) < 200 else arguments[:197] + '...'})"
