from __future__ import annotations

import io
import sys

import pytest

from qi.cli.console import Console
from qi.ledger import QuantizationReport, Row


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def report() -> QuantizationReport:
    row = Row(kind="weight", layer="[red]fc", layer_type="Dense", name="kernel", status="quantized", bits=8, method="symmetric",
              sqnr_db=40.0)  # fmt: skip
    return QuantizationReport(recipe="w8", rows=[row])


def test_results_go_out_and_everything_else_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.say("result")
    console.warn("of two\n  lines")
    console.fail("gone wrong")
    out, err = capsys.readouterr()
    assert out == "result\n"
    assert err == "qi: warning: of two lines\nqi: error: gone wrong\n"


def test_quiet_keeps_results_back_but_no_warning(
    capsys: pytest.CaptureFixture[str], report: QuantizationReport
) -> None:
    console = Console(quiet=True)
    console.say("result")
    console.table(("a",), [("b",)])
    console.report(report)
    console.warn("look")
    assert capsys.readouterr() == ("", "qi: warning: look\n")


def test_progress_bars_stay_out_of_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().progress() as shown:
        print("1/10")
    assert not shown  # nobody watches
    assert capsys.readouterr() == ("", "1/10\n")


def test_a_progress_bar_is_for_somebody_who_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert Console().shows_progress
    assert not Console(quiet=True).shows_progress


def test_a_narrow_terminal_gets_fewer_columns_and_a_pipe_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    header, rows = ("layer", "type", "bits"), [("head", "D" * 40, "8")]
    Console().table(header, rows, left=2, droppable=["type"])
    assert "type" in capsys.readouterr().out
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "30")
    Console().table(header, rows, left=2, droppable=["type"])
    assert terminal.getvalue() == "layer  bits\nhead      8\n"


def test_a_report_is_plain_in_a_pipe_and_in_colour_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], report: QuantizationReport
) -> None:
    pytest.importorskip("rich")
    Console().report(report)
    assert capsys.readouterr().out == f"{report}\n"
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    Console().report(report)
    assert "\x1b[" in terminal.getvalue()
    assert "[red]fc" in terminal.getvalue()  # a name is no markup


def test_a_name_that_the_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    Console().say("größe")
    assert raw.getvalue() == b"gr\\xf6\\xdfe\n"


def test_a_program_without_a_console_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    Console().say("nobody hears")
