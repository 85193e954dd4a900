from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi.exporters.call_views import view_of
from qi.keras.graph import flatten_model

IMAGE = (8, 8, 4)


def views(make: Any, *shapes: tuple[int, ...]) -> Any:
    inputs = [keras.Input(shape or (), name=f"x{i}") for i, shape in enumerate(shapes)]
    output = make(inputs if len(inputs) > 1 else inputs[0])
    return [view_of(call) for call in flatten_model(keras.Model(inputs, output)).calls]


KINDS = {
    "move": [
        layers.Flatten(),
        layers.Dropout(0.5),
        layers.ZeroPadding2D(),
        layers.Activation("linear"),
        layers.Permute((2, 1, 3)),
    ],
    "relu": [layers.ReLU(), layers.ReLU(6.0), layers.Activation("relu6")],
    "leaky_relu": [layers.LeakyReLU(), layers.ReLU(negative_slope=0.1)],
    "max": [layers.MaxPooling2D(), layers.GlobalMaxPooling2D()],
    "average": [layers.AveragePooling2D(2), layers.GlobalAveragePooling2D()],
    "softmax": [layers.Softmax(), layers.Activation("softmax")],
    "resize": [layers.UpSampling2D()],
    "slice": [layers.Cropping2D()],
    "norm": [layers.LayerNormalization()],
    "mul": [layers.Rescaling(0.5)],
    "": [layers.Activation("swish"), layers.Rescaling(0.5, 1), layers.Activation(lambda x: x * 2)],
}


@pytest.mark.parametrize(("kind", "layer"), [(k, layer) for k, made in KINDS.items() for layer in made])
def test_layers_of_one_tensor(kind: str, layer: Any) -> None:
    (view,) = views(layer, IMAGE)
    assert (view.kind, view.weight) == (kind, None)


@pytest.mark.parametrize(
    ("kind", "layer"),
    [("add", layers.Add()), ("sub", layers.Subtract()), ("mul", layers.Multiply()), ("concat", layers.Concatenate())],
)
def test_layers_of_two_tensors(kind: str, layer: Any) -> None:
    assert views(layer, IMAGE, IMAGE)[0].kind == kind


def test_operations_count_as_layers_do() -> None:
    assert [v.kind for v in views(lambda x: keras.ops.relu(keras.ops.transpose(x, (0, 2, 1, 3))), IMAGE)] == [
        "move",
        "relu",
    ]
    assert views(lambda pair: keras.ops.matmul(*pair), (4, 8), (8, 4))[0].kind == "matmul"


@pytest.mark.parametrize(
    ("layer", "axes"),
    [
        (layers.Conv2D(3, 2), (-1,)),
        (layers.DepthwiseConv2D(2, depth_multiplier=2), (-2, -1)),
        (layers.Conv2DTranspose(3, 2, use_bias=False), (-2,)),
        (layers.Dense(3), (-1,)),
    ],
)
def test_products_show_their_weights(layer: Any, axes: tuple[int, ...]) -> None:
    (view,) = views(layer, IMAGE)
    assert (view.kind, view.path, view.axes) == ("linear", "kernel", axes)
    np.testing.assert_array_equal(view.weight, layer.kernel)
    assert (view.bias is None) is (not layer.use_bias)


def test_a_class_of_users_is_nothing_known() -> None:
    class Flatten(layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return -x

    assert views(Flatten(), IMAGE)[0].kind == ""
