from __future__ import annotations

import re
from dataclasses import replace

from qi.ledger import Evaluation, QuantizationReport
from qi.report import markdown


def test_every_part_is_there(make_report):
    report = make_report(
        3,
        description="weights 4 bits",
        warnings=["few samples"],
        settings={"samples": 32},
        evaluations=[Evaluation(metric="accuracy", float_value=0.9, quantized_value=0.875, samples=8)],
    )
    text = markdown(report)
    assert text.startswith(
        "# Quantization report: small, recipe w4a8\n\nweights 4 bits\n\n> **Warning:** few samples\n"
    )
    assert text.endswith("\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Evaluation", "Quantized", "Left in float", "Settings"]
    assert "| accuracy | 0.9 | 0.875 | -0.025 | - | 8 |" in text
    assert "| block/conv0/kernel | Conv2D | symmetric, per channel | 4 | 3.0 | - | - | 400 B -\\> 50 B |" in text
    assert "- a bias (3): block/conv0/bias, block/conv1/bias, block/conv2/bias" in text


def test_tables_have_as_many_cells_in_every_line(make_report):
    tables = [block for block in markdown(make_report(3)).split("\n\n") if block.startswith("|")]
    for block in tables:
        assert len({line.count(" | ") for line in block.splitlines()}) == 1


def test_names_never_become_markup(nasty_report):
    text = markdown(nasty_report)
    # Undo every escape: what is left of the special characters must be the document's own.
    bare = re.sub(r"\\.", "", text)
    assert "<" not in bare
    assert "`" not in bare
    assert "[" not in bare
    assert "$" not in bare
    assert bare.replace("**", "").count("*") == 0
    rows = [line for line in bare.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in rows} == {7, 9}


def test_line_breaks_in_a_name_do_not_break_a_line(make_report):
    assert "# Quantization report: a \\# b, recipe w4a8\n" in markdown(make_report(1, model="a\n# b"))


def test_a_report_of_nothing(make_report):
    assert markdown(QuantizationReport(recipe="w8", rows=())).startswith("# Quantization report: model, recipe w8")


def test_large_models_say_that_rows_are_missing(make_report):
    assert "the 30 with the lowest SQNR, of 100 quantized tensors" in markdown(make_report(50))


def test_algorithms_are_named_and_measured(make_report):
    report = make_report(2)
    rows = [replace(row, total_sqnr_db=None) for row in report.rows]
    rows[0] = replace(rows[0], algorithms="output_range, gptq", output_error=0.304)
    text = markdown(replace(report, rows=tuple(rows), settings={"calibration": "stored statistics"}))
    assert "**algorithms**: output\\_range, gptq (1 of 2 quantized weights)\n" in text
    assert "| output\\_range, gptq | 4 | 3.0 | 30.4 % |" in text
    assert "\nout. err: the expected squared error" in text
    assert "the model was quantized from stored statistics, and no data were given" in text
    assert "lgorithms" not in markdown(report)
