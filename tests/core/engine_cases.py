"""What the tests of the numpy engine's kernels share: arrays of random bits in all forms, and the generic body."""

from __future__ import annotations

import math
from collections.abc import Iterator
from unittest import mock

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from qi.core import IntGrid, LutGrid, PerTensor, QParams, affine
from tests.strategies import granularities, int_grids, lut_grids, scales

DTYPES = [np.dtype(k) for k in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64, np.int8, np.uint16, np.int64)]


def random_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Any bits at all: NaN of every kind, infinities, subnormals and huge numbers; every other value near 1."""
    x = rng.integers(0, 256, (*shape, dtype.itemsize), dtype=np.uint8).view(dtype)[..., 0].copy()
    if dtype.kind not in "iu":
        near = rng.standard_normal(shape).astype(dtype)
        x = np.where(rng.random(shape) < 0.5, x, near)
    return x


def forms(x: np.ndarray) -> Iterator[np.ndarray]:
    """The same kind of data in C and Fortran order, with steps, reversed, permuted, of the other byte order."""
    yield x
    yield np.asfortranarray(x)
    yield x[..., ::-1]
    yield x[::2]
    yield x.transpose((*range(1, x.ndim), 0))
    if x.dtype.kind in "fiu" and x.dtype.isbuiltin == 1:
        yield x.astype(x.dtype.newbyteorder())


def bits_of(x: np.ndarray) -> bytes:
    """All of an array's bits, every NaN alike."""
    if x.dtype.kind not in "iu":
        with np.errstate(all="ignore"):
            x = np.where(np.isnan(x.astype(np.float64)), x.dtype.type(np.nan), x).astype(x.dtype)
    return x.tobytes()


@st.composite
def how_to(draw: st.DrawFn, shape: tuple[int, ...], tables: bool = True) -> QParams:
    """Parameters of any granularity for an array of a shape: one zero point for all, or one for each scale."""
    granularity = draw(granularities(len(shape))) if shape else PerTensor()
    grid: IntGrid | LutGrid = draw(int_grids() | lut_grids()) if tables else draw(int_grids())
    own = granularity.param_shape(shape)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = np.float64(draw(scales)) * np.exp2(rng.integers(-2, 2, own))
    scale = np.clip(scale, np.finfo(np.float32).tiny, np.finfo(np.float32).max)
    zero = np.zeros(own, int)
    if isinstance(grid, IntGrid):
        kind = draw(st.sampled_from(["none", "one", "each"]))
        if kind != "none":
            zero = rng.integers(grid.qmin, grid.qmax + 1, own if kind == "each" else ()) + zero
    return QParams(scale, zero, grid, granularity)


def expected(x: np.ndarray, params: QParams) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int]]:
    """Codes and fake-quantized values by the generic body of `qi.core.affine`, and what there is to count."""
    how, grid = params.expanded(x.shape), params.grid
    with mock.patch.object(affine, "_LARGE", math.inf):
        codes, fake = affine.quantize(x, *how, grid), affine.fake_quantize(x, *how, grid)
    with np.errstate(all="ignore"):
        real = x.astype(np.float32)
        q = np.rint(real / how[0]) + how[1].astype(np.float64)
    ends = (grid.qmin, grid.qmax) if isinstance(grid, IntGrid) else (grid.values[0], grid.values[-1])
    clipped = (q < ends[0]) | (q > ends[1])
    return codes, fake, (int(clipped.sum()), int(np.isnan(real).sum()), int(np.isinf(real).sum()))
