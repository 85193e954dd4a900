"""The engine's names: types, modes, widths and granularities, as people and files spell them.

Members are strings: they compare equal to their lower-case values, serialize as these, and are found by value or name
in any case. Each is spelled in UPPER_CASE and, where the tensor API has it, in CamelCase.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from qi.core import Granularity as CoreGranularity, IntGrid, PerChannel, PerTensor
from qi.errors import ConfigError
from qi.registry import suggest

__all__ = ["BitWidth", "Granularity", "QuantizationMode", "QuantizationType"]


class _Name(StrEnum):
    """A string with a fixed set of values."""

    @classmethod
    def _missing_(cls, value: object) -> Any:
        if isinstance(value, str):
            for name, member in cls.__members__.items():
                if value.lower() in (member.value, name.lower()):
                    return member
        options = [member.value for member in cls]
        hint = suggest(value, options) if isinstance(value, str) else ""
        raise ConfigError(f"expected {cls.__name__} to be one of {options}; received {value!r}.{hint}")


class QuantizationType(_Name):
    """What numbers become.

    ``MIXED`` is INT8 whose layers may differ (`QuantizationConfig.custom_quantization_config`); ``FLOAT16`` rounds to
    half precision; ``NONE`` leaves numbers as they are.

    Example:
        >>> QuantizationType.INT8 == "int8", QuantizationType("UINT4").bits
        (True, 4)
    """

    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    UINT16 = "uint16"
    INT4 = "int4"
    UINT4 = "uint4"
    INT2 = "int2"
    UINT2 = "uint2"
    FLOAT16 = "float16"
    NONE = "none"
    MIXED = "mixed"

    @property
    def integer(self) -> bool:
        """Whether numbers become integer codes."""
        return self not in (QuantizationType.FLOAT16, QuantizationType.NONE)

    @property
    def bits(self) -> int:
        """Bits of one number: the most a configuration of this type may ask for, and what it has by default."""
        if self is QuantizationType.NONE:
            return 32
        return 8 if self is QuantizationType.MIXED else int(self.value.lstrip("uintfloa"))

    @property
    def signed(self) -> bool:
        """Whether codes may be negative."""
        return not self.value.startswith("uint")


class QuantizationMode(_Name):
    """Where scale and zero point come from.

    ========================== =============================================================================
    member                     parameters
    ========================== =============================================================================
    DYNAMIC, DYNAMIC_PER_BATCH of each array by itself
    DYNAMIC_PER_CHANNEL        of each channel of each array
    SYMMETRIC, ASYMMETRIC      as DYNAMIC, with 0 in the middle or where the range wants it; fixed once calibrated
    STATIC, CALIBRATED         fixed: by `Quantizer.calibrate` or `Quantizer.load_parameters`, or an error
    ========================== =============================================================================
    """

    DYNAMIC = "dynamic"
    DYNAMIC_PER_BATCH = "dynamic_per_batch"
    DYNAMIC_PER_CHANNEL = "dynamic_per_channel"
    SYMMETRIC = "symmetric"
    ASYMMETRIC = "asymmetric"
    STATIC = "static"
    CALIBRATED = "calibrated"

    Symmetric = "symmetric"
    Asymmetric = "asymmetric"

    @property
    def dynamic(self) -> bool:
        """Whether every array gets parameters of its own, calibrated or not."""
        return self.value.startswith("dynamic")


class BitWidth(_Name):
    """Widths of the tensor API: signed integers of 8, 4 or 2 bits.

    Example:
        >>> BitWidth.INT4.levels(), BitWidth.INT4.qmin(), BitWidth.INT4.qmax()
        (16, -8, 7)
    """

    INT8 = "int8"
    INT4 = "int4"
    INT2 = "int2"

    Int8 = "int8"
    Int4 = "int4"
    Int2 = "int2"

    @property
    def grid(self) -> IntGrid:
        """The codes of this width."""
        return IntGrid(QuantizationType(self.value).bits)

    def levels(self) -> int:
        """How many codes there are."""
        return self.grid.levels

    def qmin(self) -> int:
        """The lowest code."""
        return self.grid.qmin

    def qmax(self) -> int:
        """The highest code."""
        return self.grid.qmax


class Granularity(_Name):
    """Names of the tensor API for `qi.core.PerTensor` and ``qi.core.PerChannel(axis=0)``.

    Example:
        >>> Granularity.PerChannel.value, Granularity.PER_CHANNEL.core
        ('per_channel', PerChannel(axis=0))
    """

    PER_TENSOR = "per_tensor"
    PER_CHANNEL = "per_channel"

    PerTensor = "per_tensor"
    PerChannel = "per_channel"

    @property
    def core(self) -> CoreGranularity:
        """What the mathematics takes."""
        return PerTensor() if self is Granularity.PER_TENSOR else PerChannel(0)
