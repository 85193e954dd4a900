from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, ops

from qi.keras.lower_shapes import AUGMENTING
from tests.keras.lowered import agrees, branches, in_integers, kinds, refusal, weights_only
from tests.keras.models import samples
from tests.keras.zoo import AUGMENTING as OPTIONS

PADDINGS = ("valid", "same")


def with_dense(x: Any, made: dict[str, Any]) -> dict[str, Any]:
    """The branches and one with weights, without which no model is quantized."""
    return made | {"zz_dense": layers.Dense(2)(x)}


def test_joins_of_layers() -> None:
    x, y, row = (
        keras.Input(shape, name=name) for name, shape in (("x", (2, 3, 4)), ("y", (2, 3, 4)), ("row", (1, 1, 4)))
    )
    flat = keras.Input((4,), name="flat")
    made = {
        "add": layers.Add()([x, y]),
        "add_itself": layers.Add()([x, x]),
        "add_row": layers.Add()([x, row]),
        "add_lower_rank": layers.Add()([x, flat]),
        "multiply_lower_rank": layers.Multiply()([flat, x]),
        "subtract": layers.Subtract()([x, y]),
        "subtract_row": layers.Subtract()([row, x]),
        "multiply": layers.Multiply()([x, y]),
        "average": layers.Average()([x, y]),
        "maximum": layers.Maximum()([x, y]),
        "maximum_of_three": layers.Maximum()([x, y, row]),
        "sum_of_three": layers.Add()([x, row, y]),
        "product_of_four": layers.Multiply()([x, y, row, y]),
        "average_of_three": layers.Average()([x, y, x]),
        "minimum": layers.Minimum()([x, row]),
        "concat": layers.Concatenate()([x, y, x]),
        "concat_rows": layers.Concatenate(axis=1)([x, y]),
        "concat_columns": layers.Concatenate(axis=-2)([x, y]),
    }
    branches([x, y, row, flat], with_dense(flat, made))


def test_joins_of_functions_and_operators() -> None:
    x, y = keras.Input((2, 3), name="x"), keras.Input((2, 3), name="y")
    array = np.float32([[1, -2, 3]])
    made = {
        "add": ops.add(x, y),
        "add_number": x + 1.5,
        "number_add": 1.5 + x,
        "add_array": x + array,
        "subtract": x - y,
        "subtract_number": x - 2,
        "number_subtract": 2 - x,
        "by_name": ops.subtract(x2=x, x1=y),
        "multiply": ops.multiply(x, y),
        "number_multiply": 3.0 * x,
        "array_multiply": ops.multiply(array, x),
        "divide": ops.divide(x, ops.exp(y)),
        "true_divide": x / 4.0,
        "number_divide": 1.0 / ops.exp(x),
        "maximum": ops.maximum(x, y),
        "maximum_number": ops.maximum(x, 0.25),
        "minimum": ops.minimum(x, y),
        "concatenate": ops.concatenate([x, y], axis=-1),
        "rescaled": layers.Rescaling(1 / 127.5, offset=-1)(x),
        "scaled": layers.Rescaling(0.5)(x),
        "rescaled_channels": layers.Rescaling([0.5, 1, 2], offset=[0, 1, -1])(x),
    }
    branches([x, y], with_dense(x, made))


def test_pools_of_images() -> None:
    x = keras.Input((7, 6, 3), name="image")
    made: dict[str, Any] = {}
    for kind in (layers.MaxPooling2D, layers.AveragePooling2D):
        for padding in PADDINGS:
            for pool, strides in ((2, None), (3, 2), (2, 3), ((3, 2), (1, 2))):
                name = f"{kind.__name__}_{padding}_{pool}_{strides}".translate(str.maketrans(", ", "__", "()"))
                made[name] = kind(pool, strides, padding)(x)
    for size in ((7, 2), (7, 3), (7, 6)):  # a single window crashes TensorFlow
        made[f"adaptive_average_{size[0]}_{size[1]}"] = layers.AdaptiveAveragePooling2D(size)(x)
        made[f"adaptive_max_{size[0]}_{size[1]}"] = layers.AdaptiveMaxPooling2D(size)(x)
    for keepdims in (False, True):
        made[f"average_{keepdims}"] = layers.GlobalAveragePooling2D(keepdims=keepdims)(x)
        made[f"max_{keepdims}"] = layers.GlobalMaxPooling2D(keepdims=keepdims)(x)
    branches(x, with_dense(x, made))


def test_pools_of_sequences_and_reductions() -> None:
    x = keras.Input((7, 4), name="steps")
    made: dict[str, Any] = {}
    for kind in (layers.MaxPooling1D, layers.AveragePooling1D):
        for padding in PADDINGS:
            made[f"{kind.__name__}_{padding}_2"] = kind(2, None, padding)(x)
            made[f"{kind.__name__}_{padding}_3"] = kind(3, 2, padding)(x)
    made["adaptive_average"] = layers.AdaptiveAveragePooling1D(3)(x[:, 1:])
    made["adaptive_max"] = layers.AdaptiveMaxPooling1D(2)(x[:, 1:])
    made["average"] = layers.GlobalAveragePooling1D()(x)
    made["max"] = layers.GlobalMaxPooling1D(keepdims=True)(x)
    made["mean_last"] = ops.mean(x, axis=-1)
    made["mean_both"] = ops.mean(x, axis=(1, 2), keepdims=True)
    made["max_first"] = ops.max(x, axis=1)
    branches(x, with_dense(x, made))


def test_what_moves_values() -> None:
    x, steps, row = keras.Input((5, 6, 3), name="x"), keras.Input((6, 4), name="steps"), keras.Input((4,), name="row")
    deep = keras.Input((4, 6, 8), name="deep")
    made = {
        "pad": layers.ZeroPadding2D()(x),
        "pad_each": layers.ZeroPadding2D(((1, 0), (2, 3)))(x),
        "pad_steps": layers.ZeroPadding1D((2, 1))(steps),
        "crop": layers.Cropping2D(((1, 0), (2, 3)))(x),
        "crop_steps": layers.Cropping1D((2, 1))(steps),
        "nearest": layers.UpSampling2D((2, 3))(x),
        "bilinear": layers.UpSampling2D((2, 3), interpolation="bilinear")(x),
        "longer": layers.UpSampling1D(3)(steps),
        "permuted": layers.Permute((3, 1, 2))(x),
        "transposed": ops.transpose(x, (0, 2, 1, 3)),
        "swapped": ops.swapaxes(x, 1, -1),
        "moved": ops.moveaxis(x, 3, 1),
        "stacked": ops.stack([steps, steps * 2.0], axis=2),
        "resized": layers.Resizing(7, 4)(x),
        "resized_as_it_is": layers.Resizing(10, 6, interpolation="nearest")(x),
        "deep_to_wide": ops.depth_to_space(deep, 2),
        "wide_to_deep": ops.space_to_depth(deep, 2),
        "wide_to_deep_by_three": ops.space_to_depth(ops.depth_to_space(layers.Dense(18)(deep), 3), 3),
        "repeated": layers.RepeatVector(3)(row),
        "reshaped": layers.Reshape((3, -1))(x),
        "ops_reshaped": ops.reshape(x, (-1, 15, 6)),
        "flat": layers.Flatten()(x),
        "squeezed": ops.squeeze(ops.expand_dims(steps, 2), 2),
        "expanded": ops.expand_dims(steps, -1),
        "dropped": layers.Dropout(0.5)(x),
        "spatially_dropped": layers.SpatialDropout2D(0.5)(x),
        "noisy": layers.GaussianNoise(0.5)(steps),
        "regularized": layers.ActivityRegularization(0.1)(steps),
        "same": layers.Identity()(steps),
        "stopped": ops.stop_gradient(row),
    }
    branches([x, steps, row, deep], with_dense(row, made))


def test_what_changes_images_in_training_alone_is_left_out() -> None:
    x = keras.Input((8, 8, 3), name="image")
    augmented = layers.RandomContrast(0.1)(layers.RandomRotation(0.1)(layers.RandomFlip()(x)))
    qmodel, graph = weights_only(keras.Model(x, layers.Conv2D(2, 3, name="conv")(augmented)))
    agrees(qmodel, graph)
    assert kinds(graph) == ["conv2d"]
    for name in AUGMENTING:
        assert np.array_equal(
            getattr(layers, name)(**OPTIONS[name])(samples(qmodel, 2), training=False), samples(qmodel, 2)
        )


def test_in_integers_moved_codes_stay_codes() -> None:
    x = keras.Input((8, 8, 3), name="image")
    y = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    y = layers.Dropout(0.2)(layers.MaxPooling2D(2)(layers.Cropping2D(((1, 1), (0, 2)))(y)))
    y = layers.Permute((2, 1, 3))(layers.UpSampling2D(2)(y))
    y = layers.Flatten()(layers.Concatenate()([y, y]))
    _, graph, _ = in_integers(keras.Model(x, layers.Dense(2, name="dense")(y)))
    moving = ["slice", "max_pool2d", "resize_nearest", "transpose", "concat", "reshape"]
    assert kinds(graph) == ["quantize", "conv2d", *moving, "dense"]
    assert all(op.quantized for op in graph.ops[1:])
    assert len({op.y.qparams for op in graph.ops[1:-1]}) == 1


def test_in_integers_joins_pools_and_numbers_are_operations_on_codes() -> None:
    x = keras.Input((6, 6, 2), name="image")
    y = layers.Conv2D(2, 1, name="conv")(x / 2.0)
    y = layers.ReLU()(layers.Add()([y, x]))
    y = layers.AveragePooling2D(2)(layers.Multiply()([y, layers.Subtract()([x, y])]))
    y = layers.GlobalAveragePooling2D()(y)
    _, graph, _ = in_integers(keras.Model(x, layers.Dense(2, activation="softmax", name="dense")(y)))
    expected = ["quantize", "mul", "conv2d", "add", "sub", "mul", "avg_pool2d", "mean", "dense", "softmax"]
    assert kinds(graph) == expected
    assert all(op.quantized for op in graph.ops[1:])
    assert graph.ops[3].attrs["activation"] == "relu"
    assert graph.ops[3].y.zero_point == -128


def test_refusals() -> None:
    x, steps, row = keras.Input((4, 4, 3)), keras.Input((None, 3)), keras.Input((3,))
    dense = layers.Dense(3)
    last = "with data_format='channels_first'; do use data_format='channels_last'"
    for layer in (
        layers.MaxPooling2D(data_format="channels_first"),
        layers.GlobalAveragePooling2D(data_format="channels_first"),
        layers.ZeroPadding2D(data_format="channels_first"),
        layers.Cropping2D(data_format="channels_first"),
        layers.UpSampling2D(data_format="channels_first"),
        layers.Flatten(data_format="channels_first"),
    ):
        assert last in refusal(x, layer(dense(x)))
    assert "with interpolation='bicubic'" in refusal(x, layers.UpSampling2D(2, interpolation="bicubic")(dense(x)))
    assert "over the batch" in refusal(row, ops.mean(dense(row), axis=0, keepdims=True))
    assert "which changes the batch" in refusal(row, ops.reshape(dense(row), (1, -1)))
    assert "open sizes" in refusal(steps, layers.GlobalAveragePooling1D()(dense(steps)))
    assert "from (4, 4) to (6, 8) by the nearest pixel; do resize by whole factors" in refusal(
        x, layers.Resizing(6, 8, interpolation="nearest")(dense(x))
    )
    assert "with antialias=True" in refusal(x, layers.Resizing(2, 2, antialias=True)(dense(x)))
    told = refusal(x, layers.AdaptiveAveragePooling2D(3)(dense(x)))
    assert "whose windows of (4, 4) places as (3, 3) differ in size, which no runtime's pools do; do ask for" in told
    assert "along the batch" in refusal(row, ops.reshape(ops.stack([dense(row), row], axis=0), (-1, 3)))
    assert "which moves the batch" in refusal(row, ops.transpose(dense(row), (1, 0)))
