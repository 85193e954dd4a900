"""Code in a process of its own: what a user's next session, or one with a full disk, would see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["run_fresh"]

CHECKOUT = Path(__file__).resolve().parents[2]


def run_fresh(code: str, *arguments: object, timeout: float = 300) -> str:
    """Runs code in a new Python process with the checkout on its path.

    Args:
        code: of the program.
        *arguments: what it finds in ``sys.argv[1:]``, as text.
        timeout: in seconds.

    Returns:
        what it printed; a failure shows its error instead.
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout
