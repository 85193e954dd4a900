from __future__ import annotations

import json
from typing import Any

import pytest

from qi.exporters.proof import Agreement, Proof
from qi.exporters.report import ExportReport, rows_of

EQUAL = Proof(64, "given", (Agreement("y", 100, 0, 0.0),))
WRONG = Proof(64, "given", (Agreement("y", 100, 3, 2.0),), Agreement("conv", 50, 1, 1.0))


def report(proof: Proof = EQUAL, **options: Any) -> ExportReport:
    given = {"float_operations": ("layer_norm (norm)",), "file_bytes": 1000, "float_file_bytes": 3900}
    return ExportReport("m.onnx", "onnxruntime", proof, {"dense": 2, "add": 1}, **{**given, **options})


def test_a_report_shows_the_proof_and_the_price() -> None:
    found = report(latency=1e-4, float_latency=2.5e-4)
    text = str(found)
    assert text.startswith("Export: m.onnx for onnxruntime\n")
    for line in (
        "file against twin       equal, bit for bit, on 64 samples (given)",
        "integer operations      1 add, 2 dense",
        "float operations        layer_norm (norm)",
        "size                    3.90 kB -> 1.00 kB, 0.26x",
        "one sample, one thread  250 us -> 100 us, 0.40x",
    ):
        assert f"\n  {line}" in text
    assert found.exact
    assert (found.size_ratio, found.speedup) == (3.9, pytest.approx(2.5))


def test_a_difference_is_shown_with_its_first_tensor_and_warnings() -> None:
    text = str(report(WRONG, warnings=("look here",), float_operations=()))
    assert "\n  warning: look here\n" in text
    assert "of outputs differ, by at most 2 steps, on 64 samples (given)" in text
    assert "first difference    conv, 2" in text
    assert "float operations    none" in text
    assert not report(WRONG).exact


def test_times_that_were_not_measured_are_left_out() -> None:
    assert report().speedup is None
    assert "one thread" not in str(report())


def test_the_record_is_plain_json() -> None:
    found = json.loads(json.dumps(report(WRONG, warnings=("look",)).to_dict(), allow_nan=False))
    assert found["max_lsb"] == 2
    assert found["share_differing"] == 0.03
    assert (found["exact"], found["first_difference"], found["latency"]) == (False, "conv", None)
    assert (found["operations"], found["float_operations"]) == ({"dense": 2, "add": 1}, ["layer_norm (norm)"])
    assert found["warnings"] == ["look"]


def test_the_rows_of_a_proof() -> None:
    assert rows_of(EQUAL) == [("file against twin", "equal, bit for bit, on 64 samples (given)")]
    assert [name for name, _ in rows_of(WRONG)] == ["file against twin", "first difference"]
