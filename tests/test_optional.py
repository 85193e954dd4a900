from __future__ import annotations

import json
import os
import subprocess
import sys
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


def test_something_else_of_the_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qi_some_folder" / "data").mkdir(parents=True)
    (tmp_path / "qi_some_file.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError) as caught:
        require("qi_some_folder", extra="torch", feature="qi.torch", has="Tensor")
    assert str(caught.value) == (
        f"qi.torch needs qi_some_folder; received the folder {tmp_path / 'qi_some_folder'}, which Python finds under its name "
        "and which is something else; do rename it or run elsewhere, and if qi_some_folder isn't installed do: "
        "pip install 'quantizers-infrastructure[torch]'"
    )
    assert "qi_some_folder" not in sys.modules
    with pytest.raises(MissingDependencyError, match=r"received .*qi_some_file.py, which"):
        require("qi_some_file", extra="torch", has="Tensor")
    assert require("qi_some_file", extra="torch", has="x").x == 1


def test_what_others_imported_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qi_other_folder").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    import qi_other_folder

    with pytest.raises(MissingDependencyError):
        require("qi_other_folder", extra="torch", has="Tensor")
    assert sys.modules.pop("qi_other_folder") is qi_other_folder


# The first argument is a folder in which torch is looked for, and nowhere else.
WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder
class Elsewhere:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            found = PathFinder.find_spec(name, path or [sys.argv[1]])
            if found is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return found
sys.meta_path.insert(0, Elsewhere)
import numpy as np
import qi
x = np.linspace(-1, 1, 5, dtype=np.float32)
def works():
    return qi.WeightsSymmetricInferableQuantizer(4, 1.0)(x).tolist() == [-1.0, -0.5, 0.0, 0.5, 0.875]
assert works()
for use in (lambda: __import__("qi.torch"), lambda: qi.PytorchQuantizationWrapper, lambda: qi.torch.quantize_model):
    try:
        use()
    except qi.MissingDependencyError as error:
        print(error)
assert works()
"""
KERAS = """
import keras
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
qmodel, _ = qi.quantize_model(model, "w8a8", np.ones((64, 3), np.float32), progress=False)
assert qmodel.predict(np.ones((2, 3), np.float32), verbose=0).shape == (2, 2)
"""


def told(code: str, folder: Path, checkout: Path) -> list[str]:
    """What a process prints that finds torch in a folder only, and that is the working directory."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_without_torch_the_pip_line_is_told(tmp_path: Path, checkout: Path) -> None:
    lines = told(WITHOUT_TORCH, tmp_path, checkout)
    assert lines == ["qi.torch needs torch; do: pip install 'quantizers-infrastructure[torch]'"] * 3


@pytest.mark.parametrize("files", [(), ("notes.txt", "utils.py"), ("__init__.py", "utils.py")])
def test_a_folder_called_torch_breaks_nothing_else(files: tuple[str, ...], tmp_path: Path, checkout: Path) -> None:
    folder = tmp_path / "torch"
    folder.mkdir()
    for name in files:
        (folder / name).write_text("here = 1\n")
    lines = told(WITHOUT_TORCH + KERAS * (files == ("notes.txt", "utils.py")), tmp_path, checkout)
    assert len(lines) == 3
    place = folder / "__init__.py" if "__init__.py" in files else f"the folder {folder}"
    assert all(line.startswith(f"qi.torch needs torch; received {place}, which Python finds") for line in lines)
    assert all(line.endswith("pip install 'quantizers-infrastructure[torch]'") for line in lines)


def test_a_folder_called_torch_beside_the_library(tmp_path: Path, checkout: Path) -> None:
    (tmp_path / "torch").mkdir()
    assert told("import qi; print(qi.PytorchQuantizationWrapper.__name__)", tmp_path, checkout) == [
        "PytorchQuantizationWrapper"
    ]
