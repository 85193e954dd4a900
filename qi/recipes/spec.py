"""How one kind of tensor is to be quantized: bits, method, granularity, range."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qi.errors import ConfigError
from qi.observers import SELECTIONS
from qi.recipes.checks import FrozenOptions, check_keys
from qi.recipes.steps import Step, as_steps, check_scales
from qi.registry import suggest

__all__ = ["GRANULARITIES", "METHODS", "RangeOptions", "TensorSpec"]

METHODS = ("symmetric", "power_of_two", "uniform")
"""Symmetric about 0; symmetric with a power of two as the threshold; asymmetric, with a zero point."""

GRANULARITIES = ("per_tensor", "per_channel", "per_group")
"""One scale for the tensor; one per output channel; one per `group_size` consecutive weights of a channel."""

_MAX_BITS = 16
_MAX_GROUP = 2**31 - 1


class RangeOptions(FrozenOptions):
    """An immutable, hashable mapping of option names to numbers.

    Example:
        >>> RangeOptions({"percentile": 99.9})["percentile"]
        99.9
    """

    __slots__ = ()

    def __init__(self, values: object = None) -> None:
        given: Any = {} if values is None else values
        if not isinstance(given, Mapping):
            raise ConfigError(f"expected range_options to map names to numbers; received {values!r}")
        for name, value in given.items():
            is_name = isinstance(name, str) and name.isidentifier()
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not is_name or not is_number or not math.isfinite(value):
                raise ConfigError(
                    f"expected range_options to map names to finite numbers; received {name!r}: {value!r}"
                )
        super().__init__({name: float(value) for name, value in given.items()})


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """How the weights, or the activations, of a layer are quantized.

    Args:
        bits: 1 to 16.
        method: "symmetric", "power_of_two" or "uniform" (asymmetric).
        granularity: "per_tensor", "per_channel" or "per_group". Which axis the channels lie on is the layer's
            business.
        group_size: How many consecutive weights share a scale: at least 2, and only for "per_group".
        range: The range selection: "minmax", "ema", "percentile", "mse" or "entropy" (`qi.observers.SELECTIONS`).
        range_options: Options of the range selection by name, e.g. ``{"percentile": 99.99}``.
        algorithms: For weights alone: what is done beyond rounding to nearest, by names from
            `qi.algorithms.ALGORITHMS` or as mappings such as ``{"name": "gptq", "damping": 0.1}``. They are kept in
            the order in which they run.

    Raises:
        ConfigError: If a value is illegal, or two of them contradict each other.

    Example:
        >>> spec = TensorSpec(bits=4, granularity="per_group", group_size=32)
        >>> str(spec)
        '4 bits, symmetric, per group of 32, range minmax'
        >>> TensorSpec.from_config(spec.to_config()) == spec
        True
    """

    bits: int
    method: str = "symmetric"
    granularity: str = "per_tensor"
    group_size: int | None = None
    range: str = "minmax"
    range_options: Mapping[str, float] = field(default_factory=RangeOptions)
    algorithms: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", _integer("bits", self.bits, 1, _MAX_BITS))
        _one_of("method", self.method, METHODS)
        _one_of("granularity", self.granularity, GRANULARITIES)
        _one_of("range", self.range, SELECTIONS.names())
        object.__setattr__(self, "range_options", RangeOptions(self.range_options))
        object.__setattr__(self, "algorithms", as_steps(self.algorithms))
        check_scales(self.algorithms, self.bits, self.method, self.granularity)
        if self.granularity == "per_group":
            object.__setattr__(self, "group_size", _integer("group_size", self.group_size, 2, _MAX_GROUP))
        elif self.group_size is not None:
            raise ConfigError(
                f"expected no group_size with granularity={self.granularity!r}; received "
                f"group_size={self.group_size!r}; do: granularity='per_group'"
            )

    def to_config(self) -> dict[str, Any]:
        """Return the fields as a dict that JSON can hold, without an empty group or options."""
        config: dict[str, Any] = {"bits": self.bits, "method": self.method, "granularity": self.granularity}
        if self.group_size is not None:
            config["group_size"] = self.group_size
        config["range"] = self.range
        if self.range_options:
            config["range_options"] = dict(self.range_options)
        if self.algorithms:
            config["algorithms"] = [step.to_config() for step in self.algorithms]
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TensorSpec:
        """Build the spec that `to_config` described.

        Raises:
            ConfigError: If a key is unknown or missing, or a value illegal.
        """
        return cls(**check_keys("TensorSpec", config, allowed=_FIELDS, required=("bits",)))

    def __str__(self) -> str:
        plural = "" if self.bits == 1 else "s"
        group = "" if self.group_size is None else f" of {self.group_size}"
        options = "".join(f" {name}={value:g}" for name, value in self.range_options.items())
        words = f"{self.method}, {self.granularity}".replace("_", " ")
        steps = f", {', '.join(map(str, self.algorithms))}" if self.algorithms else ""
        return f"{self.bits} bit{plural}, {words}{group}, range {self.range}{options}{steps}"


_FIELDS = tuple(TensorSpec.__dataclass_fields__)


def _integer(name: str, value: object, low: int, high: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # whatever isn't an integer is refused below
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not low <= number <= high:
        raise ConfigError(f"expected {name} to be an integer from {low} to {high}; received {name}={value!r}")
    return number


def _one_of(name: str, value: object, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ConfigError(
            f"expected {name} to be one of {', '.join(options)}; received {name}={value!r}."
            f"{suggest(str(value), options)}"
        )
