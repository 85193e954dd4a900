"""The progress bar of work on files."""

from __future__ import annotations

from qi.engine import progress
from qi.engine.progress import Progress


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
