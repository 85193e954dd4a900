from __future__ import annotations

import numpy as np

from qi.ir import Op, Tensor
from qi.ir.routing import route
from qi.ir.unquantized import real_operations, told_real
from tests.ir.graphs import act, codes_of, graph_of, perceptron, real, weight, weight_only


def test_a_graph_of_integers_has_none() -> None:
    assert real_operations(route(perceptron(), "litert", integer_only=True)) == []
    assert told_real(route(perceptron(), "onnxruntime")) == ""


def test_what_has_no_kernel() -> None:
    x, y = codes_of("x", 4), codes_of("y", 4)
    norm = Op("layer_norm", [x], [y], {"axes": [1], "epsilon": 1e-3}, "norm")
    for target in ("litert", "onnxruntime", "reference"):
        routed = route(graph_of(norm, inputs=[x]), target, integer_only=True)
        assert told_real(routed) == "layer_norm in layer 'norm' (no integer kernel for it)"


def test_scales_beyond_a_kernel() -> None:
    a, y = codes_of("a", 4), codes_of("y", 4, qparams=act(1e-7))
    b = codes_of("b", 4)
    routed = route(graph_of(Op("add", [a, b], [y], {"activation": "none"}, "sum"), inputs=[a, b]), "litert")
    assert told_real(routed) == "add in layer 'sum' (no integer kernel for it with these scales, bits or constants)"


def test_weights_alone() -> None:
    for dynamic in (False, True):
        told = told_real(route(weight_only(perceptron()), "litert", integer_only=True, dynamic=dynamic))
        assert "in layer 'dense0'" in told
        assert "in layer 'dense1'" in told
        assert told.count("given real numbers") == 1


def test_a_layer_left_in_float_between_codes() -> None:
    x, y = codes_of("x", 4), codes_of("y", 2)
    w = weight("w", np.ones((4, 2)))
    routed = route(graph_of(Op("dense", [x, w], [y], {"activation": "none"}, "head"), inputs=[x]), "litert")
    assert told_real(routed) == "dense in layer 'head' (weights that aren't codes)"


def test_a_result_in_real_numbers() -> None:
    x, y = codes_of("x", 4), real("y", 4)
    half = Tensor("half", (), data=np.asarray(0.5, np.float32))
    op = Op("mul", [x, half], [y], {"activation": "none"}, "scale")
    routed = route(graph_of(op, inputs=[x]), "litert", integer_only=True)
    assert told_real(routed) == "mul in layer 'scale' (a result that isn't made codes)"


def test_a_function_is_told_by_its_name_and_each_layer_once() -> None:
    x, a, b = real("x", 4), real("a", 4), real("b", 4)
    ops = [
        Op("unary", [x], [a], {"function": "tanh", "alpha": None}, "f"),
        Op("unary", [a], [b], {"function": "tanh", "alpha": None}, "f"),
    ]
    routed = route(graph_of(*ops, inputs=[x]), "litert", integer_only=True)
    assert len(real_operations(routed)) == 2
    assert told_real(routed) == "tanh in layer 'f' (given real numbers)"


def test_what_only_moves_numbers_computes_nothing() -> None:
    x, y = real("x", 4), real("y", 2, 2)
    graph = graph_of(Op("reshape", [x], [y], {"shape": [None, 2, 2]}, "same"), inputs=[x])
    assert real_operations(route(graph, "litert", integer_only=True)) == []
