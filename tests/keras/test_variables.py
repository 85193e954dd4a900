from __future__ import annotations

import keras
import ml_dtypes
import numpy as np
import pytest

from qi.errors import InputError
from qi.keras.variables import (
    add_parameter,
    build_layer,
    check_model,
    class_names,
    layers_within,
    paths_within,
    places_of,
    to_numpy,
    weights_of,
)

SEQUENCE = np.zeros((2, 5, 4), np.float32)


class Block(keras.layers.Layer):
    """Sub-layers in every place that users put them, with names of Keras' making but for one."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = keras.layers.Dense(4)
        self.named = keras.layers.Dense(4, name="projection")
        self.blocks = [keras.layers.Dense(4), keras.layers.Dense(4)]
        self.heads = {"left": keras.layers.Dense(4)}
        self._hidden = keras.layers.Dense(4)
        self.drop = keras.layers.Dropout(0.5)
        self.gain = self.add_weight(shape=())
        self.shift = self.add_weight(shape=(), name="offset")

    def call(self, x):
        for layer in (self.first, self.named, *self.blocks, self.heads["left"], self._hidden, self.drop):
            x = layer(x)
        return x * self.gain + self.shift


BLOCK_PATHS = {
    f"{layer}/{name}"
    for layer in ("first", "projection", "blocks/0", "blocks/1", "heads/left", "_hidden")
    for name in ("kernel", "bias")
} | {"gain", "offset", "drop/seed_generator_state"}


def called(layer, *inputs):
    layer(*(inputs or (SEQUENCE,)))
    return layer


def rebuilt(layer):
    copy = type(layer).from_config(layer.get_config())
    build_layer(copy, layer.get_build_config()["input_shape"])
    return copy


# --- paths ---


@pytest.mark.parametrize(
    ("layer", "paths"),
    [
        (keras.layers.Dense(3), ["kernel", "bias"]),
        (keras.layers.Dense(3, use_bias=False, name="kernel"), ["kernel"]),
        (keras.layers.BatchNormalization(), ["gamma", "beta", "moving_mean", "moving_variance"]),
        (keras.layers.SeparableConv1D(3, 2), ["depthwise_kernel", "pointwise_kernel", "bias"]),
        (
            keras.layers.LSTM(3),
            ["lstm_cell/kernel", "lstm_cell/recurrent_kernel", "lstm_cell/bias", "lstm_cell/seed_generator_state"],
        ),
        (keras.layers.TimeDistributed(keras.layers.Dense(3, name="inner")), ["inner/kernel", "inner/bias"]),
        (
            keras.Sequential([keras.layers.Dense(3, name="a"), keras.layers.Dense(3, name="b", use_bias=False)]),
            ["a/kernel", "a/bias", "b/kernel"],
        ),
        (keras.layers.ReLU(), []),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.layers.Layer) else "",
)
def test_paths(layer, paths):
    assert list(weights_of(called(layer))) == paths


def test_paths_of_attention():
    layer = called(keras.layers.MultiHeadAttention(2, 4), SEQUENCE, SEQUENCE)
    found = weights_of(layer)
    assert [p for p in found if "kernel" in p] == [f"{n}/kernel" for n in ("query", "key", "value", "attention_output")]
    assert found["query/kernel"] is layer.query_dense.kernel


def test_paths_of_both_directions():
    layer = called(keras.layers.Bidirectional(keras.layers.GRU(3, name="gru")))
    kernels = [p for p in weights_of(layer) if p.endswith("/kernel")]
    assert kernels == ["forward_gru/gru_cell/kernel", "backward_gru/gru_cell/kernel"]


def test_the_name_of_the_layer_or_what_it_was_built_in_is_no_part_of_a_path():
    inside = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="same")], name="same")
    outer = keras.Sequential([keras.Input((4,)), inside], name="same")
    assert list(weights_of(outer)) == ["same/same/kernel", "same/same/bias"]
    assert list(weights_of(inside)) == ["same/kernel", "same/bias"]


def test_made_up_names_in_a_users_class_give_way_to_attributes():
    for block in (called(Block()), called(Block()), rebuilt(called(Block()))):
        assert set(weights_of(block)) == BLOCK_PATHS
        assert weights_of(block)["blocks/1/kernel"] is block.blocks[1].kernel


def test_paths_of_users_models_are_the_same_in_every_copy():
    def functional():
        x = keras.Input((4,))
        return keras.Model(x, keras.layers.Dense(2)(keras.layers.Dense(3)(x)))

    model = functional()
    copy = keras.Model.from_config(model.get_config())
    assert list(weights_of(copy)) == list(weights_of(model))


def test_made_up_names_in_keras_classes_lose_their_number():
    for _ in range(2):
        layer = called(keras.layers.MultiHeadAttention(2, 4, dropout=0.1), SEQUENCE, SEQUENCE)
        assert "dropout/seed_generator_state" in weights_of(layer)
        layer = called(keras.layers.RNN([keras.layers.GRUCell(3), keras.layers.GRUCell(3)]))
        kernels = [p for p in weights_of(layer) if "/kernel" in p]
        assert kernels == ["stacked_rnn_cells/gru_cell/kernel", "stacked_rnn_cells/gru_cell/kernel_2"]


def test_a_shared_sub_layer_is_listed_once_and_equal_paths_are_counted():
    class Twice(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.a = keras.layers.Dense(4, name="x", use_bias=False)
            self.b = keras.layers.Dense(4, name="x", use_bias=False)
            self.c = self.a

        def call(self, inputs):
            return self.c(self.b(self.a(inputs)))

    layer = called(Twice())
    assert {p: id(v) for p, v in weights_of(layer).items()} == {
        "x/kernel": id(layer.a.kernel),
        "x/kernel_2": id(layer.b.kernel),
    }


def test_places_tell_the_layers_that_hold_a_variable():
    cells = [keras.layers.GRUCell(3), keras.layers.GRUCell(2)]
    layer = called(keras.layers.TimeDistributed(keras.layers.RNN(cells)), SEQUENCE[:, None])
    place = places_of(layer)["rnn/stacked_rnn_cells/gru_cell/kernel_2"]
    assert place.variable is cells[1].kernel
    assert [(type(owner).__name__, path) for owner, path in place.owners] == [
        ("TimeDistributed", "rnn/stacked_rnn_cells/gru_cell/kernel"),
        ("RNN", "stacked_rnn_cells/gru_cell/kernel"),
        ("StackedRNNCells", "gru_cell/kernel"),
        ("GRUCell", "kernel"),
    ]
    assert {path: place.variable for path, place in places_of(layer).items()} == weights_of(layer)
    assert places_of(called(Block()))["blocks/1/kernel"].owners[-1][1] == "kernel"


# --- building ---


def test_layers_are_built_from_a_shape():
    layer = keras.layers.Dense(3)
    build_layer(layer, (None, 4))
    assert layer.built
    assert weights_of(layer)["kernel"].shape == (4, 3)


def test_a_layer_without_a_build_of_its_own_is_traced():
    block = Block()
    build_layer(block, (None, 4))
    assert block.built
    assert set(weights_of(block)) == BLOCK_PATHS
    assert block(SEQUENCE).shape == SEQUENCE.shape


def test_several_inputs_are_refused():
    with pytest.raises(
        InputError, match=r"'attention' to be built, .*\(query_shape, value_shape\); do call it once before wrapping it"
    ):
        build_layer(keras.layers.MultiHeadAttention(2, 4, name="attention"), (None, 5, 4))


def test_a_layer_that_cant_be_traced_is_refused():
    class Two(Block):
        def call(self, x, y):
            return super().call(x + y)

    with pytest.raises(InputError, match=r"(?s)'two' to be built; tracing it on input_shape=\(None, 4\) failed: .*'y'"):
        build_layer(Two(name="two"), (None, 4))


# --- parameters ---


def test_parameters_are_float32_outside_of_mixed_precision():
    class Holder(keras.layers.Layer):
        def build(self, input_shape):
            self.p = add_parameter(self, "p", np.array([1.001, 2]))

        def call(self, x):
            return keras.ops.cast(self.p.value, "float32")

    layer = Holder(dtype="mixed_float16")
    assert np.asarray(layer(SEQUENCE)).tolist() == np.float32([1.001, 2]).tolist()
    assert layer.p.dtype == "float32"
    assert not layer.p.trainable


def test_parameters_are_made_after_the_layer_is_built():
    layer = called(keras.layers.Dense(3))
    added = add_parameter(layer, "later", np.ones((2, 2)), "float16")
    assert any(v is added for v in layer.non_trainable_variables)
    assert added.dtype == "float16"
    with pytest.raises(ValueError, match="already built"):
        layer.add_weight(shape=())  # locked again


def test_to_numpy_and_names():
    assert to_numpy(keras.Variable([1.0, 2.0])).tolist() == [1, 2]
    half = keras.ops.cast(np.ones(2), "bfloat16")
    assert to_numpy(half).dtype == ml_dtypes.bfloat16
    assert class_names(keras.layers.Conv2D(1, 1))[:3] == ["Conv2D", "BaseConv", "Layer"]


def test_halves_of_a_bidirectional_layer_are_named_without_counting() -> None:
    def paths() -> list[str]:
        layer = keras.layers.Bidirectional(keras.layers.GRU(2))
        layer.build((None, 4, 3))
        return list(weights_of(layer))

    assert paths() == paths()
    assert paths()[0] == "forward_gru/gru_cell/kernel"


def test_each_layer_within_is_found_once() -> None:
    stack = keras.layers.RNN(keras.layers.StackedRNNCells([keras.layers.LSTMCell(3), keras.layers.LSTMCell(2)]))
    stack.build((None, 4, 3))
    found = layers_within(stack)
    assert list(found) == ["stacked_rnn_cells", "stacked_rnn_cells/lstm_cell", "stacked_rnn_cells/lstm_cell_2"]
    assert paths_within(stack) == {id(layer): path for path, layer in found.items()}


def test_modules_of_torch_are_told_where_to_go() -> None:
    import torch

    with pytest.raises(
        InputError, match=r"received the torch module Linear; do use the function of that name in qi\.torch"
    ):
        check_model(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="expected a Keras model; received 3 of type int"):
        check_model(3)
    check_model(keras.Sequential([keras.Input((2,))]))
