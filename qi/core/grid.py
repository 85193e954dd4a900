"""Grids: which codes exist."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qi.errors import ConfigError

__all__ = ["Grid", "IntGrid", "LutGrid", "code_bits"]


def _check_bits(bits: int, largest: int = 16) -> int:
    if isinstance(bits, bool) or not isinstance(bits, (int, np.integer)) or not 1 <= bits <= largest:
        raise ConfigError(f"expected num_bits to be an integer from 1 to {largest}; received num_bits={bits!r}")
    return int(bits)


@dataclass(frozen=True)
class IntGrid:
    """The integers from `qmin` to `qmax`.

    Args:
        bits: 1 to 16.
        signed: two's complement (``-2**(bits-1) .. 2**(bits-1)-1``) or unsigned (``0 .. 2**bits-1``).
        narrow: drops the lowest signed code, so the grid is symmetric about 0 (``-127 .. 127``): what integer
            kernels ask of weights. A signed 1-bit grid can't be narrow (only 0 would be left).

    Raises:
        ConfigError: bits outside 1..16, or a narrow grid that is unsigned or has a single code.

    Example:
        >>> grid = IntGrid(8, narrow=True)
        >>> grid.qmin, grid.qmax, grid.levels, grid.storage_dtype.name
        (-127, 127, 255, 'int8')
    """

    bits: int
    signed: bool = True
    narrow: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", _check_bits(self.bits))
        object.__setattr__(self, "signed", bool(self.signed))
        object.__setattr__(self, "narrow", bool(self.narrow))
        if self.narrow and (not self.signed or self.bits == 1):
            raise ConfigError(
                "expected narrow_range only for a signed grid of at least 2 bits; "
                f"received num_bits={self.bits}, signed={self.signed}"
            )

    @property
    def qmin(self) -> int:
        """The lowest code."""
        return (-(2 ** (self.bits - 1)) + self.narrow) if self.signed else 0

    @property
    def qmax(self) -> int:
        """The highest code."""
        return (1 << (self.bits - self.signed)) - 1

    @property
    def levels(self) -> int:
        """How many codes there are."""
        return self.qmax - self.qmin + 1

    @property
    def edge(self) -> int:
        """One more than the highest code: the divisor of a threshold (``2**(bits-1)`` or ``2**bits``)."""
        return self.qmax + 1

    @property
    def storage_dtype(self) -> np.dtype:
        """The smallest numpy integer that holds a code."""
        return np.dtype(f"{'' if self.signed else 'u'}int{8 if self.bits <= 8 else 16}")


@dataclass(frozen=True)
class LutGrid:
    """A look-up table: the codes are indices into `values`, sorted integers on a finer grid.

    Args:
        values: the distinct table entries, integers of the `bits`-bit grid, at most ``2**16``.
        bits: width of the entries themselves (the successors' ``lut_values_bitwidth``), 1 to 16.
        signed: whether entries are signed.

    Raises:
        ConfigError: empty, repeated, fractional or out-of-range entries.

    Example:
        >>> grid = LutGrid([-25, 25, 0], bits=8)
        >>> grid.values, grid.levels, grid.index_bits
        ((-25, 0, 25), 3, 2)
    """

    values: tuple[int, ...]
    bits: int = 8
    signed: bool = True

    def __init__(self, values: Sequence[float], bits: int = 8, signed: bool = True) -> None:
        base = IntGrid(bits, signed)
        array = np.asarray(values, dtype=np.float64).ravel()
        if array.size == 0 or not np.all(np.isfinite(array)) or np.any(array != np.rint(array)):
            raise ConfigError(f"expected lut_values to be integers, at least one; received lut_values={values!r}")
        if len(np.unique(array)) != array.size:
            raise ConfigError(f"expected lut_values without repetitions; received lut_values={values!r}")
        if array.min() < base.qmin or array.max() > base.qmax:
            raise ConfigError(
                f"expected lut_values from {base.qmin} to {base.qmax} "
                f"(lut_values_bitwidth={bits}, signed={signed}); "
                f"received a range of {array.min():g} to {array.max():g}"
            )
        object.__setattr__(self, "values", tuple(int(v) for v in np.sort(array)))
        object.__setattr__(self, "bits", base.bits)
        object.__setattr__(self, "signed", base.signed)

    @property
    def levels(self) -> int:
        """How many entries there are."""
        return len(self.values)

    @property
    def index_bits(self) -> int:
        """Bits that one stored index takes."""
        return max(1, math.ceil(math.log2(self.levels)))

    @property
    def edge(self) -> int:
        """The divisor of a threshold: ``2**(bits-1)`` signed, ``2**bits`` unsigned."""
        return 1 << (self.bits - self.signed)

    @property
    def storage_dtype(self) -> np.dtype:
        """The smallest numpy integer that holds an index."""
        return np.dtype("uint8" if self.levels <= 256 else "uint16")


Grid = IntGrid | LutGrid


def code_bits(grid: Grid) -> int:
    """Bits that one stored code of a grid takes.

    Example:
        >>> code_bits(IntGrid(4)), code_bits(LutGrid([-3, 0, 2]))
        (4, 2)
    """
    return grid.bits if isinstance(grid, IntGrid) else grid.index_bits
