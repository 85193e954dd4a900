"""The layers of ARCHITECTURE.md, enforced on the source: a module imports only from rows above its own."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROW_OF = {
    "_version": 0, "errors": 0, "files": 0, "optional": 0, "registry": 0, "typing": 0,
    "core": 1,
    "observers": 2,
    "engine": 3, "quantizers": 3, "algorithms": 3, "ir": 3,
    "dispatch": 4, "recipes": 4, "ledger": 4,
    "keras": 5, "torch": 5,
    "exporters": 6, "report": 6, "testing": 6,
    "service": 7,
    "cli": 8, "demo": 8,
}  # fmt: skip

# Exceptions, each with its reason: (importer, imported).
EDGES = {
    ("cli", "demo"),  # `qi demo`; of one row, for both use all of the library
    ("cli", ""),  # `import qi` itself: the public face, which the command line stands for
}

# What every layer but row 0 may use; the rest comes through qi.optional.require.
BASE = {"numpy", "ml_dtypes"}
FRAMEWORKS = {"tensorflow", "keras", "torch", "jax"}
PRIVATE = ("keras.src", "tensorflow.python")
FRAMEWORKS_OF = {"keras": FRAMEWORKS, "torch": {"torch"}}
# What the extra of a package brings, or Keras itself: the package can't be imported without it.
LIBRARIES_OF = {
    "keras": {"h5py"},
    "service": {
        "anyio", "fastapi", "orjson", "prometheus_client", "pydantic", "pydantic_settings", "python_multipart", "starlette",
        "uvicorn",
        "h11",  # the parsers that uvicorn brings or takes
        "httptools",
    },
}  # fmt: skip
LAZY_FRAMEWORK_MODULES = {
    "core.namespace",  # finds a framework's functions from the type of an array
    "testing.engines",  # runs a user's quantizer on them
}

PACKAGE = Path(__file__).resolve().parents[1] / "qi"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.name[0] != "_")


@dataclass(frozen=True)
class Import:
    """One import statement, or one `import_module`/`require` call with a literal name."""

    module: str
    line: int
    lazy: bool


def imports_of(tree: ast.Module) -> Iterator[Import]:
    """Every module that a source file imports, at its top level or inside a function (lazy)."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for name in names_imported_by(child):
                yield Import(name, child.lineno, inside)  # type: ignore[attr-defined]
            yield from walk(child, inside)

    return walk(tree, lazy=False)


def names_imported_by(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: expected absolute imports"
        if node.module == "qi":
            return [f"qi.{alias.name}" for alias in node.names]
        return [node.module or ""]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if function in {"import_module", "__import__"}:
            return [str(node.args[0].value)]
    return []


def faults_of(name: str, source: str) -> list[str]:
    """What is wrong with the imports of the module `name` ("core.affine"), one line each."""
    own = name.partition(".")[0]
    if own not in ROW_OF:
        return [f"expected a package of the table; received {own!r}; add it to ROW_OF and ARCHITECTURE.md"]
    faults = []
    for found in imports_of(ast.parse(source)):
        top, _, rest = found.module.partition(".")
        if top == "qi":
            other = rest.partition(".")[0]
            legal = (
                other == own or ROW_OF.get(other, 99) < ROW_OF[own] or ROW_OF.get(other) == 0 or (own, other) in EDGES
            )
        elif top in FRAMEWORKS:
            legal = top in FRAMEWORKS_OF.get(own, ()) or (found.lazy and name in LAZY_FRAMEWORK_MODULES)
            legal = legal and not found.module.startswith(PRIVATE)
        else:
            legal = top in sys.stdlib_module_names or (ROW_OF[own] > 0 and top in BASE)
            legal = legal or top in LIBRARIES_OF.get(own, ())
        if not legal:
            faults.append(f"qi.{name} line {found.line}: may not import {found.module}")
    return faults


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_module_imports_only_from_rows_above(path: Path) -> None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    assert faults_of(name, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("core.affine", "from qi.observers import minmax"),
        ("core.affine", "import keras"),
        ("core.affine", "def f():\n    import keras"),
        ("core.namespace", "import keras"),
        ("core.grid", "from qi import keras"),
        ("core.grid", "import qi"),
        ("core.grid", "import importlib\ndef f():\n    importlib.import_module('qi.keras')"),
        ("dispatch.policy", "from qi.recipes import Rule"),
        ("errors", "import numpy"),
        ("keras.wrapper", "from keras.src import backend"),
        ("report.html", "import jinja2"),
        ("cli.serve", "import uvicorn"),
        ("service.app", "import keras"),
        ("torch.wrapper", "import tensorflow"),
        ("engine.quantizer", "import orjson"),
        ("service.app", "from qi.cli import main"),
        ("novelty.thing", "import os"),
    ],
)
def test_an_illegal_import_is_found(name: str, source: str) -> None:
    assert len(faults_of(name, source)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (
            "core.affine",
            "import numpy as np\nfrom qi.core.grid import IntGrid\nfrom qi.errors import ConfigError",
        ),
        ("core.namespace", "def keras_namespace():\n    import keras"),
        ("registry", "from qi.errors import ConfigError"),
        ("keras.wrapper", "import keras\nfrom qi.dispatch import NodeQuantizationDispatcher"),
        ("cli.main", "def main():\n    from qi.keras import quantize_model"),
        ("service.app", "import fastapi\nfrom qi.engine import Quantizer"),
    ],
)
def test_a_legal_import_passes(name: str, source: str) -> None:
    assert faults_of(name, source) == []
