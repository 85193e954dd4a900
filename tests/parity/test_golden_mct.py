"""Our quantizers against recorded results of mct-quantizers 1.7.0; tests/golden/README.md states the differences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qi.quantizers
from qi.core import IntGrid
from qi.quantizers import BaseInferableQuantizer

FOLDER = Path(__file__).resolve().parents[1] / "golden"
CASES: list[dict[str, Any]] = json.loads((FOLDER / "mct_keras_index.json").read_text(encoding="utf-8"))["cases"]
RECORDED = [case for case in CASES if "exception" not in case]
RELATIVE = 1e-6  # a few units in the last place of float32


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "mct_keras_inputs.npz", allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(scope="module")
def outputs() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "mct_keras_outputs.npz", allow_pickle=False) as file:
        return dict(file)


def build(case: dict[str, Any]) -> BaseInferableQuantizer:
    return getattr(qi.quantizers, case["cls"])(**case["params"])


def given_range(q: BaseInferableQuantizer) -> tuple[np.ndarray, np.ndarray]:
    """The range as it was given, stretched to contain 0: its ends lie between codes when the zero point was a tie."""
    config = q.get_config()
    if "min_range" not in config:
        return q.min_range, q.max_range
    return np.minimum(config["min_range"], 0.0), np.maximum(config["max_range"], 0.0)


def near_a_tie(q: BaseInferableQuantizer, x: np.ndarray) -> np.ndarray:
    """Where x, clipped to the range, lies within rounding noise of the middle between two codes."""
    if not isinstance(q.grid, IntGrid):
        return np.zeros(x.shape, bool)
    scale = q.qparams(x.shape).scale.astype(np.float64)
    lo, hi = (np.broadcast_to(np.reshape(end, scale.shape if end.size > 1 else ()), x.shape) for end in given_range(q))
    with np.errstate(invalid="ignore"):
        return np.abs(np.clip(x, lo, hi) / scale % 1 - 0.5) <= max(1e-6, 2.0 ** (q.num_bits - 24))


def test_the_index_is_complete(inputs, outputs):
    assert len(CASES) == 170
    assert len(RECORDED) == 169
    assert {case["output"] for case in RECORDED} == set(outputs)
    assert {case["input"] for case in CASES} == set(inputs)


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["id"])
def test_results_are_theirs(case, inputs, outputs):
    x, theirs = inputs[case["input"]], outputs[case["output"]]
    q = build(case)
    ours = q(x)
    assert ours.dtype == theirs.dtype == np.dtype(case["out_dtype"])
    same = np.isclose(ours, theirs, rtol=RELATIVE, atol=0, equal_nan=True)
    if "LUT" in case["cls"].upper():
        same |= np.isnan(x) & np.isnan(ours)
    assert np.all(same | near_a_tie(q, x))
    step = np.broadcast_to(q.qparams(x.shape).scale, x.shape)
    apart = np.abs(ours.astype(np.float64) - theirs)
    noise = RELATIVE * np.maximum(np.abs(ours), np.abs(theirs))
    assert np.all((np.abs(apart - step) <= noise)[~same])


def test_ties_are_where_they_differ(inputs, outputs):
    """Both sides of the rule are seen: ties that go the other way, and ties that go the same way."""
    case = next(case for case in RECORDED if case["id"] == "a_pot_s_b4_ties")
    x, theirs = inputs[case["input"]], outputs[case["output"]]
    tie, different = near_a_tie(build(case), x), build(case)(x) != theirs
    assert np.all(tie[different])
    assert different.any()
    assert (tie & ~different).any()


@pytest.mark.parametrize("case", [c for c in RECORDED if "derived" in c], ids=lambda case: case["id"])
def test_ranges_are_theirs(case):
    q = build(case)
    shift = 0.0
    if case["id"] == "a_uni_b16_mid":  # -min / scale is a tie there: the whole range lies one step lower
        shift = float(q.qparams(()).scale)
    for name, theirs in case["derived"].items():
        np.testing.assert_allclose(getattr(q, name).ravel() + shift, np.ravel(theirs), rtol=RELATIVE)


def test_nan_through_a_table_stays_nan(inputs, outputs):
    case = next(case for case in RECORDED if "nan_inf" in case["tags"])
    x = inputs[case["input"]]
    nan = np.isnan(x)
    assert nan.any()
    assert not np.isnan(outputs[case["output"]]).any()
    assert np.array_equal(np.isnan(build(case)(x)), nan)


def test_one_threshold_for_many_channels_is_broadcast(inputs):
    (case,) = (case for case in CASES if "exception" in case)
    x = inputs[case["input"]]
    assert case["params"]["per_channel"]
    assert len(case["params"]["threshold"]) == 1 < x.shape[-1]
    several = build(case | {"params": case["params"] | {"threshold": case["params"]["threshold"] * x.shape[-1]}})
    np.testing.assert_array_equal(build(case)(x), several(x))
