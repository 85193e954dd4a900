"""emulate: structures, codes, targets, samples."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi.errors import ConfigError, InputError, UnsupportedError
from qi.ir import run
from qi.keras.emulate import emulate, float_graph, model_inputs

X = {"a": np.random.default_rng(0).normal(size=(70, 6)).astype("float32"), "b": np.ones((70, 4), "float32")}


@pytest.fixture(scope="module")
def qmodel() -> keras.Model:
    keras.utils.set_random_seed(0)
    a, b = keras.Input((6,), name="a"), keras.Input((4,), name="b")
    x = layers.Concatenate()([layers.Dense(5, activation="relu")(a), layers.Dense(3)(b)])
    model = keras.Model({"a": a, "b": b}, {"y": layers.Dense(2, name="y")(x), "x": x})
    result, _ = qi.quantize_model(model, "w8a8", X, progress=False)
    return result


def test_the_models_own_structure(qmodel: keras.Model) -> None:
    found, near = emulate(qmodel, X, progress=False), qmodel.predict(X, verbose=0)
    assert found.keys() == near.keys() == {"x", "y"}
    for key in found:
        assert found[key].dtype == np.float32
        np.testing.assert_allclose(found[key], near[key], atol=0.05)


def test_codes(qmodel: keras.Model) -> None:
    signed, unsigned = (emulate(qmodel, X, t, raw=True, progress=False)["x"] for t in ("litert", "onnxruntime"))
    assert (signed.dtype, unsigned.dtype) == (np.int8, np.uint8)
    assert np.abs(unsigned.astype(int) - 128 - signed).max() <= 1


def test_the_size_of_batches_changes_nothing(qmodel: keras.Model) -> None:
    one, other = (emulate(qmodel, X, batch_size=n, progress=False)["y"] for n in (7, 70))
    np.testing.assert_array_equal(one, other)


def test_iterables_of_batches(qmodel: keras.Model) -> None:
    batches = ({key: array[i : i + 35] for key, array in X.items()} for i in (0, 35))
    np.testing.assert_array_equal(
        emulate(qmodel, batches, progress=False)["y"], emulate(qmodel, X, progress=False)["y"]
    )


def test_microcontrollers_round_otherwise(qmodel: keras.Model) -> None:
    """In fixed point: near, and seldom equal throughout."""
    one, other = (emulate(qmodel, X, t, raw=True, progress=False)["y"] for t in ("litert", "reference"))
    assert np.abs(one.astype(int) - other).max() <= 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": "tflite"}, ConfigError, r"expected target to be one of .*; received target='tflite'"),
        ({"x": {"a": X["a"][:, :3], "b": X["b"]}}, InputError, "shape"),
        ({"x": None}, InputError, "received None"),
    ],
)
def test_bad_input(qmodel: keras.Model, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        emulate(qmodel, **{"x": X, "progress": False} | arguments)


def test_float_models_are_refused() -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    with pytest.raises(UnsupportedError, match="in which nothing is quantized"):
        emulate(model, np.ones((2, 3), "float32"))


def test_models_that_still_train_are_refused() -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    qat = qi.prepare_qat(model, "w8", progress=False)
    with pytest.raises(UnsupportedError, match=r"still trains; do call qi\.convert first"):
        emulate(qat, np.ones((2, 3), "float32"))


def test_the_float_graph_is_the_model_without_quantizers(qmodel: keras.Model) -> None:
    graph = float_graph(qmodel)
    assert not any(tensor.quantized for tensor in graph.tensors())
    arrays = model_inputs(qmodel, X)
    found = run(graph, arrays, "litert")
    near = qmodel.predict(X, verbose=0)
    for tensor, key in zip(graph.outputs, sorted(near), strict=True):
        np.testing.assert_allclose(found[tensor.name], near[key], atol=0.05)
