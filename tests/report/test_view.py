from __future__ import annotations

import math
from dataclasses import replace

import pytest

from qi.ledger import QuantizationReport, Row
from qi.report.view import BAD_DB, WATCH_DB, layers_of, quality


def test_rows_of_a_layer_are_one_layer(make_report):
    report = make_report(3)
    first, _, last = layers_of(report, "weight")
    assert (first.path, first.weight_db, first.activation_db) == ("block/conv0", 3.0, None)
    assert (last.bytes_before, last.bytes_after) == (1232, 182)
    first, _, last = layers_of(report, "activation")
    assert (first.path, first.weight_db, first.activation_db, first.bytes_before) == ("block/conv0", None, math.inf, 0)
    assert last.total_db == 30.0


def test_each_kind_keeps_the_order_of_its_own_rows(make_report):
    weights, activations = make_report(2).weights, make_report(2).activations
    report = QuantizationReport(recipe="w4", rows=(*weights, *reversed(activations)))
    assert [layer.path for layer in layers_of(report, "weight")] == ["block/conv0", "block/conv1"]
    assert [layer.path for layer in layers_of(report, "activation")] == ["block/conv1", "block/conv0"]


def test_the_worst_of_several_tensors_counts(make_report):
    kernel = make_report(1).rows[0]
    second = replace(kernel, name="recurrent_kernel", sqnr_db=1.0)
    unknown = replace(kernel, name="other", sqnr_db=math.nan)
    (layer,) = layers_of(QuantizationReport(recipe="w4", rows=(kernel, second, unknown)), "weight")
    assert layer.weight_db == 1.0


def test_layers_with_nothing_to_show_are_left_out():
    relu = Row(kind="activation", layer="relu", layer_type="ReLU", name="output", status="float", reason="r")
    assert layers_of(QuantizationReport(recipe="w8", rows=(relu,)), "activation") == ()
    named = replace(relu, layer="", total_sqnr_db=20.0)
    (layer,) = layers_of(QuantizationReport(recipe="w8", rows=(named,)), "activation")
    assert (layer.path, layer.activation_db, layer.total_db) == ("output", None, 20.0)


@pytest.mark.parametrize(
    ("db", "expected"),
    [
        (-math.inf, "bad"),
        (BAD_DB - 0.1, "bad"),
        (BAD_DB, "watch"),
        (WATCH_DB, "fine"),
        (math.inf, "fine"),
        (None, "none"),
        (math.nan, "none"),
    ],
)
def test_quality(db, expected):
    assert quality(db) == expected
