"""Functions of codes whose results no processor rounds otherwise than another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.ir import Op, QGraph, run, validate
from qi.ir.elementwise import FUNCTIONS
from qi.ir.kinds import KINDS, kernel_of
from qi.ir.margins import ULP, clear_of_ties, codes_before, settle
from qi.ir.routing import route
from tests.ir.graphs import act, codes_of, graph_of, real

CODES = np.arange(-128, 128)[:, None]
DONE_IN_REAL = ("gelu", "gelu_tanh", "silu", "tanh", "exp", "softplus", "hard_swish", "elu")


def function(name: str, scale: float, zero_point: int, into: float, to: int = 0) -> QGraph:
    """A function of codes, before any routing."""
    x, y = codes_of("x", 1, qparams=act(scale, zero_point)), codes_of("y", 1, qparams=act(into, to))
    return graph_of(Op("unary", [x], [y], {"function": name, "alpha": 1.0}, "f"), inputs=[x])


def test_numbers_near_a_half_are_not_clear() -> None:
    steps, error = np.array([0.5, 0.4, 0.61, -1.5, -1.38, 7.0]), np.full(6, 0.1)
    assert clear_of_ties(steps, error).tolist() == [False, False, True, False, True, True]


def test_ties_are_moved_and_nothing_else() -> None:
    plain = function("abs", 1.0, 0, 2.0)
    routed = route(plain, "onnxruntime")
    validate(routed)
    assert [op.kind for op in routed.ops] == ["dequantize", "unary", "mul", "quantize"]
    (factor,) = routed.ops[2].inputs[1].values()
    assert factor == 1 - 2**-15  # 2**-16 would do for small codes, but not for the error that 127 may have
    found = run(routed, [CODES])["y"].ravel()
    halves = np.abs(np.arange(-128, 128)) / 2
    assert found.tolist() == np.floor(halves).tolist()  # all ties go down now


def test_what_is_clear_stays_as_it_is() -> None:
    assert [op.kind for op in route(function("abs", 1.0, 0, 1.0), "onnxruntime").ops] == [
        "dequantize",
        "unary",
        "quantize",
    ]


def test_real_numbers_are_none_of_its_business() -> None:
    x, h, y = real("x", 4), real("h", 4), codes_of("y", 4, qparams=act(2.0))
    graph = graph_of(Op("unary", [x], [h], {"function": "abs", "alpha": None}), Op("quantize", [h], [y]), inputs=[x])
    settle(graph)
    assert [op.kind for op in graph.ops] == ["unary", "quantize"]
    assert codes_before(x, graph.producers()) is None


@given(
    st.sampled_from(DONE_IN_REAL),
    st.floats(0.0078125, 0.0625, width=32),
    st.integers(-128, 127),
    st.floats(0.00390625, 0.0625, width=32),
    st.integers(-128, 127),
)
def test_errors_of_kernels_change_no_code(name: str, scale: float, zero_point: int, into: float, to: int) -> None:
    """Of either sign, as large as those measured of LiteRT and ONNX Runtime."""
    for target in ("litert", "onnxruntime"):
        routed = route(function(name, scale, zero_point, into, to), target)
        if routed.ops[0].quantized:
            continue  # it has a kernel on codes
        x = kernel_of(routed.ops[0], target)(routed.ops[0], CODES)
        exact = FUNCTIONS.get(name)(x.astype(np.float64), routed.ops[1])
        expected = run(routed, [CODES])["y"]
        for sign in (-1, 1):
            error = 8 * ULP * (np.abs(exact) * (1 + np.abs(x) / 8) + np.abs(x) / 2 + 0.5)
            y = (exact + sign * error).astype(np.float32)
            for op in routed.ops[2:-1]:
                y = KINDS.get(op.kind).real(op, y, op.inputs[1].values())
            np.testing.assert_array_equal(kernel_of(routed.ops[-1], target)(routed.ops[-1], y), expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_only_few_codes_are_looked_at(bits: int) -> None:
    x, y = codes_of("x", 1, qparams=act(1.0, bits=bits)), codes_of("y", 1, qparams=act(2.0))
    graph = graph_of(Op("unary", [x], [y], {"function": "abs", "alpha": None}, "f"), inputs=[x])
    assert ("mul" in [op.kind for op in route(graph, "onnxruntime").ops]) is (bits == 8)
