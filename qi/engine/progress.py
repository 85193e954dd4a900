"""A progress bar for work on files."""

from __future__ import annotations

import sys
import time
from typing import Any, Self

from qi.errors import ConfigError, MissingDependencyError
from qi.optional import require

__all__ = ["Progress"]

_PATIENCE = 2.0  # seconds before somebody who didn't ask sees a bar


class Progress:
    """Shows on standard error how much of some work is done.

    Args:
        what: What is being done.
        total: Units of work.
        show: True or False; None: if standard error is a terminal, after two seconds.
    """

    def __init__(self, what: str, total: int, show: bool | None = None) -> None:
        if not isinstance(show, bool | None):
            raise ConfigError(f"expected progress to be True, False or None; received progress={show!r}")
        self._what, self._total, self._show = what, total, show
        self._done = 0
        self._began = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if self._show:
            self._open()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, units: int) -> None:
        """Says that more is done."""
        self._done += units
        waited = time.monotonic() - self._began > _PATIENCE
        if self._bar is None and self._show is None and waited and sys.stderr.isatty():
            try:
                self._open()
            except MissingDependencyError:  # nobody asked for a bar
                self._show = False
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)

    def _open(self) -> None:
        console = require("rich.console", extra="report", feature="a progress bar").Console(stderr=True)
        self._bar = require("rich.progress", extra="report", feature="a progress bar").Progress(console=console)
        self._task = self._bar.add_task(self._what, total=self._total)
        self._bar.start()
