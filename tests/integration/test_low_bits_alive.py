"""Every algorithm lowers the error of a trained network on real data, and a broken twin of it fails the same criterion.

The error of a layer is what its output is off the float model's, over the output's power, all errors before it included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import qi
from qi.algorithms import ALGORITHMS
from qi.demo.assets import demo_model_path, load_demo_data
from qi.recipes import get_recipe

pytestmark = pytest.mark.filterwarnings("ignore::qi.QuantizationWarning")

LEAST_GAIN = 0.2

# Of each algorithm: what it is added to, its place in the recipe's name, and how its work is undone.
Break = Callable[[pytest.MonkeyPatch], None]


def without_moments(patch: pytest.MonkeyPatch) -> None:
    """Second moments that say nothing: each input by itself, all alike; and means of zero."""
    from qi.observers import Moments

    patch.setattr(
        Moments,
        "second",
        property(lambda self: np.broadcast_to(np.eye(self.features), (self.groups,) + (self.features,) * 2)),
    )
    patch.setattr(Moments, "mean", property(lambda self: np.zeros((self.groups, self.features))))


def without_factors(patch: pytest.MonkeyPatch) -> None:
    """Channels that nothing scales."""
    patch.setattr("qi.keras.low_bits.equalize_links", lambda *given: [])
    patch.setattr("qi.keras.low_bits.smooth_links", lambda *given: [])


def without_steps(patch: pytest.MonkeyPatch) -> None:
    """A learning rate of 0."""
    from qi.keras import low_bits

    known = low_bits.reconstruct
    patch.setattr(
        low_bits,
        "reconstruct",
        lambda *given, **options: known(*given, **options | {"learning_rate": 0, "control": True}),
    )


def undone(name: str) -> Break:
    """An algorithm that leaves its problem as it is."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        entry = ALGORITHMS.get(name)
        dead: Any = type(entry)(
            entry.name,
            entry.stage,
            entry.needs,
            lambda problem, **options: problem.solution(problem.nearest()),
            entry.options,
            "",
        )
        monkeypatch.setitem(ALGORITHMS._entries, name, dead)

    return patch


CASES: dict[str, tuple[str, str, Break]] = {
    "gptq": ("w3a16", "w3a16_gptq", without_moments),
    "descent": ("w3a16", "w3a16_descent", without_moments),
    "adaround": ("w3a16", "w3a16_adaround", without_moments),
    "output_range": ("w3a16", "w3a16_output_range", without_moments),
    "hqq": ("w2a16_minmax", "w2a16_minmax_hqq", undone("hqq")),
    "kmeans": ("w3a16", "w3a16_kmeans", undone("kmeans")),
    "powers": ("w2a16_minmax", "w2a16_minmax_powers", undone("powers")),
    "equalize": ("w4a16_pt", "w4a16_pt_equalize", without_factors),
    "smooth": ("w4a4_pt", "w4a4_pt_smooth", without_factors),
    "awq": ("w3a16_pt", "w3a16_pt_awq", without_factors),
    "bias_correction": ("w3a16", "w3a16_bias_correction", without_moments),
    "norm_correction": ("w3a16", "w3a16_norm_correction", without_moments),
    "reconstruct": ("w2a8", "w2a8_reconstruct", without_steps),
    "brecq": ("w2a8", "w2a8_brecq", without_steps),
}


@pytest.fixture(scope="module")
def trained() -> tuple[keras.Model, np.ndarray]:
    return keras.models.load_model(demo_model_path(), compile=False), load_demo_data().x_calib[:256]


@pytest.fixture(scope="module")
def errors(trained: tuple[keras.Model, np.ndarray]) -> Callable[[str], dict[str, float]]:
    """The relative error of each layer's output by recipe."""
    model, x = trained
    known: dict[str, dict[str, float]] = {}

    def measure(recipe: str, again: bool = False) -> dict[str, float]:
        if recipe in known and not again:
            return known[recipe]
        _, report = qi.quantize_model(model, get_recipe(recipe), x, progress=False)
        rows = [row for row in report.rows if row.kind == "activation" and row.total_sqnr_db is not None]
        found = {row.path: 10 ** (-float(row.total_sqnr_db or 0) / 10) for row in rows if row.name == "output"}
        if not again:
            known[recipe] = found
        return found

    return measure


def gain(errors: dict[str, float], base: dict[str, float]) -> float:
    """By how much the sum of errors is lower."""
    return 1 - sum(errors[path] for path in base) / sum(base.values())


def test_every_algorithm_has_a_case() -> None:
    assert set(CASES) == set(ALGORITHMS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_algorithm_lowers_the_error_and_its_broken_twin_does_not(
    name: str, errors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, recipe, broken = CASES[name]
    before, after = errors(base), errors(recipe)
    worse = {path: round(after[path] / before[path], 3) for path in before if after[path] > before[path]}
    print(name, round(gain(after, before), 3), worse)
    assert gain(after, before) >= LEAST_GAIN
    broken(monkeypatch)
    assert gain(errors(recipe, again=True), before) < LEAST_GAIN
