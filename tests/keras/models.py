"""Small Keras models with fixed weights and settled batch normalizations, one builder a structure.

`MODELS` holds the builders by name; `samples` gives inputs in a model's own structure. Nothing here trains.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from qi.keras.graph import Graph

__all__ = ["MODELS", "ON_BACKENDS", "build", "conv_bn", "execute", "first", "given", "samples", "settle"]

Image = (8, 8, 3)


def settle(model: Any, seed: int = 0) -> Any:
    """Gives every weight of a model or layer a plausible fixed value: no identity normalizations, no zero biases."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        shape, name = tuple(variable.shape), variable.path.rpartition("/")[2]
        if "seed_generator" in variable.path or "float" not in variable.dtype:
            continue
        if name in ("moving_variance", "gamma"):
            value = rng.uniform(0.4, 1.6, shape)
        elif len(shape) < 2:
            value = rng.normal(0.0, 0.3, shape)
        else:
            receptive = np.prod(shape[:-1]) if name != "embeddings" else 1.0
            value = rng.normal(0.0, 1.0, shape) * np.sqrt(2.0 / receptive)
        variable.assign(value.astype("float32"))
    return model


def samples(model: keras.Model, count: int = 16, seed: int = 1) -> Any:
    """Inputs for a model in the structure that it takes: floats around 0, or small integers for integer inputs."""
    rng = np.random.default_rng(seed)

    def make(tensor: Any) -> np.ndarray:
        shape = (count, *(size or 8 for size in tensor.shape[1:]))
        if "int" in tensor.dtype:
            return rng.integers(0, 10, shape).astype(tensor.dtype)
        return rng.normal(0.2, 1.0, shape).astype(tensor.dtype)

    structure = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.tree.map_structure(make, structure)


def execute(graph: Graph, x: Any) -> Any:
    """What a flat graph gives for inputs: its calls one by one, with no model made of them."""
    arrays = {
        id(value): keras.ops.convert_to_tensor(array)
        for value, array in zip(graph.flat_inputs(), keras.tree.flatten(x), strict=True)
    }
    for call in graph.calls:
        args, kwargs = call.arguments([arrays[id(value)] for value in call.inputs])
        results = keras.tree.flatten(call.op(*args, **kwargs))
        arrays.update((id(value), result) for value, result in zip(call.outputs, results, strict=True))
    return keras.tree.map_structure(lambda value: np.asarray(arrays[id(value)]), graph.outputs)


def first(outputs: Any) -> np.ndarray:
    """The first output of whatever a model gives."""
    return np.asarray(keras.tree.flatten(outputs)[0])


def conv_bn(x: Any, filters: int, name: str, activation: Any = None, **options: Any) -> Any:
    """Convolution, batch normalization and an activation layer."""
    x = layers.Conv2D(filters, 3, padding="same", name=f"{name}_conv", **options)(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.Activation(activation, name=f"{name}_act")(x) if activation else x


def residual() -> keras.Model:
    """Two residual blocks, global pooling, logits: the shape of an ordinary classifier."""
    inputs = keras.Input(Image, name="image")
    x = conv_bn(inputs, 4, "stem", "relu", use_bias=False)
    shortcut = x
    x = conv_bn(x, 4, "a", "relu")
    x = conv_bn(x, 4, "b")
    x = layers.Activation("relu", name="join_act")(layers.Add(name="join")([x, shortcut]))
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = conv_bn(x, 6, "c", "relu6")
    x = layers.GlobalAveragePooling2D(name="gap")(x)
    return keras.Model(inputs, layers.Dense(5, name="logits")(x), name="residual")


def mobile() -> keras.Model:
    """An inverted residual: expansion, depthwise, linear projection; softmax at the end."""
    inputs = keras.Input(Image, name="image")
    x = conv_bn(inputs, 4, "stem", use_bias=False)
    shortcut = x = layers.ReLU(6.0, name="stem_relu6")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False, name="expand")(x)))
    x = layers.ZeroPadding2D(1, name="pad")(x)
    x = layers.DepthwiseConv2D(3, use_bias=False, name="depthwise")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.BatchNormalization()(layers.Conv2D(4, 1, use_bias=False, name="project")(x))
    x = layers.Add(name="join")([x, shortcut])
    x = layers.Dropout(0.3)(layers.Flatten()(layers.AveragePooling2D(4)(x)))
    x = layers.Dense(5, activation="softmax", name="probabilities")(x)
    return keras.Model(inputs, x, name="mobile")


def sequential() -> keras.Model:
    """A plain Sequential model with its normalization behind a bias."""
    stack = [
        keras.Input(Image),
        layers.Conv2D(4, 3, activation="relu", name="first"),
        layers.Conv2D(6, 3, strides=2, name="second"),
        layers.BatchNormalization(name="norm"),
        layers.ReLU(name="clamp"),
        layers.Flatten(name="flat"),
        layers.Dense(4, activation="sigmoid", name="head"),
    ]
    return keras.Sequential(stack, name="sequential")


def nested() -> keras.Model:
    """A Functional model that holds a Functional one, which holds a Sequential one."""
    deep = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(4, 3, name="conv")], name="deep")
    inner_input = keras.Input(Image, name="inner_image")
    y = layers.Conv2D(4, 3, padding="same", name="conv")(inner_input)
    y = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(y))
    inner = keras.Model(inner_input, layers.ReLU(name="relu2")(deep(y)), name="backbone")
    inputs = keras.Input(Image, name="image")
    x = layers.Conv2D(4, 3, name="conv")(inner(inputs * 0.5))
    x = layers.GlobalAveragePooling2D(name="relu")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="nested")


def shared() -> keras.Model:
    """A submodel called twice (with its normalization) and a layer called twice: a siamese network."""
    tower = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, use_bias=False, name="dense"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(name="relu"),
        ],
        name="tower",
    )
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    project = layers.Dense(4, name="project")
    a, b = project(tower(left)), project(tower(right))
    return keras.Model([left, right], layers.Dense(1, name="head")(layers.Subtract(name="gap")([a, b])), name="shared")


def dict_io() -> keras.Model:
    """Inputs and outputs as dicts, an integer input among them."""
    inputs = {"image": keras.Input(Image, name="image"), "token": keras.Input((4,), dtype="int32", name="token")}
    x = layers.Flatten(name="flat")(layers.Conv2D(2, 3, activation="relu", name="conv")(inputs["image"]))
    y = layers.Flatten(name="flat_rows")(layers.Embedding(10, 3, name="rows")(inputs["token"]))
    x = layers.Concatenate(name="both")([x, y])
    outputs = {
        "kind": layers.Dense(3, activation="softmax", name="kind")(x),
        "size": layers.Dense(1, name="size")(x),
    }
    return keras.Model(inputs, outputs, name="dict_io")


def list_io() -> keras.Model:
    """Inputs and outputs as lists; one output is used again, one is given twice."""
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    x = layers.Dense(6, activation="relu", name="mixed")(layers.Add(name="sum")([a, b]))
    y = layers.Dense(4, activation="tanh", name="bent")(x)
    return keras.Model([a, b], [x, y, y], name="list_io")


def nested_io() -> keras.Model:
    """A nested model of several inputs and outputs, within structures of structures."""
    p, q = keras.Input((5,), name="p"), keras.Input((5,), name="q")
    inner = keras.Model(
        {"p": p, "q": q},
        {"sum": layers.Dense(4, name="dense")(layers.Add()([p, q])), "product": layers.Multiply()([p, q])},
        name="pair",
    )
    u, v, w = (keras.Input((5,), name=name) for name in ("u", "v", "last"))
    pair = inner({"p": u, "q": v})
    again = inner({"p": pair["product"], "q": w})
    outputs = {"main": [layers.ReLU(name="top")(pair["sum"]), again["sum"]], "side": again["product"]}
    return keras.Model({"first": [u, v], "last": w}, outputs, name="nested_io")


def operations() -> keras.Model:
    """keras.ops and operators between layers, keyword arguments among them."""
    inputs = keras.Input(Image, name="image")
    x = layers.Conv2D(4, 3, name="conv")(inputs * 2.0 - 0.5)
    x = ops.relu(x)
    x = ops.concatenate([x, ops.sigmoid(x)], axis=-1)
    x = ops.transpose(x, axes=(0, 2, 1, 3))
    x = ops.mean(x, axis=[1, 2])
    x = layers.Dense(4, name="dense")(x[:, :6])
    return keras.Model(inputs, ops.softmax(x, axis=-1), name="operations")


def convolutions_2d() -> keras.Model:
    """Every two-dimensional convolution, strided, dilated, grouped, each with a normalization that folds."""
    inputs = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(4, 3, padding="same", dilation_rate=2, name="dilated")(inputs)
    x = layers.ReLU(6.0, name="relu6")(layers.BatchNormalization(name="dilated_bn")(x))
    x = layers.Conv2D(6, 3, groups=2, use_bias=False, name="grouped")(x)
    x = layers.BatchNormalization(scale=False, name="grouped_bn")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="depthwise")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(center=False, name="depthwise_bn")(x))
    x = layers.SeparableConv2D(5, 3, depth_multiplier=2, padding="same", name="separable")(x)
    x = layers.BatchNormalization(name="separable_bn")(x)
    x = layers.Conv2DTranspose(4, 3, strides=2, name="transposed")(x)
    x = layers.BatchNormalization(name="transposed_bn")(x)
    return keras.Model(inputs, layers.Conv2D(2, 3, strides=2, name="strided")(x), name="convolutions_2d")


def convolutions_1d() -> keras.Model:
    """Every one-dimensional layer: causal and dilated convolutions, padding, cropping, pooling."""
    inputs = keras.Input((16, 3), name="signal")
    x = layers.Conv1D(4, 3, padding="causal", dilation_rate=2, activation="relu", name="causal")(inputs)
    x = layers.ZeroPadding1D(2, name="pad")(x)
    x = layers.BatchNormalization(name="depthwise_bn")(layers.DepthwiseConv1D(3, name="depthwise")(x))
    x = layers.SeparableConv1D(6, 3, activation="relu", name="separable")(layers.Cropping1D(1, name="crop")(x))
    x = layers.MaxPooling1D(2, name="max")(x)
    x = layers.Conv1DTranspose(4, 3, strides=2, name="transposed")(x)
    x = layers.BatchNormalization(name="transposed_bn")(x)
    x = layers.UpSampling1D(2, name="up")(layers.AveragePooling1D(2, name="average")(x))
    x = layers.GlobalMaxPooling1D(name="most")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="convolutions_1d")


def convolutions_3d() -> keras.Model:
    """Every three-dimensional layer."""
    inputs = keras.Input((6, 6, 6, 2), name="volume")
    x = layers.Conv3D(4, 3, padding="same", name="conv")(inputs)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    # Not before the convolution: TensorFlow's graph optimizer then breaks any transposed convolution of the model.
    x = layers.Cropping3D(1, name="crop")(layers.ZeroPadding3D(2, name="pad")(x))
    x = layers.AveragePooling3D(2, name="average")(x)
    x = layers.Conv3DTranspose(3, 2, strides=2, name="transposed")(x)
    x = layers.UpSampling3D(2, name="up")(layers.MaxPooling3D(2, name="max")(x))
    x = layers.GlobalAveragePooling3D(name="gap")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="convolutions_3d")


def tokens() -> keras.Model:
    """Integers in: embedding, einsum products, permutation, softmax as a layer."""
    inputs = keras.Input((6,), dtype="int32", name="ids")
    x = layers.Embedding(10, 8, name="rows")(inputs)
    x = layers.EinsumDense("abc,cde->abde", (6, 2, 4), bias_axes="de", activation="relu", name="heads")(x)
    x = layers.Reshape((6, 8), name="merge")(x)
    x = layers.EinsumDense("...x,xy->...y", 5, bias_axes="y", name="mix")(x)
    x = layers.Permute((2, 1), name="turn")(layers.BatchNormalization(name="bn")(x))
    x = layers.Dense(3, activation="gelu", name="dense")(x)
    return keras.Model(inputs, layers.Softmax(name="softmax")(layers.Flatten(name="flat")(x)), name="tokens")


def activations() -> keras.Model:
    """Activation functions as layers and as arguments, fixed ranges joined by a concatenation."""
    inputs = keras.Input((8,), name="features")
    x = layers.Dense(6, activation="tanh", name="tanh")(inputs)
    y = layers.Activation("sigmoid", name="gate")(layers.Dense(6, name="plain")(inputs))
    z = layers.Dense(6, activation="swish", name="swish")(inputs)
    joined = layers.Concatenate(name="joined")([layers.Multiply(name="gated")([x, y]), y, z])
    branches = [
        layers.LeakyReLU(negative_slope=0.2, name="leaky")(joined),
        layers.ELU(name="elu")(joined),
        layers.PReLU(name="prelu")(joined),
        layers.Activation("relu6", name="relu6")(layers.Dense(18, activation="linear", name="clamped")(joined)),
    ]
    x = layers.Softmax(name="softmax")(layers.Dense(4, name="logits")(layers.Average(name="mean")(branches)))
    return keras.Model(inputs, x, name="activations")


def movers() -> keras.Model:
    """Layers that move, pick or average values: padding, cropping, pooling, reshaping, upsampling, joins."""
    inputs = keras.Input(Image, name="image")
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    a = layers.ZeroPadding2D(1, name="pad")(layers.Cropping2D(2, name="crop")(x))
    b = layers.UpSampling2D(3, name="nearest")(layers.MaxPooling2D(4, name="max")(x))
    c = layers.UpSampling2D(3, interpolation="bilinear", name="bilinear")(layers.AveragePooling2D(4, name="average")(x))
    x = layers.Concatenate(name="joined")([a, b, c])
    x = layers.Permute((2, 1, 3), name="turn")(layers.Reshape((12, 3, 12), name="fold")(x))
    x = layers.Flatten(name="flat")(layers.SpatialDropout2D(0.2, name="drop")(x))
    x = layers.Reshape((1, 4), name="row")(layers.Dense(4, name="dense")(x))
    return keras.Model(inputs, layers.UpSampling1D(2, name="twice")(x), name="movers")


def unfoldable() -> keras.Model:
    """Normalizations on the input, behind a fused ReLU, behind an addition, beside another consumer, on other axes."""
    inputs = keras.Input((8, 8, 4), name="image")
    x = layers.BatchNormalization(name="on_input")(inputs)
    x = layers.BatchNormalization(name="after_relu")(layers.Conv2D(4, 3, activation="relu", name="conv")(x))
    a = layers.Conv2D(4, 3, padding="same", name="twice_used")(x)
    x = layers.Add(name="join")([a, layers.BatchNormalization(name="beside")(a)])
    x = layers.BatchNormalization(name="after_add")(x)
    x = layers.BatchNormalization(axis=1, name="other_axis")(layers.Conv2D(4, 3, name="last")(x))
    return keras.Model(inputs, x, name="unfoldable")


def unknown() -> keras.Model:
    """Layers that nothing in the package knows: a loop around some cell, layer normalization; and attention."""
    inputs = keras.Input((5, 8), name="steps")
    x = layers.LayerNormalization(name="layer_norm")(inputs)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.RNN(layers.LSTMCell(4), name="lstm")(x)
    return keras.Model(inputs, layers.Dense(2, name="head")(x), name="unknown")


def same_names() -> keras.Model:
    """Nested models whose layers have the names of the outer model's layers, and of what QI would call its own."""
    blocks = [
        keras.Sequential([keras.Input((4,)), layers.Dense(4, activation="gelu", name="dense")], name=f"block{i}")
        for i in (1, 2)
    ]
    inputs = keras.Input((4,), name="x")
    y = layers.Dense(4, name="dense_quant")(blocks[1](blocks[0](inputs)))
    y = layers.Dense(4, name="dense")(y)
    return keras.Model(inputs, layers.Dense(4, name="block1_dense")(y), name="same_names")


MODELS: dict[str, Callable[[], keras.Model]] = {
    make.__name__: make
    for make in (
        residual,
        mobile,
        sequential,
        nested,
        shared,
        dict_io,
        list_io,
        nested_io,
        operations,
        convolutions_2d,
        convolutions_1d,
        convolutions_3d,
        tokens,
        activations,
        movers,
        unfoldable,
        unknown,
        same_names,
    )
}
"""Every builder by its name, in the order of this file."""

ON_BACKENDS = {"nested", "residual", "shared"}
"""Those that tests also quantize on Keras' other backends: normalizations that fold, models within models, shared layers."""


def build(name: str, seed: int = 0) -> keras.Model:
    """The model of that name with settled weights; layers without a name get the same one every time."""
    keras.utils.set_random_seed(seed)
    keras.backend.clear_session()
    return settle(MODELS[name](), seed)


@cache
def given(name: str) -> keras.Model:
    """The model of that name, made once a process: for tests that only read it."""
    return build(name)
