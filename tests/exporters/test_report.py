from __future__ import annotations

import json
from typing import Any

import pytest

from qi.exporters.proof import Agreement, Proof
from qi.exporters.report import ExportReport, rows_of, told_difference

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


def real(relative: float, beyond: int = 0, *, dynamic: bool = False) -> Proof:
    """Of an output that has no codes."""
    return Proof(64, "given", (Agreement("y", 200, 90, 255 * relative, relative, beyond),), dynamic=dynamic)


def test_real_numbers_are_told_of_by_their_size() -> None:
    (row,) = rows_of(real(3e-7))
    told = "equal within float rounding (largest difference 3e-07 of the output's largest value), on 64 samples (given)"
    assert row == ("file against twin", told)
    (row,) = rows_of(real(2e-3, 3))
    assert row[1].startswith("1.5 % of outputs differ, by at most 0.002 of an output's largest value")
    (row,) = rows_of(real(2e-3, 3, dynamic=True))
    assert row[1].startswith(
        "equal within rounding: 1.5 % of outputs are up to 0.002 of an output's largest value apart"
    )
    assert (
        told_difference(real(2e-3, 3)) == "1.500% of the outputs differ, by at most 0.002 of an output's largest value"
    )
    both = Proof(64, "given", (*real(2e-3, 3).outputs, *WRONG.outputs))
    assert told_difference(both).endswith("by at most 2 steps or 0.002 of an output's largest value")
    assert (report(real(3e-7)).equal, report(real(3e-7)).exact, report(real(2e-3, 3)).equal) == (True, False, False)


def test_where_all_is_in_float_no_list_is_shown() -> None:
    found = report(weights_only=True, float_operations=("dynamic_dense (a)", "softmax (b)"))
    told = "all of it: only weights are in integers; 1 of them round their inputs to 8 bits as they come"
    assert f"float operations    {told}" in str(found)
    assert "round" not in str(report(weights_only=True))
    assert found.to_dict()["float_operations"] == ["dynamic_dense (a)", "softmax (b)"]


def test_notes_are_shown() -> None:
    found = report(notes=("the file takes one sample at a time",))
    assert "note                the file takes one sample at a time" in str(found)
    assert found.to_dict()["notes"] == ["the file takes one sample at a time"]


def test_the_rows_of_a_proof() -> None:
    assert rows_of(EQUAL) == [("file against twin", "equal, bit for bit, on 64 samples (given)")]
    assert [name for name, _ in rows_of(WRONG)] == ["file against twin", "first difference"]
