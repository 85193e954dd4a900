"""Softmax in fixed point; tests/parity compares it with the reference kernel itself."""

from __future__ import annotations

import numpy as np
import pytest

from qi.ir import Op, run
from qi.ir.fixed_softmax import fixed_exponentials, reciprocal
from qi.ir.routing import route
from tests.ir.graphs import act, codes_of, graph_of


def softmax(scale: float, classes: int = 4) -> Op:
    y = codes_of("y", classes, qparams=act(1 / 256, -128))
    return Op("softmax", [codes_of("x", classes, qparams=act(scale, 3))], [y], {"axis": 1}, "s")


@pytest.mark.parametrize("scale", [0.001, 0.01, 0.1, 0.25, 1.0, 7.0])
def test_exponentials_have_some_twenty_bits(scale: float) -> None:
    found = fixed_exponentials(softmax(scale))
    assert found[0] == 2**31 - 1
    assert (np.diff(found) <= 0).all()
    np.testing.assert_allclose(found / 2**31, np.exp(-np.float32(scale) * np.arange(256.0)), atol=4e-7)


def test_what_lies_more_than_31_below_the_greatest_is_left_out() -> None:
    found = fixed_exponentials(softmax(1.0))
    assert found[31] == 0 or found[32] == 0
    assert not found[32:].any()


def test_reciprocals() -> None:
    total = np.unique(np.exp(np.random.default_rng(0).uniform(0, 21.4, 2000)).astype(np.int64))
    factor, zeros = reciprocal(total)
    assert (total >> (32 - zeros) == 0).all()
    assert (total >> (31 - zeros) == 1).all()
    np.testing.assert_allclose(factor.astype(float) / 2.0 ** (62 - zeros), 1 / total, rtol=1e-8)


def test_probabilities_are_right() -> None:
    codes = np.random.default_rng(1).integers(-128, 128, (500, 9))
    op = softmax(0.05, 9)
    found = run(graph_of(op, inputs=[op.x]), [codes], "reference")["y"]
    exact = np.exp(0.05 * codes) / np.exp(0.05 * codes).sum(axis=1, keepdims=True) * 256 - 128
    assert np.abs(found - exact.clip(-128, 127)).max() <= 0.501


@pytest.mark.parametrize(("classes", "real"), [(4095, False), (4096, True)])
def test_more_classes_than_the_sum_holds_are_done_in_float(classes: int, real: bool) -> None:
    op = softmax(0.1, classes)
    routed = route(graph_of(op, inputs=[op.x]), "reference", integer_only=True)
    assert ("dequantize" in [op.kind for op in routed.ops]) == real
