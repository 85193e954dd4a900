"""Each tutorial is a short script that runs in any folder, free of warnings, and asserts its own claims."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((CHECKOUT / "tutorials").glob("[0-9]*.py"))
MAX_LINES = 200
# Not ours to mend: see the same line in pyproject.toml.
KERAS_COPIES = (
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning:keras.src.backend.tensorflow.core"
)


def test_the_tutorials_are_numbered_without_gaps() -> None:
    numbers = [path.name[:2] for path in TUTORIALS]
    assert numbers == [f"{n:02}" for n in range(1, len(numbers) + 1)]
    assert len(TUTORIALS) >= 3


def test_the_list_names_each_tutorial() -> None:
    listed = re.findall(r"^\| \[(.+?\.py)\]\(\1\)", (CHECKOUT / "tutorials" / "README.md").read_text("utf-8"), re.M)
    assert listed == [path.name for path in TUTORIALS]


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(tutorial: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", KERAS_COPIES, str(tutorial)],
        cwd=tmp_path,
        env={**os.environ, "QI_FAST": "1", "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip(), "a tutorial shows something"


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_explains_itself_and_asserts_its_claim(tutorial: Path) -> None:
    source = tutorial.read_text(encoding="utf-8")
    tree = ast.parse(source)
    assert ast.get_docstring(tree)
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    assert len(source.splitlines()) <= MAX_LINES
