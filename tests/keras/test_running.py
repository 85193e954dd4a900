"""Running models on what users hand over: right results, or errors that name the data."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from qi.errors import ConfigError, InputError
from qi.keras.running import fixed_batch, predict, stateless_call, translated

X = np.random.default_rng(0).normal(size=(10, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return keras.Sequential([keras.Input((8,), name="x"), layers.Dense(3)], name="plain")


@pytest.fixture(scope="module")
def stateful() -> keras.Model:
    return keras.Sequential([keras.Input(batch_shape=(5, 4, 2)), layers.GRU(3, stateful=True, name="rnn")])


def test_a_call_without_states_leaves_none(stateful: keras.Model) -> None:
    data = X.reshape(10, 4, 2)[:5]
    first, second = (stateless_call(stateful, data)[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(stateful.get_layer("rnn").states[0], np.zeros((5, 3)))
    assert not np.array_equal(stateful(data), stateful(data))  # which is what it would do otherwise
    stateful.get_layer("rnn").reset_states()


def test_predictions_are_those_of_the_model(model: keras.Model) -> None:
    np.testing.assert_array_equal(predict(model, X), model.predict(X, verbose=0))


def test_a_fixed_batch_size_is_the_default(stateful: keras.Model) -> None:
    assert predict(stateful, X.reshape(10, 4, 2)).shape == (10, 3)
    assert fixed_batch([(None, 3), (7, 2)]) == 7
    assert fixed_batch([(None, 3), ()]) is None


WORDS = ["a", "b", "c", "b"]


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("make", [np.array, lambda x: np.array(x, object), lambda x: np.array(x, "S"), tf.constant])
def test_text_may_come_in_any_array(make: Any, rank: int) -> None:
    shape = (1,) * (rank - 1)
    word = keras.Input(shape, dtype="string")
    model = keras.Model(word, layers.StringLookup(vocabulary=["a", "b", "c"])(word))
    found = predict(model, make(np.reshape(WORDS, (4, *shape)).tolist()))
    np.testing.assert_array_equal(found.reshape(-1), [1, 2, 3, 2])


class Reshaped(layers.Layer):
    def call(self, x: Any) -> Any:
        return keras.ops.reshape(x, (-1, 7))

    def compute_output_shape(self, shape: Any) -> Any:
        return (None, 7)


@pytest.mark.parametrize(
    ("broken", "x", "message"),
    [
        (None, X[:, :5], r"'plain' can run on, of shape \[\(None, 8\)\]; received 'x' of shape \(10, 5\)"),
        (None, {"x": X[:, :5]}, r"received 'x' of shape \(10, 5\), on which it raised"),
        (None, [X, X], r"received 'x\[0\]' of shape \(10, 8\), 'x\[1\]' of shape \(10, 8\), on which"),
        (Reshaped, X, r"received 'x' of shape \(10, 8\), on which it raised ValueError: .* divisible by 7"),
    ],
)
def test_what_a_model_raises_is_explained(broken: Any, x: Any, message: str, model: keras.Model) -> None:
    if broken is not None:
        model = keras.Sequential([keras.Input((8,)), broken()])
    with pytest.raises(InputError, match=message) as caught:
        predict(model, x)
    assert caught.value.__cause__ is not None
    assert 'File "' not in str(caught.value)


def test_what_fails_in_a_compiled_graph_is_explained() -> None:
    model = keras.Sequential([keras.Input((8,), dtype="int32"), layers.Embedding(5, 3)])
    with pytest.raises(InputError, match=r"InvalidArgumentError: indices\[0,0\] = 7 is not in \[0, 5\)") as caught:
        predict(model, np.full((10, 8), 7))
    assert 'File "' not in str(caught.value)


def test_a_batch_of_another_size_is_explained(stateful: keras.Model) -> None:
    with pytest.raises(InputError, match=r"of shape \(3, 4, 2\).*; do pass whole batches of 5 samples"):
        predict(stateful, X.reshape(10, 4, 2)[:3])


@pytest.mark.parametrize("error", [ConfigError("expected a; received b; do c"), MemoryError(), KeyboardInterrupt()])
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)), translated("m", {}, []):
        raise error


def test_messages_are_one_plain_line() -> None:
    long = "Exception\n\x1b[1mwrong\x1b[0m" + "!" * 1000 + "Arguments received by X.call()"
    with pytest.raises(InputError) as caught, translated("m", {"a": X}, [(None, 8)]):
        raise ValueError(long)
    text = str(caught.value)
    assert "ValueError: Exception wrong!!" in text
    assert len(text) < 500
    assert "\n" not in text
    assert "\x1b" not in text
