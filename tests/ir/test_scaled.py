from __future__ import annotations

import numpy as np
import pytest

from qi.ir import Op, QGraph, Tensor, run, validate
from qi.ir.routing import route
from qi.ir.scaled import scaled
from tests.ir.graphs import act, codes_of, graph_of, real

A = np.array([0.7, -1.3, 0.0, 1e-7], np.float32)
B = np.array([0.5, 2.0, -1.0, 3.0], np.float32)


def constant(name: str, array: np.ndarray) -> Tensor:
    return Tensor(name, array.shape, data=array)


def normalization(*sizes: int, a: np.ndarray = A, scale: float = 0.03) -> QGraph:
    x, y = codes_of("x", *sizes, qparams=act(0.02, 10)), codes_of("y", *sizes, qparams=act(scale, 3))
    middle = real("middle", *sizes)
    ops = [
        Op("mul", [x, constant("a", a)], [middle], {"activation": "none"}, "bn"),
        Op("add", [middle, constant("b", B)], [y], {"activation": "none"}, "bn"),
    ]
    return graph_of(*ops, inputs=[x])


@pytest.mark.parametrize("target", ["litert", "onnxruntime", "reference"])
@pytest.mark.parametrize("sizes", [(4,), (5, 4), (3, 2, 4), (2, 3, 2, 4)])
def test_a_normalization_is_a_convolution(sizes: tuple[int, ...], target: str) -> None:
    graph = route(normalization(*sizes), target, integer_only=True)
    validate(graph)
    kinds = [op.kind for op in graph.ops]
    assert kinds == (["depthwise_conv2d"] if len(sizes) == 3 else ["reshape", "depthwise_conv2d", "reshape"])
    codes = np.random.default_rng(0).integers(-128, 128, (64, *sizes))
    exact = ((codes - 10) * 0.02 * A + B) / 0.03 + 3
    assert np.abs(run(graph, [codes])["y"] - exact.clip(-128, 127)).max() < 0.51


def test_factors_are_not_rounded() -> None:
    graph = normalization(4, a=np.array([0.3, -2, 1e-2, 1], np.float32))
    (w, _) = next(op for op in scaled(graph, graph.ops, lambda op: True) if op.kind == "depthwise_conv2d").inputs[1:]
    np.testing.assert_allclose(w.values().reshape(-1), [0.3, -2, 1e-2, 1], rtol=2e-7)
    assert np.abs(w.data.astype(int)).tolist() == [[[127] * 4]]  # type: ignore[union-attr]


def test_subtractions_and_turned_operands() -> None:
    x, y = codes_of("x", 4), codes_of("y", 4, qparams=act(0.1, 0))
    for inputs, sign in (([x, constant("b", B)], 1), ([constant("b", B), x], -1)):
        graph = graph_of(Op("sub", inputs, [y], {"activation": "relu"}, "s"), inputs=[x])
        routed = route(graph, "litert", integer_only=True)
        assert [op.kind for op in routed.ops][1] == "depthwise_conv2d"
        codes = np.arange(-60, 60).reshape(-1, 1).repeat(4, 1)
        exact = np.maximum(sign * (codes - B / np.float32(0.1)), 0)
        assert np.abs(run(routed, [codes])["y"] - exact).max() < 0.51


def test_what_is_no_line_by_channel_is_none() -> None:
    graph = normalization(3, 4)
    graph.ops[0].inputs[1] = constant("a", np.ones((3, 4), np.float32))  # another within a channel
    assert scaled(graph, graph.ops, lambda op: True) == []
    graph.ops[0].inputs[1] = constant("a", A)
    assert scaled(graph, graph.ops, lambda op: False) == []  # no kernel
    graph.ops[0].attrs["activation"] = "relu"
    assert scaled(graph, graph.ops, lambda op: True) == []
    graph.ops[0].attrs["activation"] = "none"
    assert len(scaled(graph, graph.ops, lambda op: True)) == 3
    graph.ops[0].inputs[1], graph.ops[1].inputs[1] = (constant(n, np.full(1, 0.5, np.float32)) for n in "ab")
    assert scaled(graph, graph.ops, lambda op: True) == []  # one table is smaller
