from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.core.tiles import Walk, boxes, in_threads
from qi.errors import InputError
from tests.strategies import shapes


@st.composite
def views(draw):
    """An array of distinct values in any memory order, with steps and reversed axes."""
    shape = draw(shapes)
    x = np.arange(math.prod(shape)).reshape(shape)
    x = x.transpose(draw(st.permutations(range(x.ndim))))
    if draw(st.booleans()):
        x = np.asfortranarray(x)
    return x[tuple(slice(None, None, draw(st.sampled_from([1, 1, -1, 2]))) for _ in x.shape)]


@given(views(), st.integers(1, 40), st.data())
def test_tiles_are_all_of_an_array_once_with_its_parameters(x, block, data):
    own = tuple(n if data.draw(st.booleans()) else 1 for n in x.shape)
    param = np.arange(math.prod(own)).reshape(own)
    out = np.zeros(x.shape, int)
    walk = Walk([x, out, param], block)
    step = data.draw(st.integers(1, 3))
    for start in range(step):
        for tile, target, mine in walk.tiles(start, step):
            assert 1 <= tile.size <= max(block, 1)
            assert tile.shape == mine.shape
            target += tile * 1000 + mine
    assert np.array_equal(out, x * 1000 + param)


def test_an_array_without_gaps_is_one_row_whatever_its_order():
    x = np.zeros((3, 4, 5, 6))
    for array in (x, np.asfortranarray(x), x.transpose(2, 0, 3, 1), x[::-1, ::-1, ::-1, ::-1]):
        assert Walk([array], 100).views[0].shape == (360,)
    channels = Walk([x, np.zeros((1, 4, 1, 1))], 100)
    assert channels.views[0].shape == (3, 4, 30)
    assert channels.tile == (3, 30)
    assert not channels.constant(1)
    assert Walk([x, np.zeros(6)], 100).constant(1)


def test_nothing_is_copied_and_results_gather_in_broadcast_views():
    x, sums = np.ones((4, 5)), np.zeros((1, 5))
    for tile, mine in Walk([x, sums], 7).tiles():
        for row, total in zip(tile, mine, strict=True):
            total += row
    assert sums.tolist() == [[4.0] * 5]


@given(shapes, st.integers(1, 50), st.data())
def test_boxes_follow_in_c_order_and_keep_to_groups(shape, block, data):
    grouped, size = data.draw(st.integers(0, len(shape) - 1)), data.draw(st.integers(1, 4))
    align = [size if axis == grouped else 1 for axis in range(len(shape))]
    x = np.arange(math.prod(shape)).reshape(shape)
    seen = []
    for box in boxes(shape, block, align):
        piece = x[box]
        assert 1 <= piece.size <= block
        cut = box[grouped]
        assert cut.start % size == 0 or (cut.stop - 1) // size == cut.start // size
        seen += piece.ravel().tolist()
    assert seen == list(range(x.size))


def test_a_scalar_is_one_box():
    assert list(boxes((), 8, ())) == [()]


def test_work_is_done_in_as_many_threads_as_find_some():
    barrier = threading.Barrier(3, timeout=10)

    def work(start, step):
        barrier.wait()  # only passes if three run at a time
        return start, step, threading.current_thread() is threading.main_thread()

    assert in_threads(work, 3, 5) == [(0, 3, True), (1, 3, False), (2, 3, False)]
    assert in_threads(lambda start, step: (start, step), 8, 1) == [(0, 1)]
    assert in_threads(lambda start, step: (start, step), 8, 0) == [(0, 1)]


def test_an_error_of_a_thread_is_the_callers():
    def work(start, step):
        if start:
            raise KeyError(start)

    with pytest.raises(KeyError):
        in_threads(work, 2, 2)


@pytest.mark.parametrize("num_threads", [0, -1, 1.0, True, None, "2"])
def test_a_number_of_threads_that_is_none_is_refused(num_threads):
    with pytest.raises(InputError, match="num_threads to be an integer of at least 1; received num_threads="):
        in_threads(lambda start, step: None, num_threads, 1)
