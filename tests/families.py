"""Whole networks as people use them, by name, with data that they tell apart; built without downloads and without training.

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

__all__ = ["APPLICATIONS", "CLASSES", "Family", "application", "fit_head", "settle", "textures"]

CLASSES = 10
_PASS, _BRANCH, _RIDGE = 2.0, 0.4, 0.1


class Family(NamedTuple):
    """A float network and its data.

    `calibration` and `test` are inputs in the network's structure; `classes` is the axis of scores in its (first) output, None
    where the output names no class.
    """

    model: keras.Model
    calibration: Any
    test: Any
    classes: int | None = -1


def textures(count: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Gratings in 5 directions and 2 widths, of any phase, contrast and colour, with noise.

    Returns:
        images in [-1, 1], (count, size, size, 3) float32, and their classes, 0..9.
    """
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, CLASSES, count)
    angle, waves = (kind % 5) * np.pi / 5 + rng.normal(0, 0.06, count), np.where(kind < 5, 3.0, 6.0)
    rows, columns = np.meshgrid(*2 * [np.linspace(0, 1, size)], indexing="ij")
    along = np.cos(angle)[:, None, None] * rows + np.sin(angle)[:, None, None] * columns
    phase, contrast = rng.uniform(0, 2 * np.pi, (count, 1, 1)), rng.uniform(0.4, 0.9, (count, 1, 1))
    wave = contrast * np.sin(2 * np.pi * waves[:, None, None] * along + phase)
    images = wave[..., None] * rng.uniform(0.4, 1.0, (count, 1, 1, 3)) + rng.normal(0, 0.08, (count, size, size, 3))
    return np.clip(images, -1, 1).astype("float32"), kind


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
    found = keras.Model(model.inputs, head.input).predict(keras.tree.flatten(x), verbose=0)
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


def application(make: Callable[..., keras.Model], size: int, *, pixels: bool = False, **options: Any) -> Family:
    """A network of keras.applications for `size` x `size` images; with `pixels`, it takes 0..255 and normalizes itself."""
    x, labels = textures(512, size)
    test, _ = textures(256, size, seed=1)
    if pixels:
        x, test = (x + 1) * 127.5, (test + 1) * 127.5
    model = make(input_shape=(size, size, 3), weights=None, classes=CLASSES, **options)
    settle(model, x[:64])
    return Family(fit_head(model, x, labels), x[:64], test)


def _nasnet(**options: Any) -> keras.Model:
    from keras.src.applications.nasnet import NASNet  # the public builders have 12 and 18 cells, and no fewer

    return NASNet(penultimate_filters=264, num_blocks=1, stem_block_filters=16, skip_reduction=False, **options)


def _densenet(**options: Any) -> keras.Model:
    from keras.src.applications.densenet import DenseNet  # as above: 121 layers at least

    return DenseNet([2, 3, 2, 2], **options)


def _convnext(**options: Any) -> keras.Model:
    from keras.src.applications.convnext import ConvNeXt  # as above: 18 blocks at least

    return ConvNeXt([1, 1, 2, 1], [32, 64, 96, 128], **options)


APPLICATIONS: dict[str, dict[str, Callable[[], Family]]] = {
    "MobileNet": {
        "small": lambda: application(applications.MobileNet, 32, alpha=0.25),
        "full": lambda: application(applications.MobileNet, 96),
    },
    "MobileNetV2": {
        "small": lambda: application(applications.MobileNetV2, 32, alpha=0.35),
        "full": lambda: application(applications.MobileNetV2, 96),
    },
    "MobileNetV3Small": {
        "small": lambda: application(applications.MobileNetV3Small, 32, pixels=True),
        "full": lambda: application(applications.MobileNetV3Small, 96, pixels=True),
    },
    "MobileNetV3Large": {"full": lambda: application(applications.MobileNetV3Large, 96, pixels=True)},
    "EfficientNetB0": {
        "small": lambda: application(applications.EfficientNetB0, 32, pixels=True),
        "full": lambda: application(applications.EfficientNetB0, 96, pixels=True),
    },
    "EfficientNetV2B0": {
        "small": lambda: application(applications.EfficientNetV2B0, 32, pixels=True),
        "full": lambda: application(applications.EfficientNetV2B0, 96, pixels=True),
    },
    "ResNet50": {
        "small": lambda: application(applications.ResNet50, 32),
        "full": lambda: application(applications.ResNet50, 96),
    },
    "ResNet50V2": {
        "small": lambda: application(applications.ResNet50V2, 32),
        "full": lambda: application(applications.ResNet50V2, 96),
    },
    "DenseNet121": {
        "small": lambda: application(_densenet, 32),
        "full": lambda: application(applications.DenseNet121, 96),
    },
    "Xception": {
        "small": lambda: application(applications.Xception, 71),
        "full": lambda: application(applications.Xception, 96),
    },
    "InceptionV3": {
        "small": lambda: application(applications.InceptionV3, 75),
        "full": lambda: application(applications.InceptionV3, 96),
    },
    "NASNetMobile": {
        "small": lambda: application(_nasnet, 32),
        "full": lambda: application(applications.NASNetMobile, 64),
    },
    "ConvNeXtTiny": {
        "small": lambda: application(_convnext, 32, pixels=True),
        "full": lambda: application(applications.ConvNeXtTiny, 64, pixels=True),
    },
    "VGG16": {
        "small": lambda: application(applications.VGG16, 32),
        "full": lambda: application(applications.VGG16, 64),
    },
}
"""Networks of keras.applications: "full" as published, "small" for a test, with fewer blocks or a narrow width."""
