"""What quantizing single weights costs a model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from qi.errors import InputError
from qi.keras.measured import measured_losses
from qi.keras.prepare import prepare
from qi.keras.searched import Searched, searched_weights
from qi.keras.sensitivity import (
    divergence,
    hessian_losses,
    input_moments,
    output_errors,
    perturbed_values,
    quantized_values,
    some_samples,
)
from qi.recipes import decode_name
from tests.keras.models import build, first, samples, settle

SPECS = [decode_name(f"w{bits}").weights for bits in (2, 4, 8)]


def found_in(model: keras.Model, recipe: Any = "w8a8") -> tuple[Any, list[Searched], list[Any]]:
    ready = prepare(model, recipe)
    return ready, *searched_weights(ready, SPECS)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["residual", "mobile"])
def test_losses_are_those_of_the_model_with_one_weight_replaced(name: str) -> None:
    model = build(name)
    x = samples(model, 12)
    ready, weights, _ = found_in(model, "w8")
    held = list(some_samples(ready, x, 12, 5))
    assert [count for _, count in held] == [5, 5, 2]
    before = [weight.array.copy() for weight in weights]
    losses = measured_losses(ready, held, weights, quantized_values, mean_difference)
    exact = first(model(x))
    from qi.keras.graph import build_model

    whole = build_model(ready.graph, ready.tensors)
    for weight, array, own in zip(weights, before, losses, strict=True):
        assert np.array_equal(np.asarray(weight.variable), array)  # nothing is left changed
        for place in range(len(SPECS)):
            weight.variable.assign(weight.values(place))
            assert own[place] == pytest.approx(np.abs(first(whole(x)) - exact).mean(), rel=1e-3, abs=1e-6)
        weight.variable.assign(array)
        assert own[0] > own[-1] > 0


def mean_difference(before: list[np.ndarray], after: list[np.ndarray]) -> float:
    return float(np.abs(before[0] - after[0]).mean())


def test_predicted_output_errors_are_those_of_the_layer() -> None:
    model = settle(keras.Sequential([keras.Input((10,)), keras.layers.Dense(7, name="one", use_bias=False)]))
    x = (np.random.default_rng(0).normal(size=(256, 10)) @ np.diag(np.arange(1.0, 11.0))).astype("float32")
    ready, weights, _ = found_in(model)
    held = list(some_samples(ready, x, 256, 64))
    predicted = output_errors(weights, input_moments(ready, held))[0]

    def relative(before: list[np.ndarray], after: list[np.ndarray]) -> float:
        return float(np.mean((before[0] - after[0]) ** 2) / np.mean((x @ weights[0].array) ** 2))

    measured = measured_losses(ready, held, weights, quantized_values, relative)[0]
    assert predicted == pytest.approx(measured, rel=1e-4)
    assert output_errors(weights, {})[0] != pytest.approx(measured, rel=0.01)  # without moments, of the weight itself


def test_the_hessian_tells_layers_apart_that_the_output_minds_differently() -> None:
    """Of two branches alike, one counts a hundred times more: the errors of both are alike, the losses aren't."""
    inputs = keras.Input((8,), name="x")
    heavy, light = (keras.layers.Dense(6, name=name, use_bias=False)(inputs) for name in ("heavy", "light"))
    scaled = keras.layers.Rescaling(0.01, name="scale")(light)
    model = settle(keras.Model(inputs, keras.layers.Add()([heavy, scaled])))
    x = samples(model, 64)
    ready, weights, _ = found_in(model, "w8")
    held = list(some_samples(ready, x, 64, 64))
    seen = input_moments(ready, held)
    measured = measured_losses(ready, held, weights, perturbed_values, divergence)
    losses = hessian_losses(weights, measured, seen)
    errors = output_errors(weights, seen)
    task = measured_losses(ready, held, weights, quantized_values, divergence)
    assert 0.2 < errors[0][1] / errors[1][1] < 5
    assert losses[0][1] > 1000 * losses[1][1]
    for own, exact in zip(losses, task, strict=True):
        assert np.all((own / exact > 0.3) & (own / exact < 3))


def test_perturbations_are_the_same_every_time() -> None:
    _, weights, _ = found_in(build("sequential"))
    one, other = perturbed_values(weights[0])
    assert np.array_equal(one(), one())
    assert not np.array_equal(one(), other())
    steps = np.abs(one() - weights[0].array)
    assert steps == pytest.approx(steps.mean(), rel=1e-3)


def test_divergence_of_probabilities_and_of_numbers() -> None:
    p, q = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.25, 0.75], [0.9, 0.1]])
    assert divergence([p], [p]) == 0
    assert divergence([p], [q]) == pytest.approx(0.5 * (0.5 * np.log(2) + 0.5 * np.log(2 / 3)), rel=1e-5)
    y = np.array([[1.0, 3.0], [-1.0, 5.0]])
    assert divergence([y, y], [y + 1, y]) == pytest.approx(1 / np.var(y))
    assert divergence([np.zeros(3)], [np.ones(3)]) == 1


def test_metrics_and_models_that_give_no_number_are_refused() -> None:
    model = build("sequential")
    ready, weights, _ = found_in(model)
    held = list(some_samples(ready, samples(model, 4), 4, 4))
    with pytest.raises(InputError, match="a finite number of the metric; received nan with 'first/kernel' changed"):
        measured_losses(ready, held, weights, quantized_values, lambda before, after: float("nan"))
    inputs = keras.Input((4,), name="x")
    broken = keras.Model(inputs, keras.ops.log(keras.layers.Dense(2, name="d")(inputs) * 0.0 - 1.0))
    ready, weights, _ = found_in(broken)
    with pytest.raises(InputError, match=r"NaN or infinity from .* in float"):
        measured_losses(ready, some_samples(ready, np.ones((2, 4)), 2, 2), weights, quantized_values, divergence)
