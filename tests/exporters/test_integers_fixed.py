from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, QParams
from qi.errors import UnsupportedError
from qi.exporters.integers_fixed import fixed_point
from qi.ir import Op
from tests.ir.graphs import act, codes_of, weight


def factor(found: dict, prefix: str = "") -> float:
    return found[f"{prefix}multiplier"] * 2.0 ** (found[f"{prefix}shift"] - 31)


def test_a_factor_for_each_channel_of_a_convolution() -> None:
    x, y = codes_of("x", 1, 1, 1, qparams=act(0.5)), codes_of("y", 1, 1, 3, qparams=act(2.0))
    op = Op("conv2d", [x, weight("w", [[[[1, 1, 1]]]], [1.0, 3.0, 0.5])], [y], {"activation": "none"})
    found = fixed_point(op)
    assert [found[key].dtype for key in ("multiplier", "shift")] == [np.int32, np.int8]
    assert factor(found).tolist() == [0.25, 0.75, 0.125]


def test_weights_with_one_scale_get_it_for_each_channel() -> None:
    x, y = codes_of("x", 1, qparams=act(0.5)), codes_of("y", 4, qparams=act(1.0))
    w = weight("w", [[1, 2, 3, 4]], [1.0])
    w.qparams = QParams(np.float32(1.0), 0, IntGrid(8, narrow=True))
    assert factor(fixed_point(Op("dense", [x, w], [y], {"activation": "none"}))).tolist() == [0.5] * 4


def test_the_three_factors_of_a_sum() -> None:
    a, b, y = (codes_of(name, 2, qparams=act(scale)) for name, scale in (("a", 0.5), ("b", 0.25), ("y", 1.0)))
    found = fixed_point(Op("add", [a, b], [y], {"activation": "none"}))
    assert found["left_shift"] == 20
    assert [factor(found, part) for part in ("input0_", "input1_", "output_")] == [0.5, 0.25, 2.0**-20]


def test_one_factor() -> None:
    a, b, y = (codes_of(name, 2, 2, qparams=act(scale)) for name, scale in (("a", 0.5), ("b", 0.25), ("y", 1.0)))
    for kind, attrs in (
        ("mul", {"activation": "none"}),
        ("batch_matmul", {"transpose_a": False, "transpose_b": False}),
    ):
        assert factor(fixed_point(Op(kind, [a, b], [y], attrs))) == 0.125
    mean = fixed_point(Op("mean", [a], [y], {"axes": [1, 2], "keepdims": False}))
    assert (mean["count"], factor(mean)) == (4, 0.125)
    assert factor(fixed_point(Op("quantize", [a], [y]))) == 0.5
    prelu = fixed_point(Op("prelu", [a, b], [y]))
    assert (factor(prelu), factor(prelu, "negative_")) == (0.5, 0.125)


def test_an_average_pool_needs_a_factor_only_between_scales() -> None:
    attrs = {"pool": [2, 2], "strides": [1, 1], "pads": [0, 0, 0, 0]}
    x, y = codes_of("x", 2, 2, 1, qparams=act(0.5)), codes_of("y", 1, 1, 1, qparams=act(0.5))
    assert fixed_point(Op("avg_pool2d", [x], [y], attrs)) == {}
    y.qparams = act(1.0)
    assert factor(fixed_point(Op("avg_pool2d", [x], [y], attrs))) == 0.5


def test_tables() -> None:
    x, y = codes_of("x", 2, qparams=act(0.1)), codes_of("y", 2, qparams=act(1 / 256, -128))
    table = fixed_point(Op("unary", [x], [y], {"function": "sigmoid", "alpha": None}))["table"]
    assert (table.shape, table.dtype) == ((256,), np.int8)
    assert [int(table[code + 128]) for code in (-128, 0, 127)] == [-128, 0, 127]
    assert fixed_point(Op("relu", [x], [codes_of("z", 2, qparams=act(0.1))], {"max_value": None}))["table"].min() == 0
    exponentials = fixed_point(Op("softmax", [x], [y], {"axis": 1}))["table"]
    assert exponentials.dtype == np.int32
    np.testing.assert_allclose(exponentials / 2**31, np.exp(-0.1 * np.arange(256)), atol=1e-6)


def test_what_only_moves_needs_nothing() -> None:
    assert fixed_point(Op("reshape", [codes_of("x", 4)], [codes_of("y", 2, 2)], {"shape": [None, 2, 2]})) == {}


def test_a_factor_beyond_fixed_point_is_refused() -> None:
    a, b, y = (codes_of(n, 2, qparams=act(s)) for n, s in (("a", 1e10), ("b", 1e10), ("y", 1e-10)))
    with pytest.raises(UnsupportedError, match="ratio lies between"):
        fixed_point(Op("mul", [a, b], [y], {"activation": "none"}, "layer"))
