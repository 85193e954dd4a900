"""Hypothesis strategies that the mathematics' tests share: grids, granularities, scales and awkward arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qi.core import Granularity, IntGrid, LutGrid, PerChannel, PerGroup, PerTensor

TINY = float(np.finfo(np.float32).tiny)
SUBNORMAL = float(np.finfo(np.float32).smallest_subnormal)
GREATEST = float(np.finfo(np.float32).max)

# Powers of two are as common as any other scale: dividing by them is exact, so ties stay ties.
any_scale = st.floats(TINY, GREATEST, width=32)
common_scale = st.floats(2.0**-14, 2.0**6, width=32)
power_of_two_scale = st.integers(-20, 10).map(lambda exponent: 2.0**exponent)
scales = st.one_of(common_scale, power_of_two_scale, any_scale).map(np.float32)


@st.composite
def int_grids(draw: st.DrawFn, max_bits: int = 16) -> IntGrid:
    """Any integer grid."""
    bits, signed = draw(st.integers(1, max_bits)), draw(st.booleans())
    return IntGrid(bits, signed, narrow=signed and bits > 1 and draw(st.booleans()))


@st.composite
def lut_grids(draw: st.DrawFn) -> LutGrid:
    """Look-up tables of 1 to 20 entries."""
    bits, signed = draw(st.integers(2, 12)), draw(st.booleans())
    base = IntGrid(bits, signed)
    entries = st.lists(st.integers(base.qmin, base.qmax), min_size=1, max_size=min(20, base.levels), unique=True)
    return LutGrid(draw(entries), bits, signed)


@st.composite
def params(draw: st.DrawFn, grid: IntGrid, scale: st.SearchStrategy[Any] = scales) -> tuple[np.float32, int]:
    """A scale and a zero point on the grid, 0 as often as not."""
    return draw(scale), draw(st.just(0) | st.integers(grid.qmin, grid.qmax))


@st.composite
def values(draw: st.DrawFn, scale: float, zero_point: int, grid: IntGrid, *, finite: bool = True) -> np.ndarray:
    """A float32 vector for these parameters: ties and their neighbours, the ends, one-signed, constant, denormal,
    huge and plain numbers; with NaN, infinities and -0.0 where `finite` is False."""
    exact = float(scale)
    steps = st.integers(grid.qmin - zero_point - 2, grid.qmax - zero_point + 2)
    plain = st.floats(-2.0, 2.0, width=32).map(lambda v: v * grid.levels * exact)
    kinds = {
        "ties": st.tuples(steps, st.sampled_from([-1, 0, 1])).map(lambda t: _nudged((t[0] + 0.5) * exact, t[1])),
        "codes": steps.map(lambda k: k * exact),
        "plain": plain,
        "positive": plain.map(abs),
        "negative": plain.map(lambda v: -abs(v)),
        "constant": st.just(draw(plain)),
        "denormal": st.floats(-TINY, TINY, width=32),
        "huge": st.floats(2.0**100, GREATEST, width=32).flatmap(lambda v: st.sampled_from([v, -v])),
    }
    if not finite:
        kinds["special"] = st.sampled_from([np.nan, np.inf, -np.inf, -0.0])
    chosen = draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=3, unique=True))
    elements = st.one_of(*(kinds[kind] for kind in chosen))
    wide = np.array(draw(st.lists(elements, min_size=1, max_size=24)), np.float64)
    ends = GREATEST if finite else np.inf
    with np.errstate(over="ignore"):
        return np.clip(wide, -ends, ends).astype(np.float32)


def _nudged(value: float, direction: int) -> float:
    """`value` as float32, or the float32 beside it."""
    nearest = np.float32(np.clip(value, -GREATEST, GREATEST))
    return float(np.nextafter(nearest, np.float32(direction * GREATEST)) if direction else nearest)


def arrays(shape: tuple[int, ...] | st.SearchStrategy[tuple[int, ...]]) -> st.SearchStrategy[np.ndarray]:
    """Plain finite float32 arrays of a shape."""
    return hnp.arrays(np.float32, shape, elements=st.floats(-1e6, 1e6, width=32))


shapes = hnp.array_shapes(min_dims=1, max_dims=4, max_side=5)


@st.composite
def granularities(draw: st.DrawFn, rank: int) -> Granularity:
    """Any granularity that fits a tensor of `rank`; axes are counted from either end."""
    axis = draw(st.integers(0, rank - 1))
    spelled = axis - draw(st.sampled_from([0, rank]))
    options: list[Granularity] = [PerTensor(), PerChannel(spelled)]
    if rank > 1:
        channel = draw(st.integers(0, rank - 1).filter(lambda other: other != axis))
        options.append(PerGroup(spelled, draw(st.integers(1, 6)), channel - draw(st.sampled_from([0, rank]))))
    return draw(st.sampled_from(options))
