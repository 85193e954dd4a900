from __future__ import annotations

from typing import Any

import keras
from keras import layers

from tests.keras.lowered import agrees, branches, close, in_integers, kinds, refusal, weights_only

Each = layers.TimeDistributed


def test_layers_at_each_step_of_a_sequence() -> None:
    x, images, ids = (
        keras.Input((3, 6, 4), name="x"),
        keras.Input((2, 6, 5, 3), name="images"),
        keras.Input((3, 4), dtype="int32", name="ids"),
    )
    made: dict[str, Any] = {
        "dense": Each(layers.Dense(5, activation="relu"))(x),
        "active": Each(layers.Activation("tanh"))(x),
        "normed": Each(layers.LayerNormalization())(x),
        "batch_normed": Each(layers.BatchNormalization())(x),
        "dropped": Each(layers.Dropout(0.5))(x),
        "shares": Each(layers.Softmax())(x),
        "rows": Each(layers.Embedding(10, 3))(ids),
        "flat": Each(layers.Flatten())(x),
        "shaped": Each(layers.Reshape((2, 12)))(x),
        "mean": Each(layers.GlobalAveragePooling1D())(x),
        "largest": Each(layers.GlobalMaxPooling2D())(images),
        "pooled": Each(layers.MaxPooling1D(2))(x),
        "averaged": Each(layers.AveragePooling1D(3, 2))(x),
        "images_pooled": Each(layers.MaxPooling2D(2, padding="same"))(images),
        "images_averaged": Each(layers.AveragePooling2D((2, 3), 1))(images),
    }
    for padding in ("valid", "same", "causal"):
        made[f"conv_{padding}"] = Each(layers.Conv1D(3, 3, padding=padding))(x)
    made["conv_strided"] = Each(layers.Conv1D(4, 2, strides=2, groups=2))(x)
    made["depthwise"] = Each(layers.DepthwiseConv1D(3, depth_multiplier=2))(x)
    made["separable"] = Each(layers.SeparableConv1D(5, 3, padding="same"))(x)
    for padding in ("valid", "same"):
        made[f"image_{padding}"] = Each(layers.Conv2D(4, 3, padding=padding, activation="relu"))(images)
        made[f"image_strided_{padding}"] = Each(layers.Conv2D(4, (3, 2), 2, padding=padding))(images)
        made[f"image_depthwise_{padding}"] = Each(layers.DepthwiseConv2D(2, depth_multiplier=2, padding=padding))(
            images
        )
    branches([x, images, ids], made)


def test_in_integers_a_layer_at_each_step_is_an_operation_on_codes() -> None:
    x = keras.Input((3, 6, 6, 2), name="clip")
    y = Each(layers.Conv2D(4, 3, activation="relu", name="conv"))(x)
    y = Each(layers.Flatten())(Each(layers.MaxPooling2D(2))(y))
    qmodel, graph, data = in_integers(keras.Model(x, Each(layers.Dense(3, name="dense"))(y)))
    assert all(op.quantized for op in graph.ops[1:])
    assert kinds(graph).count("quantize") == 1
    close(qmodel, data)


def test_a_spectral_normalization_is_its_layer() -> None:
    x = keras.Input((6, 3), name="x")
    made = {
        "conv": layers.SpectralNormalization(layers.Conv1D(4, 2))(x),
        "dense": layers.SpectralNormalization(layers.Dense(2, activation="relu"))(x),
    }
    branches(x, made)


def test_a_pipeline_is_its_layers() -> None:
    x = keras.Input((4, 4, 3), name="x")
    made = {
        "scaled": layers.Pipeline([layers.Rescaling(0.5, 0.1), layers.RandomFlip(), layers.Conv2D(3, 2)])(x),
        "dense": layers.Dense(2)(x),
    }
    branches(x, made)


@keras.saving.register_keras_serializable("lower_parts")
class Doubled(layers.Dense):
    pass


def test_refusals() -> None:
    x, images = keras.Input((3, 4)), keras.Input((2, 4, 4, 3))
    text = refusal(images, Each(layers.Conv2DTranspose(2, 2))(images))
    assert "of class Conv2DTranspose, at each step of TimeDistributed; do call it on parts of the sequence" in text
    text = refusal(images, Each(layers.LayerNormalization(axis=1))(layers.Dense(3)(images)))
    assert "over axes [1] of each step" in text
    text = refusal(x, Each(Doubled(2))(x))
    assert "of class Doubled" in text
    text = refusal(x, layers.Pipeline([layers.Dense(2), Doubled(2)])(x))
    assert "of class Doubled, which is no layer of Keras' own" in text


def test_a_class_of_parts_that_have_no_graph_is_one_layer() -> None:
    tower = keras.Sequential(
        [layers.Embedding(10, 4), layers.Dense(3, activation="relu"), layers.Dense(2)], name="tower"
    )
    ids = keras.Input((), dtype="int32", name="ids")
    qmodel, graph = weights_only(keras.Model(ids, layers.Dense(2)(tower(ids))))
    agrees(qmodel, graph)
