"""What commands that make something of a float model have in common: model, samples, recipe, workers, files written."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qi.cli.console import Console
from qi.cli.options import check_input, positive
from qi.cli.quiet import debugging, without_chatter
from qi.errors import InputError

__all__ = [
    "add_jobs",
    "add_model",
    "add_recipe",
    "check_read",
    "labels",
    "load_inputs",
    "ours_alone",
    "say_saved",
    "start_workers",
]


def add_model(parser: Any, *, required: bool, statistics: str = "") -> None:
    """Adds the model, and ``--data`` or ``--stats``.

    Args:
        parser: of a command.
        required: whether one of the two has to be given.
        statistics: what to add to the help of ``--stats``.
    """
    parser.add_argument("model", metavar="MODEL", type=Path, help="a .keras file, or an .h5 file of Keras 2 or 3")
    source = parser.add_mutually_exclusive_group(required=required)
    source.add_argument(
        "--data", metavar="FILE", type=Path,
        help="samples as the model takes them: .npy, or .npz with x_calib or x (or an array for each input by its name)",
    )  # fmt: skip
    source.add_argument(
        "--stats", metavar="FILE", type=Path, help=f"statistics from `qi calibrate`, in place of samples{statistics}"
    )


def add_recipe(parser: Any, help: str = "") -> None:
    """Adds ``--recipe``; `help` goes before what it may be."""
    parser.add_argument(
        "--recipe", metavar="RECIPE", default="w8a8", help=f"{help}a name or a .json file (default: w8a8)"
    )


def add_jobs(parser: Any, what: str) -> None:
    """Adds ``--jobs``; `what` says what is done at once."""
    parser.add_argument("--jobs", metavar="N", type=positive, default=1, help=f"how many {what} at once (default: 1)")


def check_read(arguments: argparse.Namespace) -> list[Path]:
    """Looks whether the files of `add_model` are there, before TensorFlow is loaded, and gives them: they must survive.

    Raises:
        InputError: model or statistics aren't there; samples are looked into later.
    """
    check_input(arguments.model, "a model")
    if arguments.stats is not None:
        check_input(arguments.stats, "statistics")
    return [path for path in (arguments.model, arguments.data, arguments.stats) if path is not None]


def load_inputs(arguments: argparse.Namespace) -> tuple[Any, Any]:
    """The model, and its samples or None.

    Raises:
        InputError, FileFormatError, OSError: as of `qi.cli.models.load_with_samples`.
    """
    from qi.cli.data import CALIBRATION
    from qi.cli.models import load, load_with_samples

    if arguments.data is None:
        return load(arguments.model), None
    model, _, data = load_with_samples(arguments.model, arguments.data, CALIBRATION)
    return model, data


def labels(path: Path | None, model: Any) -> tuple[Any, Any]:
    """Samples with their true values for a metric, from the file of ``--data``, as `qi evaluate` takes them.

    Raises:
        InputError: no file, or one without true values.
    """
    if path is None:
        raise InputError("expected --data with --max-drop, for its metric needs true values; received none")
    from qi.cli.data import ArrayFile, labelled
    from qi.cli.models import input_names

    return labelled(ArrayFile(path), input_names(model))


def say_saved(console: Console, paths: Sequence[Path]) -> None:
    """Names the files that were written."""
    console.say()
    for path in paths:
        console.say(f"saved {path}")


def start_workers(jobs: int) -> None:
    """Starts joblib's worker processes with standard error held back, which what TensorFlow says when it starts would fill.

    What goes wrong in them is raised here all the same.
    """
    if jobs > 1:
        from qi.optional import require

        joblib = require("joblib", "search", "work in parallel")
        with without_chatter():
            joblib.Parallel(n_jobs=jobs)(joblib.delayed(int)(0) for _ in range(jobs))


@contextlib.contextmanager
def ours_alone() -> Iterator[None]:
    """Drops what libraries write to file descriptor 1, past Python: results go there, which a script may read.

    HiGHS writes a line now and then ("...tmpSolver.run();") that no option of it turns off. Only for a process that does nothing
    else meanwhile, as a command; with QI_DEBUG=1 nothing is dropped.
    """
    try:
        terminal = -1 if debugging() else os.dup(1)
    except OSError:  # there is no standard output
        terminal = -1
    if terminal < 0:
        yield
        return
    _flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        _flush()
        os.dup2(terminal, 1)
        os.close(terminal)


def _flush() -> None:
    """Writes out what C's own buffers hold."""
    with contextlib.suppress(OSError, TypeError, AttributeError):  # there, what is left comes at the end
        ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush(None)
