"""Classes whose Functional parts have layers that Keras named: it counts names through a process, so every copy has others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

import qi
from qi.keras.in_place import wrappers_of
from qi.keras.variables import to_numpy
from tests.keras.fresh import run_fresh

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")


@keras.saving.register_keras_serializable("counted")
class Coder(keras.Model):
    """An encoder, a decoder and a Sequential head, made by the constructor; trains otherwise than it infers."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        given, code = keras.Input((6,)), keras.Input((4,))
        hidden = layers.Dense(8, activation="relu")(given)
        self.encoder = keras.Model(given, [layers.Dense(4)(hidden), layers.Dense(4)(hidden)], name="encoder")
        self.decoder = keras.Model(code, layers.Dense(6, name="last")(layers.Dense(8, activation="relu")(code)))
        self.head = keras.Sequential([layers.Dense(5), layers.ReLU(), layers.Dense(6)])

    def call(self, x: Any, training: bool = False) -> Any:
        mean, spread = self.encoder(x)
        return self.head(self.decoder(mean + spread if training else mean))


def made() -> keras.Model:
    model = Coder()
    model(X[:2], training=True)
    return model


def test_prepared_trained_converted_and_read_elsewhere(tmp_path: Path) -> None:
    layers.Dense(1), layers.Dense(1)  # names count on
    model = made()
    qat = qi.prepare_qat(model, "w8a8", X, progress=False)
    assert list(wrappers_of(qat)) == [
        "encoder/dense", "encoder/dense_2", "encoder/dense_3", "decoder/dense", "decoder/last",
        "head/dense", "head/re_lu", "head/dense_2",
    ]  # fmt: skip
    np.testing.assert_allclose(to_numpy(qat(X)), to_numpy(model(X)), atol=0.1)
    qat.compile("sgd", "mse")
    qat.fit(X, X, verbose=0)
    result = qi.convert(qat)
    np.testing.assert_array_equal(result.predict(X, verbose=0), qat.predict(X, verbose=0))
    for name, one in (("qat", qat), ("result", result)):
        one.save(tmp_path / f"{name}.keras")
        np.save(tmp_path / f"{name}.npy", one.predict(X, verbose=0))
    run_fresh(
        "import sys, keras, numpy as np, qi.keras\n"
        "from tests.integration.test_counted_names import X\n"
        "[keras.layers.Dense(1) for _ in range(7)]\n"
        "for name in ('qat', 'result'):\n"
        "    model = keras.models.load_model(f'{sys.argv[1]}/{name}.keras')\n"
        "    np.testing.assert_array_equal(model.predict(X, verbose=0), np.load(f'{sys.argv[1]}/{name}.npy'))\n",
        tmp_path,
    )


def test_paths_of_a_followed_one_are_the_same_in_every_copy() -> None:
    paths = [[row.path for row in qi.quantize_model(made(), "w8", progress=False)[1].rows] for _ in range(2)]
    assert paths[0] == paths[1]
    assert "head/dense_2/kernel" in paths[0]


def test_statistics_serve_another_copy() -> None:
    model = made()
    found = qi.calibrate(model, X, progress=False)
    copy = made()
    copy.set_weights(model.get_weights())
    one, other = (qi.quantize_model(m, "w8a8", statistics=found, progress=False)[0] for m in (model, copy))
    np.testing.assert_array_equal(one.predict(X, verbose=0), other.predict(X, verbose=0))
