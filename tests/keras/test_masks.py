"""Masks written as -1e9: the scores beside them keep their precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import qi
from qi.keras.graph import flatten_model
from qi.keras.masks import masked_scores

MASKS: dict[str, Callable[[Any, Any], Any]] = {
    "where": lambda scores, mask: ops.where(mask > 0.5, scores, -1e9),
    "sum": lambda scores, mask: scores + (1.0 - mask) * -1e9,
    "difference": lambda scores, mask: scores - 1e9 * (1.0 - mask),
    "moved": lambda scores, mask: ops.reshape(ops.where(mask > 0.5, scores, -1e9), (-1, 6)),
    "layer": lambda scores, mask: layers.Add()([scores, (1.0 - mask) * -1e4]),
    "infinite": lambda scores, mask: ops.where(mask > 0.5, scores, -np.inf),
}


def model(name: str) -> keras.Model:
    x, mask = keras.Input((8,)), keras.Input((6,))
    scores = MASKS[name](layers.Dense(6)(x), mask)
    softmax = layers.Activation("softmax") if name == "layer" else ops.softmax
    return keras.Model([x, mask], softmax(scores))


@pytest.mark.parametrize("name", MASKS)
def test_masked_softmax_stays_precise(name: str) -> None:
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(64, 8)).astype("float32"), (rng.random((64, 6)) < 0.6).astype("float32")]
    x[1][:, 0] = 1
    given = model(name)
    quantized, report = qi.quantize_model(given, "w8a8", x, progress=False)
    np.testing.assert_allclose(quantized.predict(x, verbose=0), given.predict(x, verbose=0), atol=0.02)
    assert any("mask" in row.reason for row in report.unquantized)
    (scores,) = report.find("dense*/output")
    assert scores.quantized


def test_large_numbers_that_are_no_mask() -> None:
    x = keras.Input((8,))
    hidden = layers.Dense(6)(x * 1e5)
    assert masked_scores(flatten_model(keras.Model(x, [ops.softmax(hidden), ops.sigmoid(x * 1e5)]))) == []
    assert masked_scores(flatten_model(keras.Model(x, ops.softmax(layers.Dense(6)(x) + 3.0)))) == []
