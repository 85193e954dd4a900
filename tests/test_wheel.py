"""The wheel is the product: built, installed outside the checkout, and used from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def source(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is built from, so that building leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copy(checkout / name, copy)
    shutil.copytree(checkout / "qi", copy / "qi", ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def package_files(source: Path) -> set[str]:
    return {path.relative_to(source).as_posix() for path in (source / "qi").rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def wheel(source: Path, package_files: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), cwd=source)
    (built,) = out.glob("quantizers_infrastructure-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel alone is installed to; its dependencies are those of the running Python."""
    target = tmp_path_factory.mktemp("installed")
    run(
        sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--no-warn-script-location",
        "--target", str(target), str(wheel),
        cwd=target,
    )  # fmt: skip
    return target


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path, package_files: set[str]) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == package_files


def test_the_wheel_carries_its_licence_and_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    text = archive.read(metadata).decode()
    assert "Name: quantizers-infrastructure\n" in text
    assert "License-Expression: Apache-2.0\n" in text
    assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_the_demo_runs_from_the_installed_wheel_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    ask = "import qi; print(qi.__file__)"
    where = run(sys.executable, "-c", ask, cwd=tmp_path, PYTHONPATH=str(installed))
    assert Path(where.strip()).is_relative_to(installed)

    output = run(str(installed / "bin" / "qi"), "demo", cwd=tmp_path, PYTHONPATH=str(installed))
    assert "w8a8" in output
    assert "w4a8" in output
    assert list(tmp_path.rglob("*.html")), "the demo writes its report"
