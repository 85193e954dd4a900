"""Every algorithm lowers the errors of a trained network's layers on real data, and a broken twin of it fails the same criterion.

The error of a layer is the mean squared error of its output ahead of the activation, over the output's variance; each channel is
in the unit that it has in the float model, whatever an algorithm scales it by. The criterion: no layer that the algorithm works
on has a greater error than rounded to nearest, and in sum the errors of all of them are 20 % less at least. Which error it is:

- its own, with what the float model gives as input, for algorithms that work on one layer at a time: ranges, rounding, and
  corrections from moments or normalizations;
- the one in the quantized network, the errors of all layers ahead of it included, for algorithms whose aim is the network:
  scaling, which moves range from one layer to the next; training, whose layers make up for those ahead of them; and bias
  correction from samples, which takes back what layers ahead of it shift as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from qi.algorithms import ALGORITHMS
from qi.demo.assets import demo_model_path, load_demo_data
from qi.recipes import Recipe, Rule, get_recipe
from tests.integration.layer_errors import LayerErrors, layer_errors

pytestmark = pytest.mark.filterwarnings("ignore::qi.QuantizationWarning")

LEAST_GAIN = 0.2
NOISE = 1e-3  # of sums in float32, and of activations of 16 bits

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
        dead = replace(ALGORITHMS.get(name), function=lambda problem, **options: problem.solution(problem.nearest()))
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
    "brecq": "digits",  # without branches, so that each layer is a block: what is trained for is the output of each
    "empirical_bias_correction": "digits",
    "reconstruct": "digits",
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


def recipe_of(name: str, network: str) -> Recipe:
    """A recipe by name, with what its network needs."""
    return get_recipe(name).with_rules(*RULES.get(network, ()))


@pytest.fixture(scope="module")
def nearest(networks: dict[str, tuple[keras.Model, np.ndarray]]) -> Callable[[str, str], LayerErrors]:
    """The errors without an algorithm, by network and recipe."""
    known: dict[tuple[str, str], LayerErrors] = {}

    def errors(network: str, recipe: str) -> LayerErrors:
        if (network, recipe) not in known:
            model, x = networks[network]
            known[network, recipe] = layer_errors(model, recipe_of(recipe, network), x)
        return known[network, recipe]

    return errors


def compared(name: str, layers: list[str], found: LayerErrors, base: LayerErrors) -> tuple[dict[str, float], float]:
    """Of each layer that an algorithm works on, its error as a share of the one without; and the sum's share.

    A broken twin may find nothing to work on: it is compared where the algorithm worked.
    """
    entry = ALGORITHMS.get(name)
    errors, before = (
        each.network if entry.stage == "scaling" or entry.needs == "data" else each.own for each in (found, base)
    )
    sums = {
        path: tuple(np.average(each[path], weights=base.variances[path]) for each in (errors, before))
        for path in layers
    }
    shares = {path: after / earlier for path, (after, earlier) in sums.items()}
    return shares, sum(after for after, _ in sums.values()) / sum(earlier for _, earlier in sums.values())


def test_every_algorithm_has_a_case() -> None:
    assert set(CASES) == set(ALGORITHMS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_algorithm_lowers_the_error_and_its_broken_twin_does_not(
    name: str,
    networks: dict[str, tuple[keras.Model, np.ndarray]],
    nearest: Callable[[str, str], LayerErrors],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, recipe, broken = CASES[name]
    network = NETWORKS.get(name, "clothes")
    model, x = networks[network]
    before, asked = nearest(network, base), recipe_of(recipe, network)
    found = layer_errors(model, asked, x)
    layers = found.touched_by(name)
    shares, of_sum = compared(name, layers, found, before)
    assert {path: share for path, share in shares.items() if share > 1 + NOISE} == {}
    assert of_sum <= 1 - LEAST_GAIN
    told = {row.layer: row.output_error for row in found.report.rows if row.output_error is not None}
    if told and ALGORITHMS.get(name).stage in ("range", "rounding"):
        assert told == pytest.approx(
            shares, rel=0.15
        )  # the report knows it from moments alone, which are of fewer places
    broken(monkeypatch)
    _, of_sum = compared(name, layers, layer_errors(model, asked, x), before)
    assert of_sum > 1 - LEAST_GAIN
