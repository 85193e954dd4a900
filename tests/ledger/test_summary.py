from __future__ import annotations

from dataclasses import replace

import pytest

from qi.ledger import QuantizationReport
from qi.ledger.summary import (
    DROPPABLE_COLUMNS,
    MAX_NAMES,
    ROW_HEADER,
    Fact,
    algorithms_text,
    codes_text,
    facts,
    method_text,
    names_text,
    remarks,
    row_cells,
    shown_columns,
    worked_text,
)


def test_facts(report):
    assert facts(report) == [
        Fact("weights", "1 of 3 quantized", "45.0 % of their bytes"),
        Fact("activations", "2 of 3 quantized", ""),
        Fact("multiply-accumulates", "90.0 %", "with quantized weights, of 10.0 k a sample"),
        Fact("size of the weights", "800 B -> 525 B", "0.66x"),
        Fact("size of the files", "2.00 kB -> 500 B", "0.25x"),
        Fact("worst weight", "18.5 dB", "block/conv/kernel"),
        Fact("worst activation", "40.0 dB", "block/conv/output"),
    ]


def test_facts_of_nothing():
    labels = [fact.label for fact in facts(QuantizationReport(recipe="w8", rows=()))]
    assert labels == ["weights", "activations", "multiply-accumulates", "size of the weights"]


def test_cells(rows):
    kernel, bias = rows[1], rows[2]
    assert row_cells(kernel) == (
        "block/conv/kernel", "Conv2D", "symmetric, per channel", "-", "4", "18.5", "-", "-", "25.0 %", "360 B -> 85 B"
    )  # fmt: skip
    assert row_cells(bias) == ("block/conv/bias", "Conv2D", "float", "-", "-", "-", "-", "-", "-", "40 B")
    assert len(row_cells(kernel)) == len(ROW_HEADER)
    assert set(DROPPABLE_COLUMNS) < set(ROW_HEADER)


def test_words(rows):
    assert method_text(rows[0]) == "uniform, per tensor"
    assert codes_text(rows[1]) == "4 bits symmetric, per channel (axis -1)"
    assert codes_text(rows[2]) == "float"


def test_cells_of_weights_that_algorithms_worked_on(rows):
    def cells(**fields):
        row = dict(zip(ROW_HEADER, row_cells(replace(rows[1], **fields)), strict=True))
        return row["method"], row["algorithms"], row["out. err"]

    plain = "symmetric, per channel"
    assert cells(algorithms="gptq, bias_correction", output_error=0.304) == (plain, "gptq, bias_correction", "30.4 %")
    assert cells(algorithms="equalize", output_error=1.25)[2] == "125.0 %"
    assert cells(algorithms="reconstruct")[2] == "unknown", "worked on, but not compared"
    assert cells() == (plain, "-", "-")


def titles(rows, width=None):
    return [ROW_HEADER[column] for column in shown_columns(rows, width)]


def test_columns_of_algorithms_stay_before_lesser_ones(rows):
    worked = [
        replace(rows[1], layer="block1_depthwise", algorithms="output_range, gptq, bias_correction", output_error=0.3)
    ]
    worked.append(rows[3])
    assert titles(worked) == titles(worked, 200) == list(ROW_HEADER)
    assert titles(worked, 100) == ["tensor", "bits", "SQNR dB", "out. err", "total dB", "clipped", "bytes"]
    assert titles(worked, 60) == ["tensor", "bits", "SQNR dB", "out. err", "total dB"]
    assert titles(worked, 50) == ["tensor", "bits", "SQNR dB", "out. err"]
    assert titles(worked, 20) == ["tensor", "bits", "SQNR dB"]
    assert not {"algorithms", "out. err"} & set(titles(rows)), "nothing to show"


def test_algorithms_are_named_with_their_options_and_where_they_worked(rows):
    kernel = rows[1]
    assert worked_text(rows) == ""
    many = [replace(kernel, layer=f"c{place}", algorithms="gptq, bias_correction") for place in range(3)]
    many += [replace(kernel, layer="d", algorithms="gptq"), kernel, rows[2]]
    assert worked_text(many, {"gptq": "gptq damping=0.1"}) == (
        "gptq damping=0.1, bias_correction (3 of 5 quantized weights); gptq damping=0.1 (d/kernel)"
    )
    few = replace(kernel, algorithms="gptq")
    assert algorithms_text(QuantizationReport(recipe="w4", rows=(few,))) == "gptq (1 of 1 quantized weights)"
    told = QuantizationReport(recipe="w4", rows=(few,), settings={"algorithms": "gptq block=3"})
    assert algorithms_text(told) == "gptq block=3"


def test_remarks_say_why_cells_are_empty(report):
    assert remarks(report) == []
    stored = {"calibration": "stored statistics", "calibration_samples": 64}
    unknown = tuple(replace(row, total_sqnr_db=None) for row in report.rows)
    (line,) = remarks(replace(report, rows=unknown, settings=stored))
    assert line == (
        "SQNR and total dB of activations aren't known: the model was quantized from stored statistics, and no data were given "
        "to measure them with"
    )
    assert remarks(replace(report, settings=stored)) == [], "they are known"
    weights = tuple(row for row in unknown if row.kind == "weight")
    assert remarks(replace(report, rows=weights, settings=stored)) == [], "no activations are quantized"
    worked = replace(report.rows[1], algorithms="gptq", output_error=0.3)
    (line,) = remarks(replace(report, rows=(worked,)))
    assert line.startswith("out. err: ")


@pytest.mark.parametrize("count", [1, MAX_NAMES, MAX_NAMES + 1])
def test_few_names_are_all_told(rows, count):
    many = tuple(replace(rows[2], layer=f"conv{place}") for place in range(count))
    assert names_text(many).count("/bias") == min(count, MAX_NAMES)
    assert names_text(many).endswith(" and 1 more") == (count > MAX_NAMES)
