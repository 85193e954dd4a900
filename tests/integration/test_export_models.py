"""Models that are odd: their files give what the twin gives, and the twin what the model means."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import qi
from tests.keras.models import samples, settle
from tests.keras.warned import warned

SUFFIXES = pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
CODES = {"integer_io": True, "integer_only": True}


def quantized(model: Any, recipe: str = "w8a8", count: int = 32) -> tuple[Any, Any]:
    x = samples(model, count)
    return qi.quantize_model(model, recipe, x, progress=False, batch_size=4)[0], x


def exported(qmodel: Any, x: Any, path: Path, **options: Any) -> Any:
    """The proof of an export, whose file is then known again, byte for byte."""
    report = qi.export(qmodel, path, samples=x, latency=False, **options)
    found = qi.verify(path, qmodel, x)
    assert found.identical
    assert found.exact is report.exact
    return report


def passing_on() -> Any:
    x = keras.Input((6,), name="x")
    return keras.Model(x, [x, layers.Dense(3, name="y")(x)])


def nothing() -> Any:
    x = keras.Input((6,), name="x")
    return keras.Model(x, layers.Dropout(0.5)(x))


def looked_up() -> Any:
    x = keras.Input((5,), dtype="uint8")
    return keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling1D()(layers.Embedding(16, 4)(x))))


def pixels() -> Any:
    x = keras.Input((6, 6, 3), dtype="uint8")
    return keras.Model(x, layers.Conv2D(2, 3)(layers.Rescaling(1 / 255)(x)))


def open_sizes() -> Any:
    x = keras.Input((None, 5))
    return keras.Model(x, layers.Dense(3)(layers.Dense(4, activation="relu")(x)))


def fixed_batch() -> Any:
    x = keras.Input(batch_shape=(4, 5, 5, 2))
    y = ops.reshape(layers.Conv2D(3, 2)(x), (4, -1))[:, 2:]
    return keras.Model(x, layers.Dense(3)(y))


def standardized() -> Any:
    mean, variance = [0.1, 0.5, -0.3], [1.0, 2.0, 0.25]
    x = keras.Input((5, 3))
    y = layers.Dense(3)(layers.Normalization(mean=mean, variance=variance)(x))
    return keras.Model(x, layers.Normalization(mean=mean, variance=variance, invert=True)(y))


def volumes() -> Any:
    x = keras.Input((5, 6, 6, 2))
    y = layers.ZeroPadding3D(((1, 0), (0, 1), (1, 1)))(layers.Conv3D(4, 3, padding="same", activation="relu")(x))
    y = layers.Conv3D(4, (2, 3, 2), strides=(1, 2, 2), groups=2)(layers.Conv3DTranspose(4, 3, strides=2)(y))
    y = layers.Cropping3D(1)(layers.UpSampling3D((1, 2, 2))(y))
    y = layers.AveragePooling3D((2, 3, 2), strides=(1, 2, 2))(
        layers.MaxPooling3D(3, strides=(1, 2, 1), padding="same")(y)
    )
    mean, largest = layers.GlobalAveragePooling3D()(y), layers.GlobalMaxPooling3D()(y)
    return keras.Model(x, layers.Dense(3)(layers.Concatenate()([mean, largest])))


def moved_blocks() -> Any:
    x = keras.Input((6, 6, 3))
    y = ops.space_to_depth(ops.depth_to_space(layers.Conv2D(8, 1)(x), 2), 4)
    y = layers.AdaptiveAveragePooling2D(3)(layers.Resizing(6, 6)(layers.CenterCrop(2, 2)(layers.RandomFlip()(y))))
    first, second = ops.split(y, 2, axis=-1)
    row, column = first[:, 0, None], ops.unstack(ops.swapaxes(second, 1, 2), axis=1)[1][:, None, :]
    return keras.Model(x, layers.Dense(3)(layers.Concatenate()([row, column])))


def each_step() -> Any:
    each, clip = layers.TimeDistributed, keras.Input((3, 8, 8, 2))
    y = each(layers.Conv2D(4, 3, strides=2, activation="relu"))(clip)
    y = each(layers.AveragePooling2D(2, 1))(each(layers.DepthwiseConv2D(2))(each(layers.BatchNormalization())(y)))
    y = each(layers.Dense(5, activation="relu"))(each(layers.Flatten())(y))
    y = layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)], return_sequences=True)(y)
    return keras.Model(clip, layers.SpectralNormalization(layers.Conv1D(3, 2))(y))


def tied() -> Any:
    ids, table = keras.Input((5,), dtype="int32"), layers.ReversibleEmbedding(12, 6, logit_soft_cap=3.0)
    return keras.Model(ids, table(layers.Dense(6, activation="relu")(table(ids)), reverse=True))


def scaled() -> Any:
    from keras.src.applications.convnext import LayerScale

    x = keras.Input((6, 6, 4))
    y = LayerScale(0.3, 4)(layers.Conv2D(4, 3, padding="same")(x))
    return keras.Model(x, layers.Conv2D(3, 2)(layers.Add()([x, y])))


def cached_step() -> Any:
    """Where one new token stands among all, and which of them it sees."""
    x, place = keras.Input((4, 6), name="keys"), keras.Input((), dtype="int32", name="place")
    h = layers.Dense(6)(x)
    here = ops.one_hot(place, 4)[:, :, None]
    h = h * (1 - here) + x * here
    seen = ops.less_equal(np.arange(4)[None, :], place[:, None])
    scores = ops.where(seen[:, None, :], ops.matmul(h, ops.transpose(h, (0, 2, 1))), -1e9)
    return keras.Model([x, place], layers.Dense(3)(ops.matmul(ops.softmax(scores), h)))


@cache
def known(make: Callable[[], Any]) -> tuple[Any, Any, list[np.ndarray]]:
    """A quantized model, its samples and what it predicts for them."""
    qmodel, x = quantized(settle(make()))
    return qmodel, x, keras.tree.flatten(qmodel.predict(x, verbose=0, batch_size=4))


@SUFFIXES
@pytest.mark.parametrize(
    "make",
    [
        passing_on,
        nothing,
        looked_up,
        pixels,
        open_sizes,
        fixed_batch,
        standardized,
        volumes,
        moved_blocks,
        each_step,
        tied,
        scaled,
        cached_step,
    ],
    ids=lambda make: make.__name__,
)
def test_files_give_what_the_twin_gives(make: Callable[[], Any], suffix: str, tmp_path: Path) -> None:
    qmodel, x, predicted = known(make)
    for options in ({}, CODES):
        with warned() as told:
            assert exported(qmodel, x, tmp_path / f"m{suffix}", **options).exact
        # Pixels become real numbers before they become codes; cells, and what is within one layer, hold no codes.
        assert [str(w.message).startswith("integer_only=True leaves") for w in told] == [True] * (
            make in (pixels, each_step, tied, cached_step) and bool(options)
        )
    target = "litert" if suffix == ".tflite" else "onnxruntime"
    for found, expected in zip(
        keras.tree.flatten(qi.emulate(qmodel, x, target, progress=False)), predicted, strict=True
    ):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 0.03 * np.abs(expected).max()


def test_a_file_of_a_fixed_batch_takes_any(tmp_path: Path) -> None:
    qmodel, _ = quantized(settle(fixed_batch()))
    assert [tensor.shape[0] for tensor in (*qi.lower(qmodel).inputs, *qi.lower(qmodel).outputs)] == [None, None]
    x = np.random.default_rng(0).normal(size=(7, 5, 5, 2)).astype("float32")
    assert qi.emulate(qmodel, x, progress=False).shape == (7, 3)
    assert qi.export(qmodel, tmp_path / "m.onnx", latency=False).proof.samples == 64


@pytest.mark.parametrize(
    "mix", [lambda y: ops.concatenate([y, y], axis=0), lambda y: ops.reshape(y, (6, 2))], ids=["joined", "reshaped"]
)
def test_what_mixes_samples_is_refused(mix: Any) -> None:
    x = keras.Input(batch_shape=(4, 6))
    qmodel, _ = quantized(settle(keras.Model(x, mix(layers.Dense(3)(x)))))
    with pytest.raises(qi.UnsupportedError, match="batch"):
        qi.lower(qmodel)


@pytest.mark.parametrize("slope", [0.0, 1e-8, 1e-3, 0.3])
def test_leaky_units_of_any_slope(slope: float, tmp_path: Path) -> None:
    """Slopes below 1/256 are none of XNNPACK's."""
    stack = [keras.Input((6,)), layers.Dense(16), layers.LeakyReLU(slope), layers.Dense(8), layers.LeakyReLU(slope)]
    qmodel, x = quantized(settle(keras.Sequential(stack)))
    assert exported(qmodel, x, tmp_path / "m.tflite").exact


@SUFFIXES
@pytest.mark.parametrize("recipe", ["w16", "w9", "w9a8"])
def test_weights_beyond_eight_bits(recipe: str, suffix: str, tmp_path: Path) -> None:
    """They don't wrap around where they lie in bytes otherwise, and no integer kernel takes them."""
    stack = [keras.Input((5, 5, 2)), layers.Conv2D(3, 2), layers.DepthwiseConv2D(2), layers.Flatten(), layers.Dense(4)]
    qmodel, x = quantized(settle(keras.Sequential(stack)), recipe)
    report = exported(qmodel, x, tmp_path / f"m{suffix}")
    assert report.proof.max_lsb < 0.01
    assert len([name for name in report.float_operations if "conv" in name or "dense" in name]) == 3


def faded(share: float) -> Any:
    """Channels as regularization leaves them: next to no weights, and a bias."""
    stack = [
        keras.Input((5, 5, 2)),
        layers.Conv2D(3, 2, activation="relu"),
        layers.DepthwiseConv2D(2),
        layers.Flatten(),
    ]
    model = settle(keras.Sequential([*stack, layers.Dense(4)]))
    for layer in (model.layers[0], model.layers[1], model.layers[3]):
        kernel, bias = layer.get_weights()
        axis = 2 if isinstance(layer, layers.DepthwiseConv2D) else -1
        np.moveaxis(kernel, axis, 0)[1] *= share
        bias[1] = 0.7
        layer.set_weights([kernel, bias])
    return model


@pytest.mark.parametrize(("recipe", "share"), [("w8a8_minmax", 1e-7), ("w8a8_minmax", 1e-30), ("w4a8_minmax", 1e-7)])
def test_biases_of_channels_without_weights(recipe: str, share: float, tmp_path: Path) -> None:
    """At the scale of such weights no int32 holds the bias; they lie on a coarser one, which changes nothing."""
    qmodel, x = quantized(faded(share), recipe)
    predicted = qmodel.predict(x, verbose=0)
    for suffix, target in ((".tflite", "litert"), (".onnx", "onnxruntime")):
        report = exported(qmodel, x, tmp_path / f"m{suffix}")
        assert report.exact
        assert report.float_operations == ()
        assert np.abs(qi.emulate(qmodel, x, target, progress=False) - predicted).max() < 0.02 * np.abs(predicted).max()
    biases = [op.inputs[2].data for op in qi.lower(qmodel).ops if len(op.inputs) == 3]
    most = 2**30 if recipe.startswith("w8") else 2**26
    assert [round(bias[1] / most, 3) for bias in biases if bias is not None] == [1, 1, 1]
