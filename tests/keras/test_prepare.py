"""The steps before any quantizer."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from qi import ConfigError, UnsupportedError
from qi.keras.prepare import calibrate, prepare
from qi.keras.ptq import quantize_model
from tests.keras.models import build, samples


def test_a_single_watched_value_is_calibrated() -> None:
    model = keras.Sequential([keras.Input((6,), dtype="int32"), keras.layers.Embedding(10, 4)])
    rows = np.random.default_rng(0).integers(0, 10, (64, 6))
    statistics = calibrate(model, rows, progress=False)
    assert [found.count for found in statistics.values()] == [64 * 6 * 4]


def test_watched_values_are_those_without_a_fixed_range() -> None:
    model = keras.Sequential(
        [keras.Input((6,), name="x"), keras.layers.Dense(4, name="d"), keras.layers.Softmax(name="s")]
    )
    ready = prepare(model, "w8a8")
    assert [value.producer.path if value.producer else value.name for value in ready.watched] == ["x", "d"]
    assert prepare(model, "w8").watched == []


def test_a_recipe_without_ranges_needs_no_statistics() -> None:
    with pytest.raises(ConfigError, match="received 'w8', which needs no statistics"):
        calibrate(build("sequential"), np.zeros((1, 1)), "w8", progress=False)


def test_a_quantized_model_is_refused() -> None:
    model = build("sequential")
    quantized, _ = quantize_model(model, "w8", progress=False)
    with pytest.raises(UnsupportedError, match="expected a float model"):
        calibrate(quantized, samples(model, 4), progress=False)
