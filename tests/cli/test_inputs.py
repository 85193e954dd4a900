"""What `qi search` and `qi quantize` have in common."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qi.cli.console import Console
from qi.cli.inputs import add_jobs, add_model, add_recipe, check_read, labels, say_saved
from qi.errors import InputError

PRINTS = """
import ctypes
from qi.cli.inputs import ours_alone
libc = ctypes.CDLL(None)
libc.puts(b"before")
with ours_alone():
    libc.puts(b"within")
libc.puts(b"after")
libc.fflush(None)
"""


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_model(made, required=False)
    add_recipe(made)
    add_jobs(made, "weights")
    return made


def test_files_that_are_read_are_looked_for_first(parser: argparse.ArgumentParser, tmp_path: Path) -> None:
    model, stats = tmp_path / "m.keras", tmp_path / "s.npz"
    given = parser.parse_args([str(model), "--stats", str(stats)])
    assert (given.jobs, given.recipe, given.data) == (1, "w8a8", None)
    with pytest.raises(InputError, match="a file with a model"):
        check_read(given)
    model.write_text("")
    with pytest.raises(InputError, match="a file with statistics"):
        check_read(given)
    stats.write_text("")
    assert check_read(given) == [model, stats]


def test_true_values_need_a_file() -> None:
    with pytest.raises(InputError, match="expected --data with --max-drop"):
        labels(None, None)


def test_saved_files_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    say_saved(Console(), [Path("a"), Path("b")])
    assert capsys.readouterr().out == "\nsaved a\nsaved b\n"


@pytest.mark.skipif(os.name == "nt", reason="another C library")
@pytest.mark.parametrize(("debug", "lines"), [("", ["before", "after"]), ("1", ["before", "within", "after"])])
def test_what_libraries_print_past_python_is_dropped(environment: dict[str, str], debug: str, lines: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINTS],
        env={**environment, "QI_DEBUG": debug},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == lines
