from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.ir import Op, QGraph, run, validate
from qi.ir.kinds import KINDS
from qi.ir.norms import normalize_codes, reciprocals
from qi.ir.routing import route
from tests.ir.graphs import act, codes_of, graph_of, real, weight

STEP = 0.0273
RNG = np.random.default_rng(0)
GAMMA, BETA = RNG.uniform(0.5, 1.5, 48), RNG.normal(0, 0.3, 48)


def norm(source: str = "codes", weights: int = 2, width: int = 48) -> QGraph:
    """A normalization of codes, or of real numbers."""
    x, y = real("x", 16, width), codes_of("y", 16, width, qparams=act(0.025, 3))
    constants = [weight("gamma", GAMMA[:width]), weight("beta", BETA[:width])][:weights]
    attrs: dict[str, Any] = {"axes": [2], "epsilon": 1e-6}
    if source == "real":
        return graph_of(Op("layer_norm", [x, *constants], [y], attrs, "norm"), inputs=[x])
    q = codes_of("q", 16, width, qparams=act(STEP, -3))
    return graph_of(Op("quantize", [x], [q]), Op("layer_norm", [q, *constants], [y], attrs, "norm"), inputs=[x])


def samples(count: int = 64, width: int = 48) -> np.ndarray:
    return RNG.normal(0, 1.2, (count, 16, width)).astype(np.float32)


def test_litert_normalizes_the_codes_themselves() -> None:
    routed = route(norm(), "litert")
    validate(routed)
    assert [op.kind for op in routed.ops] == ["quantize", "dequantize", "layer_norm_of_codes", "quantize"]
    assert routed.ops[2].attrs == {"axes": [2], "epsilon": 1e-6, "step": float(np.float32(STEP))}
    assert "layer_norm" in [op.kind for op in route(norm(), "onnxruntime").ops]


def test_real_numbers_without_a_grid_are_normalized_as_before() -> None:
    routed = route(norm("real"), "litert")
    before = [op.kind for op in routed.ops]
    normalize_codes(routed)
    assert [op.kind for op in routed.ops] == before == ["layer_norm", "quantize"]


@pytest.mark.parametrize("weights", [0, 1, 2])
def test_it_computes_what_a_normalization_does(weights: int) -> None:
    routed = route(norm(weights=weights), "litert")
    x = samples()
    y = run(routed, [x], every=True)
    of_codes = next(op for op in routed.ops if op.kind == "layer_norm_of_codes")
    plain = Op("layer_norm", of_codes.inputs, of_codes.outputs, {"axes": [2], "epsilon": 1e-6})
    constants = [t.values() for t in of_codes.inputs[1:]]
    expected = KINDS.get("layer_norm").real(plain, y[of_codes.x.name], *constants)
    np.testing.assert_allclose(y[of_codes.y.name], expected, rtol=2e-5, atol=2e-6)


def test_the_order_of_sums_and_the_neighbour_of_the_root_change_no_bit() -> None:
    op = next(op for op in route(norm(weights=0), "litert").ops if op.kind == "layer_norm_of_codes")
    kind = KINDS.get(op.kind)
    x = (RNG.integers(-128, 128, (64, 16, 48)).astype(np.float32) + 3) * np.float32(STEP)
    order = RNG.permutation(48)
    np.testing.assert_array_equal(kind.real(op, x[..., order]), kind.real(op, x)[..., order])
    variance = RNG.uniform(0.01, 9000, 100_000).astype(np.float32)
    roots = [np.nextafter(np.sqrt(variance), np.float32(to)) for to in (0, np.inf)] + [np.sqrt(variance)]
    refined = [(root + variance / root) * np.float32(0.5) for root in roots]
    np.testing.assert_array_equal(refined[0], refined[2])
    np.testing.assert_array_equal(refined[1], refined[2])


def test_rows_of_one_number_give_no_nan() -> None:
    op = next(op for op in route(norm(weights=0), "litert").ops if op.kind == "layer_norm_of_codes")
    x = np.broadcast_to(np.arange(-125, 131, dtype=np.float32)[:, None, None] * np.float32(STEP), (256, 16, 48))
    y = KINDS.get(op.kind).real(op, x)
    assert np.isfinite(y).all()
    assert reciprocals(op)[2] == np.float32(1e-6 / float(np.float32(STEP)) ** 2)
