from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from qi.errors import ConfigError, FileFormatError, InputError
from qi.ledger import QuantizationReport


def test_views(report, rows):
    assert report.weights == (rows[1], rows[2], rows[4])
    assert report.activations == (rows[0], rows[3], rows[5])
    assert report.unquantized == (rows[2], rows[4], rows[5])
    assert report.file_ratio == 0.25
    assert report.all_warnings == (
        "few samples", "unused rule match='hed': matches no layer. Did you mean 'head'?"
    )  # fmt: skip


def test_a_ratio_of_files_needs_both(report):
    report.quantized_file_bytes = None
    assert report.file_ratio is None
    assert "2.00 kB -> -" in str(report)


def test_reasons_come_with_most_bytes_first(report, rows):
    groups = report.unquantized_by_reason()
    assert list(groups) == ["left in float by rule match='head'", "a bias"]
    assert groups["left in float by rule match='head'"] == (rows[4], rows[5])


def test_many_reasons_that_name_different_layers_are_one(rows):
    def report(count: int) -> QuantizationReport:
        kept = [
            replace(rows[2], reason=f"it follows Add 'add{i}', into which it can't be folded") for i in range(count)
        ]
        return QuantizationReport(recipe="w8", rows=(*kept, rows[2]))

    assert len(report(3).unquantized_by_reason()) == 4
    groups = report(500).unquantized_by_reason()
    assert [(reason, len(found)) for reason, found in groups.items()] == [
        ("it follows Add '...', into which it can't be folded", 500),
        ("a bias", 1),
    ]
    assert groups["it follows Add '...', into which it can't be folded"][7].reason.startswith("it follows Add 'add7',")


def test_worst(report, rows):
    assert report.worst() == (rows[1], rows[3], rows[0])
    assert report.worst(1) == (rows[1],)
    assert report.worst(5, kind="activation") == (rows[3], rows[0])
    with pytest.raises(ConfigError, match="kind='weights'"):
        report.worst(kind="weights")


def test_worst_passes_over_what_was_not_measured(rows):
    unmeasured = [replace(rows[1], sqnr_db=None), replace(rows[1], sqnr_db=math.nan)]
    lost = replace(rows[1], sqnr_db=-math.inf)
    report = QuantizationReport(recipe="w4", rows=(*unmeasured, rows[1], lost))
    assert report.worst() == (lost, rows[1])


def test_find(report, rows):
    assert report.find("block/conv") == (rows[1], rows[2], rows[3])
    assert report.find("*/kernel") == (rows[1], rows[4])
    assert report.find("h*") == (rows[4], rows[5])
    assert report.find("nothing") == ()


def test_json_round_trip_through_a_file(report, tmp_path):
    path = report.save(tmp_path / "report.json")
    back = QuantizationReport.load(path)
    assert back == report
    assert QuantizationReport.from_dict(report.to_dict()) == report
    path.write_text("{")
    with pytest.raises(FileFormatError, match=r"report\.json: expected a report as JSON"):
        QuantizationReport.load(path)
    with pytest.raises(FileNotFoundError):
        QuantizationReport.load(tmp_path / "missing.json")


def test_saving_as_text_is_printing(report, tmp_path):
    assert report.save(tmp_path / "report.txt").read_text(encoding="utf-8") == f"{report}\n"


def test_a_format_that_fails_leaves_the_old_file(report, tmp_path):
    path = tmp_path / "report.pdf"
    path.write_text("old")
    with pytest.raises(ConfigError, match=r"'\.pdf'"):
        report.save(path)
    assert path.read_text() == "old"


def test_evaluate_keeps_what_it_found(report):
    x, y = np.eye(3), np.arange(3)
    report.attach(float_model=1.0, quantized_model=-1.0, predict=lambda model, x: x * model)
    first = report.evaluate("accuracy", x, y)
    assert (first.float_value, first.agreement) == (1.0, 0.0)
    assert report.evaluate("accuracy", x, y) == first
    model_size = report.evaluate(abs, of="model", name="size")
    assert [entry.metric for entry in report.evaluations] == ["accuracy", "accuracy", "size"]
    assert report.evaluations[1:] == [first, model_size]
    assert "size" in str(report)


def test_batches_of_other_data_are_the_attached_functions(report):
    report.attach(
        float_model=None, quantized_model=None, predict=lambda model, x: x, batches=lambda data: [(data, data)]
    )  # fmt: skip
    assert report.evaluate("mae", [3.0]).samples == 1


def test_models_are_neither_saved_nor_compared(report, rows):
    attached = QuantizationReport.from_dict(report.to_dict()).attach(float_model=abs, quantized_model=abs)
    assert attached == report
    assert attached.to_dict() == report.to_dict()


def test_a_report_without_models_says_so(report):
    with pytest.raises(InputError, match=r"do: report\.attach\("):
        report.evaluate("accuracy", np.eye(2), [0, 1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": ["a"]}, "rows to hold Row"),
        ({"rows": 3}, "rows=3"),
        ({"warnings": "careful"}, "warnings='careful'"),
        ({"unused_rules": [1]}, "unused_rules"),
        ({"evaluations": [1]}, "evaluations"),
        ({"settings": {1: 2}}, "settings"),
        ({"settings": {"a": [1]}}, "settings"),
        ({"recipe": None}, "recipe=None"),
        ({"float_file_bytes": -1}, "float_file_bytes=-1"),
        ({"quantized_file_bytes": 1.5}, r"quantized_file_bytes=1\.5"),
    ],
)
def test_illegal_arguments_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        QuantizationReport(**{"recipe": "w8", "rows": (), **values})


def test_repr_is_short(report):
    assert repr(report) == "QuantizationReport(recipe='w4a8', model='small', weights=1/3, activations=2/3)"
