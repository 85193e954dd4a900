from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qi
from qi.ledger import QuantizationReport

FULL_DISK = """
import resource, sys
from qi.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def quantize(files: Path, tmp_path: Path, qi_command: Callable[..., Any]) -> Callable[..., Any]:
    """The command on the float model, to q.keras, with more options."""
    return lambda *options: qi_command("quantize", files / "float.keras", "-o", tmp_path / "q.keras", *options)


def test_the_model_and_its_reports_are_written(
    quantize: Callable[..., Any], files: Path, tmp_path: Path, samples: dict[str, np.ndarray]
) -> None:
    reports = tmp_path / "r.json", tmp_path / "r.md"
    done = quantize("--data", files / "data.npz", "--report", reports[0], "--report", reports[1])
    assert (done.code, done.err) == (0, "")
    assert "recipe w8a8" in done.out
    assert done.out.endswith(f"saved {tmp_path / 'q.keras'}\nsaved {reports[0]}\nsaved {reports[1]}\n")
    assert QuantizationReport.load(reports[0]).totals.weights_quantized == 2
    assert "w8a8" in reports[1].read_text()
    models = [qi.load_model(path) for path in (tmp_path / "q.keras", files / "quantized.keras")]
    ours, direct = (model.predict(samples["x_test"], verbose=0) for model in models)
    assert np.array_equal(ours, direct)


def test_classes_of_users_need_python_as_the_help_says(tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    import keras

    class Own(keras.Model):
        def call(self, x: Any) -> Any:
            return keras.ops.relu(x)

    x = np.ones((40, 5), "float32")
    model = Own()
    model(x)
    model.save(tmp_path / "own.keras")
    done = qi_command("quantize", tmp_path / "own.keras", "--recipe", "w8", "-o", tmp_path / "q.keras")
    assert done.code == 2
    assert "Could not locate class 'Own'" in done.err
    qi.quantize_model(model, "w8", x, progress=False)
    told = qi_command("quantize", "--help").out
    assert "A file that holds layers or classes of\nyours can't be read here" in told


def test_a_page_is_written(quantize: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    assert quantize("--recipe", "w8", "--report", tmp_path / "r.html").code == 0
    assert (tmp_path / "r.html").read_text().lstrip().lower().startswith("<!doctype html>")


def test_quiet_says_nothing_but_warnings(quantize: Callable[..., Any], tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.ones((3, 8, 8, 1), "float32"))
    done = quantize("--data", tmp_path / "few.npy", "--quiet")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("qi: warning: only 3 calibration samples")


def test_a_recipe_can_be_a_file(quantize: Callable[..., Any], tmp_path: Path) -> None:
    data = {"base": "w8", "rules": [{"match": "head", "weights": "float"}]}
    (tmp_path / "r.json").write_text(json.dumps({"_type": "qi.Recipe", "_version": 1, "_data": data}))
    assert quantize("--recipe", tmp_path / "r.json").code == 0
    found = qi.inspect_model(qi.load_model(tmp_path / "q.keras"))
    assert [weight.bits for weight in found.weights] == [8, None, None, None]


def test_strict_refuses_a_weight_that_would_stay_in_float(tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    import keras

    model = keras.Sequential([keras.Input((6, 4)), keras.layers.Dense(4), keras.layers.PReLU(name="slopes")])
    path = qi.save_model(model, tmp_path / "m.keras")
    arguments = "quantize", path, "--recipe", "w8", "-o", tmp_path / "q.keras"
    done = qi_command(*arguments, "--strict")
    assert done.code == 3
    assert "slopes/alpha" in done.error
    assert not (tmp_path / "q.keras").exists()
    assert qi_command(*arguments).code == 0


def test_a_quantized_model_is_refused_as_input(files: Path, tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    for options in ([], ["--strict"]):
        done = qi_command("quantize", files / "quantized.keras", "--recipe", "w8", "-o", tmp_path / "q.keras", *options)
        assert done.code == 2
        assert "expected a float model" in done.error


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "expected --data or --stats, for recipe w8a8 quantizes activations"),
        (["--recipe", "w8a88x"], "Did you mean 'w8a8'"),
        (["--recipe", "no.json"], "No such file or directory: no.json"),
        (["--data", "no.npz"], "a file with samples"),
        (["--stats", "no.npz"], "a file with statistics"),
        (["--data", "a", "--stats", "b"], "not allowed with argument --data"),
        (["--recipe", "w8", "--report", "r.pdf"], "ending in .html or .md"),
        (["--recipe", "w8", "--batch-size", "0"], "a whole number from 1 to"),
    ],
)
def test_bad_options_are_refused_before_the_work(
    options: list[str], problem: str, quantize: Callable[..., Any], tmp_path: Path
) -> None:
    done = quantize(*options)
    assert done.code == 2
    assert problem in done.error
    assert list(tmp_path.iterdir()) == []


def test_samples_of_another_shape_are_refused(quantize: Callable[..., Any], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((40, 7)))
    done = quantize("--data", tmp_path / "x.npy")
    assert done.code == 2
    assert "expected shape ('n', 8, 8, 1) for input 'image'; received (40, 7)" in done.error


def test_statistics_of_something_else_are_refused(quantize: Callable[..., Any], files: Path) -> None:
    done = quantize("--stats", files / "data.npz")
    assert done.code == 2
    assert "expected a file of statistics" in done.error


def test_the_given_model_is_never_overwritten(files: Path, tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    path = tmp_path / "m.keras"
    path.write_bytes((files / "float.keras").read_bytes())
    done = qi_command("quantize", path, "--recipe", "w8", "-o", path)
    assert done.code == 2
    assert "another file to write than to read" in done.error
    assert path.read_bytes() == (files / "float.keras").read_bytes()


def test_a_full_disk_leaves_the_old_file(environment: dict[str, str], files: Path, tmp_path: Path) -> None:
    pytest.importorskip("resource")
    old = tmp_path / "q.keras"
    old.write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, "quantize", files / "float.keras", "--recipe", "w8", "-o", old],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, f"qi: error: File too large: {old}\n")
    assert old.read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_algorithms_are_named_in_recipes_and_by_effort(
    quantize: Callable[..., Any], files: Path, tmp_path: Path
) -> None:
    done = quantize(
        "--data", files / "data.npz", "--recipe", "w4a8", "--effort", "balanced", "--report", tmp_path / "r.json"
    )
    assert done.code == 0
    assert "'head/kernel': 144 features, 64 rows" in done.err  # too few for its moments
    rows = [row for row in QuantizationReport.load(tmp_path / "r.json").rows if row.kind == "weight" and row.quantized]
    assert {row.algorithms for row in rows} == {"output_range, gptq, bias_correction"}
    assert all(row.output_error is not None and row.output_error <= 1 for row in rows)


def test_work_is_kept_in_a_file_that_belongs_to_the_model(
    quantize: Callable[..., Any], files: Path, tmp_path: Path
) -> None:
    options = ("--data", files / "data.npz", "--resume", tmp_path / "work.progress", "--quiet")
    assert quantize("--recipe", "w4a8_gptq", *options).code == 0
    first = (tmp_path / "q.keras").read_bytes()
    assert quantize("--recipe", "w4a8_gptq", *options).code == 0
    assert len((tmp_path / "q.keras").read_bytes()) == len(first)
    done = quantize("--recipe", "w3a8_gptq", *options)
    assert done.code != 0
    assert "expected progress of this model, recipe and statistics" in done.err


@pytest.mark.parametrize("option", [("--effort", "bset"), ("--jobs", "0"), ("--resume", "work.txt")])
def test_illegal_options_of_algorithms(quantize: Callable[..., Any], files: Path, option: tuple[str, str]) -> None:
    assert quantize("--data", files / "data.npz", *option).code == 2


def test_a_drop_that_is_allowed_decides_on_bits(
    quantize: Callable[..., Any], files: Path, tmp_path: Path, samples: dict[str, np.ndarray]
) -> None:
    pytest.importorskip("scipy")
    model = qi.load_model(files / "float.keras")
    y = model.predict(samples["x_test"], verbose=0).argmax(-1)  # of which the float model knows all
    np.savez(tmp_path / "d.npz", **{**samples, "y_test": y})
    options = "--data", tmp_path / "d.npz", "--recipe", "w2a8", "--report", tmp_path / "r.json"
    done = quantize(*options, "--max-drop", "8", "--resume", tmp_path / "w.progress")
    assert done.code == 0
    settings = QuantizationReport.load(tmp_path / "r.json").settings
    assert settings["metric_float"] == 100
    assert settings["metric_quantized"] >= 92 > settings["metric_before_raising"]
    mse = quantize(*options, "--max-drop", "1000", "--metric", "mse")
    assert mse.code != 0  # classes aren't what it gives: shapes differ
    assert "expected" in mse.err


def test_a_drop_that_nothing_holds_is_refused(
    quantize: Callable[..., Any], files: Path, tmp_path: Path, samples: dict[str, np.ndarray]
) -> None:
    pytest.importorskip("scipy")
    model = qi.load_model(files / "float.keras")
    np.savez(tmp_path / "d.npz", **{**samples, "y_test": model.predict(samples["x_test"], verbose=0)})
    done = quantize("--data", tmp_path / "d.npz", "--max-drop", "0", "--metric", "mae")
    assert done.code == 3
    assert "expected a max_drop that can hold; received max_drop=0" in done.error
    assert [path.name for path in tmp_path.iterdir()] == ["d.npz"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--max-drop", "-1"], "a number from 0 on; received '-1'"),
        (["--max-drop", "nan"], "a number from 0 on; received 'nan'"),
        (["--metric", "mse"], "expected --max-drop with --metric mse"),
        (["--max-drop", "1", "--metric", "acuracy"], "Did you mean 'accuracy'"),
    ],
)
def test_illegal_limits(
    quantize: Callable[..., Any], files: Path, tmp_path: Path, options: list[str], problem: str
) -> None:
    done = quantize("--data", files / "data.npz", *options)
    assert done.code == 2
    assert problem in done.error


def test_a_limit_needs_true_values(quantize: Callable[..., Any], tmp_path: Path) -> None:
    assert "expected --data with --max-drop" in quantize("--recipe", "w8", "--max-drop", "1").error
    np.save(tmp_path / "x.npy", np.ones((40, 8, 8, 1), "float32"))
    assert "expected true values called y beside x" in quantize("--data", tmp_path / "x.npy", "--max-drop", "1").error
