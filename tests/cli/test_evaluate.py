from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qi
from qi.cli.evaluate import HIGHER_IS_BETTER, loss_of
from qi.ledger import METRICS, Evaluation


@pytest.fixture
def evaluate(files: Path, qi_command: Callable[..., Any]) -> Callable[..., Any]:
    """The command on the float and the quantized model, with more options."""
    models = files / "float.keras", files / "quantized.keras"
    return lambda *options: qi_command("evaluate", *models, "--data", files / "data.npz", *options)


def test_the_help_names_every_metric() -> None:
    assert set(HIGHER_IS_BETTER) == set(METRICS.names())


def test_float_stands_beside_quantized(
    evaluate: Callable[..., Any], files: Path, samples: dict[str, np.ndarray]
) -> None:
    done = evaluate("--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    model = qi.load_model(files / "float.keras")
    classes = model.predict(samples["x_test"], verbose=0).argmax(axis=1)
    assert found["float_value"] == np.mean(classes == samples["y_test"])
    assert found["difference"] == found["quantized_value"] - found["float_value"]
    header, row = evaluate().out.splitlines()
    assert header.split() == ["metric", "float", "quantized", "difference", "agreement", "samples"]
    assert row.split()[0] == "accuracy"


def test_an_open_gate_says_so(evaluate: Callable[..., Any]) -> None:
    done = evaluate("--max-drop", "100")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1].startswith("passed: ")


def test_a_closed_gate_is_code_3(
    files: Path, tmp_path: Path, qi_command: Callable[..., Any], samples: dict[str, np.ndarray]
) -> None:
    model = qi.load_model(files / "float.keras")
    y = model.predict(samples["x_test"], verbose=0).argmax(axis=1)  # the float model is always right
    np.savez(tmp_path / "d.npz", x=samples["x_test"], y=y)
    model.set_weights([-weight for weight in model.get_weights()])
    wrong = qi.save_model(model, tmp_path / "wrong.keras")
    done = qi_command("evaluate", files / "float.keras", wrong, "--data", tmp_path / "d.npz", "--max-drop", "0.5")
    assert done.code == 3
    assert done.error.startswith("expected accuracy to get worse by at most 0.5 points; received ")
    assert "accuracy" in done.out  # the result is shown all the same


@pytest.mark.parametrize(
    ("metric", "after", "lost"),
    [("accuracy", 0.78, 2.0), ("accuracy", 0.9, -10.0), ("mse", 0.9, 0.1), ("mae", 0.7, -0.1)],
)
def test_worse_means_less_of_a_share_and_more_of_an_error(metric: str, after: float, lost: float) -> None:
    result = Evaluation(metric=metric, float_value=0.8, quantized_value=after)
    assert loss_of(result) == pytest.approx(lost, abs=1e-12)


def test_several_inputs_come_by_name(two_inputs: Path, tmp_path: Path, qi_command: Callable[..., Any]) -> None:
    np.savez(tmp_path / "d.npz", right=np.ones((4, 3)), left=np.ones((4, 4)), y=np.zeros((4, 2)))
    done = qi_command("evaluate", two_inputs, two_inputs, "--data", tmp_path / "d.npz", "--metric", "mae")
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--metric", "acuracy"], "Did you mean 'accuracy'?"),
        (["--max-drop", "-1"], "a number from 0 on"),
        (["--metric", "mse"], "shapes that go together for mse"),
    ],
)
def test_bad_options_are_refused(options: list[str], problem: str, evaluate: Callable[..., Any]) -> None:
    done = evaluate(*options)
    assert done.code == 2
    assert problem in done.error
