from __future__ import annotations

from qi.ledger import QuantizationReport
from qi.ledger.summary import (
    DROPPABLE_COLUMNS,
    ROW_HEADER,
    Fact,
    codes_text,
    facts,
    method_text,
    row_cells,
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
        "block/conv/kernel", "Conv2D", "symmetric, per channel", "4", "18.5", "-", "25.0 %", "360 B -> 85 B"
    )  # fmt: skip
    assert row_cells(bias) == ("block/conv/bias", "Conv2D", "float", "-", "-", "-", "-", "40 B")
    assert len(row_cells(kernel)) == len(ROW_HEADER)
    assert set(DROPPABLE_COLUMNS) < set(ROW_HEADER)


def test_words(rows):
    assert method_text(rows[0]) == "uniform, per tensor"
    assert codes_text(rows[1]) == "4 bits symmetric, per channel (axis -1)"
    assert codes_text(rows[2]) == "float"
