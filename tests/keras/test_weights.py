from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi.core import PerChannel, PerGroup, PerTensor
from qi.keras.rows import original_weights
from qi.keras.variables import weights_of
from qi.keras.weights import has_policy, layer_policy, weight_quantizers
from qi.quantizers import BaseInferableQuantizer
from qi.recipes import FLOAT, Rule, TensorSpec, get_recipe
from tests.keras.models import settle

Found = tuple[dict[str, BaseInferableQuantizer], dict[str, str]]


def decide(layer: Any, shape: tuple[int, ...], recipe: str = "w8", *rules: Rule, unfolded: str = "") -> Found:
    layer.build((None, *shape))
    settle(layer)
    book = get_recipe(recipe).with_rules(*rules).resolve()
    return weight_quantizers(layer, "net/layer", original_weights(layer), book, unfolded)


BIAS = "bias: float32 here, int32 at input scale x weight scale in an integer file"
STATES_BIAS = "bias: float32, as what recurrent layers add it to"


@pytest.mark.parametrize(
    ("layer", "shape", "axes"),
    [
        (layers.Dense(4), (5,), {"kernel": 1}),
        (layers.Conv1D(4, 3), (8, 2), {"kernel": 2}),
        (layers.Conv2D(4, 3, groups=2), (8, 8, 2), {"kernel": 3}),
        (layers.Conv3D(4, 3), (8, 8, 8, 2), {"kernel": 4}),
        (layers.DepthwiseConv1D(3, depth_multiplier=2), (8, 2), {"kernel": 1}),
        (layers.DepthwiseConv2D(3), (8, 8, 2), {"kernel": 2}),
        (layers.SeparableConv2D(4, 3), (8, 8, 2), {"depthwise_kernel": 2, "pointwise_kernel": 3}),
        (layers.Conv2DTranspose(4, 3), (8, 8, 2), {"kernel": 2}),
        (layers.EinsumDense("abc,cde->abde", (3, 2, 4), bias_axes="de"), (3, 5), {"kernel": 2}),
        (layers.EinsumDense("abc,dc->abd", (3, 4), bias_axes="d"), (3, 5), {"kernel": 0}),
        (layers.EinsumDense("abcd,cde->abe", (3, 4), bias_axes="e"), (3, 2, 5), {"kernel": 2}),
        (layers.Embedding(10, 4), (3,), {"embeddings": 0}),
    ],
    ids=lambda value: value.name if isinstance(value, layers.Layer) else None,
)
def test_each_kernel_has_one_scale_an_output_channel(layer: Any, shape: tuple[int, ...], axes: dict[str, int]) -> None:
    quantizers, reasons = decide(layer, shape)
    for path, axis in axes.items():
        rank = len(weights_of(layer)[path].shape)
        assert quantizers[path].granularity(rank) == PerChannel(axis)
        assert (quantizers[path].num_bits, quantizers[path].grid.qmin, quantizers[path].grid.qmax) == (8, -127, 127)
    assert set(quantizers) == set(axes)
    assert set(reasons) <= {"bias"}
    assert reasons.get("bias", BIAS) == BIAS


def test_a_subclass_follows_its_ancestor() -> None:
    class Mine(layers.Dense):
        pass

    assert layer_policy(Mine(2)).layer_type == "Dense"
    assert list(decide(Mine(2), (3,))[0]) == ["kernel"]


def test_scales_may_be_shared_by_the_tensor_or_by_groups() -> None:
    quantizers, _ = decide(layers.Dense(4), (6,), "w8_pt")
    assert quantizers["kernel"].granularity(2) == PerTensor()
    quantizers, _ = decide(layers.Dense(4), (70,), "w4_g32")
    assert quantizers["kernel"].granularity(2) == PerGroup(0, 32, 1)
    assert quantizers["kernel"].parameters((70, 4))["scale"].shape == (3, 4)


@pytest.mark.parametrize(
    ("layer", "shape", "granularity"),
    [
        (layers.Conv2D(4, 3), (8, 8, 6), PerGroup(2, 32, 3)),
        (layers.Conv2DTranspose(4, 3), (8, 8, 6), PerGroup(3, 32, 2)),
        (layers.DepthwiseConv2D(3), (8, 8, 6), PerChannel(2)),
        (layers.Embedding(10, 4), (3,), PerGroup(1, 32, 0)),
        (layers.EinsumDense("abc,dc->abd", (3, 4)), (3, 5), PerGroup(1, 32, 0)),
        (layers.EinsumDense("abc,cd->abcd", (3, 5, 4)), (3, 5), PerChannel(1)),
    ],
    ids=lambda value: value.name if isinstance(value, layers.Layer) else None,
)
def test_groups_run_along_the_inputs_or_fall_back_to_channels(
    layer: Any, shape: tuple[int, ...], granularity: Any
) -> None:
    quantizers, _ = decide(layer, shape, "w4_g32")
    path = next(iter(quantizers))
    assert quantizers[path].granularity(len(weights_of(layer)[path].shape)) == granularity


def test_rules_decide_weight_by_weight() -> None:
    rule = Rule("net/*", weight="depthwise_kernel", weights=FLOAT)
    quantizers, reasons = decide(layers.SeparableConv2D(4, 3), (8, 8, 2), "w4", rule)
    assert list(quantizers) == ["pointwise_kernel"]
    assert quantizers["pointwise_kernel"].num_bits == 4
    assert reasons["depthwise_kernel"].startswith("left in float by rule match='net/*'")


def test_rules_match_the_class_of_the_layer() -> None:
    rule = Rule(layer_type="Dense", weights=FLOAT)
    assert decide(layers.Dense(4), (3,), "w8", rule)[0] == {}
    assert list(decide(layers.Conv1D(4, 3), (8, 3), "w8", rule)[0]) == ["kernel"]


def test_only_what_has_matrices_can_be_quantized() -> None:
    for layer, shape, found in [
        (layers.Dense(2), (3,), True),
        (layers.RNN(layers.LSTMCell(2)), (4, 3), True),
        (layers.LayerNormalization(), (3,), False),
        (layers.ReLU(), (3,), False),
    ]:
        layer.build((None, *shape))
        assert has_policy(layer) is found
    assert not has_policy(keras.ops.add)


@pytest.mark.parametrize(
    ("layer", "prefixes"),
    [
        (layers.LSTM(2), ["lstm_cell"]),
        (layers.GRU(2), ["gru_cell"]),
        (layers.SimpleRNN(2), ["simple_rnn_cell"]),
        (layers.Bidirectional(layers.LSTM(2, name="a")), ["forward_a/lstm_cell", "backward_a/lstm_cell"]),
        (layers.Bidirectional(layers.GRU(2, name="b")), ["forward_b/gru_cell", "backward_b/gru_cell"]),
        (layers.RNN(layers.LSTMCell(2)), ["lstm_cell"]),
        (
            layers.RNN([layers.LSTMCell(2), layers.GRUCell(2)]),
            ["stacked_rnn_cells/lstm_cell", "stacked_rnn_cells/gru_cell"],
        ),
        (layers.Bidirectional(layers.RNN(layers.GRUCell(2), name="c")), ["forward_c/gru_cell", "backward_c/gru_cell"]),
    ],
    ids=["lstm", "gru", "simple_rnn", "two_lstm", "two_gru", "rnn", "stacked", "two_rnn"],
)
def test_recurrent_layers_have_a_scale_for_each_column_of_both_kernels(layer: Any, prefixes: list[str]) -> None:
    quantizers, reasons = decide(layer, (4, 3))
    assert sorted(quantizers) == sorted(f"{p}/{name}" for p in prefixes for name in ("kernel", "recurrent_kernel"))
    assert {quantizer.granularity(2) for quantizer in quantizers.values()} == {PerChannel(1)}
    assert reasons == {f"{p}/bias": STATES_BIAS for p in prefixes}


def test_groups_of_recurrent_kernels_run_along_their_inputs() -> None:
    quantizers, _ = decide(layers.LSTM(40), (4, 70), "w4_g32")
    assert {quantizer.granularity(2) for quantizer in quantizers.values()} == {PerGroup(0, 32, 1)}


@pytest.mark.parametrize(
    ("rule", "float_paths"),
    [
        (Rule("net/layer", weight="conv/kernel", weights=FLOAT), ["conv/kernel"]),
        (Rule(layer_type="TimeDistributed", weights=FLOAT), ["conv/kernel"]),
        (Rule("net/layer/conv", weights=FLOAT), ["conv/kernel"]),
        (Rule(layer_type="Conv1D", weights=FLOAT), ["conv/kernel"]),
        (Rule("*", layer_type="Conv1D", weight="kernel", weights=FLOAT), ["conv/kernel"]),
        (Rule("net/layer", layer_type="Conv1D", weights=FLOAT), []),
        (Rule(layer_type="TimeDistributed", weight="kernel", weights=FLOAT), []),
        (Rule(layer_type="Conv1D", weight="conv/kernel", weights=FLOAT), []),
    ],
    ids=str,
)
def test_rules_name_a_layer_within_another_by_either(rule: Rule, float_paths: list[str]) -> None:
    layer = layers.TimeDistributed(layers.Conv1D(3, 2, name="conv"))
    quantizers, reasons = decide(layer, (4, 6, 2), "w8", rule)
    assert [path for path, why in reasons.items() if "by rule" in why] == float_paths
    assert list(quantizers) == ([] if float_paths else ["conv/kernel"])


def test_the_first_rule_decides_whichever_layer_it_names() -> None:
    inner, outer = Rule(layer_type="GRUCell", weights=FLOAT), Rule("net/layer", weights=TensorSpec(bits=4))
    assert decide(layers.GRU(2), (4, 3), "w8", inner, outer)[0] == {}
    assert {q.num_bits for q in decide(layers.GRU(2), (4, 3), "w8", outer, inner)[0].values()} == {4}


def test_a_rule_for_a_part_of_an_attention_is_the_same_where_that_is_taken_apart() -> None:
    part = layers.EinsumDense("abc,cde->abde", (3, 2, 4))
    part.build((None, 3, 5))
    for rule in (
        Rule("mha/query", weights=FLOAT),
        Rule(layer_type="EinsumDense", weights=FLOAT),
        Rule("mha", weights=FLOAT),
    ):
        book = get_recipe("w8").with_rules(rule).resolve()
        named = lambda weight: ("mha", "MultiHeadAttention", f"query/{weight}")
        assert weight_quantizers(part, "mha/query", original_weights(part), book, "", named)[0] == {}


def test_a_normalization_that_stays_says_why() -> None:
    quantizers, reasons = decide(layers.BatchNormalization(), (4,), unfolded="it follows nothing")
    assert quantizers == {}
    assert set(reasons) == {"gamma", "beta", "moving_mean", "moving_variance"}
    assert set(reasons.values()) == {"batch normalization is kept: it follows nothing"}


def test_what_the_policy_leaves_out_says_so() -> None:
    layer = layers.Dense(4)
    layer.build((None, 6))
    layer.enable_lora(2)
    _, reasons = weight_quantizers(layer, "layer", original_weights(layer), get_recipe("w8").resolve(), "")
    assert reasons["lora_kernel_a"] == "the policy of Dense doesn't quantize it; 8 bits would save 36 bytes"


def test_integers_and_empty_weights_stay_as_they_are() -> None:
    book = get_recipe("w8").resolve()
    layer = layers.Dense(4)
    layer.build((None, 3))
    for array, reason in [
        (np.ones((3, 4), "int8"), "holds int8, not real numbers"),
        (np.ones((0, 4), "float32"), "has no elements"),
    ]:
        quantizers, reasons = weight_quantizers(layer, "layer", {"kernel": array}, book, "")
        assert (quantizers, reasons) == ({}, {"kernel": reason})


def test_weights_of_half_precision_are_quantized() -> None:
    layer = layers.Dense(4, dtype="bfloat16")
    assert list(decide(layer, (3,))[0]) == ["kernel"]


def test_a_recipe_for_activations_alone_leaves_weights() -> None:
    layer = keras.layers.Dense(4)
    layer.build((None, 3))
    recipe = {"name": "a8", "weights": None, "activations": {"bits": 8}}
    _, reasons = weight_quantizers(layer, "layer", original_weights(layer), get_recipe(recipe).resolve(), "")
    assert reasons == {"kernel": "the recipe a8 quantizes no weights", "bias": BIAS}
