"""One row of the report: what became of one weight or activation."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from qi.errors import ConfigError, FileFormatError
from qi.ledger.numbers import decode_number, encode_number

__all__ = ["KINDS", "STATUSES", "Row"]

KINDS = ("weight", "activation")
STATUSES = ("quantized", "float")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one weight or activation.

    Args:
        kind: "weight" or "activation".
        layer: The layer's path, "backbone/conv1".
        layer_type: The name of its class, "Conv2D".
        name: The weight's path within the layer, "kernel"; "output" or "input" for an activation.
        status: "quantized" or "float".
        reason: Why it stayed in float; empty when it is quantized.
        shape: Its shape; None where a dimension isn't fixed.
        bits: Bits of a code.
        method: "symmetric", "power_of_two", "uniform", ...
        granularity: How scales are shared, "per channel (axis -1)".
        grid: The codes in words, "int8 -127..127".
        scale_min: The smallest scale; equal to `scale_max` where there is only one.
        scale_max: The largest scale.
        range_lo: The lowest value that can be represented, over all scales.
        range_hi: The highest one.
        size_before: Bytes of a weight before.
        size_after: Bytes of a weight after, scales and zero points included.
        macs: Multiply-accumulates of the layer for one sample, in the row of its main weight; None elsewhere.
        sqnr_db: Signal-to-noise ratio of the tensor's own quantization, in dB; inf when it is exact.
        total_sqnr_db: For an activation, the same between the float model's values and the quantized model's:
            all errors up to there.
        clipped_share: Share of the values that lay beyond the range, in [0, 1].
        algorithms: What was done beyond rounding to nearest, "gptq, bias_correction".
        output_error: Of a weight, the expected squared error of the layer's outputs, as a share of what rounding to
            nearest would have made; None where it isn't known.

    Raises:
        ConfigError: If the fields contradict each other.

    Example:
        >>> row = Row(kind="weight", layer="fc", layer_type="Dense", name="kernel", status="quantized",
        ...           bits=8, method="symmetric", shape=(64, 10), size_before=2560, size_after=680)
        >>> row.path, row.quantized
        ('fc/kernel', True)
        >>> Row.from_dict(row.to_dict()) == row
        True
    """

    kind: str
    layer: str
    layer_type: str
    name: str
    status: str
    reason: str = ""
    shape: tuple[int | None, ...] | None = None
    bits: int | None = None
    method: str | None = None
    granularity: str | None = None
    grid: str | None = None
    scale_min: float | None = None
    scale_max: float | None = None
    range_lo: float | None = None
    range_hi: float | None = None
    size_before: int | None = None
    size_after: int | None = None
    macs: int | None = None
    sqnr_db: float | None = None
    total_sqnr_db: float | None = None
    clipped_share: float | None = None
    algorithms: str = ""
    output_error: float | None = None

    def __post_init__(self) -> None:
        for name in _TEXTS:
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name not in _OPTIONAL_TEXTS):
                raise ConfigError(f"expected {name} to be text; received {name}={value!r}")
        for name in _COUNTS:
            object.__setattr__(self, name, _count(name, getattr(self, name)))
        for name in _NUMBERS:
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        if self.shape is not None:
            object.__setattr__(self, "shape", tuple(_count("shape", size) for size in self.shape))
        _check_kind(self)
        _check_status(self)

    @property
    def path(self) -> str:
        """The layer's path and the tensor's name, "backbone/conv1/kernel"."""
        return f"{self.layer}/{self.name}" if self.layer else self.name

    @property
    def quantized(self) -> bool:
        """Whether the tensor is quantized."""
        return self.status == "quantized"

    @property
    def stored_bytes(self) -> int:
        """Bytes of a weight after: `size_after`, or `size_before` where it stayed in float; 0 if unknown."""
        after = self.size_after if self.quantized else None
        return (self.size_before if after is None else after) or 0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set as a dict for strict JSON: non-finite numbers become text."""
        result: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or (value == "" and field.default == ""):
                continue
            if field.name == "shape":
                value = list(value)
            result[field.name] = encode_number(value) if field.name in _NUMBERS else value
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Row:
        """Build the row that `to_dict` described.

        Raises:
            FileFormatError: If a key is unknown or a value of the wrong kind.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) - known:
            raise FileFormatError(f"expected a mapping with keys among {sorted(known)}; received {values!r}")
        given: dict[str, Any] = {
            name: decode_number(value) if name in _NUMBERS else value for name, value in values.items()
        }
        try:
            return cls(**given)
        except (TypeError, ConfigError) as error:
            raise FileFormatError(f"expected a legal row; received {dict(values)!r}: {error}") from error


_TEXTS = ("kind", "layer", "layer_type", "name", "status", "reason", "method", "granularity", "grid", "algorithms")
_OPTIONAL_TEXTS = ("method", "granularity", "grid")
_COUNTS = ("bits", "size_before", "size_after", "macs")
_NUMBERS = (
    "scale_min",
    "scale_max",
    "range_lo",
    "range_hi",
    "sqnr_db",
    "total_sqnr_db",
    "clipped_share",
    "output_error",
)


def _check_kind(row: Row) -> None:
    if row.kind not in KINDS:
        raise ConfigError(f"expected kind to be one of {', '.join(KINDS)}; received kind={row.kind!r}")
    if row.kind == "weight" and row.total_sqnr_db is not None:
        raise ConfigError(f"expected no total_sqnr_db for the weight {row.path}; received {row.total_sqnr_db!r}")
    if row.clipped_share is not None and not 0 <= row.clipped_share <= 1:
        raise ConfigError(f"expected clipped_share of {row.path} in [0, 1]; received {row.clipped_share!r}")


def _check_status(row: Row) -> None:
    if row.status not in STATUSES:
        raise ConfigError(f"expected status to be one of {', '.join(STATUSES)}; received status={row.status!r}")
    if row.quantized and row.reason:
        raise ConfigError(f"expected no reason for {row.path}, which is quantized; received {row.reason!r}")
    if row.quantized and (row.bits is None or row.method is None):
        raise ConfigError(f"expected bits and method for {row.path}, which is quantized; received None")
    if not row.quantized and not row.reason:
        raise ConfigError(f"expected a reason why {row.path} stayed in float; received reason=''")


def _count(name: str, value: Any) -> int | None:
    if value is None:
        return None
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0 or isinstance(value, bool):
        raise ConfigError(f"expected {name} to be a whole number from 0 on; received {name}={value!r}")
    return number


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str | bytes | bool):
        raise ConfigError(f"expected {name} to be a number; received {name}={value!r}")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"expected {name} to be a number; received {name}={value!r}") from error
