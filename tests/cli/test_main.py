from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qi
from qi.cli.main import COMMANDS, main, make_parser

NAMES = [module.__name__.rpartition(".")[2] for module in COMMANDS]


@pytest.fixture
def real(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command in a process of its own."""
    return lambda *arguments: subprocess.run(
        [sys.executable, "-m", "qi", *map(str, arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def fail(command: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any) -> None:
        raise error

    module = COMMANDS[NAMES.index(command)]
    monkeypatch.setattr(module, "run", run)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself(name: str, qi_command: Callable[..., Any]) -> None:
    done = qi_command(name, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"usage: qi {name} " in done.out
    assert re.search(rf"^    {name} +\w+", make_parser().format_help(), flags=re.MULTILINE)


def test_the_version_is_told(qi_command: Callable[..., Any]) -> None:
    assert qi_command("--version") == (0, f"qi {qi.__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["quantise"], ["inspect"], ["inspect", "m.keras", "--js"]])
def test_wrong_usage_is_one_line_and_code_2(arguments: list[str], qi_command: Callable[..., Any]) -> None:
    done = qi_command(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.error.endswith("--help")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError("Unable to allocate 9 TiB"), 1, "not enough memory: Unable"),
        (OSError(28, "No space left on device", "a"), 1, "No space left on device: a"),
        (ZeroDivisionError("oops"), 1, "ZeroDivisionError: oops; do set QI_DEBUG=1"),
    ],
)
def test_an_error_ends_with_its_code_and_without_a_traceback(
    error: BaseException, code: int, line: str, qi_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail("inspect", error, monkeypatch)
    done = qi_command("inspect", "m.keras")
    assert (done.code, done.out) == (code, "")
    assert done.error.startswith(line)


def test_debugging_shows_where_an_error_comes_from(
    qi_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail("inspect", ZeroDivisionError("oops"), monkeypatch)
    monkeypatch.setenv("QI_DEBUG", "1")
    done = qi_command("inspect", "m.keras")
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.err


def test_a_reader_that_leaves_early_is_no_error(
    qi_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail("inspect", BrokenPipeError(32, "Broken pipe"), monkeypatch)
    assert qi_command("inspect", "m.keras") == (1, "", "")


def test_main_takes_the_arguments_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["qi", "inspect", "no.keras"])
    assert main() == 2
    assert "no.keras" in capsys.readouterr().err


def test_a_real_process_keeps_its_streams_clean(real: Callable[..., Any], files: Path) -> None:
    done = real("inspect", files / "quantized.keras")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 of 4 weights quantized" in done.stdout


def test_a_real_process_ends_with_the_code(real: Callable[..., Any], tmp_path: Path) -> None:
    done = real("inspect", tmp_path / "no.keras")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("qi: error: expected a file with a model; received ")
