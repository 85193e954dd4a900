"""Real servers in processes of their own, on ports that are free."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

CHECKOUT = Path(__file__).resolve().parents[2]
_PATIENCE = 90


class Running(NamedTuple):
    """A process, where it answers, and what it wrote so far."""

    process: subprocess.Popen[str]
    url: str
    lines: list[str]

    @property
    def port(self) -> int:
        """The number at the end of the URL."""
        return int(self.url.rpartition(":")[2])


@contextlib.contextmanager
def started(*command: str, cwd: Path, variables: dict[str, str] | None = None, **settings: Any) -> Iterator[Running]:
    """Starts ``python -m qi.service``, or another command for Python, and kills it at the end.

    Args:
        command: What follows ``python``.
        cwd: Where.
        variables: More of the environment.
        settings: Settings of the service.
    """
    plain = {name: value for name, value in os.environ.items() if not name.startswith("QI_API_")}
    environment = plain | {"PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1", "QI_API_PORT": "0"}
    environment |= {f"QI_API_{name.upper()}": str(value) for name, value in settings.items()} | (variables or {})
    process = subprocess.Popen(
        [sys.executable, *(command or ("-m", "qi.service"))], cwd=cwd, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    lines: list[str] = []
    told: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
            lines.append(line)
            told.put(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while not (found := re.search(r"http://[^\s]+:\d+", told.get(timeout=_PATIENCE))):
            pass
        yield Running(process, found[0], lines)
    finally:
        process.kill()
        process.wait()
        reader.join(timeout=10)
        if process.stdout is not None and not reader.is_alive():
            process.stdout.close()
