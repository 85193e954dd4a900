"""The three families of inferable quantizers: by threshold, by range, by look-up table. The public classes are thin on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qi.core import IntGrid, LutGrid, SymmetricRule, asymmetric_params, symmetric_scale
from qi.errors import ConfigError
from qi.quantizers.base import BaseInferableQuantizer, flag, numbers
from qi.typing import Json

__all__ = ["LutQuantizer", "SymmetricQuantizer", "UniformQuantizer"]


def _plain(values: np.ndarray) -> Any:
    return values.tolist()


def _check_size(name: str, values: np.ndarray, per_channel: bool) -> None:
    if not per_channel and values.size != 1:
        raise ConfigError(f"expected one {name} with per_channel=False; received {name}={values.tolist()}")


def check_power_of_two(threshold: np.ndarray) -> None:
    """Refuses thresholds that are no power of two."""
    bad = np.frexp(threshold)[0] != 0.5
    if np.any(bad):
        raise ConfigError(f"expected threshold to be a power of 2; received threshold={threshold[bad].flat[0]}")


class _ByThreshold(BaseInferableQuantizer):
    threshold: np.ndarray

    def _set_threshold(self, threshold: Any, per_channel: bool) -> None:
        self.threshold = numbers("threshold", threshold, positive=True)
        _check_size("threshold", self.threshold, per_channel)

    def _scale_zero_point(self) -> tuple[np.ndarray, np.ndarray]:
        scale = symmetric_scale(self.threshold, self.grid, SymmetricRule.EDGE)
        return scale, np.zeros(scale.shape, np.int32)

    def _with(self, scale: np.ndarray, zero_point: np.ndarray) -> Json:
        # Exact: the divisor is a power of two.
        return {"threshold": _plain(scale * self.grid.edge)}


class SymmetricQuantizer(_ByThreshold):
    """Integers on ``[-t, t - s]`` (signed) or ``[0, t - s]``, with ``s = t / 2**(b-1)`` or ``t / 2**b``, zero point 0."""

    grid: IntGrid

    def __init__(
        self, num_bits: int, threshold: Any, signed: bool, narrow_range: bool = False, **granularity: Any
    ) -> None:
        grid = IntGrid(num_bits, flag("signed", signed), flag("narrow_range", narrow_range))
        super().__init__(grid, **granularity)
        self._set_threshold(threshold, self.per_channel)

    def get_config(self) -> Json:
        """Constructor arguments as plain JSON values."""
        grid = self.grid
        own = {"num_bits": grid.bits, "threshold": _plain(self.threshold), "signed": grid.signed}
        return own | ({"narrow_range": True} if grid.narrow else {}) | super().get_config()


class UniformQuantizer(BaseInferableQuantizer):
    """Integers ``0 .. 2**b - 1`` on [min, max] stretched to contain 0 and shifted so that 0 is a code."""

    grid: IntGrid

    def __init__(self, num_bits: int, min_range: Any, max_range: Any, **granularity: Any) -> None:
        super().__init__(IntGrid(num_bits, signed=False), **granularity)
        self._lo, self._hi = numbers("min_range", min_range), numbers("max_range", max_range)
        for name, values in (("min_range", self._lo), ("max_range", self._hi)):
            _check_size(name, values, self.per_channel)
        if self._lo.shape != self._hi.shape:
            raise ConfigError(
                f"expected min_range and max_range of one shape; received {self._lo.shape} and {self._hi.shape}"
            )
        if np.any(self._lo > self._hi):
            first = int(np.argmax((self._lo > self._hi).ravel()))
            raise ConfigError(
                f"expected min_range <= max_range; received min_range={self._lo.flat[first]}, "
                f"max_range={self._hi.flat[first]}"
            )

    def _scale_zero_point(self) -> tuple[np.ndarray, np.ndarray]:
        return asymmetric_params(self._lo, self._hi, self.grid)

    def _with(self, scale: np.ndarray, zero_point: np.ndarray) -> Json:
        top = 2**self.num_bits - 1
        return {"min_range": _plain(-zero_point * scale), "max_range": _plain((top - zero_point) * scale)}

    def get_config(self) -> Json:
        """Constructor arguments as plain JSON values."""
        own = {"num_bits": self.num_bits, "min_range": _plain(self._lo), "max_range": _plain(self._hi)}
        return own | super().get_config()


class LutQuantizer(_ByThreshold):
    """The nearest of ``lut_values / 2**(lut_values_bitwidth - signed) * threshold``; at a tie the lower entry."""

    grid: LutGrid

    def __init__(
        self,
        num_bits: int,
        lut_values: Sequence[float],
        threshold: Any,
        signed: bool,
        lut_values_bitwidth: int = 8,
        eps: float = 1e-8,
        **granularity: Any,
    ) -> None:
        bits = IntGrid(num_bits).bits
        try:
            IntGrid(lut_values_bitwidth)
        except ConfigError as error:
            raise ConfigError(str(error).replace("num_bits", "lut_values_bitwidth")) from None
        numbers("lut_values", lut_values)
        super().__init__(LutGrid(lut_values, lut_values_bitwidth, flag("signed", signed)), **granularity)
        if self.grid.levels > 2**bits:
            raise ConfigError(f"expected at most {2**bits} lut_values for num_bits={bits}; received {self.grid.levels}")
        if bits > self.grid.bits:
            raise ConfigError(f"expected num_bits <= lut_values_bitwidth={self.grid.bits}; received num_bits={bits}")
        self._bits = bits
        _check_size("eps", numbers("eps", eps), per_channel=False)
        self.eps = float(np.reshape(eps, ()))
        self._set_threshold(threshold, self.per_channel)

    @property
    def num_bits(self) -> int:
        """Bits of one stored code."""
        return self._bits

    def get_config(self) -> Json:
        """Constructor arguments as plain JSON values."""
        grid = self.grid
        own = {
            "num_bits": self._bits,
            "lut_values": list(grid.values),
            "threshold": _plain(self.threshold),
            "signed": grid.signed,
        }
        return own | {"lut_values_bitwidth": grid.bits, "eps": self.eps} | super().get_config()
