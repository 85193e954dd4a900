"""The one place that writes to the terminal: results to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO

__all__ = ["Console"]


class Console:
    """Writes plain text; tables are drawn by rich where it is installed and a person reads along.

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

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
        """A table of text.

        Args:
            header: the columns' titles.
            rows: the cells.
            left: how many columns, from the first, are aligned to the left.
        """
        if self.quiet:
            return
        if _is_terminal(sys.stdout) and importlib.util.find_spec("rich") is not None:
            _rich_table(header, rows, left)
            return
        from qi.ledger.table import table

        self.say(table(header, rows, left=left))

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


def _rich_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    from qi.optional import require

    console = require("rich.console", "report").Console()
    boxes, tables, texts = (require(f"rich.{name}", "report") for name in ("box", "table", "text"))
    grid = tables.Table(box=boxes.SIMPLE_HEAD, header_style="bold")
    for index, title in enumerate(header):
        grid.add_column(title, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        grid.add_row(*map(texts.Text, row))  # as text, for "[...]" in a name is no markup
    console.print(grid)
