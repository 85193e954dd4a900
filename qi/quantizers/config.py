"""Configurations of trainable quantizers, with the field names their users know, and the one form they all become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import numpy as np

from qi.errors import ConfigError
from qi.quantizers.registry import QuantizationMethod, QuantizationTarget
from qi.registry import suggest
from qi.typing import Json

__all__ = [
    "BaseQuantizerConfig",
    "QuantizerSpec",
    "TrainableQuantizerActivationConfig",
    "TrainableQuantizerWeightsConfig",
]

_PARAMS = ("threshold", "min_range", "max_range", "signed", "narrow_range", "group_size", "group_axis")
_TRAINABLE = (QuantizationMethod.SYMMETRIC, QuantizationMethod.POWER_OF_TWO, QuantizationMethod.UNIFORM)


@dataclass(frozen=True)
class QuantizerSpec:
    """What every configuration becomes: one vocabulary for weights and activations.

    Attributes:
        target: weights or activations.
        method: symmetric, power of two or uniform (asymmetric).
        bits: 1 to 16.
        params: the first range, where it is known ("threshold", or "min_range" and "max_range"), "signed", "narrow_range".
        enabled: False passes the tensor through.
        per_channel: whether each channel has parameters of its own.
        channel_axis: that axis; None leaves it to the layer's policy.
        min_threshold: no first threshold is smaller.
    """

    target: QuantizationTarget
    method: QuantizationMethod
    bits: int
    params: Mapping[str, Any]
    enabled: bool
    per_channel: bool
    channel_axis: int | None
    min_threshold: float


def _check_params(name: str, params: Any, method: QuantizationMethod) -> None:
    if not isinstance(params, Mapping):
        raise ConfigError(f"expected {name} to be a mapping; received {name}={params!r}")
    for key in params:
        if key not in _PARAMS:
            raise ConfigError(f"expected {name} with keys of {_PARAMS}; received {key!r}." + suggest(str(key), _PARAMS))
    uniform = method is QuantizationMethod.UNIFORM
    wrong = {"threshold", "signed", "narrow_range"} if uniform else {"min_range", "max_range"}
    if wrong & set(params):
        fits = "min_range and max_range" if uniform else "threshold"
        raise ConfigError(f"expected {fits} with method {method.value!r}; received {name}={dict(params)}")
    if ("min_range" in params) != ("max_range" in params):
        raise ConfigError(f"expected min_range and max_range together; received {name}={dict(params)}")
    for key in ("threshold", "min_range", "max_range"):
        if key in params:
            values = np.asarray(params[key], np.float64)
            if values.size == 0 or not np.all(np.isfinite(values)) or (key == "threshold" and np.any(values <= 0)):
                kind = "positive and finite" if key == "threshold" else "finite"
                raise ConfigError(f"expected {name}[{key!r}] to be {kind}; received {params[key]!r}")
    if "min_range" in params and np.any(np.asarray(params["min_range"]) > np.asarray(params["max_range"])):
        raise ConfigError(f"expected min_range <= max_range; received {name}={dict(params)}")
    for key in ("signed", "narrow_range"):
        if not isinstance(params.get(key, True), (bool, np.bool_)):
            raise ConfigError(f"expected {name}[{key!r}] to be True or False; received {params[key]!r}")


def _plain(value: Any) -> Any:
    """A parameter as JSON holds it."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


class BaseQuantizerConfig:
    """What a trainable quantizer is made from: `TrainableQuantizerWeightsConfig` or `TrainableQuantizerActivationConfig`."""

    _prefix: ClassVar[str]
    _target: ClassVar[QuantizationTarget]

    def __post_init__(self) -> None:
        kind, n = self._prefix, f"{self._prefix}_n_bits"
        method, bits = getattr(self, f"{kind}_quantization_method"), getattr(self, n)
        if not isinstance(method, QuantizationMethod) or method not in _TRAINABLE:
            raise ConfigError(
                f"expected {kind}_quantization_method to be one of {[str(m) for m in _TRAINABLE]}; received {method!r}"
            )
        if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not 1 <= bits <= 16:
            raise ConfigError(f"expected {n} to be an integer from 1 to 16; received {n}={bits!r}")
        params = getattr(self, f"{kind}_quantization_params")
        _check_params(f"{kind}_quantization_params", params, method)
        object.__setattr__(self, f"{kind}_quantization_params", {key: _plain(value) for key, value in params.items()})
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if item.type == "bool" and not isinstance(value, (bool, np.bool_)):
                raise ConfigError(f"expected {item.name} to be True or False; received {item.name}={value!r}")
        axis: Any = getattr(self, f"{kind}_channels_axis", None)
        if axis is not None and (isinstance(axis, bool) or not isinstance(axis, (int, np.integer))):
            raise ConfigError(f"expected {kind}_channels_axis to be an integer or None; received {axis!r}")
        least: Any = self.min_threshold  # type: ignore[attr-defined]
        number = isinstance(least, (int, float, np.number)) and not isinstance(least, bool)
        if not number or not np.isfinite(least) or least < 0:
            raise ConfigError(f"expected min_threshold to be finite and at least 0; received min_threshold={least!r}")

    @property
    def spec(self) -> QuantizerSpec:
        """The configuration in the one form that quantizers read."""
        raise TypeError(f"{type(self).__name__} defines no spec")

    def with_params(self, params: Mapping[str, Any]) -> Self:
        """The same configuration with other quantization parameters."""
        return type(self)(**(self._values() | {f"{self._prefix}_quantization_params": dict(params)}))

    def with_axis(self, channel_axis: int) -> Self:
        """The same configuration with the channel axis filled in."""
        axis = {f"{self._prefix}_channels_axis": channel_axis}
        return type(self)(**(self._values() | (axis if self._target is QuantizationTarget.WEIGHTS else {})))

    def with_bits(self, bits: int) -> Self:
        """The same configuration with other bits."""
        return type(self)(**(self._values() | {f"{self._prefix}_n_bits": bits}))

    def _values(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]

    def to_dict(self) -> Json:
        """Plain JSON: enums by name."""
        values = {k: v.name if isinstance(v, QuantizationMethod) else v for k, v in self._values().items()}
        return {"target": self._target.value, **values}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> BaseQuantizerConfig:
        """A configuration from `to_dict`'s record.

        Raises:
            ConfigError: an unknown target, method or field.
        """
        kinds = {
            cls._target.value: cls for cls in (TrainableQuantizerWeightsConfig, TrainableQuantizerActivationConfig)
        }
        values = dict(data)
        cls: Any = kinds.get(values.pop("target", ""))
        if cls is None:
            raise ConfigError(f"expected a record with target in {sorted(kinds)}; received {dict(data)}")
        key = f"{cls._prefix}_quantization_method"
        try:
            values[key] = QuantizationMethod[values[key]]
            made: BaseQuantizerConfig = cls(**values)
        except (KeyError, TypeError) as error:
            raise ConfigError(f"expected the fields of {cls.__name__}; received {dict(data)} ({error})") from error
        return made


@dataclass(frozen=True)
class TrainableQuantizerWeightsConfig(BaseQuantizerConfig):
    """How a trainable quantizer treats a weight.

    Args:
        weights_quantization_method: SYMMETRIC, POWER_OF_TWO or UNIFORM.
        weights_n_bits: 1 to 16.
        weights_quantization_params: the first range where it is known: "threshold" (symmetric, power of two), or
            "min_range" and "max_range" (uniform), as numbers or lists of one a channel; the weight's own values give it
            otherwise. "signed" (True) and "narrow_range" (False) choose the grid; "group_size" (and "group_axis") give
            each run of so many weights of a channel a threshold of its own.
        enable_weights_quantization: False leaves the weight in float.
        weights_channels_axis: the axis of the channels; None leaves it to the layer's policy.
        weights_per_channel_threshold: one threshold a channel, or one for the tensor.
        min_threshold: no first threshold is smaller; 0 sets no bound.

    Raises:
        ConfigError: an illegal value, which the message names.

    Example:
        >>> from qi.quantizers import QuantizationMethod
        >>> config = TrainableQuantizerWeightsConfig(
        ...     weights_quantization_method=QuantizationMethod.POWER_OF_TWO, weights_n_bits=9, weights_quantization_params={},
        ...     enable_weights_quantization=True, weights_channels_axis=-1, weights_per_channel_threshold=True, min_threshold=0)
        >>> BaseQuantizerConfig.from_dict(config.to_dict()) == config
        True
    """

    weights_quantization_method: QuantizationMethod
    weights_n_bits: int
    weights_quantization_params: Mapping[str, Any] = field(default_factory=dict)
    enable_weights_quantization: bool = True
    weights_channels_axis: int | None = None
    weights_per_channel_threshold: bool = True
    min_threshold: float = 0

    _prefix: ClassVar[str] = "weights"
    _target: ClassVar[QuantizationTarget] = QuantizationTarget.WEIGHTS

    @property
    def spec(self) -> QuantizerSpec:
        """The configuration in the one form that quantizers read."""
        return QuantizerSpec(
            self._target,
            self.weights_quantization_method,
            int(self.weights_n_bits),
            self.weights_quantization_params,
            bool(self.enable_weights_quantization),
            bool(self.weights_per_channel_threshold),
            self.weights_channels_axis,
            float(self.min_threshold),
        )


@dataclass(frozen=True)
class TrainableQuantizerActivationConfig(BaseQuantizerConfig):
    """How a trainable quantizer treats an activation; fields as of `TrainableQuantizerWeightsConfig`, one range a tensor.

    Args:
        activation_quantization_method: SYMMETRIC, POWER_OF_TWO or UNIFORM.
        activation_n_bits: 1 to 16.
        activation_quantization_params: the first range; calibration gives it in `qi.prepare_qat`.
        enable_activation_quantization: False leaves the activation in float.
        min_threshold: no first threshold is smaller; 0 sets no bound.

    Raises:
        ConfigError: an illegal value, which the message names.

    Example:
        >>> from qi.quantizers import QuantizationMethod
        >>> TrainableQuantizerActivationConfig(QuantizationMethod.UNIFORM, 4, {"min_range": 0.0, "max_range": 6.0}).spec.bits
        4
    """

    activation_quantization_method: QuantizationMethod
    activation_n_bits: int
    activation_quantization_params: Mapping[str, Any] = field(default_factory=dict)
    enable_activation_quantization: bool = True
    min_threshold: float = 0

    _prefix: ClassVar[str] = "activation"
    _target: ClassVar[QuantizationTarget] = QuantizationTarget.ACTIVATION

    @property
    def spec(self) -> QuantizerSpec:
        """The configuration in the one form that quantizers read."""
        return QuantizerSpec(
            self._target,
            self.activation_quantization_method,
            int(self.activation_n_bits),
            self.activation_quantization_params,
            bool(self.enable_activation_quantization),
            False,
            None,
            float(self.min_threshold),
        )
