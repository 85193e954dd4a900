from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, LutGrid, PerChannel, PerGroup, sweep
from qi.core.kernels import Counts
from qi.core.sweep import apply, check_body, kernel_of, one_tile, parts, shared_zero, total, unspread
from qi.errors import InputError

pytestmark = pytest.mark.usefixtures("eager_threads")

INT8 = IntGrid(8)


@pytest.mark.parametrize(
    ("zero_point", "shared"), [(3, 3), ([], 0), ([7], 7), ([[2, 2]], 2), ([2, 3], None), ([0, 0, 1], None)]
)
def test_a_zero_point_that_all_scales_share_is_found(zero_point, shared):
    assert shared_zero(np.array(zero_point, int)) == shared


def test_groups_get_an_axis_and_the_partial_one_comes_last():
    x, scale = np.arange(35).reshape(7, 5), np.arange(15).reshape(3, 5)
    (head, (first,)), (tail, (last,)) = parts(PerGroup(0, 3), [x], [scale])
    assert (head[0].shape, first.shape, tail[0].shape, last.shape) == ((2, 3, 5), (2, 1, 5), (1, 5), (1, 5))
    assert np.shares_memory(head[0], x)
    assert np.array_equal(head[0].reshape(6, 5), x[:6])
    assert list(parts(PerChannel(0), [x], [scale])) == [([x], [scale])]
    assert [a[0].shape for a, _ in parts(PerGroup(0, 9), [x], [scale[:1]])] == [(7, 5)]


@pytest.mark.parametrize("size", [50, 50_000])
def test_parameters_may_broadcast_any_way(size):
    x = np.random.default_rng(0).standard_normal((size, 3)).astype(np.float32)
    for scale, zero_point in (
        (np.float32([0.1, 0.2, 0.3]), np.array(4)),
        (np.float32(0.1), np.array([1, 2, 3])),
        (np.full((size, 1), 0.1, np.float32), np.array([[1, 2, 3]])),
    ):
        out, again = np.empty(x.shape, np.int8), np.empty(x.shape, np.int8)
        counts = apply("quantize", x, out, scale, zero_point, INT8, num_threads=2)
        assert np.array_equal(out, np.clip(np.rint(x / scale) + zero_point, -128, 127))
        assert one_tile("quantize", x, again, scale, zero_point, INT8) == counts
        assert np.array_equal(again, out)


def test_short_rows_are_repeated_to_a_tile_with_their_zero_points():
    x = np.ones((30_001, 3), np.float32)
    out = np.empty(x.shape, np.int8)
    apply("quantize", x, out, np.float32([1, 2, 4]), np.array([0, 1, 2]), INT8)
    assert (out == [1, 1, 2]).all()  # 1 / 2 and 1 / 4 round to 0


def test_who_computes():
    assert not kernel_of("quantize", INT8, 0, 10**9, "numpy").compiled
    assert not kernel_of("quantize", LutGrid([0, 1]), 0, 10, "numba").compiled
    with pytest.raises(InputError, match="received body='gpu'"):
        check_body("gpu")


def test_totals_and_views():
    assert total([]) == Counts(0, 0, 0)
    assert total([Counts(1, 2, 3), Counts(1, 1, 1)]) == Counts(2, 3, 4)
    assert unspread(np.broadcast_to(np.ones((1, 3)), (5, 3))).shape == (1, 3)


@pytest.mark.parametrize(("size", "expected"), [(0, 1), (3 << 20, 1), (3 << 22, 3)])
def test_a_thread_is_not_started_for_what_takes_less_time_than_that(size, expected, monkeypatch):
    monkeypatch.setattr(sweep, "SHARE", 1 << 22)
    assert sweep.shares(size) == expected
