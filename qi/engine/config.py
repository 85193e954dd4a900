"""QuantizationConfig: everything a `Quantizer` can be told, immutable and checked when it is made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from qi.core import Granularity as CoreGranularity, IntGrid, PerChannel, PerGroup, PerTensor
from qi.engine.types import BitWidth, Granularity, QuantizationMode, QuantizationType
from qi.errors import ConfigError, UnsupportedError
from qi.registry import suggest

__all__ = [
    "LAYER_KEYS",
    "QuantizationConfig",
    "checked_config",
    "checked_flag",
    "checked_layer",
    "granularity_from_dict",
    "granularity_to_dict",
]

LAYER_KEYS = ("type", "bits", "mode", "symmetric", "per_channel")
"""What one layer may set for itself in `QuantizationConfig.custom_quantization_config`."""

_MAX_BUFFER = 1 << 24
_WHOLE = 1 << 62
_MAX_CACHE = 1 << 20
_GREATEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True)
class QuantizationConfig:
    """How arrays are quantized.

    Attributes:
        quantization_type: What numbers become; a member or its name in any case.
        quantization_mode: Where scale and zero point come from; likewise.
        num_bits: 2 to the bits of the type; None (default): those of the type. 6 bits of INT8
            are the codes -32 to 31, in int8.
        symmetric: Zero point 0 (128 for UINT8), range ``[-t, t]``; the modes SYMMETRIC and ASYMMETRIC decide it themselves.
        per_channel: A scale for each index along the channel dimension (0, or what the call says).
        granularity: Instead of `per_channel`: ``"per_tensor"``, ``"per_channel"`` or one of `qi.core`. Groups of 32 along the
            second axis of matrices, with a scale for each row: ``qi.core.PerGroup(axis=1, size=32, channel_axis=0)``.
        enable_cache: Whether results of `Quantizer.dequantize` are kept for arrays that come again.
        cache_size: Most results kept, 0 to 1,048,576; all together take at most 64 MiB.
        buffer_size: Values that numpy works on at a time, 0 to 16,777,216, with as much scratch memory for each thread; 0
            (default): what suits a processor's caches.
        optimize_memory: Whether work is cut into such pieces at all; if not, an array is worked on as a whole, with scratch
            memory of its own size.
        enable_mixed_precision: Whether layers may differ: see the next two.
        mixed_precision_layers: Names of layers that get 16 bits (INT16).
        custom_quantization_config: Layer name to a dict of `LAYER_KEYS`, such as ``{"type": "int4", "bits": 3}``.
        skip_layers: Names of layers that stay as they are.
        quantize_bias: Whether layers with "bias" in their name are quantized.
        quantize_weights_only: Whether layers with "activation" in their name stay as they are.
        use_percentile: Whether ranges are percentiles rather than extremes.
        min_percentile: Of the lower end, 0 to 100.
        max_percentile: Of the upper end, above `min_percentile`.
        outlier_threshold: Ranges end so many standard deviations around the mean at most; None: no such bound.
        error_on_nan: Whether NaN is an error; if not, it becomes the code of 0 (FLOAT16: stays NaN) and is counted.
        error_on_inf: Whether infinities (and numbers beyond float32; for FLOAT16 beyond 65,504) are; if not, they saturate.
        enable_requantization: Whether ranges grow where the greatest error is above the next.
        requantization_threshold: Greatest absolute error that is accepted as it is.
        eps: Kept for the tensor API's sake, and used nowhere: scales have no floor, a range of zero width gets scale 1.

    Raises:
        ConfigError: Something is out of range, with what is allowed.

    Example:
        >>> config = QuantizationConfig(quantization_type="int16", symmetric=False)
        >>> config.num_bits, config.grid.qmax
        (16, 32767)
        >>> QuantizationConfig.from_dict(config.to_dict()) == config
        True
    """

    quantization_type: QuantizationType = QuantizationType.INT8
    quantization_mode: QuantizationMode = QuantizationMode.DYNAMIC
    num_bits: int | None = None
    symmetric: bool = True
    per_channel: bool = False
    granularity: Granularity | CoreGranularity | None = None
    enable_cache: bool = True
    cache_size: int = 256
    buffer_size: int = 0
    optimize_memory: bool = True
    enable_mixed_precision: bool = False
    mixed_precision_layers: Sequence[str] = ()
    custom_quantization_config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    skip_layers: Sequence[str] = ()
    quantize_bias: bool = True
    quantize_weights_only: bool = False
    use_percentile: bool = False
    min_percentile: float = 0.1
    max_percentile: float = 99.9
    outlier_threshold: float | None = None
    error_on_nan: bool = False
    error_on_inf: bool = False
    enable_requantization: bool = False
    requantization_threshold: float = 0.1
    eps: float = 1e-8

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, value in {**_checked_names(given), **_checked_numbers(given), **_checked_layers(given)}.items():
            object.__setattr__(self, name, value)
        for name in self.custom_quantization_config:
            self._layer(name)  # refused now rather than at that layer's first array

    # What follows from the fields.

    @cached_property
    def is_symmetric(self) -> bool:
        """Whether 0 lies in the middle of every range."""
        if self.quantization_mode in (QuantizationMode.SYMMETRIC, QuantizationMode.ASYMMETRIC):
            return self.quantization_mode is QuantizationMode.SYMMETRIC
        return self.symmetric

    @cached_property
    def grid(self) -> IntGrid:
        """The codes that exist.

        Raises:
            ConfigError: The type has none (FLOAT16, NONE).
        """
        if not self.quantization_type.integer:
            raise ConfigError(f"expected an integer type; received quantization_type={self.quantization_type.value!r}")
        return IntGrid(self.bits, signed=self.quantization_type.signed)

    @property
    def bits(self) -> int:
        """Bits of one number."""
        return self.quantization_type.bits if self.num_bits is None else self.num_bits

    @property
    def mode(self) -> QuantizationMode:
        """SYMMETRIC or ASYMMETRIC: the tensor API's name for `is_symmetric`."""
        return QuantizationMode.SYMMETRIC if self.is_symmetric else QuantizationMode.ASYMMETRIC

    @property
    def bit_width(self) -> BitWidth:
        """The tensor API's name for the type.

        Raises:
            ConfigError: The tensor API has no such width.
        """
        return BitWidth(f"int{self.bits}" if self.quantization_type.signed else self.quantization_type.value)

    @property
    def block(self) -> int | None:
        """Values that are worked on at a time; None: the kernels' choice."""
        return self.buffer_size or (None if self.optimize_memory else _WHOLE)

    def sharing(self, channel_dim: int | None = None) -> CoreGranularity:
        """Which elements share a scale, given the channel dimension of a call."""
        if isinstance(self.granularity, Granularity | None):
            core = (self.granularity or Granularity.PER_TENSOR).core
        else:
            core = self.granularity
        if channel_dim is None:
            return core
        own = PerChannel(channel_dim)  # checked also where it has no effect
        return own if isinstance(core, PerChannel) else core

    def should_quantize(self, layer_name: str | None) -> bool:
        """Whether a layer of this name is quantized: by type, `skip_layers`, and the rules for bias and activations."""
        name = (checked_layer(layer_name) or "").lower()
        if self.quantization_type is QuantizationType.NONE:
            return False
        return not (
            layer_name in self.skip_layers
            or ("bias" in name and not self.quantize_bias)
            or ("activation" in name and self.quantize_weights_only)
        )

    def for_layer(self, layer_name: str | None) -> Self:
        """The configuration that a layer has: this one, or with what the layer sets for itself."""
        name, mixed = checked_layer(layer_name), self.quantization_type is QuantizationType.MIXED
        if name is None or not (self.enable_mixed_precision or mixed):
            return self
        return self._layer(name)

    def _layer(self, layer_name: str) -> Self:
        own = self.custom_quantization_config.get(layer_name)
        if own is None:
            if layer_name not in self.mixed_precision_layers:
                return self
            own = {"type": QuantizationType.INT16}
        changes = {_LAYER_FIELDS[key]: value for key, value in own.items()}
        if "bits" in own and "type" not in own:
            changes["quantization_type"] = _container(own["bits"], self.quantization_type)
        return self.replace(**changes, custom_quantization_config={}, mixed_precision_layers=())

    # Other forms.

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; a new type brings its own bits, a new `per_channel` its granularity.

        Example:
            >>> QuantizationConfig().replace(quantization_type="int16").num_bits
            16
        """
        if "quantization_type" in changes:
            changes.setdefault("num_bits", None)
        if "granularity" in changes:
            changes.setdefault("per_channel", False)  # which follows from it
        if "per_channel" in changes or "quantization_mode" in changes:
            own_axis = isinstance(self.granularity, Granularity | None)
            changes.setdefault("granularity", None if own_axis or "per_channel" in changes else self.granularity)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: lower-case names, lists, dicts; `from_dict` reads them."""
        plain: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name, value in plain.items():
            if isinstance(value, QuantizationType | QuantizationMode | Granularity):
                plain[name] = value.value
            elif isinstance(value, tuple):
                plain[name] = list(value)
        layers = self.custom_quantization_config.items()
        plain["custom_quantization_config"] = {name: dict(own) for name, own in layers}
        if not isinstance(self.granularity, Granularity):
            plain["granularity"] = granularity_to_dict(self.granularity)  # type: ignore[arg-type]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; fields that are left out have their defaults.

        Raises:
            ConfigError: An unknown field or value.
        """
        if not isinstance(plain, Mapping):
            raise ConfigError(f"expected a dict of fields; received {type(plain).__name__}")
        known = [f.name for f in dataclasses.fields(cls)]
        for name in plain:
            if name not in known:
                raise ConfigError(
                    f"expected fields of QuantizationConfig; received {name!r}.{suggest(str(name), known)}"
                )
        fields = dict(plain)
        if isinstance(fields.get("granularity"), Mapping):
            fields["granularity"] = granularity_from_dict(fields["granularity"])
        return cls(**fields)

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_dict(), sort_keys=True))

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> Any:
        return (type(self).from_dict, (self.to_dict(),))

    # The tensor API's constructors.

    @classmethod
    def new(cls, mode: QuantizationMode, bit_width: BitWidth, granularity: Granularity | CoreGranularity) -> Self:
        """A configuration of the tensor API.

        Example:
            >>> config = QuantizationConfig.new("asymmetric", BitWidth.INT4, Granularity.PER_TENSOR)
            >>> config.bits, config.is_symmetric
            (4, False)
        """
        mode = QuantizationMode(mode)
        return cls(
            quantization_type=QuantizationType(BitWidth(bit_width).value),
            quantization_mode=mode,
            symmetric=mode is QuantizationMode.SYMMETRIC,
            granularity=granularity if isinstance(granularity, CoreGranularity) else Granularity(granularity),
        )

    @classmethod
    def int8_symmetric(cls) -> Self:
        """8 bits, symmetric, one scale."""
        return cls.new(QuantizationMode.SYMMETRIC, BitWidth.INT8, Granularity.PER_TENSOR)

    @classmethod
    def int8_asymmetric(cls) -> Self:
        """8 bits, asymmetric, one scale."""
        return cls.new(QuantizationMode.ASYMMETRIC, BitWidth.INT8, Granularity.PER_TENSOR)

    @classmethod
    def int4_per_channel(cls) -> Self:
        """4 bits, symmetric, a scale for each index of the first axis."""
        return cls.new(QuantizationMode.SYMMETRIC, BitWidth.INT4, Granularity.PER_CHANNEL)


_LAYER_FIELDS = {
    "type": "quantization_type",
    "bits": "num_bits",
    "mode": "quantization_mode",
    "symmetric": "symmetric",
    "per_channel": "per_channel",
}


def _container(bits: Any, like: QuantizationType) -> QuantizationType:
    """The least type of 8 or 16 bits that holds codes of so many, signed as `like` is."""
    prefix = "int" if like.signed else "uint"
    return QuantizationType(f"{prefix}{8 if isinstance(bits, int) and bits <= 8 else 16}")


def _checked_names(given: dict[str, Any]) -> dict[str, Any]:
    """Type, mode and granularity as members; `per_channel` and `granularity` agree."""
    mode, granularity = QuantizationMode(given["quantization_mode"]), given["granularity"]
    per_channel = checked_flag("per_channel", given["per_channel"]) or mode is QuantizationMode.DYNAMIC_PER_CHANNEL
    if granularity is None:
        granularity = Granularity.PER_CHANNEL if per_channel else Granularity.PER_TENSOR
    elif granularity == PerTensor():
        granularity = Granularity.PER_TENSOR
    elif not isinstance(granularity, CoreGranularity):
        granularity = Granularity(granularity)
    shared = granularity is Granularity.PER_TENSOR
    if per_channel and shared:
        raise ConfigError(
            f"expected per_channel and granularity to agree; received per_channel=True, granularity={granularity!s}"
        )
    return {
        "quantization_type": QuantizationType(given["quantization_type"]),
        "quantization_mode": mode,
        "granularity": granularity,
        "per_channel": not shared,
    }


def _checked_numbers(given: dict[str, Any]) -> dict[str, Any]:
    kind = QuantizationType(given["quantization_type"])
    bits = kind.bits if given["num_bits"] is None else given["num_bits"]
    if kind is QuantizationType.NONE or kind is QuantizationType.FLOAT16:
        bits = kind.bits  # has no meaning there
    numbers = {
        "num_bits": _integer("num_bits", bits, 2, kind.bits, f" for {kind.name}"),
        "cache_size": _integer("cache_size", given["cache_size"], 0, _MAX_CACHE),
        "buffer_size": _integer("buffer_size", given["buffer_size"], 0, _MAX_BUFFER),
        "min_percentile": _real("min_percentile", given["min_percentile"], 0, 100),
        "max_percentile": _real("max_percentile", given["max_percentile"], 0, 100),
        "requantization_threshold": _real("requantization_threshold", given["requantization_threshold"], 0),
        "eps": _real("eps", given["eps"], 0),
    }
    if numbers["min_percentile"] >= numbers["max_percentile"]:
        raise ConfigError(
            "expected min_percentile below max_percentile; "
            f"received {numbers['min_percentile']:g} and {numbers['max_percentile']:g}"
        )
    if given["outlier_threshold"] is not None:
        numbers["outlier_threshold"] = _real("outlier_threshold", given["outlier_threshold"], 0)
        if numbers["outlier_threshold"] == 0:
            raise ConfigError("expected outlier_threshold to be positive or None; received 0")
    return numbers | {name: checked_flag(name, given[name]) for name in _FLAGS}


_FLAGS = (
    "symmetric",
    "enable_cache",
    "optimize_memory",
    "enable_mixed_precision",
    "quantize_bias",
    "quantize_weights_only",
    "use_percentile",
    "error_on_nan",
    "error_on_inf",
    "enable_requantization",
)


def _checked_layers(given: dict[str, Any]) -> dict[str, Any]:
    """Names of layers as tuples, their settings as read-only mappings."""
    checked: dict[str, Any] = {}
    for name in ("mixed_precision_layers", "skip_layers"):
        value = given[name]
        if isinstance(value, str) or not isinstance(value, Sequence | set | frozenset):
            raise ConfigError(f"expected {name} to be a list of names; received {name}={value!r}")
        if not all(isinstance(layer, str) for layer in value):
            raise ConfigError(f"expected {name} to hold names; received {name}={value!r}")
        checked[name] = tuple(sorted(value) if isinstance(value, set | frozenset) else value)
    layers = given["custom_quantization_config"]
    if not isinstance(layers, Mapping) or not all(isinstance(own, Mapping) for own in layers.values()):
        raise ConfigError(f"expected custom_quantization_config to map names to dicts; received {layers!r}")
    for layer, own in layers.items():
        for key in own:
            if key not in LAYER_KEYS:
                raise ConfigError(
                    f"expected settings of layer {layer!r} among {list(LAYER_KEYS)}; received {key!r}."
                    f"{suggest(str(key), LAYER_KEYS)}"
                )
            if own[key] is None:
                raise ConfigError(f"expected a value for {key!r} of layer {layer!r}; received None; do: leave it out")
    frozen = {str(layer): MappingProxyType(_plain(own)) for layer, own in layers.items()}
    checked["custom_quantization_config"] = MappingProxyType(frozen)
    return checked


def _plain(own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a layer, for JSON: lower-case names, Python's numbers."""
    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in own.items()}
    return {
        key: value.value if isinstance(value, QuantizationType | QuantizationMode) else value
        for key, value in plain.items()
    }


def _integer(name: str, value: Any, least: int, most: int, why: str = "") -> int:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        raise ConfigError(f"expected {name} from {least} to {most}{why}; received {name}={value!r}")
    return int(value)


def _real(name: str, value: Any, least: float, most: float = _GREATEST) -> float:
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not least <= value <= most:
        top = "" if most == _GREATEST else f" to {most:g}"
        raise ConfigError(f"expected {name} to be a number from {least:g}{top}; received {name}={value!r}")
    return float(value)


def checked_config(config: Any) -> QuantizationConfig:
    """A configuration, or UnsupportedError."""
    if not isinstance(config, QuantizationConfig):
        raise UnsupportedError(f"expected a QuantizationConfig; received {type(config).__name__}")
    return config


def checked_layer(layer_name: str | None) -> str | None:
    """The name of a layer or None, or UnsupportedError."""
    if layer_name is not None and not isinstance(layer_name, str):
        raise UnsupportedError(f"expected the name of a layer; received layer_name={layer_name!r}")
    return layer_name


def checked_flag(name: str, value: Any) -> bool:
    """True or False, or ConfigError."""
    if not isinstance(value, bool | np.bool_):
        raise ConfigError(f"expected {name} to be True or False; received {name}={value!r}")
    return bool(value)


def granularity_to_dict(granularity: CoreGranularity) -> dict[str, Any]:
    """Plain values, such as ``{"PerChannel": {"axis": 1}}``."""
    return {type(granularity).__name__: dataclasses.asdict(granularity)}


def granularity_from_dict(plain: Mapping[str, Any]) -> CoreGranularity:
    """The inverse of `granularity_to_dict`.

    Raises:
        ConfigError: An unknown granularity or field.
    """
    classes = {c.__name__: c for c in (PerTensor, PerChannel, PerGroup)}
    try:
        ((name, fields),) = plain.items()
        core: CoreGranularity = classes[name](**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"expected granularity like {{'PerChannel': {{'axis': 1}}}}, with one of {sorted(classes)}; received {dict(plain)}"
        ) from error
    return core
