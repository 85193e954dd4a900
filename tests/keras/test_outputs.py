from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi.keras.ptq import quantize_model
from qi.keras.saving import load_model, save_model
from tests.keras.models import samples, settle


@keras.saving.register_keras_serializable(package="tests.outputs")
class Halves(layers.Layer):
    """Gives two outputs."""

    def call(self, x: Any) -> Any:
        return x[..., :2], x[..., 2:] * 30.0


def source() -> tuple[Any, Any]:
    inputs = keras.Input((4,), name="x")
    return inputs, layers.Dense(4, name="dense")(inputs)


def halves() -> keras.Model:
    inputs, x = source()
    return keras.Model(inputs, list(Halves(name="halves")(x)))


def one_of_two() -> keras.Model:
    inputs, x = source()
    return keras.Model(inputs, {"b": Halves(name="halves")(x)[1], "a": x})


def nested_pair() -> keras.Model:
    inner_inputs = keras.Input((4,))
    inner = keras.Model(
        inner_inputs, [layers.Dense(3, name="p")(inner_inputs), layers.Dense(2, name="q")(inner_inputs)], name="pair"
    )
    inputs, x = source()
    return keras.Model(inputs, {"second": inner(x)[1], "first": inner(x)[0], "own": x})


def two_names() -> keras.Model:
    """One tensor that is the output of a layer, and of a nested model that gives what it takes."""
    inner_inputs = keras.Input((4,))
    inner = keras.Model(inner_inputs, [inner_inputs, layers.ReLU(name="clamp")(inner_inputs)], name="inner")
    inputs, x = source()
    return keras.Model(inputs, [x, *inner(x), inner(inputs)[0]])


def given_back() -> keras.Model:
    inputs, x = source()
    return keras.Model(inputs, [x, inputs])


def half_precision() -> keras.Model:
    inputs = keras.Input((4,), name="x")
    x = layers.Dense(4, name="dense", dtype="mixed_float16")(inputs)
    return keras.Model(inputs, list(Halves(name="halves", dtype="mixed_float16")(x)))


@pytest.mark.parametrize("recipe", ["w8", "w8a8_minmax"])
@pytest.mark.parametrize("make", [halves, one_of_two, nested_pair, two_names, given_back, half_precision])
def test_outputs_have_the_names_dtypes_and_structure_of_the_given_ones(make: Any, recipe: str, tmp_path: Path) -> None:
    model = settle(make())
    x = samples(model, 48)
    result, _ = quantize_model(model, recipe, x if "a" in recipe else None, progress=False)
    again = load_model(save_model(result, tmp_path / "model.keras"))
    expected = model(x)
    for each in (result, again):
        assert each.output_names == model.output_names
        found = each(x)
        keras.tree.assert_same_structure(found, expected)
        for a, b in zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(b, a, atol=0.03 * np.abs(a).max())


def test_an_input_that_is_an_output_comes_out_as_it_came_in() -> None:
    model = settle(given_back())
    x = samples(model, 48)
    result, _ = quantize_model(model, "w8a8_minmax", x, progress=False)
    np.testing.assert_array_equal(result(x)[1], x)
    assert [op.name for op in result.operations] == ["x", "x_quant", "dense_raw", "dense"]  # all else takes codes


def test_outputs_of_two_dtypes_under_one_name_are_not_cast() -> None:
    inputs = keras.Input((4,), name="x")
    inner_inputs = keras.Input((4,))
    wide, half = (layers.Dense(2, name=dtype, dtype=dtype)(inner_inputs) for dtype in ("float32", "float16"))
    inner = keras.Model(inner_inputs, [wide, half], name="pair")
    model = settle(keras.Model(inputs, inner(inputs)))
    result, _ = quantize_model(model, "w8")
    assert [tensor.dtype for tensor in result.outputs] == ["float32", "float16"]
    assert result.output_names == ["pair", "float16"]
