"""Weights that several layers hold: one variable in every copy, quantized once, or left alone and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import qi
from qi.errors import QuantizationWarning, StrictError, UnsupportedError
from qi.keras.in_place import wrappers_of
from qi.keras.ties import holders, tie_again, tied_paths
from qi.keras.variables import to_numpy
from qi.keras.wrapper import KerasQuantizationWrapper

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # within pytest.warns

IDS = np.random.default_rng(0).integers(0, 30, (64, 5)).astype("int32")
X = np.random.default_rng(1).normal(size=(64, 5, 4)).astype("float32")


@keras.saving.register_keras_serializable("ties")
class Scores(layers.Layer):
    """Reads the table of another layer, and tells so."""

    def __init__(self, table: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = table

    def build(self, shape: Any) -> None:
        self.bias = self.add_weight(shape=(self.table.input_dim,), name="bias")

    def call(self, x: Any) -> Any:
        return x @ ops.transpose(self.table.embeddings) + self.bias

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "table": keras.saving.serialize_keras_object(self.table)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Scores:
        return cls(keras.saving.deserialize_keras_object(config.pop("table")), **config)


class Secret(Scores):
    """Reads it without a word in its configuration."""

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


def tied_table(kind: Any = Scores) -> keras.Model:
    table, inputs = layers.Embedding(30, 8, name="table"), keras.Input((5,), dtype="int32")
    hidden = layers.Dense(8, name="hidden")(table(inputs))
    return keras.Model(inputs, kind(table, name="scores")(hidden))


def one_cell() -> keras.Model:
    cell, inputs = layers.LSTMCell(6, name="cell"), keras.Input((5, 4))
    one, two = layers.RNN(cell, name="one"), layers.RNN(cell, name="two", go_backwards=True)
    return keras.Model(inputs, one(inputs) + two(inputs))


def one_kernel() -> keras.Model:
    inputs = keras.Input((5, 4))
    one, two = layers.Dense(4, name="one"), layers.Dense(4, name="two")
    outputs = two(one(inputs))
    vars(two)["_kernel"] = one._kernel
    two._trainable_variables[0] = one._kernel
    return keras.Model(inputs, outputs)


MODELS = {"table": (tied_table, IDS), "cell": (one_cell, X), "kernel": (one_kernel, X)}
WEIGHT = {"table": "table/embeddings", "cell": "one/cell/kernel", "kernel": "one/kernel"}


def held(model: keras.Model) -> dict[str, int]:
    """How many layers hold each weight, by its name."""
    inner = [layer.layer if isinstance(layer, KerasQuantizationWrapper) else layer for layer in model.layers]
    ties = holders(inner)
    variables = {id(v): v.name for layer in inner for v in layer.variables}
    return {variables[key]: len(found) for key, found in ties.items()}


@pytest.mark.parametrize("name", MODELS)
def test_post_training_quantizes_once(name: str, tmp_path: Path) -> None:
    make, x = MODELS[name]
    model = make()
    before, expected = held(model), model.predict(x, verbose=0)
    result, report = qi.quantize_model(model, "w8a8", x, progress=False)
    (row,) = [row for row in report.rows if row.path == WEIGHT[name]]
    assert row.quantized
    assert ", shared with '" in row.layer_type
    names = [row.name.rpartition("/")[2] for row in report.rows if row.kind == "weight"]
    assert names.count(WEIGHT[name].rpartition("/")[2]) == 1
    assert held(result) == before
    assert held(model) == before, "the given model is left as it is"
    np.testing.assert_allclose(result.predict(x, verbose=0), expected, atol=0.15)
    result.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), result.predict(x, verbose=0))


@pytest.mark.parametrize("name", MODELS)
def test_training_trains_one_variable_in_float(name: str) -> None:
    make, x = MODELS[name]
    model = make()
    with pytest.warns(QuantizationWarning, match="one variable with '"):
        qat = qi.prepare_qat(model, "w8a8", x, progress=False)
    assert held(qat) == held(model)
    (tied,) = [v for v in qat.trainable_variables if v.name == WEIGHT[name].rpartition("/")[2] and v.shape != (8, 8)][
        :1
    ]
    given = {v.name: to_numpy(v) for v in model.trainable_variables}
    qat.compile(keras.optimizers.SGD(1e-2), "mse")
    qat.fit(x, model.predict(x, verbose=0) + 1, epochs=1, verbose=0)
    assert not np.array_equal(to_numpy(tied), given[tied.name])
    result = qi.convert(qat)
    np.testing.assert_array_equal(result.predict(x, verbose=0), qat.predict(x, verbose=0))
    with pytest.raises(StrictError, match="one variable with '"):
        qi.prepare_qat(make(), "w8a8", x, strict=True, progress=False)


def test_gradients_of_both_uses_meet() -> None:
    with pytest.warns(QuantizationWarning):
        qat = qi.prepare_qat(tied_table(), "w8", progress=False)
    rows = np.array([[1, 1, 1, 1, 1]])
    qat.compile(keras.optimizers.SGD(1.0), "mse")
    (table,) = [v for v in qat.trainable_variables if v.name == "embeddings"]
    before = to_numpy(table)
    qat.train_on_batch(rows, np.ones((1, 5, 30), "float32"))
    moved = np.abs(to_numpy(table) - before).max(axis=1)
    assert (moved > 0).all(), "scores reach every row, the look-up one"


def test_a_tied_model_in_training_is_read_tied(tmp_path: Path) -> None:
    with pytest.warns(QuantizationWarning):
        qat = qi.prepare_qat(tied_table(), "w8a8", IDS, progress=False)
    qat.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert held(again) == held(qat) == {"embeddings": 2}
    np.testing.assert_array_equal(again.predict(IDS, verbose=0), qat.predict(IDS, verbose=0))


def test_a_tie_that_no_configuration_tells_stays_with_the_given_model() -> None:
    model = tied_table(Secret)
    with pytest.warns(QuantizationWarning, match="'scores' is shared with the given model"):
        result, report = qi.quantize_model(model, "w8", progress=False)
    reasons = {row.path: row.reason for row in report.unquantized}
    assert "shared with the given model: expected a layer that its configuration" in reasons["table/embeddings"]
    assert result.get_layer("table").embeddings is model.get_layer("table").embeddings
    assert result.get_layer("scores").table.embeddings is model.get_layer("table").embeddings


def test_normalizations_of_tied_layers_stay(tmp_path: Path) -> None:
    model = one_kernel()
    normed = keras.Model(model.input, layers.BatchNormalization(name="norm")(model.output))
    _, report = qi.quantize_model(normed, "w8a8", X, progress=False)
    assert any("its layer's weights are those of 'one' too" in row.reason for row in report.unquantized)


def test_tied_layers_are_not_taken_apart() -> None:
    one, two = layers.SeparableConv1D(4, 2, name="one"), layers.SeparableConv1D(4, 2, name="two")
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, two(one(inputs)))
    vars(two)["pointwise_kernel"] = one.pointwise_kernel
    two._trainable_variables[1] = one.pointwise_kernel
    with pytest.raises(UnsupportedError, match="received 'one' of class SeparableConv1D, which shares some with 'two'"):
        qi.quantize_model(model, "w8a8", X, progress=False)


def test_one_layer_held_by_two_is_one() -> None:
    @keras.saving.register_keras_serializable("ties")
    class Around(layers.Layer):
        def __init__(self, inner: Any, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.inner = inner

        def call(self, x: Any) -> Any:
            return x + self.inner(x)

    dense, inputs = layers.Dense(4, name="inner"), keras.Input((5, 4))
    model = keras.Model(inputs, Around(dense)(Around(dense)(inputs)))
    _, report = qi.quantize_model(model, "w8a8", X, progress=False)
    assert [row.name for row in report.rows if row.kind == "weight"] == ["kernel", "bias"]
    qat = qi.prepare_qat(model, "w8a8", X, progress=False)
    assert sum(v.name == "kernel" for v in qat.trainable_variables) == 1


@keras.saving.register_keras_serializable("ties")
class Branching(keras.Model):
    """One cell in two recurrent layers, in a call that can't be followed."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        cell = layers.LSTMCell(6, name="cell")
        self.one, self.two = layers.RNN(cell), layers.RNN(cell, go_backwards=True)
        self.gain = self.add_weight(shape=(), initializer="ones", name="gain")

    def call(self, x: Any) -> Any:
        return (self.one(x) + self.two(x)) * self.gain


def test_in_place() -> None:
    model = Branching()
    model(X)
    with pytest.warns(QuantizationWarning):
        result, report = qi.quantize_model(model, "w8", progress=False)
    kernels = [row for row in report.rows if row.name == "cell/kernel"]
    assert [(row.layer, row.status, row.layer_type) for row in kernels] == [
        ("one", "quantized", "RNN, shared with 'two'")
    ]
    assert len(wrappers_of(result)) == 2
    np.testing.assert_allclose(to_numpy(result(X)), to_numpy(model(X)), atol=0.05)
    with pytest.warns(QuantizationWarning, match="one variable with 'two'"):
        qat = qi.prepare_qat(model, "w8", progress=False)
    np.testing.assert_array_equal(to_numpy(qat(X)), to_numpy(model(X)))


def test_who_holds_what() -> None:
    model = tied_table()
    layers_of = {layer.name: layer for layer in model.layers}
    assert tied_paths(layers_of) == {"table": "'scores'", "scores": "'table'"}
    assert tie_again([model.get_layer("hidden")], [layers.Dense(8)]) == []
