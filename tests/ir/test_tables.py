from __future__ import annotations

import numpy as np
import pytest

from qi.ir import Op, QGraph, Tensor, run, validate
from qi.ir.routing import route
from qi.ir.tables import tabulate
from tests.ir.graphs import act, codes_of, graph_of, real

ALL = np.arange(-128, 128).reshape(-1, 1)
TARGETS = ["litert", "onnxruntime", "reference"]


def swish(x: Tensor, y: Tensor) -> QGraph:
    return graph_of(Op("unary", [x], [y], {"function": "silu", "alpha": None}, "act"), inputs=[x])


@pytest.mark.parametrize("target", TARGETS)
def test_a_table_rounds_once(target: str) -> None:
    x, y = codes_of("x", 1, qparams=act(0.05, 3)), codes_of("y", 1, qparams=act(0.03, -100))
    graph = route(swish(x, y), target, integer_only=True)
    validate(graph)
    assert [op.kind for op in graph.ops] == ["table"]
    given = (ALL - 3) * np.float64(np.float32(0.05))
    expected = np.rint(given / (1 + np.exp(-given)) / np.float64(np.float32(0.03))) - 100
    np.testing.assert_array_equal(run(graph, [ALL])["y"], expected.clip(-128, 127))


def test_by_default_it_is_an_island() -> None:
    graph = swish(codes_of("x", 1), codes_of("y", 1))
    assert [op.kind for op in route(graph, "litert").ops] == ["dequantize", "unary", "quantize"]


def test_each_element_of_a_constant_has_its_table() -> None:
    x, y = codes_of("x", 2, 3), codes_of("y", 2, 3, qparams=act(0.2, 1))
    slopes = np.array([[0.5, -1, 2], [0, 0.25, 1]], np.float32)
    graph = graph_of(Op("prelu", [x, Tensor("a", slopes.shape, data=slopes)], [y], {}, "p"), inputs=[x])
    tabulate(graph, lambda op: False)
    (op,) = graph.ops
    assert (op.kind, op.inputs[1].shape, op.inputs[2].shape) == ("table", (6 * 256,), (2, 3))
    codes = np.random.default_rng(0).integers(-128, 128, (50, 2, 3))
    given = codes * np.float64(np.float32(0.1))
    expected = np.rint(np.where(given < 0, given * slopes, given) / np.float64(np.float32(0.2))) + 1
    np.testing.assert_array_equal(run(graph, [codes], "reference")["y"], expected.clip(-128, 127))


def test_what_is_no_number_is_zero_and_what_is_infinite_an_end() -> None:
    x, y = codes_of("x", 1), codes_of("y", 1, qparams=act(0.1, 7))
    graph = graph_of(Op("unary", [x], [y], {"function": "log", "alpha": None}, "f"), inputs=[x])
    tabulate(graph, lambda op: False)
    np.testing.assert_array_equal(run(graph, [np.array([[-5], [0], [10]])], "litert")["y"], [[7], [-128], [7]])


def test_several_functions_are_one_table() -> None:
    x, a, b, y = codes_of("x", 4), real("a", 4), real("b", 4), codes_of("y", 4, qparams=act(0.05, -128))
    half = Tensor("half", (), data=np.asarray(0.5, np.float32))
    ops = [
        Op("mul", [x, half], [a], {"activation": "none"}, "scale"),
        Op("unary", [a], [b], {"function": "square", "alpha": None}, "square"),
        Op("quantize", [b], [y], {}, "square"),
    ]
    graph = route(graph_of(*ops, inputs=[x]), "litert", integer_only=True)
    assert [(op.kind, op.source) for op in graph.ops] == [("table", "scale")]
    assert run(graph, [np.array([[10, 20, 40, -40]])])["y"].tolist() == [[-123, -108, -48, -48]]


def test_what_others_take_or_what_is_too_large_stays() -> None:
    x, a, y = codes_of("x", 4), real("a", 4), codes_of("y", 4)
    ops = [
        Op("unary", [x], [a], {"function": "silu", "alpha": None}, "f"),
        Op("quantize", [a], [y], {}, "f"),
    ]
    graph = graph_of(*ops, inputs=[x], outputs=[a, y])
    tabulate(graph, lambda op: False)
    assert graph.ops == ops
    x, y = codes_of("x", 1025), codes_of("y", 1025)
    graph = graph_of(Op("prelu", [x, Tensor("a", (1025,), data=np.ones(1025, np.float32))], [y], {}, "p"), inputs=[x])
    tabulate(graph, lambda op: False)
    assert [op.kind for op in graph.ops] == ["prelu"]
    x, y = codes_of("x", 4, qparams=act(0.1, 0, 16)), codes_of("y", 4)
    graph = swish(x, y)
    tabulate(graph, lambda op: False)
    assert [op.kind for op in graph.ops] == ["unary"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_greatest_of_two_is_rounded_but_once(target: str) -> None:
    a, b, y = codes_of("a", 1), codes_of("b", 1, qparams=act(0.03, 5)), codes_of("y", 1, qparams=act(0.04, -20))
    graph = route(graph_of(Op("maximum", [a, b], [y], {}, "m"), inputs=[a, b]), target, integer_only=True)
    validate(graph)
    assert [op.kind for op in graph.ops] == ["table", "table", "maximum"]
    other = np.random.default_rng(1).permutation(ALL)
    first, second = ALL * np.float64(np.float32(0.1)), (other - 5) * np.float64(np.float32(0.03))
    expected = np.rint(np.maximum(first, second) / np.float64(np.float32(0.04))) - 20
    np.testing.assert_array_equal(run(graph, [ALL, other])["y"], expected.clip(-128, 127))
