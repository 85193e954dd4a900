from __future__ import annotations

from typing import Any

import keras
import pytest
from keras import layers

from qi.keras.graph import Call, flatten_model
from qi.keras.macs import multiply_accumulates
from qi.keras.variables import weights_of


def counts(layer: Any, shape: tuple[int | None, ...], dtype: str = "float32") -> dict[str, int | None]:
    """The count of every weight of a layer called on an input of that shape."""
    inputs = keras.Input(shape, dtype=dtype)
    call: Call = flatten_model(keras.Model(inputs, layer(inputs))).calls[-1]
    return {path: multiply_accumulates(call, path, tuple(w.shape)) for path, w in weights_of(layer).items()}


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (layers.Dense(4), (5,), 5 * 4),
        (layers.Dense(4), (7, 5), 7 * 5 * 4),
        (layers.Conv1D(4, 3), (10, 2), 8 * 3 * 2 * 4),
        (layers.Conv1D(4, 3, padding="causal"), (10, 2), 10 * 3 * 2 * 4),
        (layers.Conv2D(8, 3), (10, 10, 2), 8 * 8 * 3 * 3 * 2 * 8),
        (layers.Conv2D(8, 3, padding="same", strides=2), (10, 10, 2), 5 * 5 * 3 * 3 * 2 * 8),
        (layers.Conv2D(8, 3, dilation_rate=2), (10, 10, 2), 6 * 6 * 3 * 3 * 2 * 8),
        (layers.Conv2D(8, 3, groups=2), (10, 10, 4), 8 * 8 * 3 * 3 * 2 * 8),
        (layers.Conv2D(8, 3, data_format="channels_first"), (2, 10, 12), 8 * 10 * 3 * 3 * 2 * 8),
        (layers.Conv3D(4, 2), (3, 4, 5, 2), 2 * 3 * 4 * 8 * 2 * 4),
        (layers.DepthwiseConv1D(3, depth_multiplier=2), (10, 4), 8 * 3 * 4 * 2),
        (layers.DepthwiseConv2D(3), (10, 10, 4), 8 * 8 * 9 * 4),
        (layers.Conv1DTranspose(4, 3, strides=2), (10, 2), 10 * 3 * 2 * 4),
        (layers.Conv2DTranspose(4, 3, strides=2), (5, 6, 2), 5 * 6 * 9 * 2 * 4),
        (layers.Conv3DTranspose(4, 2), (3, 3, 3, 2), 27 * 8 * 2 * 4),
        (layers.EinsumDense("ab,bc->ac", 4), (5,), 5 * 4),
        (layers.EinsumDense("abc,cde->abde", (6, 2, 4), bias_axes="de"), (6, 3), 6 * 3 * 2 * 4),
        (layers.EinsumDense("abc,bcd->ad", 4), (6, 3), 6 * 3 * 4),
        (layers.EinsumDense("...x,xy->...y", 4, bias_axes="y"), (6, 7, 3), 6 * 7 * 3 * 4),
        (layers.TimeDistributed(layers.Dense(4)), (7, 5), 7 * 5 * 4),
    ],
    ids=lambda value: value.name if isinstance(value, layers.Layer) else None,
)
def test_counts_by_hand(layer: Any, shape: tuple[int, ...], expected: int) -> None:
    found = counts(layer, shape)
    assert {count for path, count in found.items() if path.endswith("kernel")} == {expected}
    assert {count for path, count in found.items() if path.endswith("bias")} <= {None}


def test_a_separable_convolution_counts_both_of_its_kernels() -> None:
    found = counts(layers.SeparableConv2D(8, 3, depth_multiplier=2), (10, 10, 3))
    assert found == {"depthwise_kernel": 64 * 9 * 3 * 2, "pointwise_kernel": 64 * 6 * 8, "bias": None}


def test_a_recurrent_layer_counts_every_step() -> None:
    found = counts(layers.LSTM(4), (7, 5))
    assert found["lstm_cell/kernel"] == 7 * 5 * 16
    assert found["lstm_cell/recurrent_kernel"] == 7 * 4 * 16


def test_both_directions_count_every_step() -> None:
    for options in ({}, {"merge_mode": None}):
        found = counts(layers.Bidirectional(layers.GRU(3, return_sequences=True, name="rnn"), **options), (7, 5))
        for way in ("forward", "backward"):
            assert found[f"{way}_rnn/gru_cell/kernel"] == 7 * 5 * 9
            assert found[f"{way}_rnn/gru_cell/recurrent_kernel"] == 7 * 3 * 9


def test_stacked_cells_count_every_step() -> None:
    found = counts(layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)]), (7, 5))
    assert found["stacked_rnn_cells/lstm_cell/kernel"] == 7 * 5 * 12
    assert found["stacked_rnn_cells/gru_cell/kernel"] == 7 * 3 * 6


@pytest.mark.parametrize(
    ("options", "shape", "places"),
    [
        ({"padding": "same"}, (7, 5, 6, 2), 5 * 6),
        ({"padding": "same", "strides": 2, "return_sequences": True}, (7, 5, 6, 2), 3 * 3),
        ({"dilation_rate": (1, 2)}, (7, 5, 6, 2), 3 * 2),
        ({"strides": (1, 2), "data_format": "channels_first"}, (7, 2, 5, 6), 3 * 2),
    ],
)
def test_a_recurrent_convolution_counts_its_places_at_every_step(
    options: dict[str, Any], shape: tuple[int, ...], places: int
) -> None:
    found = counts(layers.ConvLSTM2D(4, 3, **options), shape)
    assert found["conv_lstm_cell/kernel"] == 7 * places * 9 * 2 * 16
    assert found["conv_lstm_cell/recurrent_kernel"] == 7 * places * 9 * 4 * 16
    both = counts(layers.Bidirectional(layers.ConvLSTM2D(4, 3, name="rnn", **options)), shape)
    assert both["backward_rnn/conv_lstm_cell/kernel"] == 7 * places * 9 * 2 * 16


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (layers.Conv2D(8, 3, strides=2), (9, 9, 3), 4 * 4 * 9 * 3 * 8),
        (layers.Conv2DTranspose(8, 3, strides=2), (4, 4, 3), 4 * 4 * 9 * 3 * 8),
        (layers.Conv1D(8, 3, data_format="channels_first"), (3, 10), 8 * 3 * 3 * 8),
        (layers.Dense(4), (6, 5), 6 * 5 * 4),
        (layers.EinsumDense("abc,cd->abd", (6, 4)), (6, 5), 6 * 5 * 4),
    ],
    ids=lambda value: value.name if isinstance(value, layers.Layer) else None,
)
def test_what_runs_at_every_step_counts_as_often(layer: Any, shape: tuple[int, ...], expected: int) -> None:
    (found,) = (n for n in counts(layers.TimeDistributed(layer), (7, *shape)).values() if n is not None)
    assert found == 7 * expected


def test_a_model_at_every_step_counts_its_layers() -> None:
    shared = layers.Conv2D(2, 3, padding="same", name="shared")
    inputs = keras.Input((6, 6, 2))
    x = layers.Flatten()(shared(layers.MaxPooling2D(2)(shared(inputs))))
    model = keras.Model(inputs, layers.Dense(5, name="fc")(x), name="net")
    found = counts(layers.TimeDistributed(model), (7, 6, 6, 2))
    assert found["net/shared/kernel"] == 7 * (36 + 9) * 9 * 2 * 2
    assert found["net/fc/kernel"] == 7 * 18 * 5
    anywhere = keras.Sequential([keras.Input((None, None, 2)), layers.Conv2D(2, 3, name="conv")], name="net")
    assert counts(layers.TimeDistributed(anywhere), (7, 6, 6, 2))["net/conv/kernel"] is None


def test_a_normalized_convolution_counts_as_the_convolution() -> None:
    found = counts(layers.SpectralNormalization(layers.Conv2D(8, 3, strides=2, name="conv")), (9, 9, 3))
    assert found["conv/kernel"] == 4 * 4 * 9 * 3 * 8


def test_cells_of_one_class_count_each() -> None:
    found = counts(layers.RNN([layers.GRUCell(3), layers.GRUCell(2)]), (7, 5))
    assert found["stacked_rnn_cells/gru_cell/kernel"] == 7 * 5 * 9
    assert found["stacked_rnn_cells/gru_cell/kernel_2"] == 7 * 3 * 6
    assert found["stacked_rnn_cells/gru_cell/recurrent_kernel_2"] == 7 * 2 * 6


@pytest.mark.parametrize(
    ("options", "shape", "frames"),
    [
        ({}, (64, 1), 7),
        ({}, (64, 2), 2 * 7),
        ({"padding": "same"}, (60, 1), 8),
        ({"data_format": "channels_first"}, (2, 64), 2 * 7),
        ({"frame_step": None, "frame_length": 16}, (64, 1), 7),
    ],
)
def test_a_spectrogram_counts_its_windows(options: dict[str, Any], shape: tuple[int, ...], frames: int) -> None:
    layer = layers.STFTSpectrogram("stft", **{"frame_length": 16, "frame_step": 8, "fft_length": 16} | options)
    found = counts(layer, shape)
    assert found == {"real_kernel": frames * 16 * 9, "imag_kernel": frames * 16 * 9}


def test_an_attention_that_is_kept_whole_counts_its_keys_at_their_own_places() -> None:
    query, value = keras.Input((7, 4)), keras.Input((5, 4))
    layer = layers.MultiHeadAttention(2, 3)
    call = flatten_model(keras.Model([query, value], layer(query, value))).calls[-1]
    found = {path: multiply_accumulates(call, path, tuple(w.shape)) for path, w in weights_of(layer).items()}
    kernels = {path: count for path, count in found.items() if path.endswith("kernel")}
    assert kernels == {
        "query/kernel": 7 * 4 * 6,
        "key/kernel": 5 * 4 * 6,
        "value/kernel": 5 * 4 * 6,
        "attention_output/kernel": 7 * 6 * 4,
    }


def test_looking_rows_up_multiplies_nothing() -> None:
    assert counts(layers.Embedding(10, 4), (7,), "int32") == {"embeddings": None}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Conv2D(4, 3), (None, None, 2)),
        (layers.Dense(4), (None, 5)),
        (layers.EinsumDense("...x,xy->...y", 4), (None, 5)),
    ],
)
def test_open_sizes_have_no_count(layer: Any, shape: tuple[int | None, ...]) -> None:
    assert counts(layer, shape)["kernel"] is None


def test_steps_of_open_number_have_no_count() -> None:
    assert counts(layers.TimeDistributed(layers.Dense(4, name="dense")), (None, 5))["dense/kernel"] is None
