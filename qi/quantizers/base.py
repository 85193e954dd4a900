"""The quantizer base classes: what all have in common, and the inferable ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from qi.core import Granularity, Grid, PerChannel, PerGroup, PerTensor, QParams, range_of
from qi.core.affine import fake_quantize
from qi.core.grid import code_bits
from qi.core.namespace import NUMPY, namespace_of
from qi.errors import ConfigError, InputError
from qi.quantizers.registry import QuantizationMethod, QuantizationTarget
from qi.typing import Array, Json, Shape

__all__ = ["BaseInferableQuantizer", "BaseQuantizer", "QuantizerVariable"]


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


@dataclass(frozen=True, eq=False)
class QuantizerVariable:
    """A variable that a layer keeps for a quantizer.

    Attributes:
        name: within the quantizer, such as "scale".
        value: its first value, float32.
        trainable: whether optimizers change it.
    """

    name: str
    value: np.ndarray
    trainable: bool = False


class BaseQuantizer:
    """What inferable and trainable quantizers have in common: a grid, axes, a place in saved files.

    A layer that binds a quantizer (`qi.KerasQuantizationWrapper`, say) knows this much: it makes the variables of `declare`,
    calls `apply` with them, and asks `to_inferable` for the parameters they stand for.

    Attributes:
        grid: which codes exist.
        per_channel: whether each index along `channel_axis` has its own parameters.
        channel_axis: that axis; None leaves the choice to the layer's policy (-1 when called directly).
        group_size: members of a group along `group_axis`, or None.
        needs_noise: whether `apply` draws random numbers while it trains.
        enabled: False passes tensors through, as a configuration may ask for: there is nothing to convert then.
    """

    quantization_target: QuantizationTarget
    quantization_targets: ClassVar[tuple[QuantizationTarget, ...]]
    quantization_method: ClassVar[tuple[QuantizationMethod, ...]]
    identifier: ClassVar[str]
    registered_name: ClassVar[str]
    needs_noise: ClassVar[bool] = False
    enabled: bool = True

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

    # What a subclass gives ------------------------------------------------------------------------------------------

    def declare(self, shape: Shape, x: np.ndarray | None = None) -> list[QuantizerVariable]:
        """The variables that a layer keeps, for a tensor of `shape` (None for unknown sizes) with values `x`, if known."""
        raise TypeError(f"{type(self).__name__} defines no declare")

    def apply(
        self,
        x: Array,
        variables: Mapping[str, Array],
        *,
        training: bool = False,
        noise: Callable[[Array], Array] | None = None,
    ) -> Array:
        """Fake-quantizes x with a layer's variables.

        Args:
            x: real array.
            variables: values by the names of `declare`.
            training: whether a training step runs.
            noise: gives uniform random numbers in [0, 1) of the shape of its argument; used where `needs_noise`.
        """
        raise TypeError(f"{type(self).__name__} defines no apply")

    def scale_zero_point(self, variables: Mapping[str, Array]) -> tuple[Array, Array | None]:
        """(scale, zero point) from the variables: differentiable, exact, None for a zero point of 0."""
        raise TypeError(f"{type(self).__name__} defines no scale_zero_point")

    def to_inferable(self, variables: Mapping[str, Array]) -> BaseInferableQuantizer:
        """The inferable quantizer with the parameters that these variables (as numpy arrays) stand for."""
        raise TypeError(f"{type(self).__name__} defines no to_inferable")

    def placeholder(self) -> BaseQuantizer:
        """The same quantizer without its arrays, for files that hold its variables elsewhere."""
        raise TypeError(f"{type(self).__name__} defines no placeholder")

    def get_config(self) -> Json:
        """Constructor arguments as plain JSON values."""
        raise TypeError(f"{type(self).__name__} defines no get_config")

    # What every quantizer does --------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
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

    def with_axes(self, channel_axis: int, group_axis: int | None = None) -> Self:
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

    def check_shape(self, shape: Shape) -> None:
        """Refuses tensors of a shape that the axes or the parameters don't fit.

        Raises:
            InputError: the rank, the axis or the number of parameters doesn't fit.
        """
        shape = tuple(shape)
        if self.input_rank is not None and len(shape) != self.input_rank:
            raise InputError(f"expected a tensor of rank input_rank={self.input_rank}; received shape={shape}")
        if None in self.granularity(len(shape)).param_shape(shape):
            raise InputError(f"expected a known size along channel_axis={self.channel_axis}; received shape={shape}")

    @property
    def num_bits(self) -> int:
        """Bits of one stored code."""
        return code_bits(self.grid)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BaseQuantizer):
            return NotImplemented
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self) -> int:
        return hash((type(self), repr(self.get_config())))

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items() if v not in (None, False))
        return f"{type(self).__name__}({arguments if len(arguments) < 200 else arguments[:197] + '...'})"


class BaseInferableQuantizer(BaseQuantizer):
    """A quantizer with frozen parameters, for emulating inference: a pure call on numpy, Keras and torch arrays.

    Subclasses give the grid and the two arrays from which (scale, zero_point) derive; everything else is here. A subclass
    is complete with `__init__`, `_scale_zero_point`, `_with`, and the `@mark_quantizer` line.
    """

    def __init__(self, grid: Grid, **granularity: Any) -> None:
        super().__init__(grid, **granularity)
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

    # What every inferable quantizer does ----------------------------------------------------------------------------

    def with_qparams(self, scale: Array, zero_point: Array) -> BaseInferableQuantizer:
        """The same quantizer with other parameters: exactly this float32 scale and this zero point."""
        arguments = self._with(np.asarray(scale, np.float64), np.asarray(zero_point, np.float64))
        return type(self).from_config(self.get_config() | arguments)

    def placeholder(self) -> BaseInferableQuantizer:
        """The same quantizer with one neutral parameter value: its structure without its arrays."""
        return self.with_qparams(np.float32(1), np.int32(0))

    def qparams(self, shape: Shape) -> QParams:
        """Scale, zero point, grid and granularity for a tensor of `shape` (None for unknown sizes).

        Raises:
            InputError: the rank, the axis or the number of parameters doesn't fit.
        """
        super().check_shape(shape)
        granularity = self.granularity(len(shape))
        expected = granularity.param_shape(tuple(shape))
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

    def check_shape(self, shape: Shape) -> None:
        """As `qparams`, which fails where they don't fit."""
        self.qparams(shape)

    def parameters(self, shape: Shape) -> dict[str, np.ndarray]:
        """The arrays a layer keeps as non-trainable float32 variables: ``scale`` and ``zero_point``."""
        qparams = self.qparams(shape)
        return {"scale": qparams.scale, "zero_point": qparams.zero_point.astype(np.float32)}

    def declare(self, shape: Shape, x: np.ndarray | None = None) -> list[QuantizerVariable]:
        """Non-trainable ``scale`` and ``zero_point``."""
        return [QuantizerVariable(name, value) for name, value in self.parameters(shape).items()]

    def to_inferable(self, variables: Mapping[str, Array]) -> BaseInferableQuantizer:
        """The same quantizer with the parameters that the variables hold."""
        return self.with_qparams(variables["scale"], variables["zero_point"])

    def scale_zero_point(self, variables: Mapping[str, Array]) -> tuple[Array, Array | None]:
        """(scale, zero point) from a layer's variables."""
        return variables["scale"], variables["zero_point"]

    def apply(
        self,
        x: Array,
        variables: Mapping[str, Array],
        *,
        training: bool = False,
        noise: Callable[[Array], Array] | None = None,
    ) -> Array:
        """Fake-quantizes x with given parameter arrays (variables of a layer) instead of its own, in training as ever."""
        expand = self.granularity(len(x.shape)).expand
        scale, zero_point = (expand(variables[name], tuple(x.shape)) for name in ("scale", "zero_point"))
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
    def min_range(self) -> np.ndarray:
        """The least real number of each channel's grid (float64)."""
        return range_of(*self._scale_zero_point(), self.grid)[0]

    @property
    def max_range(self) -> np.ndarray:
        """The greatest real number of each channel's grid (float64)."""
        return range_of(*self._scale_zero_point(), self.grid)[1]
