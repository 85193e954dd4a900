"""Keras' other backends: the tests marked `backend` again, on each, and files of models carried from each to each.

Keras reads KERAS_BACKEND once, so each backend has a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.integration.files_on_backend import FILES

BACKENDS = ("tensorflow", "jax", "torch")
MARK = "pytest.mark." + "backend"
SCRIPT = Path(__file__).with_name("files_on_backend.py")


def run(backend: str, checkout: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments on a backend."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=checkout,
        env=inherited | {"KERAS_BACKEND": backend, "PYTHONPATH": str(checkout)} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
    )


def marked_files(checkout: Path) -> list[Path]:
    """The files that hold marked tests."""
    return sorted(path for path in (checkout / "tests").rglob("test_*.py") if MARK in path.read_text("utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_the_contract_holds_on(backend: str, checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip(backend)
    files, report = marked_files(checkout), tmp_path / "report.xml"
    options = ["-q", "-m", "backend", "-p", "no:cacheprovider", "-p", "no:xdist", f"--junitxml={report}"]
    done = run(backend, checkout, "-m", "pytest", *options, *files)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    cases = list(ElementTree.parse(report).iter("testcase"))
    ran = {case.get("classname", "") for case in cases if case.find("skipped") is None}
    assert {path.stem for path in files} == {name.rpartition(".")[2] for name in ran}


# Files ----------------------------------------------------------------------------------------------------------------


Found = dict[tuple[str, str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def carried(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What `files_on_backend.py` found, by (where a file was written, where it was read, name)."""
    for backend in BACKENDS[1:]:
        pytest.importorskip(backend)
    folder = tmp_path_factory.mktemp("files")
    found = []
    for action, backend in product(("write", "read"), BACKENDS):
        # Exact models need numbers of 64 bits, which JAX has off by itself.
        done = run(backend, checkout, SCRIPT, action, folder, JAX_ENABLE_X64="1")
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        found += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(item["from"], item["on"], item["name"]): item for item in found}


pairs = pytest.mark.parametrize(
    ("origin", "reader"), [(a, b) for a, b in product(BACKENDS, BACKENDS) if a != b], ids=lambda name: name
)


@pytest.mark.slow
@pairs
def test_variables_and_codes_are_bit_equal(origin: str, reader: str, carried: Found) -> None:
    for name in FILES:
        assert carried[origin, reader, name]["compared"] > 10
        assert carried[origin, reader, name]["differing"] == [], name


@pytest.mark.slow
@pairs
def test_exact_models_give_the_same_bits(origin: str, reader: str, carried: Found) -> None:
    assert carried[origin, reader, "exact"]["unequal"] == 0


@pytest.mark.slow
@pairs
def test_outputs_differ_by_how_sums_are_rounded(origin: str, reader: str, carried: Found) -> None:
    """Quantized activations swallow that, unless one lies at a tie: then its code is the next one, and few outputs move."""
    assert carried[origin, reader, "weights"]["error"] < 1e-6
    for name in set(FILES) - {"exact", "weights"}:
        assert carried[origin, reader, name]["unequal"] < 0.01, name
        assert carried[origin, reader, name]["error"] < 0.01, name


@pytest.mark.slow
@pairs
def test_training_goes_on_where_it_was(origin: str, reader: str, carried: Found) -> None:
    """The next step's loss, with the optimizer's memory."""
    if origin == "torch":
        pytest.skip("Keras stores torch's subclass of the optimizer, which other backends can't run")
    assert carried[origin, reader, "training"]["loss"] < 1e-6
