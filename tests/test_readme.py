"""README.md is tested as a reader uses it: its Python runs, and its commands are the ones that CI runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO_COMMAND = 'pip install ".[report]" && qi demo'
TEST_COMMAND = 'pip install ".[dev]" && python -m tests'


def blocks(checkout: Path, language: str) -> list[str]:
    """The fenced blocks of README.md in one language, in order."""
    text = (checkout / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_the_first_two_commands_are_the_demo_and_the_tests(checkout: Path) -> None:
    commands = [block.strip() for block in blocks(checkout, "bash")]
    assert commands[:2] == [DEMO_COMMAND, TEST_COMMAND]


def test_ci_runs_the_test_command_as_it_stands(checkout: Path) -> None:
    lines = (checkout / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == TEST_COMMAND


@pytest.mark.slow
def test_the_python_blocks_run_in_order(checkout: Path, tmp_path: Path) -> None:
    code = "\n".join(blocks(checkout, "python"))
    assert "quantize_model" in code
    script = tmp_path / "readme.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_relative_links_lead_somewhere(checkout: Path) -> None:
    text = (checkout / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert targets
    assert [target for target in targets if not (checkout / target).exists()] == []
