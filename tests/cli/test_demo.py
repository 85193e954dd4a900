from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qi.demo
from qi.cli import demo
from qi.errors import QiError
from qi.ledger import QuantizationReport


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo on a tenth of its images."""
    data = qi.demo.load_demo_data()
    few = qi.demo.DemoData(data.x_calib[::10], data.y_calib[::10], data.x_test[::10], data.y_test[::10])
    monkeypatch.setattr(qi.demo, "load_demo_data", lambda: few)


@pytest.mark.slow
def test_the_demo_measures_saves_and_explains(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qi_command: Callable[..., Any]
) -> None:
    pytest.importorskip("jinja2")
    monkeypatch.chdir(tmp_path)
    checked, check = [], demo._check_reloaded
    monkeypatch.setattr(demo, "_check_reloaded", lambda *given: checked.append(given[1].name) or check(*given))
    done = qi_command("demo", "--report", "page.html")
    assert done.code == 0
    (line,) = done.err.splitlines()  # of what 4 bits do to the last layers
    assert "activations drown in error" in line
    assert checked == ["w8a8.keras", "w4a8.keras"]
    for name in ("float32", *demo.RECIPES):
        assert f"\n{name} " in done.out
    written = sorted(path.name for path in (tmp_path / "qi-demo").iterdir())
    assert written == ["w4a8.html", "w4a8.json", "w4a8.keras", "w8a8.html", "w8a8.json", "w8a8.keras"]
    assert all(f"qi-demo/{name}" in done.out for name in written)
    assert (tmp_path / "page.html").is_file()
    eight, four = (QuantizationReport.load(tmp_path / "qi-demo" / f"{recipe}.json") for recipe in demo.RECIPES)
    assert eight.evaluations[0].samples == 200
    assert eight.evaluations[0].quantized_value > eight.evaluations[0].float_value - 0.03
    assert eight.totals.bytes_after > 1.5 * four.totals.bytes_after


@pytest.mark.slow
def test_the_demo_does_without_optional_packages(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qi_command: Callable[..., Any], no_packages: Any
) -> None:
    monkeypatch.setattr(demo, "RECIPES", ("w8a8",))
    no_packages("rich", "jinja2", "matplotlib")
    done = qi_command("demo", "--out", tmp_path / "new" / "folder")
    assert done.code == 0
    assert done.err.startswith("qi: warning: ")
    assert "pip install 'quantizers-infrastructure[report]'" in done.err
    written = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert written == ["w8a8.json", "w8a8.keras", "w8a8.md"]


def test_a_reloaded_model_that_differs_is_an_error(small: None, files: Path) -> None:
    models = [qi.load_model(files / name) for name in ("float.keras", "quantized.keras")]
    data = qi.demo.load_demo_data()
    few = qi.demo.DemoData(data.x_calib, data.y_calib, data.x_test[:, :8, :8], data.y_test)
    demo._check_reloaded(models[1], files / "quantized.keras", few)
    with pytest.raises(QiError, match="received other numbers"):
        demo._check_reloaded(models[0], files / "quantized.keras", few)


def test_a_file_in_the_way_is_no_folder(tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    (tmp_path / "file").write_text("mine")
    done = qi_command("demo", "--out", tmp_path / "file")
    assert done.code == 2
    assert "expected a folder to write to" in done.error
    assert qi_command("demo", "--report", tmp_path / "r.pdf").code == 2
