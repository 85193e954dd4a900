from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import qi
from qi.recipes import Rule, get_recipe

pytestmark = pytest.mark.filterwarnings("ignore::qi.QuantizationWarning")


@pytest.fixture(scope="module")
def trained() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """A network that has learned to tell four clouds of points apart."""
    pytest.importorskip("scipy")
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(3)
    y = rng.integers(0, 4, 600)
    x = (rng.normal(size=(4, 12))[y] + 0.9 * rng.normal(size=(600, 12))).astype("float32")
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((12,)), layers.Dense(24, activation="relu"), layers.Dense(24, activation="relu"), layers.Dense(4)]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=20, verbose=0)
    return model, x, y


def accuracy(x: np.ndarray, y: np.ndarray) -> Any:
    return lambda model: 100 * float(np.mean(model.predict(x, verbose=0).argmax(-1) == y))


def test_the_metric_holds_and_the_report_says_what_it_took(trained: Any) -> None:
    model, x, y = trained
    metric = accuracy(x, y)
    plain, before = qi.quantize_model(model, "w2a8", x, progress=False)
    assert metric(model) - metric(plain) > 1  # or there were nothing to raise
    quantized, report = qi.quantize_model(model, "w2a8", x, max_drop=1.0, metric=metric, progress=False)
    assert metric(model) - metric(quantized) <= 1.0
    settings = report.settings
    assert settings["metric_quantized"] == pytest.approx(metric(quantized))
    assert settings["metric_before_raising"] == pytest.approx(metric(plain))
    assert "kernel 2->" in str(settings["raised"])
    assert settings["raised_bytes"] == report.totals.bytes_after - before.totals.bytes_after > 0
    eight = qi.quantize_model(model, "w8a8", x, progress=False)[1]
    assert report.totals.bytes_after < eight.totals.bytes_after


def test_a_recipe_that_holds_is_left_alone(trained: Any) -> None:
    model, x, y = trained
    quantized, report = qi.quantize_model(model, "w8a8", x, max_drop=5, metric=accuracy(x, y), progress=False)
    direct, _ = qi.quantize_model(model, "w8a8", x, progress=False)
    assert report.settings["raised"] == "nothing"
    assert np.array_equal(quantized.predict(x, verbose=0), direct.predict(x, verbose=0))


def test_algorithms_and_rules_of_the_recipe_hold(trained: Any) -> None:
    model, x, y = trained
    first = model.layers[0].name
    recipe = get_recipe("w2a8_gptq").with_rules(Rule(first, weights=get_recipe("w3").weights))
    _, report = qi.quantize_model(model, recipe, x, max_drop=2, metric=accuracy(x, y), progress=False)
    rows = {row.path: row for row in report.rows if row.kind == "weight" and row.quantized}
    assert rows[f"{first}/kernel"].bits == 3
    assert all(row.algorithms == "gptq" for path, row in rows.items() if not path.startswith(f"{first}/"))


def test_activations_get_more_bits_where_weights_do_not_help(trained: Any) -> None:
    model, x, y = trained
    metric = accuracy(x, y)
    plain, _ = qi.quantize_model(model, "w8a2", x, progress=False)
    assert metric(model) - metric(plain) > 1
    quantized, report = qi.quantize_model(model, "w8a2", x, max_drop=1, metric=metric, progress=False)
    assert metric(model) - metric(quantized) <= 1
    assert "2->16" in str(report.settings["raised"])


def test_a_drop_that_cannot_hold_is_refused_with_the_best_found(trained: Any) -> None:
    model, x, y = trained
    rule = Rule(model.layers[1].name, weights=get_recipe("w2").weights, activations=get_recipe("w8a2").activations)
    recipe = get_recipe("w8a8").with_rules(rule)
    with pytest.raises(qi.ConfigError, match=r"a metric of \d+\.?\d* at best"):
        qi.quantize_model(model, recipe, x, max_drop=0, metric=accuracy(x, y), progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": 1}, "expected max_drop and metric together"),
        ({"metric": len}, "expected max_drop and metric together"),
        ({"max_drop": -1, "metric": len}, "expected max_drop to be a number from 0 on"),
        ({"max_drop": float("nan"), "metric": len}, "expected max_drop to be a number from 0 on"),
        ({"max_drop": 1, "metric": "accuracy"}, "expected metric to be a function"),
    ],
)
def test_illegal_control(trained: Any, options: dict[str, Any], message: str) -> None:
    model, x, _ = trained
    with pytest.raises(qi.ConfigError, match=message):
        qi.quantize_model(model, "w8a8", x, progress=False, **options)


@pytest.mark.parametrize("value", [float("nan"), None, "good"])
def test_a_metric_that_gives_no_number_is_refused_at_once(trained: Any, value: Any) -> None:
    model, x, _ = trained
    with pytest.raises(qi.InputError, match="expected a metric that gives a finite number"):
        qi.quantize_model(model, "w8a8", x, max_drop=1, metric=lambda model: value, progress=False)


def test_data_that_can_be_read_once_are_refused(trained: Any) -> None:
    model, x, y = trained
    with pytest.raises(qi.InputError, match="can be read once"):
        qi.quantize_model(model, "w8a8", iter([x]), max_drop=1, metric=accuracy(x, y), progress=False)


@pytest.mark.parametrize("weight", ["kernel", None])
def test_where_rules_say_all_about_weights_activations_still_get_more_bits(trained: Any, weight: str | None) -> None:
    model, x, y = trained
    recipe = get_recipe("w4a2").with_rules(Rule("*", weight=weight, weights=get_recipe("w8").weights))
    _, report = qi.quantize_model(model, recipe, x, max_drop=1, metric=accuracy(x, y), progress=False)
    assert "2->16" in str(report.settings["raised"])
    assert {row.bits for row in report.rows if row.name == "kernel" and row.quantized} == {8}


def test_each_recipe_that_is_tried_keeps_its_work(trained: Any, tmp_path: Path) -> None:
    model, x, y = trained
    options = {"max_drop": 0.2, "metric": accuracy(x, y), "effort": "balanced", "progress": False}
    first, _ = qi.quantize_model(model, "w2a8", x, resume=tmp_path / "kept", **options)
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(kept) > 1
    assert "kept.w2a8" in kept
    again, _ = qi.quantize_model(model, "w2a8", x, resume=tmp_path / "kept", **options)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept
    np.testing.assert_array_equal(first.predict(x, verbose=0), again.predict(x, verbose=0))


@pytest.mark.parametrize("last", [1, 2, 4])
def test_a_stopped_control_leaves_the_model_as_it_was(trained: Any, last: int) -> None:
    model, x, y = trained
    before = [variable.numpy().copy() for variable in model.variables]
    metric, seen = accuracy(x, y), []

    def stopped(judged: keras.Model) -> float:
        seen.append(judged)
        if len(seen) == last:
            raise KeyboardInterrupt
        return float(metric(judged))

    with pytest.raises(KeyboardInterrupt):
        qi.quantize_model(model, "w2a8", x, max_drop=0.5, metric=stopped, progress=False)
    assert all(map(np.array_equal, before, [variable.numpy() for variable in model.variables]))


def test_a_search_without_data_is_refused_when_it_is_needed(trained: Any) -> None:
    model, x, y = trained
    _, report = qi.quantize_model(model, "w8", max_drop=50, metric=accuracy(x, y), progress=False)
    assert report.settings["metric_quantized"] > 50
    with pytest.raises(qi.InputError, match="to find out what each weight costs: w2 gives"):
        qi.quantize_model(model, "w2", max_drop=0, metric=accuracy(x, y), progress=False)
