from __future__ import annotations

from typing import Any

import keras
import pytest
from keras import layers

from tests.keras.lowered import branches, close, in_integers, kinds, refusal


def test_convolutions() -> None:
    x = keras.Input((5, 6, 7, 4), name="volume")
    made: dict[str, Any] = {}
    for padding in ("valid", "same"):
        for i, (size, strides, dilation) in enumerate(
            [
                (3, 1, 1),
                (1, 1, 1),
                ((2, 3, 1), 1, 1),
                (2, 2, 1),
                ((3, 2, 3), (2, 3, 1), 1),
                (2, 1, (2, 3, 2)),
                (1, 3, 1),
            ]
        ):
            made[f"{padding}_{i}"] = layers.Conv3D(3, size, strides, padding, dilation_rate=dilation)(x)
    made["grouped"] = layers.Conv3D(6, (2, 3, 2), groups=2, activation="relu")(x)
    made["without_bias"] = layers.Conv3D(2, 3, use_bias=False, activation="tanh")(x)
    branches(x, made)


def test_transposed_convolutions() -> None:
    x = keras.Input((3, 4, 5, 2), name="volume")
    made: dict[str, Any] = {}
    for padding in ("valid", "same"):
        for i, (size, strides) in enumerate(
            [(3, 1), (3, 2), (2, 3), ((1, 2, 3), (2, 1, 2)), ((4, 1, 2), (1, 3, 2)), (5, (2, 2, 1))]
        ):
            made[f"{padding}_{i}"] = layers.Conv3DTranspose(3, size, strides, padding)(x)
    made["padded_behind"] = layers.Conv3DTranspose(2, 3, 2, output_padding=1)(x)
    made["dilated"] = layers.Conv3DTranspose(2, 2, dilation_rate=(2, 3, 2), use_bias=False, activation="relu")(x)
    branches(x, made)


def test_pools_and_moves() -> None:
    x = keras.Input((6, 5, 7, 2), name="volume")
    made: dict[str, Any] = {"zz_conv": layers.Conv3D(2, 1)(x)}
    for i, (pool, strides) in enumerate([(2, None), (3, 2), ((1, 2, 3), (2, 1, 1)), (2, 3), ((3, 4, 1), (1, 2, 1))]):
        made[f"average_{i}"] = layers.AveragePooling3D(pool, strides)(x)
        for padding in ("valid", "same"):
            made[f"max_{padding}_{i}"] = layers.MaxPooling3D(pool, strides, padding)(x)
    made["average_same"] = layers.AveragePooling3D((2, 1, 1), padding="same")(x)
    for cls in (layers.AdaptiveAveragePooling3D, layers.AdaptiveMaxPooling3D):
        made[cls.__name__] = cls((3, 5, 7))(x)  # one window crashes TensorFlow
    for keepdims in (False, True):
        made[f"mean_{keepdims}"] = layers.GlobalAveragePooling3D(keepdims=keepdims)(x)
        made[f"largest_{keepdims}"] = layers.GlobalMaxPooling3D(keepdims=keepdims)(x)
    made["padded"] = layers.ZeroPadding3D(((1, 0), (2, 1), (0, 3)))(x)
    made["cropped"] = layers.Cropping3D(((1, 0), (2, 1), (0, 3)))(x)
    made["larger"] = layers.UpSampling3D((3, 1, 2))(x)
    made["dropped"] = layers.SpatialDropout3D(0.5)(x)
    branches(x, made)


def test_in_integers_all_of_it_is_codes() -> None:
    x = keras.Input((6, 6, 6, 2), name="volume")
    y = layers.ReLU()(layers.BatchNormalization()(layers.Conv3D(4, 3, padding="same", name="conv")(x)))
    y = layers.AveragePooling3D(2)(layers.MaxPooling3D(2)(y))
    y = layers.Conv3DTranspose(3, 2, strides=2, name="up")(y)
    qmodel, graph, data = in_integers(keras.Model(x, layers.Dense(2, name="dense")(layers.GlobalAveragePooling3D()(y))))
    assert all(op.quantized for op in graph.ops[1:])
    assert kinds(graph).count("quantize") == 1
    assert next(op for op in graph.ops if op.kind == "conv2d").attrs["activation"] == "relu"
    close(qmodel, data)


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (layers.Conv3D(2, 3, data_format="channels_first"), "data_format='channels_last'"),
        (layers.AveragePooling3D(2, padding="same"), "averages over its input's border; do use padding='valid'"),
        (layers.AdaptiveMaxPooling3D(2), "whose windows of (5, 5, 5) places as (2, 2, 2) differ in size"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.Layer) else "",
)
def test_refusals(layer: Any, told: str) -> None:
    x = keras.Input((5, 5, 5, 3))
    assert told in refusal(x, layer(layers.Dense(3)(x)))


def test_open_sizes_are_refused() -> None:
    x = keras.Input((None, 4, 4, 2))
    assert "open sizes" in refusal(x, layers.Conv3D(2, 3)(x))
    assert "open sizes" in refusal(x, layers.MaxPooling3D(2)(layers.Dense(2)(x)))
