from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from qi.core.grid import IntGrid
from qi.core.kernels import Counts, NumpyKernels, infinite, load, spread_of
from tests.core.engine_cases import DTYPES, bits_of, random_bits


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loading_a_tile_is_a_cast(dtype):
    x = random_bits(np.random.default_rng(0), (200, 30), dtype)
    out = np.empty(x[::2, ::-1].shape, np.float32)
    with np.errstate(all="ignore"):
        load(x[::2, ::-1], out)
        assert bits_of(out) == bits_of(x[::2, ::-1].astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_half_is_loaded_exactly(dtype):
    x = np.arange(2**16, dtype=np.uint16).view(dtype)
    out = np.empty(x.shape, np.float32)
    load(x, out)
    assert bits_of(out) == bits_of(x.astype(np.float32))
    finite = x[np.isfinite(x.astype(np.float32))]  # without NaN, the whole tile takes the fast way
    load(finite, out[: finite.size])
    assert bits_of(out[: finite.size]) == bits_of(finite.astype(np.float32))


def test_infinite_is_what_float32_can_not_hold():
    with np.errstate(over="ignore"):
        assert infinite(np.array([1e300, -np.inf, np.nan, 3.4e38])) == 2
    assert infinite(np.array([2**63 - 1])) == 0


@pytest.mark.parametrize("bits", [1, 2, 8, 16])
def test_values_half_a_step_outside_are_told_apart(bits):
    for grid in (IntGrid(bits), IntGrid(bits, signed=False)):
        for zero in (0, grid.qmax, grid.qmin):
            kernels = NumpyKernels(grid, zero)
            ends = np.float32([grid.qmin - zero, grid.qmax - zero])
            x = np.concatenate(
                [np.nextafter(ends + half, np.float32(way)) for half in (-0.5, 0.5) for way in (-9e9, 9e9)]
            )
            x = np.concatenate([x, ends - np.float32(0.5), ends + np.float32(0.5)])
            out = np.empty(x.shape, grid.storage_dtype)
            counts = kernels.quantize(x, np.float32(1), None, out)
            q = np.rint(x) + zero
            assert out.tolist() == np.clip(q, grid.qmin, grid.qmax).tolist()
            assert counts == (((q < grid.qmin) | (q > grid.qmax)).sum(), 0, 0)


def test_scratch_grows_with_the_tiles_and_serves_all():
    kernels = NumpyKernels(IntGrid(8), 0)
    for size in (10, 1000, 3):
        out = np.empty(size, np.int8)
        kernels.quantize(np.full(size, 2.4, np.float32), np.float32(1), None, out)
        assert (out == 2).all()


def test_counts_of_two_arrays():
    assert Counts(1, 2, 3).plus(Counts(4, 5, 6)) == Counts(5, 7, 9)


def test_ranges_widen_by_finite_values_alone():
    lo, hi = np.full((1, 2), 5.0), np.full((1, 2), 5.0)
    with np.errstate(over="ignore"):
        found = spread_of(np.array([[np.nan, 7.0], [-np.inf, 6.0], [1e300, 5.5]]), lo, hi)
    assert found == (1, 2)
    assert lo.tolist() == [[5.0, 5.0]]
    assert hi.tolist() == [[5.0, 7.0]]
