from __future__ import annotations

import io
import re
import sys
from dataclasses import replace

import pytest

from qi.errors import MissingDependencyError
from qi.report import rich_report

console = pytest.importorskip("rich.console")


def rendered(report, width=120, **options):
    out = io.StringIO()
    console.Console(file=out, width=width, **options).print(rich_report(report))
    return out.getvalue()


def header(text):
    return next(line for line in text.splitlines() if line.startswith("tensor")).split()


def test_every_part_is_there(make_report):
    text = rendered(make_report(3, description="weights 4 bits", warnings=["few samples"]))
    for part in ("small, recipe w4a8", "weights 4 bits", "warning: few samples", "3 of 6 quantized", "Left in float"):
        assert part in text
    assert "block/conv0/kernel" in text
    assert "a bias (3): block/conv0/bias" in text


def test_names_are_no_markup(nasty_report, nasty):
    text = rendered(nasty_report, width=400)
    assert text.count(nasty) >= 8
    assert "[red]" in text


def test_narrow_terminals_lose_columns_but_no_digits(make_report):
    report = make_report(3)
    wide, narrow = rendered(report, 130), rendered(report, 50)
    assert header(wide) == "tensor layer type method bits SQNR dB total dB clipped bytes".split()
    assert header(narrow) == "tensor bits SQNR dB total dB".split()
    assert all(len(line) <= 50 for line in narrow.splitlines())
    assert "block/conv2/output      8      38.0" in narrow


def test_bad_values_stand_out(make_report):
    text = rendered(make_report(3), force_terminal=True, color_system="standard")
    assert re.search(r"\x1b\[1;31m *3\.0", text)
    assert not re.search(r"\x1b\[[\d;]*m *42\.0", text)


def test_large_models_say_that_rows_are_missing(make_report):
    assert "the 30 with the lowest SQNR, of 100 quantized tensors" in rendered(make_report(50))


def test_without_rich_the_pip_line_is_named(make_report, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(MissingDependencyError, match=r"needs rich; do: pip install '.*\[report\]'"):
        rich_report(make_report(1))


@pytest.mark.parametrize("width", [80, 100, 120])
def test_algorithms_and_what_they_brought_fit_every_terminal(make_report, width):
    report = make_report(3)
    rows = [
        replace(row, algorithms="output_range, gptq", output_error=0.304) if row.bits == 4 else row
        for row in report.rows
    ]
    text = rendered(replace(report, rows=tuple(rows)), width)
    assert "algorithms: output_range, gptq (3 of 3 quantized weights)" in text
    assert "out. err" in next(line for line in text.splitlines() if line.startswith("tensor"))
    assert text.count("30.4 %") == 3
    assert "out. err" not in rendered(report, width)


def test_it_is_said_why_nothing_was_measured(make_report):
    report = make_report(2)
    rows = tuple(replace(row, total_sqnr_db=None) for row in report.rows)
    text = rendered(replace(report, rows=rows, settings={"calibration": "stored statistics"}), 200)
    assert "the model was quantized from stored statistics, and no data were given" in text
