"""The public face: every exported name exists, is documented, and unknown names get help."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import qi


def test_all_is_sorted_and_has_no_duplicates() -> None:
    assert list(qi.__all__) == sorted(set(qi.__all__))


def test_dir_offers_every_exported_name() -> None:
    assert {*qi.__all__, "__version__"} <= set(dir(qi))


@pytest.mark.parametrize("name", qi.__all__)
def test_an_exported_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(qi, name)
    assert inspect.isclass(value) or callable(value)
    assert len(inspect.getdoc(value) or "") > 20, f"qi.{name} has no docstring"
    assert value.__module__.startswith("qi."), f"qi.{name} comes from {value.__module__}"


@pytest.mark.parametrize("name", qi.__all__)
def test_an_exported_name_is_exported_by_its_own_package_too(name: str) -> None:
    package = importlib.import_module(qi._EXPORTS[name])
    assert name in getattr(package, "__all__", dir(package))


def test_type_checkers_see_the_same_names(checkout: Path) -> None:
    tree = ast.parse((checkout / "qi" / "__init__.pyi").read_text(encoding="utf-8"))
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    stubbed = {alias.asname: node.module for node in froms for alias in node.names}
    assert stubbed == {**qi._EXPORTS, **dict.fromkeys(qi._PACKAGES, "qi"), "__version__": "qi._version"}


@pytest.mark.parametrize("name", qi._PACKAGES)
def test_a_package_is_an_attribute(name: str) -> None:
    assert qi.__getattr__(name) is importlib.import_module(f"qi.{name}")
    assert name in dir(qi)


def test_a_resolved_name_is_kept() -> None:
    assert qi.ConfigError is vars(qi)["ConfigError"]


def test_an_unknown_name_is_an_attribute_error_that_suggests() -> None:
    with pytest.raises(AttributeError, match=r"module 'qi' has no attribute 'quantise_model'\. Did you mean"):
        qi.quantise_model  # noqa: B018


def test_star_import_brings_exactly_the_public_names(checkout: Path) -> None:
    code = (
        "before = {*globals(), 'before'}\n"
        "from qi import *\n"
        "brought = {*globals()} - before\n"
        "import qi\n"
        "assert brought == {*qi.__all__}, brought ^ {*qi.__all__}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_is_the_one_of_version_py() -> None:
    from qi._version import __version__

    assert qi.__version__ == __version__
