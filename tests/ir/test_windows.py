from __future__ import annotations

import numpy as np
from hypothesis import given, strategies as st

from qi.ir import Op
from qi.ir.windows import window_counts, windows

sizes = st.integers(1, 6)


def pooling(pool: tuple[int, int], strides: tuple[int, int], pads: list[int]) -> Op:
    return Op("max_pool2d", [], [], {"pool": list(pool), "strides": list(strides), "pads": pads})


@given(sizes, sizes, st.tuples(*[st.integers(1, 3)] * 2), st.tuples(*[st.integers(1, 3)] * 2), st.data())
def test_each_window_holds_what_lies_under_it(
    height: int, width: int, pool: tuple[int, int], strides: tuple[int, int], data: st.DataObject
) -> None:
    pads = [data.draw(st.integers(0, 2)) for _ in range(4)]
    pads[1] += max(0, pool[0] - height - pads[0] - pads[1])
    pads[3] += max(0, pool[1] - width - pads[2] - pads[3])
    op = pooling(pool, strides, pads)
    x = np.arange(2 * height * width * 3, dtype=np.int32).reshape(2, height, width, 3)
    found, counts = windows(op, x, -1), window_counts(op, x.shape)
    rows = (height + pads[0] + pads[1] - pool[0]) // strides[0] + 1
    columns = (width + pads[2] + pads[3] - pool[1]) // strides[1] + 1
    assert found.shape == (2, rows, columns, *pool, 3)
    assert counts.shape == (rows, columns)
    inside = np.zeros((rows, columns), int)
    for i, j, a, b in np.ndindex(rows, columns, *pool):
        row, column = i * strides[0] + a - pads[0], j * strides[1] + b - pads[2]
        known = 0 <= row < height and 0 <= column < width
        inside[i, j] += known
        np.testing.assert_array_equal(found[:, i, j, a, b], x[:, row, column] if known else -1)
    np.testing.assert_array_equal(counts, inside)
