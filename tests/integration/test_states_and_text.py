"""Models that keep states, take text, or hold layers that raise: right results, or errors that name the input."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi import InputError, calibrate, quantize_model
from qi.core import sqnr_db
from tests.keras.models import settle
from tests.keras.warned import warned


def quantized(model: keras.Model, data: Any, **options: Any) -> tuple[Any, Any]:
    return quantize_model(model, "w8a8_minmax", data, **{"progress": False} | options)


def flat(outputs: Any) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(array) for array in keras.tree.flatten(outputs)]


# States ----------------------------------------------------------------------------------------------------------------

SEQUENCES = np.random.default_rng(0).normal(size=(48, 5, 3)).astype(np.float32)


def recurrent() -> keras.Model:
    model = keras.Sequential(
        [keras.Input(batch_shape=(16, 5, 3)), layers.LSTM(4, stateful=True, name="rnn"), layers.Dense(2, name="top")]
    )
    return settle(model)


def test_states_are_neither_used_nor_left() -> None:
    model = recurrent()
    model(SEQUENCES[:16])
    before = flat(model.get_layer("rnn").states)
    assert np.abs(before[0]).max() > 0
    qmodel, _ = quantized(model, SEQUENCES, batch_size=16)
    for old, new in zip(before, flat(model.get_layer("rnn").states), strict=True):
        np.testing.assert_array_equal(old, new)
    inner = [getattr(layer, "layer", layer) for layer in qmodel.layers]
    states = [state for layer in inner for state in flat(getattr(layer, "states", None) or [])]
    assert len(states) == 2
    assert not np.any(states)


def test_no_batch_sees_what_another_one_left() -> None:
    model = recurrent()
    turned = np.concatenate([SEQUENCES[32:], SEQUENCES[16:32], SEQUENCES[:16]])
    first, second = (calibrate(model, data, batch_size=16, progress=False) for data in (SEQUENCES, turned))
    assert {name: (seen.lo, seen.hi) for name, seen in first.items()} == {
        name: (seen.lo, seen.hi) for name, seen in second.items()
    }


def test_a_batch_that_the_model_does_not_take_is_named() -> None:
    with pytest.raises(InputError, match=r"of shape \(48, 5, 3\), on which it raised ValueE.*batches of 16 samples"):
        quantized(recurrent(), SEQUENCES)


# Text ------------------------------------------------------------------------------------------------------------------


def test_text_is_calibrated_and_evaluated() -> None:
    word = keras.Input((), dtype="string", name="word")
    x = layers.Embedding(5, 8, name="table")(layers.StringLookup(vocabulary=["a", "b", "c"], name="look")(word))
    model = settle(keras.Model(word, layers.Dense(3, name="top")(x)))
    data = np.array(["a", "b", "c", "d"] * 10)
    with warned():  # that the table of words is shared
        qmodel, report = quantized(model, data)
    exact, found = (np.asarray(m(data, training=False)) for m in (model, qmodel))
    assert sqnr_db(exact, found) > 30
    assert {row.path: row.reason for row in report.unquantized}["word/input"] == "holds string, not real numbers"
    labels = np.argmax(exact, axis=-1)
    assert report.evaluate("accuracy", data, labels).float_value == 1.0
    assert report.evaluate("accuracy", data.tolist(), labels.tolist()).samples == 40


# Layers that raise -----------------------------------------------------------------------------------------------------


class Picky(layers.Layer):
    def call(self, x: Any) -> Any:
        if x.shape[0] is not None and x.shape[0] > 20:
            raise KeyError("too many")
        return x * 1.0


def test_what_layers_raise_in_calibration_names_the_input() -> None:
    model = keras.Sequential([keras.Input((8,), name="x"), Picky()], name="picky")
    with pytest.raises(InputError, match=r"'picky' can run on, .* 'x' of shape \(40, 8\), on which it raised KeyError"):
        quantized(model, np.ones((40, 8), np.float32))


def test_what_the_framework_raises_is_the_cause() -> None:
    model = keras.Sequential([keras.Input((4,), dtype="int32", name="row"), layers.Embedding(5, 3)])
    with pytest.raises(InputError, match=r"'row' of shape \(40, 4\), on which .* = 9 is not in") as caught:
        quantized(model, np.full((40, 4), 9))
    assert type(caught.value.__cause__).__name__ == "InvalidArgumentError"
