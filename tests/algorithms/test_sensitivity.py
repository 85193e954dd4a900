"""Predicted output errors and their weighting."""

from __future__ import annotations

import numpy as np
import pytest

from qi.algorithms.problem import Problem
from qi.algorithms.sensitivity import output_power, relative_error, relative_errors, weighted_losses
from qi.core import IntGrid
from qi.errors import InputError

RNG = np.random.default_rng(0)


def correlated(groups: int, features: int, rows: int = 4000) -> np.ndarray:
    """Inputs [rows, G, K] whose features are far from independent."""
    mix = RNG.normal(size=(groups, features, features))
    return np.einsum("ngk,gkl->ngl", RNG.normal(size=(rows, groups, features)), mix) + 0.5


def test_prediction_equals_what_running_the_layer_gives() -> None:
    x, weight = correlated(3, 6), RNG.normal(size=(3, 6, 4))
    values = weight + 0.1 * RNG.normal(size=weight.shape)
    second = np.einsum("ngk,ngl->gkl", x, x) / len(x)
    before, after = (np.einsum("ngk,gkm->ngm", x, w) for w in (weight, values))
    measured = np.mean((before - after) ** 2) / np.mean(before**2)
    assert relative_error(weight, values, second) == pytest.approx(measured, rel=1e-9)
    assert output_power(weight, second) == pytest.approx(np.mean(np.sum(before**2, axis=(1, 2))), rel=1e-9)
    assert relative_error(weight, values) != pytest.approx(measured, rel=0.01)


def test_more_bits_have_less_error() -> None:
    weight = RNG.normal(size=(1, 32, 8)).astype("float32")
    x = correlated(1, 32)
    second = np.einsum("ngk,ngl->gkl", x, x) / len(x)
    problems = [
        Problem(
            weight,
            np.full(1, np.abs(weight).max() / IntGrid(bits, narrow=True).qmax, "float32"),
            np.zeros(1, np.int32),
            np.zeros(weight.shape, int),
            IntGrid(bits, narrow=True),
            second,
        )
        for bits in (3, 4, 6, 8)
    ]
    errors = relative_errors(weight, [p.values(p.nearest()) for p in problems], second)
    assert np.all(np.diff(errors) < 0)
    # 6 dB a bit: from 4 to 6 bits the squared error falls by about 16
    assert 8 < errors[1] / errors[2] < 40
    assert errors[0] == relative_error(weight, problems[0].values(problems[0].nearest()), second)


def test_dead_outputs() -> None:
    zeros = np.zeros((1, 2, 2))
    assert relative_error(zeros, zeros) == 0
    assert relative_error(zeros, zeros + 1) == np.inf
    assert relative_error(np.ones((1, 2, 2)), zeros, np.zeros((1, 2, 2))) == 0


def test_a_quadratic_loss_is_predicted_exactly() -> None:
    weight = RNG.normal(size=(1, 8, 4))
    curvature = 3.7
    candidates = [weight + step * RNG.choice([-1.0, 1.0], weight.shape) for step in (0.3, 0.1, 0.01)]
    probe = weight + 0.05 * RNG.choice([-1.0, 1.0], weight.shape)
    losses = [curvature * np.sum((weight - other) ** 2) for other in candidates]
    errors = [relative_error(weight, other) for other in candidates]
    measured = curvature * float(np.sum((weight - probe) ** 2))
    assert weighted_losses(errors, measured, relative_error(weight, probe)) == pytest.approx(losses, rel=1e-9)
    assert weighted_losses(errors, 0.0, 0.0).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: output_power(np.zeros((2, 2))), r"a matrix \[G, K, N\]"),
        (lambda: output_power(np.zeros((1, 2, 2)), np.zeros((1, 3, 3))), r"received \(1, 2, 2\) and \(1, 3, 3\)"),
        (lambda: relative_error(np.zeros((1, 2, 2)), np.zeros((1, 2, 3))), "of the weight's shape"),
        (lambda: relative_error(np.full((1, 2, 2), np.nan), np.zeros((1, 2, 2))), "NaN or infinity"),
        (lambda: weighted_losses([1.0], 1.0, 0.0), "the error that caused it"),
        (lambda: weighted_losses([-1.0], 1.0, 1.0), "the error that caused it"),
        (lambda: weighted_losses([1.0], np.nan, 1.0), "the error that caused it"),
    ],
)
def test_bad_input_is_refused(call: object, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()  # type: ignore[operator]
