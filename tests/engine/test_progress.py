"""The progress bar of work on files."""

from __future__ import annotations

import sys

import pytest

from qi.engine import progress
from qi.engine.progress import Progress
from qi.errors import MissingDependencyError


def test_it_shows_what_is_done_when_asked(capsys):
    with Progress("Quantizing", 4, show=True) as bar:
        bar.advance(3)
        bar.advance(1)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Quantizing" in err
    assert "100%" in err


def test_nobody_who_did_not_ask_sees_it_at_once(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress("Quantizing", 4) as bar:
        bar.advance(4)
    assert capsys.readouterr().err == ""


def test_after_a_while_whoever_watches_does(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", -1.0)
    for watched, shown in ((True, "Quantizing"), (False, "")):
        monkeypatch.setattr("sys.stderr.isatty", lambda watched=watched: watched)
        with Progress("Quantizing", 4) as bar:
            bar.advance(4)
        assert shown in capsys.readouterr().err


def test_it_can_be_turned_off(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", -1.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress("Quantizing", 4, show=False) as bar:
        bar.advance(4)
    assert capsys.readouterr().err == ""


def test_a_bar_that_nobody_asked_for_needs_no_extra(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_PATIENCE", -1.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with Progress("Quantizing", 4) as bar:
        bar.advance(2)
        bar.advance(2)
    assert capsys.readouterr().err == ""
    with pytest.raises(MissingDependencyError, match="a progress bar"), Progress("Quantizing", 4, show=True):
        pass
