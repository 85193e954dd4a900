"""Calibrate once: statistics in memory or in a file serve every recipe that quantizes the same tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from qi import (
    ConfigError,
    FileFormatError,
    InputError,
    NotCalibratedError,
    Recipe,
    Rule,
    TensorSpec,
    calibrate,
    quantize_model,
)
from qi.observers import TensorStatistics, load_statistics, save_statistics
from tests.keras.models import build, samples
from tests.keras.warned import warned


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return build("mobile")


@pytest.fixture(scope="module")
def data(model: keras.Model) -> np.ndarray:
    return samples(model, 64)


@pytest.fixture(scope="module")
def statistics(model: keras.Model, data: np.ndarray) -> dict[str, TensorStatistics]:
    return calibrate(model, data, batch_size=16, progress=False)


def outputs(model: keras.Model, data: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(data, training=False))


def test_it_gives_the_statistics_of_every_watched_value(model: keras.Model, statistics: Any) -> None:
    _, report = quantize_model(model, "w8a8_minmax", statistics=statistics, progress=False)
    chosen = {row.layer for row in report.activations if row.clipped_share is not None}
    assert set(statistics) <= chosen
    assert all(seen.batches == 4 and seen.nonfinite == 0 for seen in statistics.values())


@pytest.mark.parametrize(
    "recipe", ["w8a8", "w4a8", "w8a16", "w8a8_minmax", "w8a8_ema", "w8a8_entropy", "w4a4_percentile"]
)
def test_one_calibration_serves_many_recipes(
    recipe: str, model: keras.Model, data: np.ndarray, statistics: Any
) -> None:
    with warned():  # that some ranges cut
        first, _ = quantize_model(model, recipe, data, batch_size=16, progress=False)
        second, report = quantize_model(model, recipe, statistics=statistics, progress=False)
    np.testing.assert_array_equal(outputs(first, data), outputs(second, data))
    assert report.settings == {"calibration": "stored statistics", "calibration_samples": 64}
    assert {row.sqnr_db for row in report.activations} == {None}  # nothing to measure errors on


def test_a_recipe_may_need_fewer_of_them(model: keras.Model, data: np.ndarray, statistics: Any) -> None:
    activations = TensorSpec(bits=8, range="minmax")
    recipe = Recipe("some", activations=activations, rules=(Rule("stem_relu6", activations="float"),))
    first, _ = quantize_model(model, recipe, data, progress=False)
    second, _ = quantize_model(model, recipe, statistics=statistics, progress=False)
    np.testing.assert_array_equal(outputs(first, data), outputs(second, data))


def test_statistics_from_a_file(model: keras.Model, data: np.ndarray, statistics: Any, tmp_path: Path) -> None:
    path = save_statistics(tmp_path / "statistics.npz", statistics)
    first, _ = quantize_model(model, "w8a8_minmax", statistics=statistics, progress=False)
    for given in (path, str(path), load_statistics(path)):
        second, _ = quantize_model(model, "w8a8_minmax", statistics=given, progress=False)
        np.testing.assert_array_equal(outputs(first, data), outputs(second, data))


def test_too_few_samples_are_warned_of_whenever_they_were_seen(
    model: keras.Model, data: np.ndarray, tmp_path: Path
) -> None:
    few = calibrate(model, data[:8], progress=False)
    path = save_statistics(tmp_path / "few.npz", few)
    for given in (few, path):
        with warned() as found:
            quantize_model(model, "w8a8_minmax", statistics=given, progress=False)
        assert [str(item.message)[:26] for item in found] == ["only 8 calibration samples"]
    with warned() as found:
        quantize_model(model, "w8a8_minmax", statistics=dict(few), progress=False)
    assert not found  # their number isn't known


OTHER = "expected statistics of this very model; received those of a model with other weights or layers; do calibrate"


def test_statistics_of_another_model_are_refused(model: keras.Model) -> None:
    other = build("sequential")
    found = calibrate(other, samples(other, 8), progress=False)
    with pytest.raises(ConfigError, match=OTHER):
        quantize_model(model, "w8a8", statistics=found, progress=False)
    with pytest.raises(ConfigError, match=r"expected statistics for \['image'\]"):
        quantize_model(model, "w8a8", statistics=dict(found), progress=False)
    with pytest.raises(ConfigError, match="received those of 0 other values; do calibrate with this very model"):
        quantize_model(model, "w8a8", statistics={}, progress=False)


def test_statistics_of_the_model_before_more_training_are_refused(
    model: keras.Model, data: np.ndarray, tmp_path: Path
) -> None:
    path = save_statistics(tmp_path / "s.npz", calibrate(model, data, progress=False))
    weight = model.weights[0]
    before = weight.numpy()
    try:
        weight.assign(before * 1.5)
        with pytest.raises(ConfigError, match=OTHER):
            quantize_model(model, "w8a8_minmax", statistics=path, progress=False)
        plain = dict(load_statistics(path))
        quantize_model(model, "w8a8_minmax", statistics=plain, progress=False)  # by name: the user's own business
    finally:
        weight.assign(before)
    quantize_model(model, "w8a8_minmax", statistics=path, progress=False)


def test_statistics_that_saw_nothing_are_refused(model: keras.Model, statistics: Any) -> None:
    name = next(iter(statistics))
    with pytest.raises((InputError, NotCalibratedError), match=name):
        quantize_model(model, "w8a8", statistics=statistics | {name: TensorStatistics()}, progress=False)


def test_data_and_statistics_together_are_refused(model: keras.Model, data: np.ndarray, statistics: Any) -> None:
    with pytest.raises(InputError, match="expected data or statistics; received both"):
        quantize_model(model, "w8a8", data, statistics=statistics, progress=False)


@pytest.mark.parametrize("wrong", [[1, 2], {"image": 3}, 7])
def test_what_is_no_statistics_is_refused(wrong: Any, model: keras.Model) -> None:
    with pytest.raises(InputError, match="expected TensorStatistics by name"):
        quantize_model(model, "w8a8", statistics=wrong, progress=False)


def test_a_damaged_or_missing_file_is_refused(model: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "statistics.npz"
    with pytest.raises(FileNotFoundError):
        quantize_model(model, "w8a8", statistics=path, progress=False)
    path.write_bytes(b"PK nothing")
    with pytest.raises(FileFormatError, match="expected a file of statistics"):
        quantize_model(model, "w8a8", statistics=path, progress=False)


def test_a_recipe_without_ranges_needs_no_statistics(model: keras.Model, data: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="received 'w8', which needs no statistics"):
        calibrate(model, data, "w8", progress=False)


def test_values_that_overflow_are_refused_at_once() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Activation("exponential", name="grow")])
    with pytest.raises(InputError, match=r"the float model gave none at \['grow'\]"):
        calibrate(model, np.full((8, 4), 1000.0), progress=False)
