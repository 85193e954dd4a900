from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, QParams
from qi.ir import Op, QGraph, run
from qi.ir.litert import packed_bits
from qi.ir.routing import route
from tests.ir.graphs import act, codes_of, graph_of, weight
from tests.parity.operations import case


def one(kind: str, scales: tuple[float, ...], zeros: tuple[int, ...], **attrs: object) -> QGraph:
    """An operation of two inputs on codes of given scales and zero points."""
    *inputs, y = (codes_of(n, 1, qparams=act(s, z)) for n, s, z in zip("aby", scales, zeros, strict=True))
    return graph_of(Op(kind, inputs, [y], attrs, "layer"), inputs=inputs)


def kinds(graph: QGraph, **options: bool) -> list[str]:
    return [op.kind for op in route(graph, "litert", **options).ops]


def test_products_round_half_to_even() -> None:
    graph = one("mul", (0.5, 1.0, 1.0), (0, 0, 0), activation="none")
    found = run(graph, [np.array([[1], [3], [-1], [-3]]), np.ones((4, 1))], "litert")["y"]
    assert found.ravel().tolist() == [0, 2, 0, -2]


def test_sums_round_half_up() -> None:
    graph = one("add", (0.5, 0.5, 1.0), (0, 0, 0), activation="none")
    found = run(graph, [np.array([[1], [3], [-1], [-3]]), np.zeros((4, 1))], "litert")["y"]
    assert found.ravel().tolist() == [1, 2, 0, -1]


def test_pools_round_half_away() -> None:
    x, y = codes_of("x", 1, 2, 1), codes_of("y", 1, 1, 1)
    op = Op("avg_pool2d", [x], [y], {"pool": [1, 2], "strides": [1, 1], "pads": [0, 0, 0, 0]}, "pool")
    found = run(graph_of(op, inputs=[x]), [np.array([[1, 2], [-1, -2], [4, 5]]).reshape(3, 1, 2, 1)], "litert")["y"]
    assert found.ravel().tolist() == [2, -2, 5]


def test_pools_to_another_scale() -> None:
    x, y = codes_of("x", 1, 2, 1, qparams=act(0.1, 4)), codes_of("y", 1, 1, 1, qparams=act(0.2, 0))
    op = Op("avg_pool2d", [x], [y], {"pool": [1, 2], "strides": [1, 1], "pads": [0, 0, 0, 0]}, "pool")
    for target in ("litert", "reference"):
        found = run(graph_of(op, inputs=[x]), [np.array([[14, 14]]).reshape(1, 1, 2, 1)], target)["y"]
        assert found.ravel().tolist() == [5]


@pytest.mark.parametrize(
    ("bits", "kind", "expected"),
    [(4, "dense", 4), (2, "dense", 2), (8, "dense", 8), (3, "dense", 8), (4, "conv2d_transpose", 8)],
)
def test_packed_bits(bits: int, kind: str, expected: int) -> None:
    w = weight("w", np.ones((2, 2)), [0.1, 0.1])
    assert w.qparams is not None
    w.qparams = QParams(w.qparams.scale, w.qparams.zero_point, IntGrid(bits, narrow=True), w.qparams.granularity)
    assert packed_bits(Op(kind, [codes_of("x", 2), w], [codes_of("y", 2)], {})) == expected


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        (one("add", (1.0, 1.0, 1e-4), (0, 0, 0), activation="none"), "a ratio beyond 256"),
        (one("mul", (1.0, 1.0, 1e-4), (0, 0, 0), activation="none"), "a ratio beyond 256"),
        (one("maximum", (1.0, 0.5, 1.0), (0, 0, 0)), "several scales"),
    ],
)
def test_what_xnnpack_refuses_is_done_in_float(graph: QGraph, why: str) -> None:
    assert "dequantize" in kinds(graph), why
    assert ("dequantize" in kinds(graph, integer_only=True)) == (graph.ops[-1].kind != "maximum")
    assert kinds(graph)[-1] == "quantize"


def test_preferences_for_float_are_only_that() -> None:
    slow, fast = (one("batch_matmul", (0.1, 0.1, 0.1), (0, z, 0), transpose_a=False, transpose_b=False) for z in (5, 0))
    assert kinds(fast) == ["batch_matmul"]
    assert "dequantize" in kinds(slow)
    assert kinds(slow, integer_only=True) == ["batch_matmul"]


@pytest.mark.parametrize(("size", "coded"), [(10, True), (5000, False)])
def test_small_softmaxes_stay_integers(size: int, coded: bool) -> None:
    x, y = codes_of("x", size), codes_of("y", size, qparams=act(1 / 256, -128))
    graph = graph_of(Op("softmax", [x], [y], {"axis": 1}, "s"), inputs=[x])
    assert kinds(graph) == (["softmax"] if coded else ["dequantize", "softmax_of_codes", "quantize"])


def test_softmaxes_stay_where_no_gain_keeps_sums_whole() -> None:
    x, y = codes_of("x", 2, 20_000), codes_of("y", 2, 20_000, qparams=act(1 / 256, -128))
    assert kinds(graph_of(Op("softmax", [x], [y], {"axis": 2}, "s"), inputs=[x])) == ["softmax"]


def test_a_dead_layer_does_not_stop_the_export() -> None:
    """A layer that always gives 0 has a scale so small that XNNPACK won't make the step to it."""
    graph = case("dense", 1)
    y = graph.ops[-1].y
    y.qparams = QParams(np.float32(1e-9), -128, IntGrid(8))
    routed = route(graph, "litert", integer_only=True)
    assert [op.kind for op in routed.ops] == ["quantize", "dequantize", "dense", "quantize"]
