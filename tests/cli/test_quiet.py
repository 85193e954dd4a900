from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from qi.cli.console import Console
from qi.cli.quiet import debugging, shown_warnings, without_chatter
from qi.errors import InputError, QuantizationWarning

LOAD = """
import os, sys
from qi.cli import quiet
def load(name):
    os.write(2, b"chatter\\n")
    {then}
quiet.importlib.import_module = load
quiet.load_keras()
"""


def standard_error(checkout: Path, then: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(then=then)],
        env={**os.environ, "PYTHONPATH": str(checkout), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr


def test_what_is_said_while_loading_is_held_back_unless_it_fails(checkout: Path) -> None:
    assert standard_error(checkout, "pass") == ""
    assert standard_error(checkout, "pass", QI_DEBUG="1") == "chatter\n"
    failed = standard_error(checkout, "raise ImportError('no keras')")
    assert failed.startswith("chatter\n")
    assert failed.endswith("ImportError: no keras\n")


@pytest.mark.parametrize(
    ("error", "debug", "shown"),
    [
        (None, "", False),
        (None, "1", True),
        (InputError("x"), "", False),
        (KeyboardInterrupt(), "", False),
        (OSError("x"), "", True),
    ],
)
def test_a_runtimes_chatter_shows_only_where_it_may_explain_an_error(
    error: BaseException | None,
    debug: str,
    shown: bool,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QI_DEBUG", debug)
    with contextlib.suppress(InputError, KeyboardInterrupt, OSError), without_chatter():
        os.write(2, b"chatter\n")
        if error is not None:
            raise error
    assert capfd.readouterr().err == ("chatter\n" if shown else "")


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("yes", True), ("0", False), ("", False)])
def test_debugging_is_asked_for_by_a_variable(value: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QI_DEBUG", value)
    assert debugging() is expected


def test_warnings_are_shown_once_even_when_the_work_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with shown_warnings(Console()):
            for _ in range(2):
                warnings.warn("few samples", QuantizationWarning, stacklevel=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert capsys.readouterr().err == "qi: warning: few samples\n"
