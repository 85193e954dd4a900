from __future__ import annotations

import numpy as np
import pytest

from qi.ir import Op, run
from qi.ir.reference import averaged, linear_factor
from qi.ir.routing import route
from tests.ir.graphs import act, codes_of, graph_of, weight


def one_weight(kind: str, scale: float) -> Op:
    x, y = codes_of("x", 1, 1, 1, qparams=act(1.0)), codes_of("y", 1, 1, 1, qparams=act(1.0))
    if kind == "dense":
        return Op(kind, [x, weight("w", [[1]], [scale])], [y], {"activation": "none"}, "layer")
    attrs = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1, "activation": "none"}
    return Op(kind, [x, weight("w", [[[[1]]]], [scale])], [y], attrs, "layer")


@pytest.mark.parametrize(("kind", "expected"), [("conv2d", [1, 0, -1]), ("dense", [0, 0, 0])])
def test_convolutions_round_twice_and_products_once(kind: str, expected: list[int]) -> None:
    """8 * 0.0624999 = 0.499999: the first of two roundings makes a half of it."""
    op = one_weight(kind, 0.0624999)
    codes = np.array([8, 0, -8]).reshape(3, 1, 1, 1)
    assert run(graph_of(op, inputs=[op.x]), [codes], "reference")["y"].ravel().tolist() == expected


def test_factor_of_each_channel() -> None:
    x, y = codes_of("x", 1, qparams=act(0.5)), codes_of("y", 2, qparams=act(2.0))
    op = Op("dense", [x, weight("w", [[1, 1]], [1.0, 3.0])], [y], {"activation": "none"})
    multiplier, exponent = linear_factor(op)
    assert (multiplier * 2.0 ** (exponent - 31)).tolist() == [0.25, 0.75]


def test_averages_leave_out_what_lies_outside() -> None:
    op = Op("avg_pool2d", [], [], {"pool": [2, 2], "strides": [1, 1], "pads": [0, 1, 0, 1]})
    found = averaged(op, np.array([[1, 4], [7, 8]]).reshape(1, 2, 2, 1))
    assert found[0, :, :, 0].tolist() == [[5, 6], [8, 8]]
    assert averaged(op, np.array([[-1, -4], [-7, -8]]).reshape(1, 2, 2, 1))[0, 0, 0, 0] == -5


@pytest.mark.parametrize("target", ["litert", "reference"])
def test_softmax_is_a_table(target: str) -> None:
    x, y = codes_of("x", 4, qparams=act(0.1, 3)), codes_of("y", 4, qparams=act(1 / 256, -128))
    graph = graph_of(Op("softmax", [x], [y], {"axis": 1}, "s"), inputs=[x])
    codes = np.array([[0, 10, 20, 30], [127, 127, 127, 127], [-128, 127, -128, 0]])
    real = np.exp(codes * 0.1 - codes.max(axis=1, keepdims=True) * 0.1)
    exact = 256 * real / real.sum(axis=1, keepdims=True) - 128
    found = run(graph, [codes], target)["y"]
    assert np.abs(found - np.clip(exact, -128, 127)).max() <= 0.51


def test_logits_that_would_end_the_process_are_done_in_float() -> None:
    x, y = codes_of("x", 4, qparams=act(1e-9)), codes_of("y", 4, qparams=act(1 / 256, -128))
    graph = graph_of(Op("softmax", [x], [y], {"axis": 1}, "s"), inputs=[x])
    assert "dequantize" in [op.kind for op in route(graph, "reference", integer_only=True).ops]
    x.qparams = act(0.1)
    assert [op.kind for op in route(graph, "reference").ops] == ["softmax"]


@pytest.mark.parametrize("target", ["litert", "reference"])
@pytest.mark.parametrize(("function", "scale", "zero_point"), [("sigmoid", 1 / 256, -128), ("tanh", 1 / 128, 0)])
def test_functions_whose_output_is_held_to_one_scale(target: str, function: str, scale: float, zero_point: int) -> None:
    x, y = codes_of("x", 4), codes_of("y", 4, qparams=act(scale, zero_point))
    graph = graph_of(Op("unary", [x], [y], {"function": function, "alpha": None}, "f"), inputs=[x])
    assert [op.kind for op in route(graph, target).ops] == ["unary"]
    y.qparams = act(scale, zero_point + 1)
    assert "dequantize" in [op.kind for op in route(graph, target).ops]
    assert [op.kind for op in route(graph, target, integer_only=True).ops] == ["table"]


@pytest.mark.parametrize("target", ["litert", "reference"])
def test_elu_of_another_slope_has_no_kernel(target: str) -> None:
    x, y = codes_of("x", 4), codes_of("y", 4)
    op = Op("unary", [x], [y], {"function": "elu", "alpha": 0.5}, "f")
    graph = graph_of(op, inputs=[x])
    assert [o.kind for o in route(graph, target).ops] == ["dequantize", "unary", "quantize"]
    op.attrs["alpha"] = 1.0
    assert [o.kind for o in route(graph, "litert").ops] == ["unary"]


@pytest.mark.parametrize("kind", ["add", "mul", "dense", "relu", "avg_pool2d", "mean"])
def test_steps_too_steep_for_fixed_point_are_done_in_float(kind: str) -> None:
    """Kernels refuse them, overflow, or end the process."""
    from qi.core import IntGrid, QParams
    from tests.parity.operations import case

    for target in ("litert", "reference"):
        graph = case(kind, 2)
        assert "dequantize" not in [op.kind for op in route(graph, target, integer_only=True).ops]
        graph.ops[-1].y.qparams = QParams(np.float32(1e-7), -128, IntGrid(8))
        assert "dequantize" in [op.kind for op in route(graph, target).ops]
        assert ("table" if kind == "relu" else "dequantize") in [
            op.kind for op in route(graph, target, integer_only=True).ops
        ]
