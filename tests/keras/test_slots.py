"""The slot of every weight, wherever a layer holds it, and why others have none."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi.dispatch import Slot, policy, register_policy
from qi.keras.slots import layer_policy, slots_of

Axes = tuple[int, int | None]


def axes_of(layer: Any, shape: tuple[int, ...]) -> dict[str, Axes | str]:
    """The axes of each weight that has a slot, the reason of each that has none."""
    if not layer.built:
        layer(np.zeros((1, *shape), "float32"))
    return {
        path: choice.why if choice.slot is None else (choice.slot.channel_axis, choice.slot.input_axis)
        for path, choice in slots_of(layer).items()
        if "seed_generator" not in path
    }


def matrices(layer: Any, shape: tuple[int, ...]) -> dict[str, Axes]:
    return {path: found for path, found in axes_of(layer, shape).items() if not isinstance(found, str)}


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (layers.TimeDistributed(layers.DepthwiseConv1D(3)), (4, 9, 2), {"depthwise_conv1d/kernel": (-2, None)}),
        (layers.TimeDistributed(layers.Conv2DTranspose(3, 2)), (4, 5, 5, 2), {"conv2d_transpose/kernel": (-2, -1)}),
        (layers.SpectralNormalization(layers.Conv1D(3, 2)), (9, 2), {"conv1d/kernel": (-1, -2)}),
        (
            layers.ConvLSTM2D(2, 3),
            (3, 6, 6, 2),
            {"conv_lstm_cell/kernel": (-1, -2), "conv_lstm_cell/recurrent_kernel": (-1, -2)},
        ),
        (layers.STFTSpectrogram("real", 8, 4, 8), (32, 1), {"real_kernel": (-1, 0)}),
        (
            layers.TimeDistributed(layers.EinsumDense("abc,dc->abd", (4, 6), name="einsum")),
            (2, 4, 6),
            {"einsum/kernel": (0, 1)},
        ),
    ],
    ids=lambda value: value.name if isinstance(value, layers.Layer) else "",
)
def test_the_policy_of_the_layer_within_counts(layer: Any, shape: Any, expected: dict[str, Axes]) -> None:
    assert matrices(layer, shape) == expected


def test_cells_of_one_class_have_slots_in_spite_of_their_counters() -> None:
    cells = [layers.GRUCell(3), layers.GRUCell(2)]
    found = matrices(layers.RNN(cells), (4, 5))
    assert list(found) == [f"stacked_rnn_cells/gru_cell/{name}" for name in ("kernel", "recurrent_kernel")] + [
        f"stacked_rnn_cells/gru_cell/{name}_2" for name in ("kernel", "recurrent_kernel")
    ]


def test_an_attention_has_a_slot_for_each_projection() -> None:
    layer, x = layers.MultiHeadAttention(2, 3), np.zeros((1, 5, 4), "float32")
    layer(x, x)
    assert matrices(layer, ()) == {
        "query/kernel": (2, 0),
        "key/kernel": (2, 0),
        "value/kernel": (2, 0),
        "attention_output/kernel": (2, 0),
    }


class Gated(layers.Layer):
    """Weights of every rank, and a layer within."""

    def build(self, shape: Any) -> None:
        self.inner = layers.DepthwiseConv1D(3, padding="same", name="inner")
        self.inner.build(shape)
        for name, of in {
            "matrix": (shape[-1], 3),
            "column": (shape[-1], 1),
            "row": (1, 1, shape[-1]),
            "cube": (2, shape[-1], 3),
            "vector": (3,),
            "single": (),
            "bias": (4, 3),
        }.items():
            setattr(self, name, self.add_weight(name=name, shape=of))

    def call(self, x: Any) -> Any:
        return self.inner(x) @ self.matrix


class GatedMore(Gated):
    """Inherits what is registered for its ancestor."""

    def build(self, shape: Any) -> None:
        super().build(shape)
        self.more = self.add_weight(name="more", shape=(2, 5))


def test_weights_of_a_users_layer_go_by_their_shape() -> None:
    assert axes_of(Gated(), (6, 4)) == {
        "matrix": (-1, -2),
        "column": (-1, -2),
        "row": "one number for each channel, which Gated uses in float",
        "cube": (-1, None),
        "vector": "one number for each channel, which Gated uses in float",
        "single": "one number, which Gated uses in float",
        "bias": "a bias, which Gated uses in float",
        "inner/kernel": (-2, None),
        "inner/bias": "bias: float32 here, int32 at input scale x weight scale in an integer file",
    }


def test_a_policy_of_the_outer_layer_comes_first_and_a_subclass_adds_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "_POLICIES", dict(policy._POLICIES))
    register_policy("Gated", [Slot("cube", 1), Slot("inner/kernel", 0)], floats={"matrix": "its user says so"})
    found = axes_of(Gated(), (6, 4))
    assert (found["cube"], found["inner/kernel"], found["matrix"]) == ((1, -2), (0, -2), "its user says so")
    assert found["column"] == "the policy of Gated doesn't quantize it"
    found = axes_of(GatedMore(), (6, 4))
    assert (found["cube"], found["matrix"], found["more"], found["column"]) == (
        (1, -2),
        "its user says so",
        (-1, -2),
        (-1, -2),
    )


@pytest.mark.parametrize(
    ("layer", "path", "why"),
    [
        (layers.LayerNormalization(), "gamma", "normalizations are computed in float"),
        (layers.RMSNormalization(), "scale", "normalizations are computed in float"),
        (
            layers.TimeDistributed(layers.BatchNormalization(name="bn")),
            "bn/moving_mean",
            "normalizations are computed in float",
        ),
        (layers.PReLU(), "alpha", "slopes of an activation, by which kernels multiply as real numbers"),
        (layers.LSTM(2), "lstm_cell/bias", "bias: float32, as what recurrent layers add it to"),
        (layers.GRU(2), "gru_cell/bias", "bias: float32, as what recurrent layers add it to"),
        (
            layers.SpectralNormalization(layers.Dense(3)),
            "vector_u",
            "no results are made of it: training alone uses it",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, layers.Layer) else "",
)
def test_what_stays_in_float_says_why(layer: Any, path: str, why: str) -> None:
    assert axes_of(layer, (4, 6))[path] == why


def test_a_subclass_follows_its_ancestor_and_its_own_weights_their_shape() -> None:
    class Mine(layers.Dense):
        def build(self, shape: Any) -> None:
            super().build(shape)
            self.gate = self.add_weight(name="gate", shape=(shape[-1], 3))

    assert layer_policy(Mine(2)).layer_type == "Dense"
    assert matrices(Mine(2), (4,)) == {"kernel": (-1, -2), "gate": (-1, -2)}
    assert keras.layers.Dense is layers.Dense
