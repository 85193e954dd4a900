"""Subclassed models: followed through their call, quantized, trained, converted; the given model remembers nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import qi
from qi.errors import InputError, UnsupportedError
from qi.keras.graph import flatten_model
from qi.keras.trace import same_in_training, trace_model
from qi.keras.variables import to_numpy

X = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
IDS = np.random.default_rng(1).integers(0, 50, (64, 7))


class Block(keras.Model):
    """A residual block with a normalization, dropout and a shared activation function."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.first = layers.Conv2D(filters, 3, padding="same", name="first")
        self.norm = layers.BatchNormalization(name="norm")
        self.second = layers.Conv2D(filters, 3, padding="same", name="second")
        self.drop = layers.Dropout(0.1)

    def call(self, x: Any, training: Any = None) -> Any:
        y = ops.relu(self.norm(self.first(x), training=training))
        return ops.relu(self.drop(self.second(y), training=training) + x)


class Residual(keras.Model):
    """Blocks in a list, and two outputs by name from one shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = layers.Conv2D(8, 3, name="stem")
        self.blocks = [Block(8), Block(8)]
        self.pool = layers.GlobalAveragePooling2D()
        self.head = layers.Dense(3, name="head")

    def call(self, x: Any, training: Any = None) -> Any:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, training=training)
        logits = self.head(self.pool(x))
        return {"logits": logits, "p": ops.softmax(logits)}


class Text(keras.Model):
    """Integers whose zeros are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = layers.Embedding(50, 8, mask_zero=True)
        self.rnn = layers.LSTM(8)
        self.head = layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.head(self.rnn(self.embedding(x)))


class Towers(keras.Model):
    """Two inputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = layers.Dense(4), layers.Dense(4)

    def call(self, x: Any) -> Any:
        return self.left(x["a"]) * self.right(x["b"])


def built(model: keras.Model, x: Any) -> keras.Model:
    model(keras.tree.map_structure(lambda array: array[:2], x))
    return model


def quantized(model: keras.Model, recipe: str, x: Any = None) -> tuple[keras.Model, Any]:
    return qi.quantize_model(model, recipe, x, progress=False)


def test_every_layer_is_found_and_the_given_model_remembers_nothing() -> None:
    model = built(Residual(), X)
    nodes = [(len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in model._flatten_layers()]
    first, again = flatten_model(model), flatten_model(model)
    assert [call.site for call in first.calls] == [call.site for call in again.calls]
    kinds = [call.kind for call in first.calls]
    assert (kinds.count("Conv2D"), kinds.count("Dropout"), kinds.count("Relu"), kinds.count("Dense")) == (5, 2, 4, 1)
    assert nodes == [(len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in model._flatten_layers()]


def test_post_training(tmp_path: Path) -> None:
    model = built(Residual(), X)
    expected = model.predict(X, verbose=0)
    qmodel, report = quantized(model, "w8a8", X)
    found = qmodel.predict(X, verbose=0)
    assert set(found) == {"logits", "p"}
    for key in found:
        assert np.abs(found[key] - expected[key]).max() < 0.02 * np.ptp(expected[key]) + 1e-3
    assert {row.reason.partition(":")[0] for row in report.rows if not row.quantized} == {"bias"}
    np.testing.assert_array_equal(model.predict(X, verbose=0)["p"], expected["p"])
    qi.save_model(qmodel, tmp_path / "m.keras")
    again = qi.load_model(tmp_path / "m.keras").predict(X, verbose=0)
    np.testing.assert_array_equal(again["p"], found["p"])


def test_training_and_conversion() -> None:
    qat = qi.prepare_qat(built(Residual(), X), "w4a8", X, progress=False)
    before = [to_numpy(v) for v in qat.trainable_variables]
    qat.compile("adam", {"logits": "mse", "p": "mse"})
    qat.fit(X, {"logits": np.ones((64, 3)), "p": np.ones((64, 3))}, epochs=1, verbose=0)
    assert all(not np.array_equal(to_numpy(v), b) for v, b in zip(qat.trainable_variables, before, strict=True))
    one, other = qat.predict(X, verbose=0), qi.convert(qat).predict(X, verbose=0)
    np.testing.assert_array_equal(one["logits"], other["logits"])


def test_what_is_looked_up_stays_an_integer() -> None:
    model = built(Text(), IDS)
    qmodel, report = quantized(model, "w8a8", IDS)
    assert qmodel.inputs[0].dtype == "int32"
    assert not any(row.quantized for row in report.rows if row.layer == "input")
    np.testing.assert_allclose(qmodel.predict(IDS, verbose=0), model.predict(IDS, verbose=0), atol=0.05)


def test_inputs_by_name() -> None:
    x = {"a": X[:, 0, 0], "b": X[:, 1, 1]}
    model = built(Towers(), x)
    qmodel, _ = quantized(model, "w8a8", x)
    np.testing.assert_allclose(qmodel.predict(x, verbose=0), model.predict(x, verbose=0), atol=0.2)


def test_one_nested_in_a_functional_model_is_followed_too() -> None:
    inputs = keras.Input((8, 8, 8))
    model = keras.Model(inputs, layers.Flatten()(Block(8)(inputs)))
    sites = [call.site for call in flatten_model(model).calls]
    assert any(site.endswith("/first") for site in sites)


def test_one_nested_that_trains_otherwise_stays_whole() -> None:
    class Switch(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = layers.Dense(2), layers.Dense(2)

        def call(self, x: Any, training: Any = False) -> Any:
            return self.one(x) + self.other(x) if training else self.one(x)

    switch = Switch()
    switch(np.ones((2, 3)), training=True)
    switch.build((None, 3))
    assert not same_in_training(switch)
    inputs = keras.Input((3,))
    assert [call.op for call in flatten_model(keras.Model(inputs, switch(inputs))).calls] == [switch]
    with pytest.raises(UnsupportedError, match="which runs others with training=True"):
        qi.prepare_qat(switch, "w8")
    quantized(switch, "w8")  # inference is one of the two


class Weighted(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.w = self.add_weight(shape=(3, 3), name="w")

    def call(self, x: Any) -> Any:
        return x @ self.w


class Raw(keras.Model):
    def call(self, x: Any) -> Any:
        return float(x[0, 0]) * x


class Pair(keras.Model):
    def call(self, x: Any, y: Any) -> Any:
        return x + y


class Trainer(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def train_step(self, data: Any) -> Any:
        return super().train_step(data)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Weighted, 1, r"whose call uses \['weighted.*/w'\] itself; do move them into a keras.layers.Layer"),
        (Raw, 1, "of class Raw, whose call raised .* on symbolic tensors: .*; do rebuild it as keras.Model"),
        (Pair, 2, r"of class Pair, whose call needs \['x', 'y'\]; do give it one list or dict"),
    ],
    ids=["weights", "numbers", "arguments"],
)
def test_what_cannot_be_followed_is_refused(kind: type[keras.Model], arguments: int, message: str) -> None:
    model = kind()
    model(*[np.ones((2, 3), "float32")] * arguments)
    with pytest.raises(UnsupportedError, match=message):
        quantized(model, "w8")


def test_a_train_step_of_its_own_is_refused_for_training_only() -> None:
    model = built(Trainer(), X[:, 0, 0])
    quantized(model, "w8")
    with pytest.raises(UnsupportedError, match=r"which overrides \['train_step'\]; do put them into a class"):
        qi.prepare_qat(model, "w8")


def test_an_unbuilt_one_is_refused() -> None:
    with (
        pytest.raises(InputError, match="whose input shape isn't known; do call it once on a batch"),
        trace_model(Text()),
    ):
        pass
