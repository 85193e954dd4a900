from __future__ import annotations

from typing import Any

import keras
import pytest
from keras import layers

from tests.keras.lowered import branches, in_integers, kinds, refusal

PADDINGS = ("valid", "same")


def test_convolutions_of_images() -> None:
    x = keras.Input((7, 6, 4), name="image")  # one odd, one even size
    made: dict[str, Any] = {}
    for padding in PADDINGS:
        for kernel in (1, 2, 3, (2, 3)):
            for strides in (1, 2, (2, 3), (3, 1)):
                name = f"conv_{padding}_{kernel}_{strides}".translate(str.maketrans(", ", "__", "()"))
                made[name] = layers.Conv2D(3, kernel, strides, padding, name=name)(x)
        made[f"dilated_{padding}"] = layers.Conv2D(2, 2, dilation_rate=(2, 3), padding=padding)(x)
        made[f"grouped_{padding}"] = layers.Conv2D(6, 3, padding=padding, groups=2, use_bias=False)(x)
        made[f"each_{padding}"] = layers.Conv2D(4, (3, 2), strides=2, padding=padding, groups=4, activation="relu")(x)
    branches(x, made)


def test_depthwise_and_separable_convolutions_of_images() -> None:
    x = keras.Input((7, 6, 4), name="image")
    made: dict[str, Any] = {}
    for padding in PADDINGS:
        for multiplier in (1, 3):
            options = {"padding": padding, "depth_multiplier": multiplier}
            name = f"{padding}_{multiplier}"
            made[f"a_{name}"] = layers.DepthwiseConv2D(3, **options)(x)
            made[f"b_{name}"] = layers.DepthwiseConv2D(2, strides=2, activation="relu6", **options)(x)
            made[f"c_{name}"] = layers.DepthwiseConv2D((2, 3), dilation_rate=2, use_bias=False, **options)(x)
            made[f"d_{name}"] = layers.SeparableConv2D(5, 3, strides=2, **options)(x)
            made[f"e_{name}"] = layers.SeparableConv2D(5, (3, 2), dilation_rate=2, activation="tanh", **options)(x)
    branches(x, made)


def test_convolutions_of_sequences() -> None:
    x = keras.Input((9, 4), name="steps")
    made: dict[str, Any] = {}
    for padding in (*PADDINGS, "causal"):
        for kernel in (1, 2, 3):
            for strides in (1, 2, 3):
                name = f"{padding}_{kernel}_{strides}"
                made[name] = layers.Conv1D(3, kernel, strides, padding)(x)
        made[f"dilated_{padding}"] = layers.Conv1D(2, 3, dilation_rate=2, padding=padding, activation="elu")(x)
        made[f"grouped_{padding}"] = layers.Conv1D(6, 2, padding=padding, groups=2, use_bias=False)(x)
    for padding in PADDINGS:
        made[f"depthwise_{padding}"] = layers.DepthwiseConv1D(3, 2, padding, depth_multiplier=2)(x)
        made[f"separable_{padding}"] = layers.SeparableConv1D(3, 3, 2, padding, depth_multiplier=2, activation="relu")(
            x
        )
        made[f"separable_dilated_{padding}"] = layers.SeparableConv1D(3, 2, 1, padding, dilation_rate=3)(x)
    branches(x, made)


def test_transposed_convolutions() -> None:
    x, steps = keras.Input((3, 4, 2), name="image"), keras.Input((5, 3), name="steps")
    made: dict[str, Any] = {}
    for padding in PADDINGS:
        for kernel, strides in ((3, 2), (2, 3), (2, 2), (1, 2), (4, 1), ((2, 4), (3, 2))):
            name = f"{padding}_{kernel}_{strides}".translate(str.maketrans(", ", "__", "()"))
            made[f"image_{name}"] = layers.Conv2DTranspose(3, kernel, strides, padding)(x)
        for more in (0, 1):
            made[f"more_{padding}_{more}"] = layers.Conv2DTranspose(3, 3, 2, padding, output_padding=more)(x)
        for kernel, strides in ((3, 2), (2, 3), (4, 4)):
            options = {"use_bias": kernel != 2, "activation": "relu"}
            made[f"steps_{padding}_{kernel}_{strides}"] = layers.Conv1DTranspose(
                2, kernel, strides, padding, **options
            )(steps)
    branches([x, steps], made)


def test_products_of_any_rank_and_folded_and_kept_normalizations() -> None:
    x, y, z = keras.Input((6,), name="a"), keras.Input((3, 6), name="b"), keras.Input((2, 3, 6), name="c")
    made: dict[str, Any] = {}
    for rank, given in (("two", x), ("three", y), ("four", z)):
        made[rank] = layers.Dense(4)(given)
        made[f"{rank}_bare"] = layers.Dense(4, use_bias=False, activation="softplus")(given)
        made[f"{rank}_folded"] = layers.BatchNormalization()(layers.Dense(4)(given))
        made[f"{rank}_kept"] = layers.BatchNormalization()(given)
        made[f"{rank}_plain"] = layers.BatchNormalization(scale=False, center=False)(given)
    made["first_axis"] = layers.BatchNormalization(axis=1)(z)
    made["centred"] = layers.BatchNormalization(axis=2, scale=False)(z)
    made["scaled"] = layers.BatchNormalization(axis=-2, center=False)(z)
    branches([x, y, z], made)


def test_in_integers_a_convolution_is_one_operation_with_its_padding_bias_and_activation() -> None:
    x = keras.Input((6, 6, 3), name="image")
    y = layers.ZeroPadding2D(((1, 0), (0, 2)), name="pad")(x)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(4, 3, use_bias=False, name="conv")(y)))
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="relu", name="depthwise")(y)
    y = layers.Conv2DTranspose(3, 2, 2, name="transposed")(y)
    model = keras.Model(x, layers.Dense(2, name="dense")(layers.Dropout(0.5)(y)))
    _, graph, _ = in_integers(model)
    assert kinds(graph) == ["quantize", "conv2d", "depthwise_conv2d", "conv2d_transpose", "dense"]
    conv, depthwise, transposed, dense = graph.ops[1:]
    assert all(op.quantized and op.inputs[2].dtype == "int32" for op in graph.ops[1:])
    assert [op.attrs["activation"] for op in graph.ops[1:]] == ["relu6", "relu", "none", "none"]
    assert conv.attrs["pads"] == [1, 0, 0, 2]
    assert [op.inputs[1].shape for op in graph.ops[1:]] == [(3, 3, 3, 4), (3, 3, 8), (2, 2, 3, 8), (3, 2)]
    channels = [op.inputs[1].qparams.granularity.axis for op in (conv, depthwise, transposed, dense)]
    assert channels == [3, 2, 2, 1]


@pytest.mark.parametrize("layer", ["Conv1D", "DepthwiseConv1D", "SeparableConv1D", "Conv1DTranspose"])
def test_in_integers_a_convolution_of_a_sequence_is_one_operation_as_well(layer: str) -> None:
    x = keras.Input((8, 4), name="steps")
    options: dict[str, Any] = {} if "Depthwise" in layer else {"filters": 4}
    y = getattr(layers, layer)(kernel_size=3, activation="relu", name="conv", **options)(layers.ZeroPadding1D(1)(x))
    _, graph, _ = in_integers(keras.Model(x, layers.Flatten()(y)))
    linear = [op for op in graph.ops if op.kind not in ("quantize", "reshape", "pad")]
    assert len(linear) == (2 if layer == "SeparableConv1D" else 1)
    assert all(op.quantized for op in graph.ops[1:])
    assert linear[-1].attrs["activation"] == "relu"
    assert kinds(graph).count("reshape") == 2
    assert ("pad" in kinds(graph)) == (layer == "Conv1DTranspose")


def test_refusals() -> None:
    x, open_image = keras.Input((4, 4, 3)), keras.Input((None, 4, 3))
    first = "received 'conv' of class Conv2D, with data_format='channels_first'"
    assert first in refusal(x, layers.Conv2D(2, 1, data_format="channels_first", name="conv")(x))
    sizes = "whose input has open sizes (None, None, 4, 3); do give the model an Input of fixed sizes"
    assert sizes in refusal(open_image, layers.Conv2D(2, 3, padding="same")(open_image))


def test_a_factor_for_each_channel_of_a_network_of_keras() -> None:
    from keras.src.applications.convnext import LayerScale

    x = keras.Input((4, 4, 3), name="image")
    y = LayerScale(0.5, 3, name="factor")(layers.Conv2D(3, 1, name="conv")(x))
    branches(x, {"scaled": y, "added": layers.Add()([x, y])})
    _, graph, _ = in_integers(keras.Model(x, y))
    assert kinds(graph) == ["quantize", "conv2d", "mul"]
    assert graph.ops[2].quantized
