from __future__ import annotations

import json
from pathlib import Path

import pytest

from qi.errors import MissingDependencyError
from qi.optional import require


def test_an_installed_module_is_returned() -> None:
    assert require("json", extra="report") is json


def test_a_missing_package_names_the_feature_and_the_pip_line() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        require("qi_no_such_package.part", extra="report", feature="the HTML report")
    assert str(caught.value) == (
        "the HTML report needs qi_no_such_package; do: pip install 'quantizers-infrastructure[report]'"
    )
    assert caught.value.name == "qi_no_such_package"


def test_the_feature_may_be_left_out() -> None:
    with pytest.raises(MissingDependencyError, match="this feature needs qi_no_such_package"):
        require("qi_no_such_package", extra="onnx")


def test_a_fault_inside_a_package_is_not_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qi_broken_package.py").write_text("import qi_no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="qi_no_such_package") as caught:
        require("qi_broken_package", extra="report")
    assert not isinstance(caught.value, MissingDependencyError)


def test_a_module_missing_from_an_installed_package_asks_for_the_extra() -> None:
    with pytest.raises(MissingDependencyError, match=r"needs json; do: pip install .*\[report\]"):
        require("json.no_such_module", extra="report")
