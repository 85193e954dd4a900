from __future__ import annotations

import numpy as np
import pytest

from qi.errors import InputError
from qi.ir import Op, QGraph, Tensor, run
from qi.ir.dynamic import quantized_rows
from qi.ir.routing import route
from tests.ir.graphs import codes_of, graph_of, grouped, real, weight

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def dense(w: Tensor | None = None, x: Tensor | None = None) -> QGraph:
    x = x or real("x", 4)
    w = w or weight("w", np.arange(-6, 6).reshape(4, 3), [0.1, 0.2, 0.3])
    bias = Tensor("b", (3,), data=np.float32([0.5, 0, -0.5]))
    return graph_of(Op("dense", [x, w, bias], [real("y", 3)], {"activation": "relu"}, "d"), inputs=[x])


def kinds(graph: QGraph) -> list[str]:
    return [op.kind for op in graph.ops]


def test_rows_have_scales_of_their_own() -> None:
    codes, unit = quantized_rows(np.float32([[-1, 0, 1.55], [0, 0, 0], [2, 4, 5.1], [-5.1, -4, -2]]))
    assert codes.tolist() == [[-100, 0, 155], [0, 0, 0], [100, 200, 255], [-255, -200, -100]]
    np.testing.assert_allclose(unit.ravel(), [0.01, 1, 0.02, 0.02], rtol=1e-6)


def test_products_of_coded_weights_become_dynamic() -> None:
    routed = route(dense(), "litert")
    assert kinds(routed) == ["dynamic_dense"]
    found, plain = run(routed, [X])["y"], run(dense(), [X], "litert")["y"]
    codes, unit = quantized_rows(X)
    expected = (codes @ np.arange(-6.0, 6).reshape(4, 3)) * unit * np.float64([0.1, 0.2, 0.3]) + [0.5, 0, -0.5]
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-6, atol=1e-6)
    assert 0 < np.abs(found - plain).max() < 0.03
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    "graph",
    [
        dense(weight("w", np.ones((4, 3)))),
        dense(grouped("w", np.random.default_rng(0), (4, 3), 2)),
        dense(x=codes_of("x", 4)),
    ],
    ids=["real weights", "groups", "codes as input"],
)
def test_others_stay(graph: QGraph) -> None:
    assert "dynamic_dense" not in kinds(route(graph, "litert"))


@pytest.mark.parametrize(("target", "dynamic"), [("onnxruntime", True), ("reference", True), ("litert", False)])
def test_only_where_there_is_a_kernel_and_where_wanted(target: str, dynamic: bool) -> None:
    assert kinds(route(dense(), target, dynamic=dynamic)) == ["dense"]


def test_the_graph_itself_stays() -> None:
    graph = dense()
    route(graph, "litert")
    assert kinds(graph) == ["dense"]


def test_real_weights_are_refused() -> None:
    graph = dense(weight("w", np.ones((4, 3))))
    graph.ops[0].kind = "dynamic_dense"
    with pytest.raises(InputError, match="expected constant weights with codes"):
        run(graph, [X], "litert")
