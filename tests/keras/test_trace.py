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

pytestmark = pytest.mark.filterwarnings("ignore:a file of this model will name")  # these classes are the tests' own
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
    assert type(qi.prepare_qat(switch, "w8")).__name__ == "Switch"  # in place, where both are
    assert type(quantized(switch, "w8")[0]).__name__ == "Functional"  # inference is one of the two


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


def test_several_arguments_are_refused() -> None:
    model = Pair()
    model(*[np.ones((2, 3), "float32")] * 2)
    with pytest.raises(
        UnsupportedError, match=r"of class Pair, whose call needs \['x', 'y'\]; do give it one list or dict"
    ):
        quantized(model, "w8")


class Tied(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.table = layers.Embedding(50, 4)

    def call(self, x: Any) -> Any:
        return self.table(x) @ ops.transpose(self.table.embeddings)


def test_weights_that_a_call_reads_itself_are_no_constants() -> None:
    model = built(Tied(), IDS)
    with pytest.raises(UnsupportedError, match=r"whose call reads 'tied.*embeddings' itself"), trace_model(model):
        pass
    np.testing.assert_array_equal(to_numpy(model(IDS[:2])).shape, (2, 7, 50))  # as before


# Layers of users that are made of layers.


class Gated(layers.Layer):
    """Two products, a function and a normalization; `own` adds a weight, `loss` a loss."""

    def __init__(self, units: int, own: bool = False, loss: bool = False, switch: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.value, self.gate, self.norm = layers.Dense(units), layers.Dense(units), layers.LayerNormalization()
        self.drop, self.loss, self.switch = layers.Dropout(0.2), loss, switch
        self.scale = self.add_weight(shape=(1,), initializer="ones", name="scale") if own else None

    def call(self, x: Any, training: Any = None) -> Any:
        y = self.value(x) * ops.sigmoid(self.gate(x))
        if self.scale is not None:
            y = y * self.scale
        if self.loss:
            self.add_loss(ops.mean(y))
        if self.switch and training:
            return self.norm(x)
        return self.norm(self.drop(y) + x)


class Stack(layers.Layer):
    """Layers within layers."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = [Gated(units), Gated(units)]

    def call(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x


def around(layer: Any, *, times: int = 1, **options: Any) -> keras.Model:
    inputs = x = keras.Input((6,))
    for _ in range(times):
        x = layer(x, **options)
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def test_layers_made_of_layers_are_followed() -> None:
    layer = Stack(6, name="stack")
    model = around(layer, times=2)
    calls = flatten_model(model).calls
    assert {call.path for call in calls if call.kind == "Dense"} == {
        "stack/parts/0/value", "stack/parts/0/gate", "stack/parts/1/value", "stack/parts/1/gate", "head",
    }  # fmt: skip
    assert len({call.site for call in calls}) == len(calls), "each call has a place of its own"
    assert len([call for call in calls if call.kind == "Dense"]) == 2 * 2 * 2 + 1
    assert not layer.parts[0].value._inbound_nodes, "the given layers remember nothing"


def test_quantized_through_and_through() -> None:
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    model = around(Stack(6, name="stack"), times=2)
    result, report = quantized(model, "w8a8", x)
    assert {row.kind for row in report.unquantized} == {"weight"}
    assert not any("Stack" in type(layer).__name__ for layer in result.layers)
    exact, found = model.predict(x, verbose=0), result.predict(x, verbose=0)
    assert 10 * np.log10(np.sum(exact**2) / np.sum((exact - found) ** 2)) > 20
    training = qi.prepare_qat(model, "w8a8", x)
    training.compile("sgd", "mse")
    training.fit(x, exact, verbose=0)
    np.testing.assert_array_equal(qi.convert(training).predict(x, verbose=0), training.predict(x, verbose=0))


@pytest.mark.parametrize(
    ("options", "called"),
    [({"own": True}, {}), ({"loss": True}, {}), ({"switch": True}, {}), ({}, {"training": True})],
    ids=["weights of its own", "losses", "otherwise in training", "for training alone"],
)
def test_layers_that_do_more_stay_whole(options: dict[str, bool], called: dict[str, bool]) -> None:
    layer = Gated(6, **options)
    model = around(layer, **called)
    before = len(layer._losses)
    assert next(call.op for call in flatten_model(model).calls) is layer
    assert len(layer._losses) == before


def test_masked_layers_stay_whole() -> None:
    class Masked(Gated):
        supports_masking = True

    inputs = keras.Input((7,), dtype="int32")
    layer = Masked(8)
    layer.supports_masking = True
    outputs = layer(layers.Embedding(50, 8, mask_zero=True)(inputs))
    assert layer in [call.op for call in flatten_model(keras.Model(inputs, outputs)).calls]


def test_layers_that_cast_stay_whole() -> None:
    class Cast(layers.Layer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.dense = layers.Dense(6, dtype=self.dtype_policy)

        def call(self, x: Any) -> Any:
            return self.dense(x) * x

    layer = Cast(dtype="mixed_float16")
    assert layer in [call.op for call in flatten_model(around(layer)).calls]


def test_a_train_step_of_its_own_trains_in_place() -> None:
    model = built(Trainer(), X[:, 0, 0])
    assert type(quantized(model, "w8")[0]).__name__ == "Functional"
    assert isinstance(qi.prepare_qat(model, "w8"), Trainer)


def test_an_unbuilt_one_is_refused() -> None:
    with (
        pytest.raises(InputError, match="whose input shape isn't known; do call it once on a batch"),
        trace_model(Text()),
    ):
        pass


def test_indices_of_nested_models_are_integers() -> None:
    class Towers(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = (keras.Sequential([layers.Embedding(300, 4), layers.Dense(3)]) for _ in range(2))
            self.real = keras.Sequential([layers.Dense(3)])

        def call(self, inputs: Any) -> Any:
            return self.left(inputs["a"]) * self.right(inputs["b"]) + self.real(inputs["c"])

    model = Towers()
    model({"a": np.arange(4), "b": np.arange(4), "c": np.zeros((4, 2), "float32")})
    inputs = flatten_model(model).inputs
    assert {name: value.dtype for name, value in inputs.items()} == {"a": "int32", "b": "int32", "c": "float32"}


def test_a_nested_model_takes_integers_as_it_is_given_them() -> None:
    inputs = keras.Input((7,), dtype="int32")
    text = built(Text(), IDS)
    paths = [call.path for call in flatten_model(keras.Model(inputs, text(inputs))).calls]
    assert f"{text.name}/embedding" in paths


def test_sequential_towers_of_integers_are_inlined() -> None:
    class Tower(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.tower = keras.Sequential([layers.Embedding(50, 4), layers.Dense(3)])

        def call(self, x: Any) -> Any:
            return self.tower(x)

    calls = flatten_model(built(Tower(), IDS)).calls
    assert [(call.path, call.inputs[0].dtype) for call in calls] == [
        ("tower/embedding", "int32"), ("tower/dense", "float32"),
    ]  # fmt: skip


class Frozen(layers.Layer):
    """Its normalization never trains; `trains` has it do nothing else."""

    def __init__(self, trains: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trains, self.dense, self.norm = trains, layers.Dense(6), layers.BatchNormalization()

    def call(self, x: Any) -> Any:
        return self.norm(self.dense(x), training=self.trains)


@pytest.mark.parametrize("trains", [True, False])
def test_layers_that_tell_theirs_what_they_are_called_for_stay_whole(trains: bool) -> None:
    model = around(Frozen(trains, name="frozen"))
    why = flatten_model(model).whole["frozen"]
    assert ("passes training=True to ['batch_normalization" in why) is trains
    x = np.random.default_rng(0).normal(3, 2, size=(64, 6)).astype("float32")
    result, _ = quantized(model, "w8a8", x)
    expected, found = model.predict(x, batch_size=64, verbose=0), result.predict(x, batch_size=64, verbose=0)
    assert 10 * np.log10(np.sum(expected**2) / np.sum((expected - found) ** 2)) > 25


def test_a_model_that_trains_in_inference_is_quantized_in_place() -> None:
    class Trains(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.part = Frozen(True)
            self.norm = layers.BatchNormalization()

        def call(self, x: Any) -> Any:
            return self.norm(self.part(x), training=True)

    with (
        pytest.raises(UnsupportedError, match=r"passes training=True to \['batch_normalization"),
        trace_model(built(Trains(), X[:, 0, 0])),
    ):
        pass


class Chooses(keras.Model):
    """Functions given to an operation; they hold tensors of the call, and call layers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.other, self.head = (layers.Dense(6, name=name) for name in ("first", "other", "head"))

    def call(self, x: Any) -> Any:
        x = self.first(x)
        chosen: dict[str, Any] = {
            "cond": lambda: ops.cond(ops.mean(x) > 0, lambda: self.head(x), lambda: self.other(x)),
            "cond back": lambda: self.head(ops.cond(ops.mean(x) > 0, lambda: x, lambda: x)),
            "switch": lambda: ops.switch(ops.cast(ops.mean(x) > 0, "int32"), [self.head, self.other], x),
            "while_loop": lambda: ops.while_loop(lambda y: ops.mean(y) < -9, lambda y: (y * 0.5,), (x,))[0],
            "fori_loop": lambda: ops.fori_loop(0, 3, lambda _, y: y * 0.5, x),
            "map": lambda: ops.map(lambda row: ops.tanh(row), x),
            "vectorized_map": lambda: ops.vectorized_map(lambda row: ops.tanh(row), x),
            "scan": lambda: ops.scan(lambda total, row: (total + row, row), ops.zeros((6,)), x)[1],
            "associative_scan": lambda: ops.associative_scan(lambda a, b: a + b, x),
        }
        return chosen[self.kind]() + self.head(x) + self.other(x)

    def get_config(self) -> dict[str, Any]:
        return {"kind": self.kind}


@pytest.mark.parametrize(
    "kind", "cond,cond back,switch,while_loop,fori_loop,map,vectorized_map,scan,associative_scan".split(",")
)
def test_operations_that_are_given_functions_are_refused(kind: str) -> None:
    with (
        pytest.raises(UnsupportedError, match=rf"whose call uses keras\.ops\.{kind.split()[0]}, whose .*; do "),
        trace_model(built(Chooses(kind), X[:, 0, 0])),
    ):
        pass


@pytest.mark.filterwarnings("ignore:quantized in place")
@pytest.mark.parametrize("kind", ["cond", "cond back", "switch", "map"])
def test_a_model_that_is_given_functions_is_quantized_in_place(kind: str) -> None:
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    model = built(Chooses(kind), x)
    result, report = quantized(model, "w8a8", x)
    assert f"whose call uses keras.ops.{kind.split()[0]}, whose" in " ".join(report.warnings)
    assert isinstance(result, Chooses)
    assert np.abs(ops.convert_to_numpy(result(x) - model(x))).max() < 0.5


def test_a_layer_given_a_function_that_holds_tensors_stays_whole() -> None:
    class Applied(layers.Layer):
        def call(self, x: Any, function: Any) -> Any:
            return function(x)

    class Applies(layers.Layer):
        def __init__(self, holds: bool, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.holds, self.dense, self.applied = holds, layers.Dense(6), Applied(name="applied")

        def call(self, x: Any) -> Any:
            y = self.dense(x)
            return self.applied(y, function=(lambda z: z + y) if self.holds else ops.tanh)

    graph = flatten_model(around(Applies(True, name="applies")))
    assert "whose call gives 'applied' a function that holds tensors" in graph.whole["applies"]
    assert not flatten_model(around(Applies(False, name="applies"))).whole
