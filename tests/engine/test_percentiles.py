from __future__ import annotations

import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from qi.core import PerChannel, PerGroup, PerTensor
from qi.engine import percentiles as module
from qi.engine.percentiles import moments, percentiles

ENDS = [0.0, 0.1, 37.5, 99.9, 100.0]
DTYPES = ["float16", "float32", "float64", ">f4", ">f8", "int8", "uint16", "int32", "int64", "bool"]
SHARINGS = [PerTensor(), PerChannel(0), PerChannel(-1), PerChannel(1), PerGroup(1, 4, 0)]
GREATEST = float(np.finfo(np.float32).max)


def axes_of(sharing: Any, x: np.ndarray) -> tuple[int, ...]:
    return tuple(i for i, n in enumerate(sharing.param_shape(x.shape)) if n == 1)


@pytest.fixture(params=[8, 1 << 14], ids=["pieces", "whole"])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", request.param)


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("dtype", [*DTYPES, ml_dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("sharing", SHARINGS[:4], ids=str)
def test_percentiles_are_numpy_s(sharing: Any, dtype: Any) -> None:
    x = (np.random.default_rng(0).normal(size=(3, 5, 24)) * 50).astype(dtype)[:, :, ::-2]
    found = percentiles(x, sharing, ENDS, finite=True)
    expected = np.percentile(x.astype(np.float64), ENDS, axis=axes_of(sharing, x), keepdims=True)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("sharing", SHARINGS, ids=str)
def test_only_finite_values_count(sharing: Any) -> None:
    x = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float64)
    x[0], x[1, :3], x[2, 0], x[2, 1] = np.nan, np.inf, -np.inf, 1e300
    mean, spread = moments(x, sharing, finite=False)
    found = percentiles(x, sharing, ENDS, finite=False)
    kept = np.where(np.abs(x) <= GREATEST, x, np.nan)
    if isinstance(sharing, PerGroup):
        blocks = [row[i : i + 4] for row in kept for i in range(0, 10, 4)]
    else:
        blocks = list(kept) if sharing == PerChannel(0) else list(kept.T) if isinstance(sharing, PerChannel) else [kept]
    for i, block in enumerate(blocks):
        values = block[~np.isnan(block)]
        expected = np.percentile(values, ENDS).tolist() if values.size else [0.0] * len(ENDS)
        assert [end.flat[i] for end in found] == expected
        assert mean.flat[i] == pytest.approx(values.mean() if values.size else 0.0)
        assert spread.flat[i] == pytest.approx(values.std() if values.size else 0.0)


@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.lists(st.floats(0, 100), min_size=1, max_size=3),
)
def test_any_values(x: np.ndarray, ends: list[float]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE", 4)
        for values in (x, x.astype(np.float64)):
            found = [end.item() for end in percentiles(values, PerTensor(), ends, finite=True)]
            assert found == np.percentile(x.astype(np.float64), ends).tolist()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)], ids=str)
def test_nothing_has_the_percentile_0(shape: tuple[int, ...]) -> None:
    for sharing in (PerTensor(), PerChannel(0)):
        found = [*percentiles(np.empty(shape), sharing, [1, 99], finite=True)]
        found += moments(np.empty(shape), sharing, finite=False)
        assert [one.shape for one in found] == [sharing.param_shape(shape)] * 4
        assert not any(one.any() for one in found)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_less_than_a_mebibyte_beside_the_array(dtype: str) -> None:
    x = np.random.default_rng(0).normal(size=500_000).astype(dtype)
    x[0] = np.nan
    tracemalloc.start()
    try:
        percentiles(x, PerTensor(), [0.1, 99.9], finite=False)
        moments(x, PerTensor(), finite=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20 < x.nbytes
