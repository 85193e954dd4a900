from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.ir import Op, QGraph, run, validate
from qi.ir.kinds import KINDS
from qi.ir.norms import OF_CODES, count_of, epsilon_of, normalize_codes, reciprocal_of
from qi.ir.routing import route
from tests.ir.graphs import act, codes_of, graph_of, real, weight

STEP = 0.0273
RNG = np.random.default_rng(0)
GAMMA, BETA = RNG.uniform(0.5, 1.5, 48), RNG.normal(0, 0.3, 48)


def norm(
    source: str = "codes", weights: int = 2, width: int = 48, kind: str = "layer_norm", epsilon: float = 1e-6
) -> QGraph:
    """A normalization of codes, or of real numbers."""
    x, y = real("x", 16, width), codes_of("y", 16, width, qparams=act(0.025, 3))
    constants = [weight("gamma", GAMMA[:width]), weight("beta", BETA[:width])][:weights]
    attrs: dict[str, Any] = {"axes": [2], "epsilon": epsilon}
    if source == "real":
        return graph_of(Op(kind, [x, *constants], [y], attrs, "norm"), inputs=[x])
    q = codes_of("q", 16, width, qparams=act(STEP, -3))
    return graph_of(Op("quantize", [x], [q]), Op(kind, [q, *constants], [y], attrs, "norm"), inputs=[x])


def samples(count: int = 64, width: int = 48) -> np.ndarray:
    return RNG.normal(0, 1.2, (count, 16, width)).astype(np.float32)


@pytest.mark.parametrize("target", ["litert", "onnxruntime", "reference"])
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_codes_themselves_are_normalized(kind: str, target: str) -> None:
    routed = route(norm(kind=kind, weights=1), target)
    validate(routed)
    found = routed.ops[2]
    if target == "reference":
        assert (found.kind, found.attrs) == (kind, {"axes": [2], "epsilon": 1e-6})
        return
    assert [op.kind for op in routed.ops] == ["quantize", "dequantize", f"{kind}_of_codes", "quantize"]
    step = float(np.float32(STEP))
    assert found.attrs == {"axes": [2], "epsilon": 1e-6, "step": step, "rounded": target == "onnxruntime"}


def test_real_numbers_without_a_grid_are_normalized_as_before() -> None:
    routed = route(norm("real"), "litert")
    before = [op.kind for op in routed.ops]
    normalize_codes(routed)
    assert [op.kind for op in routed.ops] == before == ["layer_norm", "quantize"]


@pytest.mark.parametrize("target", ["litert", "onnxruntime"])
@pytest.mark.parametrize(
    ("kind", "weights"), [("layer_norm", 0), ("layer_norm", 1), ("layer_norm", 2), ("rms_norm", 1)]
)
@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_it_computes_what_a_normalization_does(kind: str, weights: int, epsilon: float, target: str) -> None:
    routed = route(norm(weights=weights, kind=kind, epsilon=epsilon), target)
    y = run(routed, [samples()], every=True)
    of_codes = next(op for op in routed.ops if op.kind in OF_CODES)
    plain = Op(kind, of_codes.inputs, of_codes.outputs, {"axes": [2], "epsilon": epsilon})
    constants = [t.values() for t in of_codes.inputs[1:]]
    expected = KINDS.get(kind).real(plain, y[of_codes.x.name], *constants)
    np.testing.assert_allclose(y[of_codes.y.name], expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("target", ["litert", "onnxruntime"])
def test_the_order_of_sums_changes_no_bit(target: str) -> None:
    op = next(op for op in route(norm(weights=0), target).ops if op.kind in OF_CODES)
    kind = KINDS.get(op.kind)
    x = (RNG.integers(-128, 128, (64, 16, 48)).astype(np.float32) + 3) * np.float32(STEP)
    order = RNG.permutation(48)
    np.testing.assert_array_equal(kind.real(op, x[..., order]), kind.real(op, x)[..., order])


def test_the_neighbour_of_the_root_changes_no_bit() -> None:
    variance = RNG.uniform(0.01, 9000, 100_000).astype(np.float32)
    roots = [np.nextafter(np.sqrt(variance), np.float32(to)) for to in (0, np.inf)] + [np.sqrt(variance)]
    refined = [(root + variance / root) * np.float32(0.5) for root in roots]
    np.testing.assert_array_equal(refined[0], refined[2])
    np.testing.assert_array_equal(refined[1], refined[2])


@pytest.mark.parametrize("target", ["litert", "onnxruntime"])
def test_rows_of_one_number_give_no_nan(target: str) -> None:
    op = next(op for op in route(norm(weights=0, width=7), target).ops if op.kind in OF_CODES)
    x = np.broadcast_to(np.arange(-125, 131, dtype=np.float32)[:, None, None] * np.float32(STEP), (256, 16, 7))
    assert np.isfinite(KINDS.get(op.kind).real(op, x)).all()


def test_its_numbers() -> None:
    op = next(op for op in route(norm(weights=0), "litert").ops if op.kind in OF_CODES)
    assert count_of(op) == 48
    assert epsilon_of(op) == np.float32(1e-6 / float(np.float32(STEP)) ** 2)
    assert reciprocal_of(op) == np.float32(1) / np.float32(STEP)
