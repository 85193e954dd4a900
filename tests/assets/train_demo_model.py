"""Makes the two binary assets of `qi demo`: `qi/demo/data.npz` and `qi/demo/model.keras`.

The data are a subset of Fashion-MNIST (MIT licence, Zalando SE, 2017): the first 50 training images of every
class to calibrate with, the first 200 test images of every class to measure on; nobody picked them by hand.
The model is trained on all 60,000 training images. The four IDX files come from the Debian package
`dataset-fashion-mnist` or from https://github.com/zalandoresearch/fashion-mnist:

    python tests/assets/train_demo_model.py --source /usr/share/datasets/fashion-mnist

Seeds are fixed and TensorFlow's operations are made deterministic, so the same versions on the same kind of
machine give the same weights; elsewhere the accuracy agrees within a few tenths of a point. Training takes
about a quarter of an hour on two CPU cores.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.optimizers.schedules import CosineDecay

SEED = 20
CALIB_PER_CLASS = 50
TEST_PER_CLASS = 200
DEMO_FOLDER = Path(__file__).resolve().parents[2] / "qi" / "demo"


def read_idx(path: Path) -> np.ndarray:
    """Returns the uint8 array that a gzipped IDX file holds."""
    with gzip.open(path, "rb") as file:
        raw = file.read()
    rank = raw[3]
    shape = np.frombuffer(raw, dtype=">u4", count=rank, offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_split(source: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images `(n, 28, 28)` and the labels `(n,)` of the split whose files start with `prefix`."""
    images, labels = (source / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    return read_idx(images), read_idx(labels)


def first_per_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices, in file order, of the first `count` examples of every class."""
    picked = [np.flatnonzero(labels == label)[:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(picked))


def write_data(path: Path, x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> None:
    """Writes the calibration subset of the training data, and the test data given, as compressed arrays."""
    calib = first_per_class(y_train, CALIB_PER_CLASS)
    np.savez_compressed(path, x_calib=x_train[calib], y_calib=y_train[calib], x_test=x_test, y_test=y_test)


def conv_bn(x: keras.KerasTensor, filters: int, size: int, name: str) -> keras.KerasTensor:
    """A convolution without bias and its batch normalization, no activation."""
    x = layers.Conv2D(filters, size, padding="same", use_bias=False, name=name)(x)
    return layers.BatchNormalization(name=f"{name}_bn")(x)


def inverted_residual(x: keras.KerasTensor, expand: int, name: str) -> keras.KerasTensor:
    """Expand, filter depthwise, project, add: MobileNetV2's block with ReLU6."""
    y = conv_bn(x, expand, 1, f"{name}_expand")
    y = layers.ReLU(max_value=6.0, name=f"{name}_expand_relu6")(y)
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name=f"{name}_depthwise")(y)
    y = layers.BatchNormalization(name=f"{name}_depthwise_bn")(y)
    y = layers.ReLU(max_value=6.0, name=f"{name}_depthwise_relu6")(y)
    y = conv_bn(y, x.shape[-1], 1, f"{name}_project")
    return layers.Add(name=f"{name}_add")([x, y])


def build_model() -> keras.Model:
    """The demo network: what mobile image models are made of, in 36,538 parameters."""
    inputs = layers.Input((28, 28, 1), name="image")
    x = conv_bn(inputs, 16, 3, "stem")
    x = layers.ReLU(name="stem_relu")(x)
    x = layers.MaxPooling2D(name="stem_pool")(x)
    x = conv_bn(x, 32, 3, "widen")
    x = layers.ReLU(name="widen_relu")(x)
    x = inverted_residual(x, 64, "block1")
    x = layers.MaxPooling2D(name="block1_pool")(x)
    x = layers.SeparableConv2D(64, 3, padding="same", name="separable")(x)
    x = layers.BatchNormalization(name="separable_bn")(x)
    x = layers.Activation("relu6", name="separable_relu6")(x)
    x = inverted_residual(x, 128, "block2")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(64, activation="relu", name="features")(x)
    x = layers.Dropout(0.2, seed=SEED, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="classes")(x), name="qi_demo")


def augmented(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors half of the images and moves each by up to two pixels; `x` is `(n, 28, 28, 1)`."""
    mirrored = np.where(rng.random((len(x), 1, 1, 1)) < 0.5, x[:, :, ::-1], x)
    padded = np.pad(mirrored, ((0, 0), (2, 2), (2, 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (28, 28), axis=(1, 2))
    rows, columns = rng.integers(0, 5, (2, len(x)))
    return np.moveaxis(windows[np.arange(len(x)), rows, columns], 1, -1)


def batches(x: np.ndarray, y: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[tuple]:
    """Endless shuffled and augmented batches of float32 images in [0, 1]."""
    while True:
        order = rng.permutation(len(x))[: len(x) // size * size]
        for rows in order.reshape(-1, size):
            yield augmented(x[rows], rng).astype(np.float32) / 255.0, y[rows]


def train(x: np.ndarray, y: np.ndarray, epochs: int, batch_size: int = 128) -> keras.Model:
    """Trains on uint8 images `(n, 28, 28, 1)`; returns a never compiled model with the weights found."""
    keras.utils.set_random_seed(SEED)
    tf.config.experimental.enable_op_determinism()
    model = build_model()
    steps = len(x) // batch_size
    schedule = CosineDecay(0.0, epochs * steps, warmup_target=4e-3, warmup_steps=steps)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=1e-3)
    model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    stream = batches(x, y, batch_size, np.random.default_rng(SEED))
    model.fit(stream, steps_per_epoch=steps, epochs=epochs, shuffle=False, verbose=2)
    plain = build_model()
    plain.set_weights(model.get_weights())
    return plain


def main() -> None:
    """Reads the data, writes `data.npz`, trains, writes `model.keras` and prints the accuracies."""
    parser = argparse.ArgumentParser(description="Makes the demo's data and model.")
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--output", type=Path, default=DEMO_FOLDER)
    parser.add_argument("--epochs", type=int, default=24)
    arguments = parser.parse_args()

    x_train, y_train = read_split(arguments.source, "train")
    x_all, y_all = read_split(arguments.source, "t10k")
    test = first_per_class(y_all, TEST_PER_CLASS)
    write_data(arguments.output / "data.npz", x_train, y_train, x_all[test], y_all[test])
    model = train(x_train[..., None], y_train, arguments.epochs)
    model.save(arguments.output / "model.keras")
    hits = model.predict(x_all[..., None] / np.float32(255.0), batch_size=500, verbose=0).argmax(-1) == y_all
    print(f"{model.count_params()} parameters")
    print(f"accuracy {hits[test].mean():.4f} on the demo's test images, {hits.mean():.4f} on all {len(hits)}")


if __name__ == "__main__":
    main()
