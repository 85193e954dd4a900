"""Softmax of codes: the same numbers whatever the last bits of exponentials are, and in whatever order they are added."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.core import IntGrid, QParams
from qi.ir import Op, QGraph, Tensor, run, validate
from qi.ir.elementwise import FUNCTIONS  # noqa: F401 - the kinds of operations are registered
from qi.ir.kinds import KINDS
from qi.ir.margins import ULP
from qi.ir.routing import route
from qi.ir.softmax import logarithm_of_gain, soften_codes
from tests.ir.graphs import act, codes_of, graph_of, real

RNG = np.random.default_rng(0)
PROBABILITY = act(1 / 256, -128)


def scores(scale: float = 0.05, zero_point: int = 3, bits: int = 8) -> Tensor:
    return codes_of("x", 8, 200, qparams=QParams(np.float32(scale), zero_point, IntGrid(bits)))


def attention(mask: Any = None, axis: int = 2, source: Tensor | None = None) -> QGraph:
    """A softmax of codes, of which a mask may hide some."""
    x = source or scores()
    y = codes_of("y", 8, 200, qparams=PROBABILITY)
    if mask is None:
        return graph_of(Op("softmax", [x], [y], {"axis": axis}, "s"), inputs=[x])
    hidden = Tensor("mask", mask.shape, data=mask)
    masked = real("masked", 8, 200)
    add = Op("add", [x, hidden], [masked], {"activation": "none"}, "s")
    return graph_of(add, Op("softmax", [masked], [y], {"axis": axis}, "s"), inputs=[x])


def kinds(graph: QGraph, target: str = "litert") -> list[str]:
    routed = route(graph, target)
    validate(routed)
    return [op.kind for op in routed.ops]


def causal() -> np.ndarray:
    return np.where(np.tri(8, 200, 100) > 0, np.float32(0), np.float32(-1e9))


@given(st.floats(2.0**-10, 0.25, width=32), st.integers(-128, 127), st.sampled_from([2, 64, 200, 1024, 4096]))
def test_exponentials_stay_away_from_ties(scale: float, zero_point: int, count: int) -> None:
    shift = logarithm_of_gain(scores(scale, zero_point), count)
    assert shift is not None
    assert shift == np.float32(shift)
    below = np.float64(np.float32(scale)) * np.arange(256)
    exact = np.exp(shift - below)
    assert 1000 <= exact[0] <= 8193
    assert count * np.rint(exact[0]) < 2**24
    largest = np.float64(np.float32(scale)) * max(127 - zero_point, 128 + zero_point)
    for sign in (-1, 1):
        error = sign * ULP * (2 * largest + (largest + shift) + np.maximum(shift, below) + 10)
        np.testing.assert_array_equal(np.rint(exact * np.exp(error)), np.rint(exact))


@pytest.mark.parametrize("target", ["litert", "onnxruntime"])
@pytest.mark.parametrize("mask", [None, causal()])
def test_it_gives_what_a_softmax_gives(target: str, mask: np.ndarray | None) -> None:
    graph = attention(mask, source=scores(0.05) if mask is not None else None)
    for op in graph.ops:
        op.x.shape = (None, 8, 200) if op.x.qparams is None else op.x.shape
    routed = route(graph, target)
    codes = RNG.integers(-128, 128, (64, 8, 200))
    values = run(routed, [codes], every=True)
    if mask is None and target == "onnxruntime":
        assert "softmax" in [op.kind for op in routed.ops]  # it is small
        return
    softmax = next(op for op in routed.ops if op.kind == "softmax_of_codes")
    plain = Op("softmax", softmax.inputs, softmax.outputs, {"axis": 2})
    expected = KINDS.get("softmax").real(plain, values[softmax.x.name])
    np.testing.assert_allclose(values[softmax.y.name], expected, atol=6e-4)
    assert np.abs(values["y"] - np.rint(expected * 256) + 128).max() <= 1
    if mask is not None:
        assert not values[softmax.y.name][:, mask < 0].any()


def test_the_order_of_sums_changes_no_bit() -> None:
    op = next(op for op in route(attention(), "litert").ops if op.kind == "softmax_of_codes")
    x = (RNG.integers(-128, 128, (16, 8, 200)) - 3).astype(np.float32) * np.float32(0.05)
    order, kind = RNG.permutation(200), KINDS.get(op.kind)
    np.testing.assert_array_equal(kind.real(op, x[..., order]), kind.real(op, x)[..., order])


def test_which_targets_take_it() -> None:
    island = ["dequantize", "softmax_of_codes", "quantize"]
    assert kinds(attention()) == island
    assert kinds(attention(), "reference") == ["softmax"]
    assert kinds(attention(), "onnxruntime") == ["softmax"]
    large, y = (codes_of(name, 64, 200, qparams=q) for name, q in (("x", act(0.05)), ("y", PROBABILITY)))
    assert kinds(graph_of(Op("softmax", [large], [y], {"axis": 2}, "s"), inputs=[large]), "onnxruntime") == island
    assert kinds(attention(causal()), "onnxruntime") == ["dequantize", "add", "softmax_of_codes", "quantize"]


def test_what_is_added_must_be_a_mask() -> None:
    bias = causal() + np.float32(0.25)
    assert "softmax_of_codes" not in kinds(attention(bias))
    fused = attention(causal())
    fused.ops[0].attrs["activation"] = "relu"
    assert "softmax_of_codes" not in kinds(fused)


def test_real_scores_stay_real() -> None:
    x, y = real("x", 8), real("y", 8)
    graph = graph_of(Op("softmax", [x], [y], {"axis": 1}, "s"), inputs=[x])
    soften_codes(graph)
    assert graph.ops[0].kind == "softmax"


@pytest.mark.parametrize(("bits", "count"), [(16, 64), (8, None), (8, 20_000)])
def test_what_has_no_gain(bits: int, count: int | None) -> None:
    assert logarithm_of_gain(scores(bits=bits), count) is None
    if bits == 16:
        assert kinds(attention(source=scores(bits=16)), "onnxruntime") == ["dequantize", "softmax", "quantize"]
