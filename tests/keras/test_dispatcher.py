from __future__ import annotations

import keras
import numpy as np
import pytest

from qi.errors import ConfigError
from qi.keras import KerasNodeQuantizationDispatcher
from qi.quantizers import ActivationPOTInferableQuantizer, WeightsSymmetricInferableQuantizer

PER_CHANNEL = WeightsSymmetricInferableQuantizer(8, 2, per_channel=True)


def bound(layer, *shapes, quantizer=PER_CHANNEL):
    layer(*(np.zeros(shape, np.float32) for shape in shapes))
    return KerasNodeQuantizationDispatcher(quantizer).bind_layer(layer)


@pytest.mark.parametrize(
    ("layer", "shape", "path", "scales"),
    [
        (keras.layers.Dense(3), (1, 4), "kernel", (1, 3)),
        (keras.layers.Conv1D(3, 2), (1, 5, 4), "kernel", (1, 1, 3)),
        (keras.layers.Conv2D(3, 2), (1, 5, 5, 4), "kernel", (1, 1, 1, 3)),
        (keras.layers.Conv3D(3, 2), (1, 3, 3, 3, 4), "kernel", (1, 1, 1, 1, 3)),
        (keras.layers.DepthwiseConv1D(2, depth_multiplier=2), (1, 5, 4), "kernel", (1, 4, 1)),
        (keras.layers.DepthwiseConv2D(2), (1, 5, 5, 4), "kernel", (1, 1, 4, 1)),
        (keras.layers.Conv1DTranspose(3, 2), (1, 5, 4), "kernel", (1, 3, 1)),
        (keras.layers.Conv2DTranspose(3, 2), (1, 5, 5, 4), "kernel", (1, 1, 3, 1)),
        (keras.layers.Conv3DTranspose(3, 2), (1, 3, 3, 3, 4), "kernel", (1, 1, 1, 3, 1)),
        (keras.layers.SeparableConv2D(3, 2), (1, 5, 5, 4), "pointwise_kernel", (1, 1, 1, 3)),
        (keras.layers.EinsumDense("ab,bc->ac", 3), (1, 4), "kernel", (1, 3)),
        (keras.layers.Embedding(10, 4), (1, 5), "embeddings", (10, 1)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.layers.Layer) else "",
)
def test_a_bare_quantizer_finds_the_main_weight_and_its_channels(layer, shape, path, scales):
    found = bound(layer, shape)
    assert list(found) == [path]
    weight = getattr(layer, path)
    assert found[path].qparams(tuple(weight.shape)).scale.shape == scales


def test_a_subclass_is_treated_as_its_ancestor():
    class Mine(keras.layers.Conv2DTranspose):
        pass

    assert bound(Mine(3, 2), (1, 5, 5, 4))["kernel"].channel_axis == -2


def test_paths_into_sub_layers():
    layer, shape = keras.layers.MultiHeadAttention(2, 4), (1, 5, 8)
    found = bound(layer, shape, shape, quantizer={"query/kernel": PER_CHANNEL, "attention_output/kernel": PER_CHANNEL})
    assert set(found) == {"query/kernel", "attention_output/kernel"}


@pytest.mark.parametrize(
    ("layer", "shape", "scales"),
    [
        (keras.layers.TimeDistributed(keras.layers.DepthwiseConv1D(2)), (1, 3, 5, 4), (1, 4, 1)),
        (keras.layers.TimeDistributed(keras.layers.Conv1DTranspose(3, 2)), (1, 3, 5, 4), (1, 3, 1)),
        (keras.layers.EinsumDense("abc,dc->abd", (5, 7)), (1, 5, 3), (7, 1)),
    ],
    ids=["depthwise", "transposed", "einsum"],
)
def test_channels_lie_where_the_very_layer_has_them(layer, shape, scales):
    ((path, quantizer),) = bound(layer, shape).items()
    assert path.endswith("kernel")
    assert quantizer.qparams(tuple(layer.weights[0].shape)).scale.shape == scales


def test_a_layer_whose_policy_has_only_reasons_has_no_main_weight():
    with pytest.raises(ConfigError, match="'norm', which has no single main weight"):
        bound(keras.layers.LayerNormalization(name="norm"), (1, 5))


def test_an_ambiguous_path_lists_what_it_could_mean():
    with pytest.raises(ConfigError, match=r"'kernel', which is ambiguous; do choose one of \['query/kernel', 'key/"):
        bound(keras.layers.MultiHeadAttention(2, 4), (1, 5, 8), (1, 5, 8), quantizer={"kernel": PER_CHANNEL})


def test_a_bare_quantizer_is_refused_by_a_layer_with_many_weights():
    with pytest.raises(ConfigError, match=r"'attention', which has no single main weight; .* one of \['query/kernel'"):
        bound(keras.layers.MultiHeadAttention(2, 4, name="attention"), (1, 5, 8), (1, 5, 8))


def test_it_is_the_general_dispatcher():
    dispatcher = KerasNodeQuantizationDispatcher({"kernel": PER_CHANNEL}, [ActivationPOTInferableQuantizer(8, 2.0)])
    assert (dispatcher.num_weight_quantizers, dispatcher.num_act_quantizers) == (1, 1)
    again = KerasNodeQuantizationDispatcher.from_config(dispatcher.get_config())
    assert type(again) is KerasNodeQuantizationDispatcher
    assert again.weight_quantizers == dispatcher.weight_quantizers
