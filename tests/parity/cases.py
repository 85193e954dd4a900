"""The problems on which every framework has to give numpy's codes, and how to compute them with any framework."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from qi.core import Grid, IntGrid, LutGrid, PerGroup, QParams
from qi.core.affine import dequantize, fake_quantize, quantize, requantize
from qi.core.namespace import namespace_of

ROWS, COLUMNS = 512, 4  # one shape for all, so that a compiler's cache serves all
NEW_SCALE, NEW_ZERO_POINT, NEW_GRID = np.float32(0.7), 3, IntGrid(8)


@dataclass(frozen=True)
class Case:
    """One set of parameters; scale and zero point broadcast against ``[ROWS, COLUMNS]``."""

    scale: Any
    grid: Grid
    zero_point: Any = 0
    dtype: str = "float32"

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(scale, zero_point, noise, new_scale)"""
        noise = np.random.default_rng(1).random((ROWS, COLUMNS), dtype=np.float32)
        scale, zero_point = np.asarray(self.scale, np.float32), np.asarray(self.zero_point, np.int32)
        return scale, zero_point, noise, np.asarray(NEW_SCALE)

    @property
    def x(self) -> np.ndarray:
        """Ties, their neighbours in float32, multiples of the scale, random numbers and special ones; float32."""
        rng = np.random.default_rng(0)
        base = IntGrid(self.grid.bits, self.grid.signed)
        scale, zero_point, *_ = self.arrays
        k = rng.integers(base.qmin - 3, base.qmax + 4, (ROWS, COLUMNS)) - zero_point
        kind = rng.integers(0, 6, (ROWS, COLUMNS))
        steps = np.where(kind < 3, k + 0.5, np.where(kind == 3, k, rng.normal(0, base.levels / 2, kind.shape)))
        x = (steps * scale.astype(np.float64)).astype(np.float32)
        x = np.where(kind == 1, np.nextafter(x, np.float32(np.inf)), x)
        x = np.where(kind == 2, np.nextafter(x, np.float32(-np.inf)), x)
        special = [0.0, -0.0, np.nan, np.inf, -np.inf, 3e38, -3e38, np.finfo(np.float32).tiny]
        x[: len(special)] = np.float32(special)[:, None]
        return x


_SPREAD = np.float32([[0.1, 1 / 3, 0.0371, 2.5]])
_GROUPS = QParams(
    np.geomspace(0.01, 3.0, 12).reshape(3, 4), np.arange(12).reshape(3, 4), IntGrid(4, signed=False), PerGroup(0, 200)
).expanded((ROWS, COLUMNS))

CASES = {
    "int8": Case(0.1, IntGrid(8)),
    "int8 power of two": Case(0.0625, IntGrid(8)),
    "int8 narrow per channel": Case(_SPREAD, IntGrid(8, narrow=True)),
    "uint4 per channel": Case(_SPREAD, IntGrid(4, signed=False), [[0, 7, 3, 15]]),
    "uint4 per group": Case(_GROUPS[0], IntGrid(4, signed=False), _GROUPS[1]),
    "int1": Case(0.3, IntGrid(1)),
    "int16": Case(0.0011, IntGrid(16), -1234),
    "uint16": Case(1 / 3, IntGrid(16, signed=False), 40000),
    "table": Case(0.0371, LutGrid([-90, -25, -8, 0, 3, 25, 100], 8)),
    "table of one entry": Case(0.1, LutGrid([3])),
    "table per channel": Case(_SPREAD, LutGrid([-7, -2, 0, 1, 6], 4)),
    "float16": Case(0.1, IntGrid(8), 5, "float16"),
    "bfloat16": Case(_SPREAD, IntGrid(8), 0, "bfloat16"),
    "float64": Case(0.1, IntGrid(8), 5, "float64"),
}
NAMES = ("codes", "fake", "dequantized", "floor", "stochastic", "requantized")


def results(case: Case, x: Any, scale: Any, zero_point: Any, noise: Any, new_scale: Any) -> tuple[Any, ...]:
    """What `NAMES` say, in x's framework; floats are widened to float32."""
    grid, integers = case.grid, isinstance(case.grid, IntGrid)
    xp = namespace_of(x, scale)
    x = xp.cast(x, case.dtype)
    codes = quantize(x, scale, zero_point, grid)
    fake = fake_quantize(x, scale, zero_point, grid)
    real = dequantize(codes, scale, zero_point, grid, dtype=case.dtype)
    floor = quantize(x, scale, zero_point, grid, rounding="floor") if integers else codes
    stochastic = quantize(x, scale, zero_point, grid, rounding="stochastic", noise=noise) if integers else codes
    again = requantize(codes, scale, zero_point, new_scale, NEW_ZERO_POINT, NEW_GRID) if integers else codes
    return codes, xp.cast(fake, "float32"), xp.cast(real, "float32"), floor, stochastic, again


def expected(case: Case) -> dict[str, np.ndarray]:
    """numpy's results by name."""
    with np.errstate(over="ignore"):
        return dict(zip(NAMES, results(case, case.x, *case.arrays), strict=True))


def computed(
    case: Case, tensor: Callable[[np.ndarray], Any], numpy: Callable[[Any], np.ndarray], compiled: Callable[..., Any]
) -> dict[str, np.ndarray]:
    """A framework's results by name; `compiled` wraps the function of (x, scale, zero_point, noise, new_scale)."""

    def function(x: Any, scale: Any, *rest: Any) -> tuple[Any, ...]:
        return results(case, x, scale, *rest)

    found = compiled(function)(*map(tensor, (case.x, *case.arrays)))
    return {name: numpy(result) for name, result in zip(NAMES, found, strict=True)}


def bits(x: np.ndarray) -> np.ndarray:
    """An array's bits as integers, every NaN alike: the sign of 0 counts."""
    if x.dtype != np.float32:
        return x
    return np.where(np.isnan(x), np.float32(np.nan), x).astype(np.float32).view(np.int32)


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Every result has the dtype, the shape and all the bits of numpy's."""
    assert found.keys() == wanted.keys()
    for name, result in wanted.items():
        assert found[name].dtype == result.dtype, name
        np.testing.assert_array_equal(bits(found[name]), bits(result), err_msg=name, strict=True)


# Where compilers and processors deviate: subnormal inputs, and divisions by a constant.
SMALLEST = Case(1.2e-38, IntGrid(8))


def subnormals() -> np.ndarray:
    """float32 numbers of ``[ROWS, COLUMNS]`` around the smallest normal one, most of them subnormal."""
    tiny = np.finfo(np.float32).tiny
    return (np.random.default_rng(2).uniform(-1.5, 1.5, (ROWS, COLUMNS)) * tiny).astype(np.float32)


def flushed(x: np.ndarray) -> np.ndarray:
    """x with subnormal numbers replaced by 0, as processors with the flush-to-zero mode on take them."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), x)


# The clip's edges exactly, just beyond and far outside; the scale is 0.5, the grid has 3 bits.
EDGES = np.float32([-50, -2.25, -2.0000002, -2, -1.25, -0.3, 0, 0.25, 0.6, 1.5, 1.5000001, 1.75, 50])
EDGES_CASE = Case(0.5, IntGrid(3))
EDGES_GRADIENT = ((EDGES >= -2) & (EDGES <= 1.5)).astype(np.float32)


def lsq_gradient() -> float:
    """The gradient for the scale by arXiv:1902.08153, equation 3, summed over `EDGES`."""
    u = EDGES.astype(np.float64) / 0.5
    return float(np.where(u < -4, -4, np.where(u > 3, 3, np.rint(u) - u)).sum())
