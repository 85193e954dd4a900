"""What several commands have in common: types of options, and checks of paths before the work begins."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from qi.cli.console import Console
from qi.cli.exits import BAD_INPUT
from qi.errors import InputError
from qi.files import check_place

__all__ = [
    "REPORTS",
    "Parser",
    "add_arithmetic",
    "add_batch_size",
    "add_json",
    "add_samples",
    "arithmetic_of",
    "check_input",
    "check_output",
    "positive",
    "tolerance",
    "writing",
]

REPORTS = (".html", ".md", ".json", ".txt", ".png")
"""The formats of a report."""

_MOST = 2**31 - 1
_DIGITS = 20  # Python refuses to read thousands


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the command with exit code 2."""
        Console().fail(f"{message}; do see: {self.prog} --help")
        raise SystemExit(BAD_INPUT)


def add_samples(parser: Any, *, required: bool) -> None:
    """Adds ``--data``: samples to run, or to compare on."""
    help = (
        "samples, as of `qi quantize`"
        if required
        else "samples to compare on, as of `qi quantize` (default: 64 made ones)"
    )
    parser.add_argument("--data", metavar="FILE", type=Path, required=required, help=help)


def add_batch_size(parser: Any) -> None:
    """Adds ``--batch-size``."""
    parser.add_argument("--batch-size", metavar="N", type=positive, default=64, help="samples at a time (default: 64)")


def add_json(parser: Any) -> None:
    """Adds ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON")


_ARITHMETIC = {
    "integer_only": ("--integer-only", True, "no float operation where there is a way in integers, however slow"),
    "packed": ("--packed", True, "pack weights below 8 bits even where that costs time"),
    "dynamic": ("--no-dynamic", False, "Dense layers of which the weights alone are quantized stay in float"),
}


def add_arithmetic(parser: Any, *, from_file: bool = False) -> None:
    """Adds the options that decide what a deployed model computes: the same for all commands, as the arguments in Python.

    Args:
        parser: of a command.
        from_file: whether they are those that a file was written with, unless they are given.
    """
    title = "arithmetic" + (" (by default that of the file)" if from_file else "")
    group = parser.add_argument_group(title)
    for name, (flag, value, help) in _ARITHMETIC.items():
        default = None if from_file else not value
        group.add_argument(flag, dest=name, action="store_const", const=value, default=default, help=help)


def arithmetic_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_arithmetic` read, by the names of the arguments in Python."""
    return {name: getattr(arguments, name) for name in _ARITHMETIC}


def positive(text: str) -> int:
    """The type of an option that counts something: from 1 to what integers of 32 bits hold."""
    value = int(text) if text.strip().isdecimal() and len(text) <= _DIGITS else 0
    if not 1 <= value <= _MOST:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {_MOST}; received {text[:_DIGITS]!r}")
    return value


def tolerance(text: str) -> float:
    """The type of an option that says how much is allowed."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number from 0 on; received {text!r}")
    return value


def check_input(path: Path, what: str) -> None:
    """Raises InputError unless `path` is a file that is there.

    Args:
        path: as the user gave it.
        what: what it should hold, as "a model".
    """
    if not path.is_file():  # of a device, /dev/zero say, there is no end, and a pipe may keep silent for ever
        problem = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "doesn't exist"
        raise InputError(f"expected a file with {what}; received {str(path)!r}, which {problem}")


def check_output(path: Path, suffixes: Sequence[str], inputs: Sequence[Path] = ()) -> None:
    """Raises InputError, or OSError for want of permission, where writing to `path` can't end well, before any work is done.

    Args:
        path: as the user gave it; what is there already will be replaced.
        suffixes: those allowed; the formats are told apart by them.
        inputs: files that are read and must survive.
    """
    if path.suffix.lower() not in suffixes:
        raise InputError(f"expected a file name ending in {' or '.join(suffixes)}; received {str(path)!r}")
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"expected a folder that exists; received {str(folder)!r}; do create it first")
    if path.is_dir():
        raise InputError(f"expected the name of a file to write; received the folder {str(path)!r}")
    if path.exists() and any(other.exists() and path.samefile(other) for other in inputs):
        raise InputError(f"expected another file to write than to read; received {str(path)!r} for both")
    check_place(path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Names the file in an OSError that doesn't, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or 0, error.strerror or str(error), str(path)) from error
