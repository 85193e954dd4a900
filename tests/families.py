"""Whole networks as people use them, by name, with data that they tell apart; built without downloads and in seconds.

A network with random weights is chaotic: each batch normalization before a ReLU multiplies the distance of two inputs by
pi / (pi - 1) (1.7 dB), relative to the signal, so after 27 layers nothing is left of 40 dB, whatever the noise comes from.
Trained ones aren't. `settle` gives the weights what trained ones have: normalizations of real statistics, ReLUs that pass most
of the signal, residual branches that correct rather than replace, and a last layer fitted to the classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import applications, layers

from tests.family_models import CLASSES, OWN, Family, textures

__all__ = ["APPLICATIONS", "FAMILIES", "SIZES", "Family", "build", "fit_head", "settle"]

_PASS, _BRANCH, _RIDGE = 1.0, 0.4, 0.1


def settle(model: keras.Model, images: np.ndarray, seed: int = 0) -> keras.Model:
    """Gives biases and normalizations of a Functional model values as trained ones have them; statistics are of the images."""
    rng = np.random.default_rng(seed)
    norms, dropouts = [], []
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, layers.BatchNormalization):
            norms.append((layer, layer.momentum))
            layer.momentum = 0.0
            _set(layer.gamma, rng.uniform(0.7, 1.3, layer.beta.shape) * (_BRANCH if _ends_branch(layer) else 1.0))
            _set(layer.beta, rng.normal(_PASS, 0.2, layer.beta.shape))
        elif isinstance(layer, layers.Dropout):
            dropouts.append((layer, layer.rate))
            layer.rate = 0.0
        elif type(layer).__name__ == "LayerScale":
            _set(layer.gamma, rng.uniform(0.1, 0.3, layer.gamma.shape))
        elif getattr(layer, "bias", None) is not None:
            _set(layer.bias, rng.normal(0, 0.1, layer.bias.shape))
    if norms:
        model(images, training=True)  # each normalization sees what settled ones before it give
    else:
        _standardize(model, images)
    for layer, momentum in norms:
        layer.momentum = momentum
    for layer, rate in dropouts:
        layer.rate = rate
    return model


def _set(variable: Any, value: np.ndarray) -> None:
    if variable is not None:
        variable.assign(value.astype("float32"))


def _ends_branch(norm: keras.layers.Layer) -> bool:
    """Whether what a normalization gives is added to something, at once or after a dropout."""
    users = [node.operation for node in norm._outbound_nodes]
    after = [node.operation for user in users if isinstance(user, layers.Dropout) for node in user._outbound_nodes]
    return any(isinstance(user, layers.Add) for user in [*users, *after])


def _standardize(model: keras.Model, images: Any) -> None:
    """Scales the kernels of a chain of layers, so that their sums have variance 1, and a mean that a ReLU passes."""
    for layer in model.layers[1:-1]:
        if not isinstance(layer, (layers.Conv2D, layers.Dense)):
            images = layer(images)
            continue
        activation, layer.activation = layer.activation, keras.activations.linear
        sums = keras.ops.convert_to_numpy(layer(images))
        axes = tuple(range(sums.ndim - 1))
        mean, scale = sums.mean(axes), sums.std(axes) + 1e-3
        layer.kernel.assign(layer.kernel / scale)
        _set(layer.bias, (keras.ops.convert_to_numpy(layer.bias) - mean) / scale + _PASS)
        layer.activation = activation
        images = layer(images)


def fit_head(model: keras.Model, x: Any, labels: np.ndarray, head: Any = None) -> keras.Model:
    """Fits the last layer (Dense, or a convolution of one place) to classes, by least squares with a ridge.

    Args:
        model: Functional.
        x: its inputs.
        labels: a class for each place of the layer's input.
        head: the layer; by default the last one with a kernel.
    """
    head = head or [layer for layer in model.layers if isinstance(layer, (layers.Dense, layers.Conv2D))][-1]
    found = keras.ops.convert_to_numpy(keras.Model(model.inputs, head.input)(keras.tree.flatten(x), training=False))
    features = found.reshape(-1, found.shape[-1])
    mean = features.mean(0)
    centered = features - mean
    wanted = np.eye(head.kernel.shape[-1])[labels.reshape(-1)]
    gram = centered.T @ centered
    ridge = _RIDGE * np.trace(gram) / min(gram.shape[0], len(features)) * np.eye(len(gram))
    kernel = CLASSES * np.linalg.solve(gram + ridge, centered.T @ (wanted - wanted.mean(0)))
    _set(head.kernel, kernel.reshape(head.kernel.shape))
    _set(head.bias, CLASSES * wanted.mean(0) - mean @ kernel)
    return model


def _cut(make: Callable[..., keras.Model], last: str, **fixed: Any) -> Callable[..., keras.Model]:
    """Builders of the stages of a network up to the layer of that name, with a mean and a classifier behind them."""

    def short(classes: int, **options: Any) -> keras.Model:
        whole = make(include_top=False, **fixed, **options)
        pooled = layers.GlobalAveragePooling2D()(whole.get_layer(last).output)
        return keras.Model(whole.input, layers.Dense(classes, activation="softmax")(pooled), name=whole.name)

    return short


def _nasnet(**options: Any) -> keras.Model:
    from keras.src.applications.nasnet import NASNet  # the public builders have 12 cells at least

    return NASNet(penultimate_filters=192, num_blocks=1, stem_block_filters=16, skip_reduction=False, **options)


def _densenet(**options: Any) -> keras.Model:
    from keras.src.applications.densenet import DenseNet  # the public ones: 121 layers

    return DenseNet([2, 2, 2, 2], **options)


def _convnext(**options: Any) -> keras.Model:
    from keras.src.applications.convnext import ConvNeXt  # the public ones: 18 blocks

    return ConvNeXt([1, 1, 1, 1], [32, 64, 96, 128], **options)


class Application(NamedTuple):
    """A network of keras.applications: as published; and narrow, with fewer blocks or without its last stages, for tests.

    `pixels`: it takes 0..255 and normalizes itself; `size`: of the images, the smallest that it takes; `epochs`: how long the
    full one is trained, where a fitted last layer doesn't make classes of what so many layers of random weights leave.
    """

    full: Callable[..., keras.Model]
    small: Callable[..., keras.Model]
    size: int = 32
    pixels: bool = False
    epochs: int = 0


K = applications
APPLICATIONS = {
    "MobileNet": Application(K.MobileNet, _cut(K.MobileNet, "conv_pw_9_relu", alpha=0.5), epochs=3),
    "MobileNetV2": Application(K.MobileNetV2, _cut(K.MobileNetV2, "block_5_add", alpha=0.35), epochs=3),
    "MobileNetV3Small": Application(
        K.MobileNetV3Small, _cut(K.MobileNetV3Small, "expanded_conv_4_add"), pixels=True, epochs=3
    ),
    "EfficientNetB0": Application(K.EfficientNetB0, _cut(K.EfficientNetB0, "block3b_add"), pixels=True, epochs=3),
    "EfficientNetV2B0": Application(K.EfficientNetV2B0, _cut(K.EfficientNetV2B0, "block4b_add"), pixels=True, epochs=3),
    "ResNet50": Application(K.ResNet50, _cut(K.ResNet50, "conv3_block2_out")),
    "ResNet50V2": Application(K.ResNet50V2, _cut(K.ResNet50V2, "conv3_block2_preact_relu")),
    "DenseNet121": Application(K.DenseNet121, _densenet),
    "Xception": Application(K.Xception, _cut(K.Xception, "block5_sepconv1_act"), size=71),
    "InceptionV3": Application(K.InceptionV3, _cut(K.InceptionV3, "mixed3"), size=75),
    "NASNetMobile": Application(K.NASNetMobile, _cut(_nasnet, "normal_concat_0")),
    "ConvNeXtTiny": Application(K.ConvNeXtTiny, _convnext, pixels=True),
    "VGG16": Application(K.VGG16, _cut(K.VGG16, "block4_pool")),
}

FAMILIES = (*APPLICATIONS, *OWN)
SIZES = ("small", "full")


def _train(model: keras.Model, source: Application) -> None:
    """Trains for a few epochs; statistics of batch normalizations follow as fast."""
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.9
    x, labels = textures(768, source.size, seed=2)
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit((x + 1) * 127.5 if source.pixels else x, labels, batch_size=32, epochs=source.epochs, verbose=0)


def build(name: str, size: str = "small") -> Family:
    """The float network of that name, and its data.

    Args:
        name: one of `FAMILIES`.
        size: "small" for tests, or "full": as published, or twice as wide where the network is one of `OWN`.
    """
    keras.utils.set_random_seed(0)
    if name in OWN:
        return OWN[name](1 + SIZES.index(size))
    source = APPLICATIONS[name]
    x, labels = textures(256, source.size)
    test, truth = textures(128, source.size, seed=1)
    if source.pixels:
        x, test = (x + 1) * 127.5, (test + 1) * 127.5
    model = getattr(source, size)(input_shape=(source.size, source.size, 3), weights=None, classes=CLASSES)
    fit_head(settle(model, x[:64]), x, labels)
    if size == "full" and source.epochs:
        _train(model, source)
    return Family(model, x[:64], test, truth)
