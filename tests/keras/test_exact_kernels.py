"""Layers that compute kernels' codes: saved, reloaded, and equal to the kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi.ir import onnxruntime, reference
from qi.ir.graph import Op
from qi.ir.kinds import kernel_of
from qi.keras.exact_kernels import ExactBilinear, ExactRows, ExactSoftmax, ExactTable
from qi.keras.variables import to_numpy
from tests.ir.graphs import act, codes_of

CODES = np.random.default_rng(0).integers(-128, 128, (6, 5, 4, 3)).astype("float32")


def again(layer: Any, zero: int, tmp_path: Path) -> Any:
    """What a model of the layer gives once it is saved and reloaded."""
    inputs = keras.Input(CODES.shape[1:])
    model = keras.Model(inputs, layer(inputs, 0.0 * keras.ops.max(inputs) + float(zero)))
    model.save(tmp_path / "m.keras")
    return keras.models.load_model(tmp_path / "m.keras").predict(CODES - zero, verbose=0)


@pytest.mark.parametrize("shape", [(), (3,), (5, 4, 3)])
def test_tables(shape: tuple[int, ...], tmp_path: Path) -> None:
    table = np.random.default_rng(1).integers(-128, 128, (256, *shape))
    layer = ExactTable(shape, table)
    found = to_numpy(layer(CODES - 7, keras.ops.convert_to_tensor(np.float32(7))))
    whole = np.broadcast_to(table.reshape(256, *[1] * (3 - len(shape)), *shape), (256, 5, 4, 3))
    expected = np.take_along_axis(whole, CODES.astype(int) + 128, axis=0)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(again(layer, 7, tmp_path), expected)


@pytest.mark.parametrize("target", ["litert", "onnxruntime"])
@pytest.mark.parametrize("axis", [1, 3])
def test_softmax(axis: int, target: str, tmp_path: Path) -> None:
    x = codes_of("x", 5, 4, 3, qparams=act(0.02))
    op = Op("softmax", [x], [codes_of("y", 5, 4, 3, qparams=act(1 / 256, -128))], {"axis": axis})
    terms = (onnxruntime if target == "onnxruntime" else reference).exponentials(op)
    layer = ExactSoftmax(axis, target == "onnxruntime", 1 / 256, -128, terms)
    expected = kernel_of(op, target)(op, CODES.astype(np.int32))
    np.testing.assert_array_equal(again(layer, 0, tmp_path), expected)


@pytest.mark.parametrize("size", [(10, 8), (15, 12), (5, 8)])
def test_bilinear(size: tuple[int, int], tmp_path: Path) -> None:
    op = Op("resize_bilinear", [codes_of("x", 5, 4, 3)], [codes_of("y", *size, 3)], {"size": list(size)})
    places = [
        (*pair, part) for pair, part in (reference.bilinear_places(n, m) for n, m in zip((5, 4), size, strict=True))
    ]
    found = again(ExactBilinear(size, 10, places, away=True), 0, tmp_path)
    np.testing.assert_array_equal(found, kernel_of(op, "reference")(op, CODES.astype(np.int32)))


def test_rows_train_with_the_gradients_of_fake_quantization() -> None:
    tf = pytest.importorskip("tensorflow")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4, activation="relu"), layers.Dense(2)])
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    found = {}
    for exact in (None, "litert"):
        qat = qi.prepare_qat(model, "w8", x, exact=exact, progress=False)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(qat(x, training=True) ** 2)
        found[exact] = [to_numpy(g) for g in tape.gradient(loss, qat.trainable_variables)]
    assert sum(isinstance(layer, ExactRows) for layer in qat.layers) == 2
    for one, other in zip(found[None], found["litert"], strict=True):
        np.testing.assert_allclose(one, other, rtol=0.05, atol=0.05 * np.abs(one).max())
    qat.compile("sgd", "mse")
    qat.fit(x, x[:, :2], epochs=2, verbose=0)
    qmodel = qi.convert(qat)
    np.testing.assert_array_equal(qmodel.predict(x, verbose=0), qat.predict(x, verbose=0))
    np.testing.assert_array_equal(qmodel.predict(x, verbose=0), qi.emulate(qmodel, x, "litert", progress=False))
