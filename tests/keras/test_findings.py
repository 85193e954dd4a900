"""What users hear of: every warning has a case that gives it and one that doesn't."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi import InputError, QuantizationWarning, Recipe, Rule, TensorSpec, quantize_model
from qi.core import sqnr_db
from qi.keras.findings import algorithms_of
from qi.ledger import Row
from tests.keras.models import build, samples, settle
from tests.keras.warned import warned

ACTIVATIONS = TensorSpec(bits=8, method="uniform", range="minmax")


def relu(x: Any) -> Any:
    return 2 * x


def quantized(model: keras.Model, recipe: Any = "w8a8", data: Any = None, **options: Any) -> tuple[Any, Any]:
    return quantize_model(model, recipe, data, **{"progress": False} | options)


def test_a_function_with_a_name_of_keras_stays_and_is_warned_of() -> None:
    stack = [keras.Input((4,)), layers.Dense(3, activation=relu, name="first"), layers.Activation(relu, name="second")]
    model = settle(keras.Sequential([*stack, layers.Dense(2, activation="relu", name="head")]))
    x = samples(model, 48)
    for recipe in ("w8", "w8a8_minmax"):
        with warned() as found:
            qmodel, _ = quantized(model, recipe, x)
        assert sqnr_db(model(x), qmodel(x)) > 20
        assert "2 layers apply functions with the name of one of Keras'" in str(found[0].message)
        assert "'relu' of 'first'" in str(found[0].message)


def test_few_samples_are_warned_of() -> None:
    model = build("sequential")
    with warned() as found:
        _, report = quantized(model, "w8a8_minmax", samples(model, 31))
    assert [item.category for item in found] == [QuantizationWarning]
    assert report.warnings == ["only 31 calibration samples; ranges need at least 32, better some hundreds"]
    with warned() as found:
        quantized(model, "w8a8_minmax", samples(model, 32))
        quantized(model, "w8", samples(model, 1))
    assert not found


def test_ranges_that_saturate_are_warned_of() -> None:
    model = keras.Sequential([keras.Input((8,), name="x"), layers.ReLU(name="clamp")])
    data = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    cut = TensorSpec(bits=8, method="uniform", range="percentile", range_options={"percentile": 90.0})
    with warned() as found:
        _, report = quantized(model, Recipe("cut", activations=cut), data)
    (line,) = report.warnings
    share = next(row.clipped_share for row in report.rows if row.layer == "x")
    assert share is not None
    assert line.startswith(f"2 activation ranges saturate: x clips {100 * share:.1f} % of its values")
    assert [str(item.message) for item in found] == [line]


def test_activations_that_overflow_are_warned_of() -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Activation("exponential", name="grow")])
    data = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    data[3, 1:3] = 1000.0
    with warned() as found:
        _, report = quantized(model, Recipe("a", activations=ACTIVATIONS), data)
    assert "1 activations hold NaN or infinities in the float model" in report.warnings[0]
    assert "2 values of grow" in report.warnings[0]
    assert len(found) == 1
    with pytest.raises(InputError, match=r"expected finite activations; the float model gave none at \['grow'\]"):
        quantized(model, Recipe("a", activations=ACTIVATIONS), np.full((40, 4), 1000.0))


def test_activations_that_drown_in_error_are_warned_of_once() -> None:
    model = keras.Sequential([keras.Input((1000,), name="x"), layers.Softmax(name="classes")])
    data = np.random.default_rng(0).normal(0.0, 0.1, (64, 1000)).astype(np.float32)
    with warned() as found:
        _, report = quantized(model, "w8a8_minmax", data)  # 0.001 each, on a grid of 1/256
    (line,) = report.warnings
    ratio = next(row.total_sqnr_db for row in report.rows if row.layer == "classes")
    assert ratio is not None
    assert ratio < 10
    assert line == (
        f"1 activations drown in error in {model.name!r} by w8a8_minmax (total SQNR below 10 dB): classes has {ratio:.1f} dB; "
        "do use more bits, or leave the first of them in float by a rule"
    )
    assert [str(item.message) for item in found] == [line]
    recipe = Recipe("f", activations=ACTIVATIONS, rules=(Rule("classes", activations="float"),))
    assert quantized(model, recipe, data)[1].warnings == []
    model = build("residual")
    with warned():
        _, report = quantized(model, "w2a8_minmax", samples(model, 48))
    (line,) = (line for line in report.warnings if "drown" in line)
    lost = [row.total_sqnr_db for row in report.activations if row.total_sqnr_db is not None and row.total_sqnr_db < 10]
    assert len(lost) > 1
    assert line.startswith(f"{len(lost)} activations drown in error in {model.name!r} by w2a8_minmax")
    assert "do round the weights of 2 bits better with effort='balanced' first" in line
    assert f"has {min(lost):.1f} dB" in line


def test_algorithms_are_told_with_their_options_where_these_are_known() -> None:
    def weight(layer: str, algorithms: str) -> Row:
        return Row(
            kind="weight", layer=layer, layer_type="Dense", name="kernel", status="quantized", bits=4, method="symmetric",
            algorithms=algorithms,
        )  # fmt: skip

    rows = [
        weight("a", "gptq, bias_correction"),
        weight("b", "gptq, bias_correction"),
        weight("c", "hqq"),
        weight("d", ""),
    ]
    steps = ({"name": "gptq", "damping": 0.1}, "bias_correction")
    recipe = Recipe("r", weights=TensorSpec(bits=4, algorithms=steps))
    assert algorithms_of(recipe, rows) == {
        "algorithms": "gptq damping=0.1, bias_correction (2 of 4 quantized weights); hqq (c/kernel)"
    }
    other = TensorSpec(bits=4, algorithms=({"name": "gptq", "damping": 0.2},))
    assert algorithms_of(recipe.with_rules(Rule("b", weights=other)), rows)["algorithms"].startswith(
        "gptq, bias_correction (2"
    )
    assert algorithms_of(recipe, rows[3:]) == {}, "none worked"


def test_a_report_names_the_algorithms_of_an_effort_with_their_options() -> None:
    model = build("sequential")
    _, report = quantized(model, "w4a8", samples(model, 64), effort="balanced")
    told = "output_range rounding=gptq, gptq, bias_correction ("
    assert str(report.settings["algorithms"]).startswith(told)
    assert f"\n  algorithms: {told}" in str(report)
    assert "algorithms" not in quantized(model, "w8a8", samples(model, 64))[1].settings
