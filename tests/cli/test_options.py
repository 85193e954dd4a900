from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path

import pytest

from qi.cli.options import (
    Parser,
    add_arithmetic,
    arithmetic_of,
    check_input,
    check_output,
    positive,
    tolerance,
    writing,
)
from qi.errors import InputError


def test_counts() -> None:
    assert positive("64") == 64
    assert positive("2147483647") == 2**31 - 1
    for text in ("0", "-1", "1.5", "many", "", "2147483648", "9" * 5000):
        with pytest.raises(argparse.ArgumentTypeError, match="whole number from 1 to 2147483647"):
            positive(text)


def test_tolerances() -> None:
    assert tolerance("0.5") == 0.5
    for text in ("-0.1", "nan", "inf", "little"):
        with pytest.raises(argparse.ArgumentTypeError, match="number from 0 on"):
            tolerance(text)


def test_a_wrong_option_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        Parser(prog="qi").parse_args(["--frob"])
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", "qi: error: unrecognized arguments: --frob; do see: qi --help\n")


def test_an_input_must_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a file with a model; received .* doesn't exist"):
        check_input(tmp_path / "a.keras", "a model")
    with pytest.raises(InputError, match="is a folder"):
        check_input(tmp_path, "a model")
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    for path in (pipe, Path(os.devnull)):
        with pytest.raises(InputError, match="is no regular file"):
            check_input(path, "a model")


def test_an_output_is_checked_before_the_work(tmp_path: Path) -> None:
    good = tmp_path / "out.keras"
    check_output(good, [".keras"])
    good.write_text("old")
    check_output(good, [".keras"], [tmp_path / "absent"])  # what is there will be replaced
    (tmp_path / "folder.keras").mkdir()
    (tmp_path / "link.keras").symlink_to(good)
    for path, inputs, problem in [
        (tmp_path / "out.h5", [], "ending in .keras"),
        (tmp_path / "no" / "out.keras", [], "a folder that exists"),
        (tmp_path / "folder.keras", [], "received the folder"),
        (good, [good], "another file to write"),
        (tmp_path / "link.keras", [good], "another file to write"),
    ]:
        with pytest.raises(InputError, match=problem):
            check_output(path, [".keras"], inputs)


def test_a_folder_that_is_closed_is_named_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="a folder that can be written") as raised:
        check_output(tmp_path / "out.keras", [".keras"])
    assert raised.value.filename == str(tmp_path)


def test_a_failure_to_write_names_the_file() -> None:
    with pytest.raises(OSError, match="File too large") as raised, writing(Path("out.keras")):
        raise OSError(errno.EFBIG, "File too large")
    assert raised.value.filename == "out.keras"
    own = OSError(errno.ENOSPC, "No space left on device", "other")
    with pytest.raises(OSError, match="No space") as raised, writing(Path("out.keras")):
        raise own
    assert raised.value is own


def test_options_of_arithmetic() -> None:
    parser = Parser()
    add_arithmetic(parser)
    assert arithmetic_of(parser.parse_args([])) == {"integer_only": False, "packed": False, "dynamic": True}
    given = ["--integer-only", "--packed", "--no-dynamic"]
    assert arithmetic_of(parser.parse_args(given)) == {"integer_only": True, "packed": True, "dynamic": False}
    parser = Parser()
    add_arithmetic(parser, from_file=True)
    assert arithmetic_of(parser.parse_args(["--packed"])) == {"integer_only": None, "packed": True, "dynamic": None}


def test_every_command_that_computes_as_a_runtime_has_the_options_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    """The commands, the functions, the manifest and the router: the same names, the same defaults."""
    import inspect

    import qi
    from qi.cli.main import make_parser
    from qi.exporters.manifest import Options
    from qi.ir.routing import route

    usual = Options().arithmetic
    helps = []
    for command, function in (("export", qi.export), ("emulate", qi.emulate), ("verify", qi.verify), ("", route)):
        parameters = inspect.signature(function).parameters
        expected = dict.fromkeys(usual) if command == "verify" else usual
        assert {name: parameters[name].default for name in usual} == expected
        if command:
            with pytest.raises(SystemExit):
                make_parser().parse_args([command, "--help"])
            text = capsys.readouterr().out.rpartition("\narithmetic")[2].partition(":\n")[2]
            helps.append(" ".join(text.split()))
    assert helps[0] == helps[1] == helps[2]
    assert [helps[0].count(option) for option in ("--integer-only", "--packed", "--no-dynamic")] == [1, 1, 1]
