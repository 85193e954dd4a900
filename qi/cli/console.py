"""The one place that writes to the terminal: results to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from qi.ledger import QuantizationReport

__all__ = ["Console"]


class Console:
    """Writes plain text, and reports in colour where rich is installed and a person reads along.

    Args:
        quiet: keeps results and progress back; warnings and errors always show.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    @property
    def shows_progress(self) -> bool:
        """Whether a progress bar makes sense: somebody watches standard error."""
        return not self.quiet and _is_terminal(sys.stderr)

    def say(self, text: object = "") -> None:
        """A line (or more) of the result."""
        if not self.quiet:
            _write(sys.stdout, f"{text}\n")

    def warn(self, text: str) -> None:
        """One line about something that deserves a look."""
        _write(sys.stderr, f"qi: warning: {' '.join(text.split())}\n")

    def fail(self, text: str) -> None:
        """One line about why the command stopped."""
        _write(sys.stderr, f"qi: error: {text}\n")

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, droppable: Sequence[str] = ()
    ) -> None:
        """A table of text.

        Args:
            header: the columns' titles.
            rows: the cells.
            left: how many columns, from the first, are aligned to the left.
            droppable: titles of columns that a narrow terminal does without, the first to go first.
        """
        if self.quiet:
            return
        from qi.ledger.table import fitting_columns, table

        width = shutil.get_terminal_size().columns if _is_terminal(sys.stdout) else sys.maxsize
        kept = fitting_columns(header, rows, droppable, width)
        lines = [[line[column] for column in kept] for line in (header, *rows)]
        self.say(table(lines[0], lines[1:], left=sum(column < left for column in kept)))

    def report(self, report: QuantizationReport) -> None:
        """A report: in colour where rich is installed and a person reads along, else as plain text."""
        if self.quiet:
            return
        if not _is_terminal(sys.stdout) or importlib.util.find_spec("rich") is None:
            self.say(report)
            return
        from qi.optional import require
        from qi.report import rich_report

        require("rich.console", "report").Console().print(rich_report(report))

    @contextlib.contextmanager
    def progress(self) -> Iterator[bool]:
        """Sends what is printed meanwhile (Keras' progress bars) to standard error; gives `shows_progress`."""
        with contextlib.redirect_stdout(sys.stderr):
            yield self.shows_progress


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:  # a program without a console, as pythonw
        return
    try:
        stream.write(text)
    except UnicodeEncodeError:  # a layer's name on a terminal that can't show it
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()
