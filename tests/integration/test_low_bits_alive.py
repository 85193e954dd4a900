"""Every algorithm lowers the error of a trained network on real data, and a broken twin of it fails the same criterion.

The error of a layer is what its output is off the float model's, over the output's power, all errors before it included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import qi
from qi.algorithms import ALGORITHMS
from qi.demo.assets import demo_model_path, load_demo_data
from qi.recipes import Rule, get_recipe

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


def without(function: str, result: Any) -> Break:
    """A part of the work that does nothing."""
    return lambda patch: patch.setattr(f"qi.keras.low_bits.{function}", lambda *given: result)


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
    "output_range": ("w3a16_pt_mse", "w3a16_pt_mse_output_range", without_moments),
    "hqq": ("w2a16_minmax", "w2a16_minmax_hqq", undone("hqq")),
    "kmeans": ("w3a16", "w3a16_kmeans", undone("kmeans")),
    "powers": ("w2a16_minmax", "w2a16_minmax_powers", undone("powers")),
    "equalize": ("w4a16_pt", "w4a16_pt_equalize", without("equalize_links", [])),
    "smooth": ("w8a8", "w8a8_smooth", without("smooth_links", [])),
    "awq": ("w4a16", "w4a16_awq", without("smooth_links", [])),
    "analytic_bias_correction": ("w3a16", "w3a16_analytic_bias_correction", without("norm_means", {})),
    "bias_correction": ("w3a16", "w3a16_bias_correction", without_moments),
    "absorb": ("w8a16", "w8a16_absorb", without("absorb_links", ([], []))),
    "best_range": ("w3a16_pt", "w3a16_pt_best_range", undone("best_range")),
    "empirical_bias_correction": (
        "w3a8_pt",
        "w3a8_pt_empirical_bias_correction",
        without("correct_biases", None),
    ),
    "norm_correction": ("w3a16", "w3a16_norm_correction", without_moments),
    "reconstruct": ("w2a8", "w2a8_reconstruct", without_steps),
    "brecq": ("w2a8", "w2a8_brecq", without_steps),
}

NETWORKS = {
    "absorb": "raised",
    "awq": "outliers",
    "analytic_bias_correction": "second",
    "bias_correction": "digits",
    "empirical_bias_correction": "digits",
    "smooth": "outliers",
}

# Where one layer's error would hide what an algorithm does to the others.
RULES = {
    "raised": [Rule("first", activations=get_recipe("w8a4").activations)],
    "second": [Rule("stem", weights="float")],
}


@pytest.fixture(scope="module")
def networks() -> dict[str, tuple[keras.Model, np.ndarray]]:
    """A network with inverted residuals on pictures of clothes, and a small one on digits, whose background is no plain 0."""
    clothes = keras.models.load_model(demo_model_path(), compile=False), load_demo_data().x_calib[:192]
    images, y = load_digits(return_X_y=True)
    x = (images.reshape(-1, 8, 8, 1) / 16).astype("float32")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    digits = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem"),
            layers.BatchNormalization(momentum=0.8),
            layers.ReLU(name="first"),
            layers.Conv2D(32, 3, 2),
            layers.BatchNormalization(momentum=0.8),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    digits.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    digits.fit(x[:1200], y[:1200], epochs=6, verbose=0)
    raised = keras.models.clone_model(digits)
    raised.set_weights(digits.get_weights())
    norm = raised.layers[1]
    norm.beta.assign(norm.beta + 20 * keras.ops.abs(norm.gamma))  # so that its ReLU hardly ever cuts anything off
    return {
        "clothes": clothes,
        "digits": (digits, x[:256]),
        "outliers": (_outliers(images / 16, y), x[:256].reshape(-1, 64)),
        "raised": (raised, x[:256]),
        "second": (digits, x[:256]),
    }


def _outliers(x: np.ndarray, y: np.ndarray) -> keras.Model:
    """A trained network some channels of which are far larger than others, as those behind normalizations of large models are."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(64),
            layers.LayerNormalization(name="norm"),
            layers.Dense(48, activation="relu", name="taker"),
            layers.Dense(10),
        ]
    )
    model.compile(keras.optimizers.Adam(0.003), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x[:1200], y[:1200], epochs=10, verbose=0)
    factors = np.exp(1.5 * np.random.default_rng(0).normal(size=64)).astype("float32")
    norm, taker = model.get_layer("norm"), model.get_layer("taker")
    norm.gamma.assign(norm.gamma * factors)
    norm.beta.assign(norm.beta * factors)
    taker.kernel.assign(taker.kernel / factors[:, None])
    return model


@pytest.fixture(scope="module")
def measure(networks: dict[str, tuple[keras.Model, np.ndarray]]) -> Callable[..., dict[str, float]]:
    """The relative error of each layer's output, by network and recipe; `again` forgets what is known."""
    known: dict[tuple[str, str], dict[str, float]] = {}

    def errors(network: str, recipe: str, again: bool = False) -> dict[str, float]:
        if (network, recipe) in known and not again:
            return known[network, recipe]
        model, x = networks[network]
        chosen = get_recipe(recipe).with_rules(*RULES.get(network, ()))
        _, report = qi.quantize_model(model, chosen, x, progress=False)
        rows = [row for row in report.rows if row.kind == "activation" and row.total_sqnr_db is not None]
        found = {row.path: 10 ** (-float(row.total_sqnr_db or 0) / 10) for row in rows if row.name == "output"}
        own = [row.output_error for row in report.rows if row.output_error is not None]
        if not again:
            known[network, recipe] = found
            if recipe.rpartition("_")[2] in ("gptq", "descent", "adaround") or recipe.endswith("output_range"):
                assert own
                assert max(own) <= 1 + 1e-6  # no layer's own output is worse than rounded to nearest
        return found

    return errors


def gain(name: str, errors: dict[str, float], base: dict[str, float]) -> float:
    """By how much the sum of errors is lower; between layers, scaled channels are in other units: the output alone counts."""
    shared = [path for path in base if path in errors]
    shared = shared[-1:] if ALGORITHMS.get(name).stage == "scaling" else shared
    return 1 - sum(errors[path] for path in shared) / sum(base[path] for path in shared)


def test_every_algorithm_has_a_case() -> None:
    assert set(CASES) == set(ALGORITHMS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_algorithm_lowers_the_error_and_its_broken_twin_does_not(
    name: str, measure: Callable[..., dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, recipe, broken = CASES[name]
    network = NETWORKS.get(name, "clothes")
    before = measure(network, base)
    assert gain(name, measure(network, recipe), before) >= LEAST_GAIN
    broken(monkeypatch)
    assert gain(name, measure(network, recipe, again=True), before) < LEAST_GAIN
