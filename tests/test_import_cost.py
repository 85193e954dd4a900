"""Importing QI, or asking its command for help, loads no framework and nothing optional: those are slow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FRAMEWORKS = {"tensorflow", "keras", "torch", "jax"}
HEAVY = {*FRAMEWORKS, "matplotlib", "rich", "jinja2", "numba", "scipy", "sklearn", "onnx"}

RUN_HELP = """
import runpy
sys.argv = ["qi", "--help"]
try:
    runpy.run_module("qi", run_name="__main__", alter_sys=True)
except SystemExit as stop:
    assert not stop.code, stop.code
"""


def modules_loaded_by(statements: str, checkout: Path) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after running `statements`."""
    code = f"import json, sys\n{statements}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize(
    "module",
    [
        "core",
        "observers",
        "engine",
        "quantizers",
        "dispatch",
        "recipes",
        "ledger",
        "ir",
        "exporters",
        "report",
        "testing",
        "cli.main",
    ],
)
def test_a_package_that_needs_no_framework_loads_none(module: str, checkout: Path) -> None:
    loaded = modules_loaded_by(f"import qi.{module}", checkout)
    assert "qi" in loaded
    assert loaded & HEAVY == set()


def test_import_qi_does_not_even_load_numpy(checkout: Path) -> None:
    loaded = modules_loaded_by("import qi; dir(qi)", checkout)
    assert "qi" in loaded
    assert loaded & {*HEAVY, "numpy"} == set()


def test_the_help_of_the_command_loads_nothing_heavy(checkout: Path) -> None:
    loaded = modules_loaded_by(RUN_HELP, checkout)
    assert "qi" in loaded
    assert loaded & HEAVY == set()


def test_using_a_name_of_the_keras_side_does_load_keras(checkout: Path) -> None:
    """The control: the check above can tell."""
    assert "keras" in modules_loaded_by("import qi; qi.quantize_model", checkout)


def test_the_side_of_torch_loads_no_other_framework(checkout: Path) -> None:
    loaded = modules_loaded_by("import qi.torch", checkout)
    assert "torch" in loaded
    assert loaded & FRAMEWORKS == {"torch"}
