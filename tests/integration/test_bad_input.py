"""What users get wrong, or models that are odd: a clear error, or the right result."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi import ConfigError, InputError, UnsupportedError, load_model, quantize_model, save_model
from qi.core import sqnr_db
from tests.keras.models import build, samples, settle
from tests.keras.warned import warned


def mlp() -> keras.Model:
    stack = [
        keras.Input((8,), name="x"),
        layers.Dense(6, activation="relu", name="hidden"),
        layers.Dense(3, name="top"),
    ]
    return settle(keras.Sequential(stack, name="mlp"))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def quantized(model: Any, recipe: Any = "w8a8_minmax", data: Any = None, **options: Any) -> tuple[Any, Any]:
    return quantize_model(model, recipe, data, **{"progress": False} | options)


def outputs(model: keras.Model, data: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(data, training=False))


# Recipes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("w8a9x", r"received 'w8a9x'. Did you mean 'w8a8' or"),
        ("int8", "Names are built as w<bits>"),
        ("w33", "expected bits to be an integer from 1 to 16"),
        (None, "expected a recipe: a name such as 'w8a8'"),
        ({"base": "w8", "rule": []}, "received 'rule'. Did you mean 'rules'?"),
    ],
)
def test_unknown_recipe(recipe: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quantized(mlp(), recipe, noise(40, 8))


def test_missing_recipe_file() -> None:
    with pytest.raises(FileNotFoundError):
        quantized(mlp(), "nowhere.json")


# Models ----------------------------------------------------------------------------------------------------------------


class Own(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.dense(x)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (
            lambda: keras.Sequential([layers.Dense(3)], name="bare"),
            InputError,
            "expected a built model; received 'bare'",
        ),
        (Own, InputError, "expected a built model; received 'own.*', whose input shape isn't known"),
        (lambda: "model.keras", InputError, "expected a Keras model; received 'model.keras' of type str"),
        (lambda: layers.Dense(3), InputError, "of type Dense"),
        (lambda: None, InputError, "received None of type NoneType"),
    ],
    ids=["unbuilt", "subclassed", "path", "layer", "none"],
)
def test_what_is_no_model_of_ours(model: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        quantized(model(), "w8")


def test_a_model_that_is_quantized_already() -> None:
    once, _ = quantized(mlp(), "w8")
    with pytest.raises(
        UnsupportedError, match=r"expected a float model; received 'mlp', in which 2 layers are quantized"
    ):
        quantized(once, "w4")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weight", ["kernel", "bias"])
@pytest.mark.parametrize("recipe", ["w8", "w8a8"])
def test_weights_that_are_not_finite(recipe: str, weight: str, value: float) -> None:
    model = mlp()
    variable = getattr(model.get_layer("hidden"), weight)
    array = variable.numpy()
    array.flat[2] = value
    variable.assign(array)
    with pytest.raises(InputError, match=rf"expected finite weights; .*{weight}.*hidden.* holds NaN or infinity"):
        quantized(model, recipe, noise(40, 8))


def test_normalizations_that_are_not_finite() -> None:
    model = build("residual")
    norm = model.get_layer("a_bn")
    norm.moving_mean.assign(np.full(4, np.nan))
    with pytest.raises(InputError, match="expected finite weights"):
        quantized(model, "w8")


def test_dead_channels_stay_exactly_zero() -> None:
    model = settle(
        keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="conv"), layers.Flatten(), layers.Dense(3)])
    )
    conv = model.get_layer("conv")
    kernel, bias = conv.kernel.numpy(), conv.bias.numpy()
    kernel[..., 1], bias[1] = 0, 0
    conv.kernel.assign(kernel)
    conv.bias.assign(bias)
    data = noise(40, 8, 8, 3)
    for recipe in ("w8a8_minmax", "w4_g32", "w2", "w8_pt"):
        qmodel, report = quantized(model, recipe, data)
        found = qmodel.get_layer("conv").get_quantized_weights()["kernel"]
        np.testing.assert_array_equal(found[..., 1], 0)
        assert np.abs(found[..., [0, 2, 3]]).min(axis=(0, 1, 2)).max() >= 0
        assert all(row.scale_min > 0 for row in report.rows if row.quantized)
    qmodel, _ = quantized(model, "w8a8_minmax", data)
    assert sqnr_db(outputs(model, data), outputs(qmodel, data)) > 25


@pytest.mark.parametrize("recipe", ["w8a8_minmax", "w8a8", "w4_g32", "w8a16"])
def test_a_kernel_of_zeros(recipe: str) -> None:
    model = mlp()
    top = model.get_layer("top")
    top.kernel.assign(np.zeros((6, 3)))
    top.bias.assign([0.5, -0.25, 0.0])
    data = noise(40, 8)
    found = outputs(quantized(model, recipe, data)[0], data)
    np.testing.assert_allclose(found, np.tile([0.5, -0.25, 0.0], (40, 1)), atol=0.005)
    np.testing.assert_array_equal(found[:, 2], 0)


def test_channels_of_one_value() -> None:
    model = mlp()
    model.get_layer("hidden").kernel.assign(np.tile([1.0, -2.0, 3.0, 0.5, 1e-30, 1e30], (8, 1)))
    qmodel, _ = quantized(model, "w8")
    found = qmodel.get_layer("hidden").get_quantized_weights()["kernel"]
    np.testing.assert_allclose(found, model.get_layer("hidden").kernel.numpy(), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5])
@pytest.mark.parametrize("recipe", ["w8a8_minmax", "w8a8", "w8a8_percentile", "w8a16"])
def test_activations_of_one_value(recipe: str, value: float) -> None:
    model = keras.Sequential([keras.Input((8,), name="x"), layers.ReLU()])
    data = np.full((40, 8), value, np.float32)
    found = outputs(quantized(model, recipe, data)[0], data)
    np.testing.assert_allclose(found, np.maximum(data, 0), rtol=0.005)


@pytest.mark.parametrize("shape", [(None, None, 3), (None, 8, 3)])
def test_inputs_without_a_fixed_size(shape: Any, tmp_path: Any) -> None:
    inputs = keras.Input(shape, name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(inputs)
    x = layers.Conv2D(4, 3, padding="same", name="second")(layers.MaxPooling2D()(x))
    x = layers.Dense(5, activation="softmax", name="top")(layers.GlobalAveragePooling2D()(x))
    model = settle(keras.Model(inputs, x))
    qmodel, report = quantized(model, "w8a8_minmax", noise(40, 12, 8, 3), strict=True)
    again = load_model(save_model(qmodel, tmp_path / "model.keras"))
    for height in (6, 12, 20):
        data = noise(4, height, 8, 3)
        assert sqnr_db(outputs(model, data), outputs(qmodel, data)) > 25
        np.testing.assert_array_equal(outputs(again, data), outputs(qmodel, data))
    assert qmodel.input_shape == model.input_shape
    assert [row.macs for row in report.weights if row.layer in ("conv", "top") and row.name == "kernel"] == [None, 20]


def test_a_fixed_batch_size() -> None:
    inputs = keras.Input(batch_shape=(8, 6))
    model = settle(keras.Model(inputs, layers.Dense(3)(inputs)))
    qmodel, _ = quantized(model, "w8a8_minmax", noise(40, 6), batch_size=8)
    assert qmodel.input_shape == (8, 6)
    assert sqnr_db(outputs(model, noise(8, 6)), outputs(qmodel, noise(8, 6))) > 30


def test_a_model_without_weights() -> None:
    model = keras.Sequential([keras.Input((4,)), layers.ReLU()])
    qmodel, report = quantized(model, "w8")
    np.testing.assert_array_equal(outputs(qmodel, noise(5, 4)), outputs(model, noise(5, 4)))
    assert not report.weights
    assert report.totals.byte_share is None


def test_a_deep_model_needs_no_recursion() -> None:
    stack = [keras.Input((4,)), layers.Dense(4)] + [layers.ReLU() for _ in range(300)]
    model = settle(keras.Sequential(stack))
    qmodel, _ = quantized(model, "w8")
    assert sqnr_db(outputs(model, noise(40, 4)), outputs(qmodel, noise(40, 4))) > 30


# Data: more in tests/keras/test_data.py --------------------------------------------------------------------------------


def with_nan() -> np.ndarray:
    data = noise(40, 8)
    data[3, 3] = np.nan
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: None, "received None; this recipe quantizes activations and needs samples"),
        (lambda: noise(40, 7), r"expected shape \('n', 8\) for input 'x'; received \(40, 7\)"),
        (lambda: noise(0, 8), "received no samples"),
        (lambda: iter([noise(0, 8)]), "received no samples"),
        (lambda: noise(8), "single samples"),
        (with_nan, "received NaN or infinity in batch 0"),
        (lambda: "x.npz", "received str"),
    ],
    ids=["none", "shape", "empty", "empty batch", "unbatched", "nan", "path"],
)
def test_bad_data(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantized(mlp(), "w8a8", data())


@pytest.mark.parametrize("batch_size", [0, -3, 1.5, None])
def test_bad_batch_size(batch_size: Any) -> None:
    with pytest.raises(ConfigError, match="expected batch_size"):
        quantized(mlp(), "w8a8", noise(40, 8), batch_size=batch_size)


def test_recipes_for_weights_leave_the_data_unread() -> None:
    unread = iter([noise(4, 8)])
    quantized(mlp(), "w8", unread)
    assert next(unread).shape == (4, 8)
    quantized(mlp(), "w8", noise(40, 3))  # whatever it is


def test_ranges_that_are_all_known_need_no_data() -> None:
    model = keras.Sequential([keras.Input((4,), name="x"), layers.Softmax(name="softmax")])
    mapping = {
        "name": "fixed",
        "activations": {"bits": 8, "method": "uniform"},
        "rules": [{"match": "x", "activations": "float"}],
    }
    qmodel, report = quantized(model, mapping)
    assert [row.path for row in report.activations if row.quantized] == ["softmax/output"]
    np.testing.assert_allclose(outputs(qmodel, noise(5, 4)), outputs(model, noise(5, 4)), atol=1 / 256)


def test_one_sample_is_enough_to_go_on_with_a_warning() -> None:
    with warned() as found:
        quantized(mlp(), "w8a8", noise(1, 8))
    assert "only 1 calibration samples" in str(found[0].message)


def test_samples_of_other_dtypes() -> None:
    model = build("tokens")
    data = samples(model, 40)
    first, second = (quantized(model, "w8a8_minmax", data.astype(dtype))[0] for dtype in ("int32", "float64"))
    np.testing.assert_array_equal(outputs(first, data), outputs(second, data))
