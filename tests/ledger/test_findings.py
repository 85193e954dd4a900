"""Sentences about a quantized model, from rows alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.errors import StrictError
from qi.ledger import Row
from qi.ledger.findings import check_strict, range_findings, unasked
from qi.observers import TensorStatistics


def row(layer: str = "a", **fields: Any) -> Row:
    return Row(
        **{"kind": "activation", "layer": layer, "layer_type": "Dense", "name": "output"}
        | {"status": "quantized", "bits": 8, "method": "uniform"}
        | fields
    )


def seen(*values: float) -> TensorStatistics:
    statistics = TensorStatistics()
    statistics.update(np.array(values, "float32"))
    return statistics


def test_nothing_to_say() -> None:
    assert range_findings([row(total_sqnr_db=40.0, clipped_share=0.01)], 32, {"a": seen(1)}) == []
    assert range_findings([row(total_sqnr_db=-np.inf)], 0, {}) == [], "a signal of zeros"


def test_few_samples() -> None:
    (line,) = range_findings([], 31, {"a": seen(1)})
    assert line.startswith("only 31 calibration samples")
    assert not range_findings([], 31, {}), "nothing needed them"


def test_saturation_names_the_worst() -> None:
    (line,) = range_findings([row("a", clipped_share=0.03), row("b", clipped_share=0.2)], 0, {})
    assert line.startswith("2 activation ranges saturate: b clips 20.0 %")


def test_drowned_signals_name_the_worst() -> None:
    (line,) = range_findings([row("a", total_sqnr_db=9.0), row("b", total_sqnr_db=3.0)], 0, {})
    assert "2 activations drown in error" in line
    assert "b has 3.0 dB" in line


def weight(bits: int = 4, **fields: Any) -> Row:
    return row("w", kind="weight", name="kernel", bits=bits, method="symmetric", **fields)


@pytest.mark.parametrize(
    ("weights", "efforts", "expected"),
    [
        (
            [weight(4), weight(3)],
            True,
            "do round the weights of 3 bits better with effort='balanced' first; if that isn't",
        ),
        ([weight(4), weight(3)], False, "do use more bits"),
        ([weight(4, algorithms="gptq"), weight(4)], True, "do use more bits"),
        ([weight(8)], True, "do use more bits"),
        ([], True, "do use more bits"),
    ],
)
def test_few_bits_without_algorithms_are_rounded_better_first(weights: list[Row], efforts: bool, expected: str) -> None:
    (line,) = range_findings([*weights, row("a", total_sqnr_db=3.0)], 0, {}, model="'small' by w4a8", efforts=efforts)
    assert line.startswith("1 activations drown in error in 'small' by w4a8 (total SQNR below 10 dB): a has 3.0 dB; ")
    assert expected in line
    assert line.endswith("in float by a rule")


def test_values_that_are_no_numbers() -> None:
    (line,) = range_findings([], 100, {"a": seen(1, np.nan), "b": seen(np.inf, -np.inf, 1)})
    assert "2 activations hold NaN or infinities" in line
    assert "2 values of b" in line


@pytest.mark.parametrize(
    ("shape", "name", "reason", "wanted", "expected"),
    [
        ((3, 4), "kernel", "no policy", True, True),
        ((3, 4), "kernel", "left in float by rule Rule(...)", True, False),
        ((3, 4), "kernel", "holds int32, not real numbers", True, False),
        ((3, 4), "kernel", "no policy", False, False),
        ((3, 4), "x/bias", "no policy", True, False),
        ((1, 4), "kernel", "no policy", True, False),
        ((4,), "kernel", "no policy", True, False),
    ],
)
def test_what_nobody_asked_to_leave(shape: Any, name: str, reason: str, wanted: bool, expected: bool) -> None:
    found = row(kind="weight", status="float", bits=None, method=None, shape=shape, name=name, reason=reason)
    assert unasked(found, wanted) is expected


def test_strictness_lists_all() -> None:
    left = [row("a", kind="weight", status="float", bits=None, method=None, shape=(3, 4), name="kernel", reason="so")]
    check_strict(left, False)
    check_strict([], True)
    with pytest.raises(StrictError, match=r"received 1 that stay in float:\n  a/kernel \(3, 4\): so"):
        check_strict(left, True)
