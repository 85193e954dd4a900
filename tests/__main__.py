"""`python -m tests`: every check of the project, the one command of README and CI.

Runs the linter, the formatter's check, the type checker and pytest (tests, doctests, tutorials, README), each
even if another fails. Arguments go to pytest: `python -m tests -m "not slow"`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MAX_WORKERS = 4  # each loads TensorFlow: more cost more memory than they save time


def main(pytest_arguments: list[str]) -> int:
    """Run every check from the root of the checkout; return 0 if all passed."""
    workers = min(os.cpu_count() or 1, MAX_WORKERS)
    checks = {
        "lint": ["ruff", "check", "."],
        "format": ["ruff", "format", "--check", "."],
        "types": ["mypy"],
        # Last, so that its summary line closes the output.
        "tests": ["pytest", "-n", str(workers), "--dist", "worksteal", *pytest_arguments],
    }
    failed = []
    for name, (tool, *arguments) in checks.items():
        print(f"== {name}: {tool} {' '.join(arguments)}", flush=True)
        root = Path(__file__).resolve().parents[1]
        if subprocess.run([sys.executable, "-m", tool, *arguments], cwd=root).returncode:
            failed.append(name)
            print(f"== {name} FAILED", file=sys.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
