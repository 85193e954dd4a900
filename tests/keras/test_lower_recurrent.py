"""Recurrent layers beside what Keras' own layers predict."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi.ir import run
from qi.keras.emulate import emulate
from qi.keras.lower import lower
from qi.keras.variables import to_numpy
from tests.keras.lowered import branches, in_integers, kinds, refusal, weights_only
from tests.keras.models import samples, settle

CELLS = {"lstm": layers.LSTM, "gru": layers.GRU, "rnn": layers.SimpleRNN}
SHAPE = (6, 5)


@keras.saving.register_keras_serializable("lower_recurrent")
class OwnCell(layers.SimpleRNNCell):
    """A cell of a user's own."""


@pytest.mark.parametrize("name", CELLS)
def test_one_layer(name: str) -> None:
    make, x, made = CELLS[name], keras.Input(SHAPE, name="steps"), {}
    for sequences in (False, True):
        for backwards in (False, True):
            layer = make(4, return_sequences=sequences, go_backwards=backwards)
            made[f"{name}_{sequences}_{backwards}"] = layer(x)
    made["no_bias"] = make(3, use_bias=False, activation="relu")(x)
    made["unrolled"] = make(3, unroll=True, activation="sigmoid")(x)
    made["dropped"] = make(3, dropout=0.5, recurrent_dropout=0.5, activation="linear")(x)
    branches(x, made)


def test_options_of_gates() -> None:
    x, made = keras.Input(SHAPE, name="steps"), {}
    for name in ("hard_sigmoid", "relu", "tanh"):
        made[f"lstm_{name}"] = layers.LSTM(3, recurrent_activation=name)(x)
        made[f"gru_{name}"] = layers.GRU(3, recurrent_activation=name)(x)
    made["before"] = layers.GRU(3, reset_after=False, return_sequences=True)(x)
    made["before_no_bias"] = layers.GRU(3, reset_after=False, use_bias=False)(x)
    branches(x, made)


@pytest.mark.parametrize("name", CELLS)
def test_both_directions(name: str) -> None:
    make, x, made = CELLS[name], keras.Input(SHAPE, name="steps"), {}
    for mode, sequences in (("concat", True), ("concat", False), ("sum", True), ("mul", False), ("ave", True)):
        layer = layers.Bidirectional(make(3, return_sequences=sequences), merge_mode=mode)
        made[f"{mode}_{sequences}"] = layer(x)
    made["ahead"], made["behind"] = layers.Bidirectional(make(3, return_sequences=True), merge_mode=None)(x)
    branches(x, made)


def test_cells_are_the_layers_that_have_them() -> None:
    x, made = keras.Input(SHAPE, name="steps"), {}
    for name, cell in {"lstm": layers.LSTMCell, "gru": layers.GRUCell, "rnn": layers.SimpleRNNCell}.items():
        made[name] = layers.RNN(cell(3))(x)
        made[f"{name}_backwards"] = layers.RNN(cell(2, use_bias=False), return_sequences=True, go_backwards=True)(x)
        made[f"{name}_both_ways"] = layers.Bidirectional(layers.RNN(cell(3), return_sequences=True))(x)
    branches(x, made)


def test_stacked_cells_are_layers_one_after_the_other() -> None:
    x, made = keras.Input(SHAPE, name="steps"), {}
    stack = lambda: [layers.LSTMCell(4), layers.StackedRNNCells([layers.GRUCell(3), layers.SimpleRNNCell(2)])]
    for sequences in (False, True):
        made[f"stack_{sequences}"] = layers.RNN(stack(), return_sequences=sequences)(x)
        made[f"backwards_{sequences}"] = layers.RNN(stack(), return_sequences=sequences, go_backwards=True)(x)
    made["both_ways"] = layers.Bidirectional(layers.RNN(stack(), return_sequences=True))(x)
    branches(x, made)


def test_in_integers_a_layer_of_cells_is_emulated_as_the_layer_itself() -> None:
    keras.utils.set_random_seed(0)
    x, graphs = np.random.default_rng(0).normal(size=(32, *SHAPE)).astype("float32"), []
    lstm = layers.LSTM(3, name="lstm")
    cell = layers.RNN(layers.LSTMCell(3), name="lstm")
    models = [
        keras.Sequential([keras.Input(SHAPE), layer, layers.Dense(2, name="head")], name="m") for layer in (lstm, cell)
    ]
    models[1].set_weights(models[0].get_weights())
    for model in models:
        graphs.append(emulate(qi.quantize_model(model, "w8a8", x, progress=False)[0], x, "litert", progress=False))
    np.testing.assert_array_equal(*graphs)


def test_two_layers_of_different_kinds_in_both_directions() -> None:
    x = keras.Input(SHAPE, name="steps")
    ahead, behind = layers.LSTM(3, return_sequences=True), layers.GRU(4, return_sequences=True, go_backwards=True)
    swapped = layers.Bidirectional(
        layers.LSTM(3, return_sequences=True, go_backwards=True),
        backward_layer=layers.SimpleRNN(2, return_sequences=True),
    )
    branches(x, {"mixed": layers.Bidirectional(ahead, backward_layer=behind)(x), "swapped": swapped(x)})


def test_backwards_is_a_reverse_of_codes() -> None:
    model = keras.Sequential([keras.Input(SHAPE), layers.Bidirectional(layers.LSTM(3, return_sequences=True))])
    qmodel, graph, x = in_integers(model)
    assert kinds(graph) == ["quantize", "lstm", "reverse", "lstm", "reverse", "concat", "quantize"]
    assert graph.ops[2].quantized
    expected = qmodel.predict(x, verbose=0)
    for target in ("litert", "onnxruntime", "reference"):
        found = emulate(qmodel, x, target, progress=False)
        step = float(graph.outputs[0].scale)
        assert np.abs(found - expected).max() <= 1.01 * step
        assert np.mean(np.abs(found - expected) > step / 2) <= 0.003


def test_weights_are_codes_of_each_column() -> None:
    _, graph = weights_only(keras.Sequential([keras.Input(SHAPE), layers.GRU(3)]))
    kernel, recurrent, bias = graph.ops[0].inputs[1:]
    assert [tensor.shape for tensor in (kernel, recurrent, bias)] == [(5, 9), (3, 9), (2, 9)]
    assert kernel.scales().size == recurrent.scales().size == 9
    assert not bias.quantized


def test_open_lengths() -> None:
    memory = layers.LSTM(3, return_sequences=True, name="memory")
    qmodel, graph = weights_only(keras.Sequential([keras.Input((None, 4)), memory]))
    assert (graph.outputs[0].name, graph.outputs[0].shape) == ("memory", (None, None, 3))
    x = np.random.default_rng(0).normal(size=(3, 8, 4)).astype("float32")
    np.testing.assert_allclose(run(graph, [x], "litert")["memory"], qmodel.predict(x, verbose=0), atol=1e-6)


def test_saved_models_are_the_same_bit_for_bit(tmp_path: Any) -> None:
    x = keras.Input(SHAPE)
    y = layers.Bidirectional(layers.GRU(3, return_sequences=True))(x)
    model = keras.Model(x, layers.LSTM(4)(y))
    qmodel, _, data = in_integers(model)
    qi.save_model(qmodel, tmp_path / "m.keras")
    again = qi.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again.predict(data, verbose=0), qmodel.predict(data, verbose=0))
    assert str(lower(again)) == str(lower(qmodel))


def test_trained_ones_predict_as_they_were_trained() -> None:
    model = keras.Sequential(
        [keras.Input(SHAPE), layers.LSTM(4, return_sequences=True), layers.GRU(3), layers.Dense(2)]
    )
    x = samples(settle(model), 32)
    qat = qi.prepare_qat(model, "w4a8", x)
    qat.compile("sgd", "mse")
    before = [to_numpy(weight).copy() for weight in qat.trainable_weights]
    qat.fit(x, np.ones((32, 2), "float32"), verbose=0)
    pairs = zip(qat.trainable_weights, before, strict=True)
    moved = {weight.name for weight, value in pairs if (to_numpy(weight) != value).any()}
    assert {"kernel", "recurrent_kernel", "bias"} <= moved
    converted = qi.convert(qat)
    np.testing.assert_array_equal(converted.predict(x, verbose=0), qat.predict(x, verbose=0))
    weights = [op.inputs[1:3] for op in lower(converted).ops if op.kind in ("lstm", "gru")]
    assert {t.grid.bits for pair in weights for t in pair} == {4}


def test_flips() -> None:
    x = keras.Input(SHAPE, name="steps")
    dense = layers.Dense(4)(x)
    branches(x, {"rows": keras.ops.flip(dense, axis=1), "columns": keras.ops.flip(dense, axis=[-1])})


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda x: layers.LSTM(3, return_state=True, name="memory")(x)[0], ["return_state=True", "return_sequences"]),
        (lambda x: layers.LSTM(3, name="memory")(x, initial_state=[layers.Dense(3)(x[:, 0])] * 2), ["initial state"]),
        (lambda x: layers.GRU(3, activation="gelu", name="memory")(x), ["activation is 'gelu'", "tanh"]),
        (
            lambda x: layers.LSTM(3, recurrent_activation="softplus", name="memory")(x),
            ["recurrent_activation", "sigmoid"],
        ),
        (
            lambda x: layers.Bidirectional(layers.RNN([layers.LSTMCell(3), OwnCell(2)]), name="memory")(x),
            ["of a OwnCell", "LSTMCell, GRUCell or SimpleRNNCell"],
        ),
        (lambda x: keras.ops.flip(layers.Dense(3)(x), axis=(1, 2)), ["flip one axis at a time"]),
    ],
    ids=["states", "initial", "activation", "recurrent_activation", "cell", "flip"],
)
def test_refusals_name_the_layer_and_ways_out(make: Any, parts: list[str]) -> None:
    x = keras.Input(SHAPE, name="steps")
    text = refusal(x, make(x))
    for part in parts:
        assert part in text
    assert "'memory'" in text or "flip" in text


def test_stateful_layers_are_refused() -> None:
    x = keras.Input(batch_shape=(2, *SHAPE))
    text = refusal(x, layers.LSTM(3, stateful=True, name="memory")(x))
    assert "'memory'" in text
    assert "stateful=False" in text


def test_masks_are_refused() -> None:
    ids = keras.Input((6,), dtype="int32")
    text = refusal(ids, layers.LSTM(3, name="memory")(layers.Embedding(9, 4, mask_zero=True)(ids)))
    assert "mask_zero=False" in text
    x = keras.Input(SHAPE)
    text = refusal(x, layers.LSTM(3)(x, mask=keras.ops.greater(x[:, :, 0], 0)))
    assert "LSTM" in text or "Greater" in text
