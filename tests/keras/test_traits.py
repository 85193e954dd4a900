from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from qi.keras import traits
from qi.keras.graph import Call, flatten_model
from qi.keras.traits import fuses_activation, is_fusable_activation, known_range, multiplies, role_of
from qi.recipes.plan import Role

IMAGE, STEPS, FLAT = (6, 6, 4), (6, 4), (4,)


def last_call(make: Any, shape: tuple[int, ...] = IMAGE) -> Call:
    """The call that `make` gives for an input of that shape."""
    inputs = keras.Input(shape)
    outputs = keras.tree.flatten(make(inputs))
    return flatten_model(keras.Model(inputs, outputs)).calls[-1]


KEEPS = {
    "Reshape": (layers.Reshape((36, 4)), IMAGE),
    "Flatten": (layers.Flatten(), IMAGE),
    "Permute": (layers.Permute((2, 1)), STEPS),
    "RepeatVector": (layers.RepeatVector(3), FLAT),
    "ZeroPadding1D": (layers.ZeroPadding1D(1), STEPS),
    "ZeroPadding2D": (layers.ZeroPadding2D(1), IMAGE),
    "ZeroPadding3D": (layers.ZeroPadding3D(1), (2, 2, 2, 1)),
    "Cropping2D": (layers.Cropping2D(1), IMAGE),
    "MaxPooling1D": (layers.MaxPooling1D(2, padding="same"), STEPS),
    "MaxPooling2D": (layers.MaxPooling2D(2), IMAGE),
    "GlobalMaxPooling2D": (layers.GlobalMaxPooling2D(), IMAGE),
    "UpSampling1D": (layers.UpSampling1D(2), STEPS),
    "UpSampling2D": (layers.UpSampling2D(2), IMAGE),
    "Dropout": (layers.Dropout(0.5), FLAT),
    "GaussianNoise": (layers.GaussianNoise(0.5), FLAT),
    "Masking": (layers.Masking(0.3), STEPS),
    "linear": (layers.Activation("linear"), FLAT),
    "Identity": (layers.Identity(), FLAT),
    "ops.transpose": (lambda x: ops.transpose(x, (0, 2, 1)), STEPS),
    "ops.swapaxes": (lambda x: ops.swapaxes(x, 1, 2), STEPS),
    "ops.reshape": (lambda x: ops.reshape(x, (-1, 24)), STEPS),
    "ops.squeeze": (lambda x: ops.squeeze(x, 1), (1, 4)),
    "ops.expand_dims": (lambda x: ops.expand_dims(x, 1), FLAT),
    "ops.flip": (lambda x: ops.flip(x, 1), STEPS),
    "ops.roll": (lambda x: ops.roll(x, 1, 1), STEPS),
    "ops.tile": (lambda x: ops.tile(x, (1, 2)), FLAT),
    "ops.repeat": (lambda x: ops.repeat(x, 2, 1), FLAT),
    "ops.max": (lambda x: ops.max(x, axis=1), STEPS),
    "slice": (lambda x: x[:, 1:3], STEPS),
    "ops.split": (lambda x: ops.split(x, 2, axis=1), FLAT),
    "ops.unstack": (lambda x: ops.unstack(x, axis=1), STEPS),
}


@pytest.mark.parametrize("name", KEEPS)
def test_what_moves_values_around_keeps_their_grid_and_indeed_gives_no_new_ones(name: str) -> None:
    make, shape = KEEPS[name]
    assert role_of(last_call(make, shape)) is Role.KEEPS
    x = np.random.default_rng(0).integers(-5, 5, (3, *shape)).astype("float32")
    for array in keras.tree.flatten(make(x)):
        assert set(np.unique(array)) <= set(np.unique(x)) | {0.0}


@pytest.mark.parametrize(
    ("make", "shape", "role"),
    [
        (layers.AveragePooling1D(2), STEPS, Role.SAME),
        (layers.AveragePooling2D(2), IMAGE, Role.SAME),
        (layers.AveragePooling3D(2), (2, 2, 2, 1), Role.SAME),
        (layers.UpSampling2D(2, interpolation="bilinear"), IMAGE, Role.SAME),
        (layers.Resizing(3, 3), IMAGE, Role.SAME),
        (lambda x: layers.Concatenate()([x, x]), FLAT, Role.JOINS),
        (lambda x: ops.concatenate([x, x]), FLAT, Role.JOINS),
        (lambda x: ops.stack([x, x]), FLAT, Role.JOINS),
        (layers.GlobalAveragePooling2D(), IMAGE, Role.OWN),
        (lambda x: layers.Add()([x, x]), FLAT, Role.OWN),
        (lambda x: layers.Multiply()([x, x]), FLAT, Role.OWN),
        (lambda x: x * 2.0, FLAT, Role.OWN),
        (layers.Dense(2), FLAT, Role.OWN),
        (layers.ReLU(), FLAT, Role.OWN),
        (layers.Activation("gelu"), FLAT, Role.OWN),
        (layers.LayerNormalization(), FLAT, Role.OWN),
        (lambda x: ops.maximum(x, x * 2), FLAT, Role.JOINS),
        (lambda x: ops.maximum(x, 0.5), FLAT, Role.OWN),
        (lambda x: ops.take(x, ops.cast(x[0], "int32"), axis=1), FLAT, Role.OWN),
    ],
)
def test_other_operations_have_the_role_that_runtimes_give_them(make: Any, shape: tuple[int, ...], role: Role) -> None:
    call = last_call(make, shape)
    assert role_of(call) is role
    assert known_range(call) is None


@pytest.mark.parametrize(
    ("make", "known"),
    [
        (layers.Softmax(), (0.0, 1.0)),
        (layers.Activation("softmax"), (0.0, 1.0)),
        (ops.softmax, (0.0, 1.0)),
        (layers.Activation("sigmoid"), (0.0, 1.0)),
        (ops.sigmoid, (0.0, 1.0)),
        (layers.Activation("tanh"), (-1.0, 1.0)),
        (ops.tanh, (-1.0, 1.0)),
    ],
)
def test_softmax_sigmoid_and_tanh_have_known_ranges(make: Any, known: tuple[float, float]) -> None:
    call = last_call(make, FLAT)
    assert role_of(call) is Role.FIXED
    assert known_range(call) == known


@pytest.mark.parametrize("make", [layers.Activation("hard_sigmoid"), layers.Activation("log_softmax"), layers.LSTM(2)])
def test_names_alike_have_no_known_range(make: Any) -> None:
    call = last_call(make, STEPS)
    assert (role_of(call), known_range(call)) == (Role.OWN, None)


@pytest.mark.parametrize(
    ("make", "fusable"),
    [
        (layers.ReLU(), True),
        (layers.ReLU(6.0), True),
        (layers.ReLU(max_value=6), True),
        (layers.ReLU(max_value=4.0), False),
        (layers.ReLU(negative_slope=0.1), False),
        (layers.ReLU(threshold=1.0), False),
        (layers.Activation("relu"), True),
        (layers.Activation("relu6"), True),
        (layers.Activation("gelu"), False),
        (layers.LeakyReLU(), False),
        (ops.relu, True),
        (ops.relu6, True),
        (ops.tanh, False),
    ],
)
def test_only_relu_and_relu6_can_be_taken_over(make: Any, fusable: bool) -> None:
    assert is_fusable_activation(last_call(make, FLAT)) is fusable


@pytest.mark.parametrize(
    ("make", "fuses"),
    [
        (layers.Conv2D(2, 1), True),
        (layers.Dense(2), True),
        (layers.BatchNormalization(), True),
        (lambda x: layers.Add()([x, x]), True),
        (layers.Dense(2, activation="relu"), False),
        (layers.MaxPooling2D(2), False),
        (lambda x: layers.Concatenate()([x, x]), False),
        (layers.LayerNormalization(), False),
    ],
)
def test_kernels_take_a_clamp_over_unless_they_have_an_activation(make: Any, fuses: bool) -> None:
    assert fuses_activation(last_call(make)) is fuses


def scaled_tanh(x: Any) -> Any:
    return 1.7 * ops.tanh(x)


def test_nothing_is_known_of_the_users_own_classes_and_functions() -> None:
    class Flatten(layers.Layer):
        def call(self, x: Any) -> Any:
            return x * 3

    class Tanh(layers.Layer):
        def call(self, x: Any) -> Any:
            return x * 3

    class ReLU(layers.ReLU):
        def call(self, x: Any) -> Any:
            return x * 3

    class Dense(layers.Dense):
        pass

    scaled_tanh.__name__ = "tanh"
    for make in (Flatten(), Tanh(), layers.Activation(scaled_tanh)):
        assert role_of(last_call(make, FLAT)) is Role.OWN
    assert not is_fusable_activation(last_call(ReLU(), FLAT))
    assert not fuses_activation(last_call(Dense(2), FLAT))


@pytest.mark.parametrize("table", ["_KEEPS", "_SAME", "_JOINS", "_TAKES_ACTIVATION"])
def test_the_tables_name_operations_that_exist(table: str) -> None:
    from keras.src.ops import core, nn, numpy

    missing = [n for n in getattr(traits, table) if not any(hasattr(m, n) for m in (layers, numpy, core, nn))]
    assert missing == []


def test_products_of_two_activations() -> None:
    turned = lambda x: ops.transpose(x, (0, 2, 1))
    matrix = np.ones((4, 2), "float32")
    assert multiplies(last_call(lambda x: ops.matmul(x, turned(x)), STEPS))
    assert multiplies(last_call(lambda x: ops.einsum("abc,adc->abd", x, x), STEPS))
    assert multiplies(last_call(lambda x: layers.Dot(2)([x, x]), STEPS))
    assert not multiplies(last_call(lambda x: ops.matmul(x, matrix), STEPS))
    assert not multiplies(last_call(lambda x: x * x, STEPS))
