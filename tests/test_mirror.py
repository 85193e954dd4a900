"""Tests mirror the package: qi/a/b.py is tested by tests/a/test_b.py, and no test file lost its module."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, TESTS = ROOT / "qi", ROOT / "tests"

# Without a mirror: what isn't a module of code, and the entry point that test_import_cost.py runs.
UNMIRRORED = {"__init__.py", "__main__.py", "_version.py"}
# Folders of tests about more than one module.
CROSS_CUTTING = {"benchmarks", "fixtures", "integration", "parity", "seeds"}


def mirror_of(module: Path) -> Path:
    relative = module.relative_to(PACKAGE)
    return TESTS / relative.with_name(f"test_{relative.name}")


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in UNMIRRORED)
TEST_FILES = sorted(
    path
    for path in TESTS.rglob("test_*.py")
    if path.parent != TESTS and path.relative_to(TESTS).parts[0] not in CROSS_CUTTING
)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_has_its_tests(module: Path) -> None:
    assert mirror_of(module).is_file(), f"expected tests at {mirror_of(module).relative_to(ROOT)}"


@pytest.mark.parametrize("test_file", TEST_FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_test_file_is_an_orphan(test_file: Path) -> None:
    mirrored = {mirror_of(module) for module in MODULES}
    assert test_file in mirrored, f"tests of several modules belong in tests/ itself or in {CROSS_CUTTING}"
