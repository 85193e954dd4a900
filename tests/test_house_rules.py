"""Rules of CONTRIBUTING.md that no linter knows: small files, short functions, nothing about the machine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("qi", "tests", "tutorials")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
LIBRARY = [path for path in SOURCES if path.is_relative_to(ROOT / "qi")]
TEXTS = [*SOURCES, *ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.cfg"), ROOT / ".ci" / "run"]

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 55  # without the docstring; 45 is the habit
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|tmp|root|home)/\w")
UNSAFE = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    return lines - ((first.end_lineno or 0) - first.lineno + 1 if documented else 0)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_file_is_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_functions_are_short_and_nothing_unsafe_is_used(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert code_lines(node) < MAX_FUNCTION_LINES, node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not UNSAFE & {(module or "").partition(".")[0] for module in modules}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec"}
        elif isinstance(node, ast.keyword):
            assert not (node.arg == "allow_pickle" and ast.unparse(node.value) != "False")


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_text_names_no_path_of_a_machine(path: Path) -> None:
    assert MACHINE_PATH.findall(path.read_text(encoding="utf-8")) == []
