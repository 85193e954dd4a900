from __future__ import annotations

from dataclasses import replace

from qi.ledger import QuantizationReport
from qi.ledger.plain import MAX_NAMES, MAX_ROWS, names_text, plain_text, shown_rows


def test_everything_is_in_the_text(report):
    text = plain_text(report)
    lines = text.splitlines()
    assert lines[0] == "Quantization report: small, recipe w4a8"
    assert "  warning: few samples" in lines
    assert "  warning: unused rule match='hed': matches no layer. Did you mean 'head'?" in lines
    assert any(line.split()[:3] == ["accuracy", "0.9", "0.875"] for line in lines)
    for row in report.rows:
        assert row.path in text
        assert row.reason in text
    assert "  in float, 2: left in float by rule match='head'\n    head/kernel, head/output" in text
    assert not any(line != line.rstrip() for line in lines)


def test_a_report_of_nothing_is_a_text_too():
    assert plain_text(QuantizationReport(recipe="w8", rows=())).startswith("Quantization report: model, recipe w8")


def test_large_models_show_the_worst(rows):
    many = tuple(replace(rows[1], layer=f"conv{index}", sqnr_db=float(index)) for index in range(MAX_ROWS + 1))
    report = QuantizationReport(recipe="w4", rows=tuple(reversed(many)))
    shown, note = shown_rows(report)
    assert [row.layer for row in shown] == [f"conv{index}" for index in range(MAX_ROWS // 2)]
    assert note == "the 30 with the lowest SQNR, of 61 quantized tensors"
    assert note in plain_text(report)
    assert "conv30/kernel" not in plain_text(report)
    assert shown_rows(QuantizationReport(recipe="w4", rows=many[1:])) == (many[1:], "")


def test_large_models_without_measurements_show_the_first(rows):
    many = tuple(replace(rows[1], layer=f"conv{index}", sqnr_db=None) for index in range(MAX_ROWS + 1))
    shown, note = shown_rows(QuantizationReport(recipe="w4", rows=many))
    assert shown == many[: MAX_ROWS // 2]
    assert note == "the first of 61 quantized tensors"


def test_long_lists_of_names_are_cut(rows):
    many = tuple(replace(rows[2], layer=f"conv{index}") for index in range(MAX_NAMES + 3))
    assert names_text(many).endswith("conv7/bias and 3 more")
    assert names_text(many[:2]) == "conv0/bias, conv1/bias"


def test_a_text_names_the_algorithms_and_what_they_brought(report):
    kernel = replace(report.rows[1], layer="block1_depthwise", algorithms="output_range, gptq", output_error=0.304)
    lines = plain_text(replace(report, rows=(*report.rows, kernel))).splitlines()
    assert lines[1] == "  algorithms: output_range, gptq (1 of 2 quantized weights)"
    (row,) = (line for line in lines if "block1_depthwise/kernel" in line)
    assert "30.4 %" in row
    assert any(line.startswith("  out. err: the expected squared error") for line in lines)
    assert "algorithms" not in plain_text(report)


def test_long_lists_of_algorithms_take_several_lines(report):
    told = "gptq (7 of 9 quantized weights); hqq (" + ", ".join(f"layer{place}/kernel" for place in range(8)) + ")"
    lines = plain_text(replace(report, settings={"algorithms": told})).splitlines()
    assert lines[1].startswith("  algorithms: gptq")
    assert lines[2].startswith("    layer")
    assert max(map(len, lines[1:3])) <= 110
    assert " ".join(line.strip() for line in lines[1:3]) == f"algorithms: {told}"


def test_a_text_says_why_nothing_was_measured(report):
    rows = tuple(replace(row, total_sqnr_db=None) for row in report.rows)
    stored = replace(report, rows=rows, settings={"calibration": "stored statistics"})
    assert "  SQNR and total dB of activations aren't known: " in plain_text(stored)
    assert "aren't known" not in plain_text(report)
