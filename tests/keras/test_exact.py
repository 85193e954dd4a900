"""Models that compute as a runtime does: equal to the twin, trainable, saved and converted; gradients of fake quantization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi.errors import ConfigError
from qi.keras.exact import ExactGrid, ExactPool, ExactSums
from qi.keras.exact_steps import EXACT_TARGETS
from qi.keras.variables import to_numpy
from tests.keras.models import settle

X = np.random.default_rng(0).normal(size=(96, 9, 9, 3)).astype("float32")
Y = X.mean((1, 2)).argmax(-1)


def network(pool: str = "valid") -> keras.Model:
    """Every step to a grid: sums of each kind of layer, additions, products, poolings, and a fixed grid at the end."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((9, 9, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)
    y = layers.ReLU(6.0)(layers.Conv2D(8, 1)(y))
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Multiply()([x, layers.Subtract()([y, x])])
    x = layers.AveragePooling2D(2, padding=pool)(layers.MaxPooling2D(2, padding="same")(x))
    x = layers.Conv2DTranspose(6, 2, strides=2)(layers.Concatenate()([x, x]))
    x = layers.Dropout(0.1)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, {"p": layers.Dense(3, activation="softmax", name="p")(x)}, name="network")


@pytest.fixture(scope="module", params=EXACT_TARGETS)
def exact(request: pytest.FixtureRequest) -> tuple[str, keras.Model]:
    qmodel, _ = qi.quantize_model(network(), "w8a8", X, exact=request.param, progress=False)
    return request.param, qmodel


def predicted(model: keras.Model) -> np.ndarray:
    return model.predict(X, verbose=0)["p"]


def same_codes(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.array_equal(found, expected))


def test_predictions_are_the_twins(exact: tuple[str, keras.Model]) -> None:
    target, qmodel = exact
    assert same_codes(predicted(qmodel), qi.emulate(qmodel, X, target, progress=False)["p"])
    plain, _ = qi.quantize_model(network(), "w8a8", X, progress=False)
    assert np.count_nonzero(predicted(plain) != predicted(qmodel)), "or the test shows nothing"


def test_tensors_inside_are_the_twins_bit_for_bit(exact: tuple[str, keras.Model]) -> None:
    target, qmodel = exact
    from qi.ir import run
    from qi.ir.routing import route

    expected = run(route(qi.lower(qmodel), target), [X], every=True)
    compared = 0
    for layer in qmodel.layers:
        if not isinstance(layer, ExactGrid) or layer.holder.name not in expected or layer.holder.name == "p":
            continue
        codes, _, zero = keras.Model(qmodel.inputs, layer._inbound_nodes[0].output_tensors)({"image": X})
        np.testing.assert_array_equal(to_numpy(codes) + to_numpy(zero), expected[layer.holder.name], layer.name)
        compared += 1
    assert compared >= 9


def test_saved_and_reloaded(exact: tuple[str, keras.Model], tmp_path: Path) -> None:
    _, qmodel = exact
    qi.save_model(qmodel, tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(predicted(again), predicted(qmodel))
    assert again.output_names == ["p"]


def test_the_report_and_inspection_are_those_of_the_plain_model(exact: tuple[str, keras.Model]) -> None:
    _, qmodel = exact
    plain, _ = qi.quantize_model(network(), "w8a8", X, progress=False)
    paths = lambda model: {layer.path for layer in qi.inspect_model(model).layers if layer.tensors}
    assert paths(qmodel) == paths(plain)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_trained_converted_and_emulated_alike(jit: bool) -> None:
    qat = qi.prepare_qat(network(), "w4a8", X, exact="litert", progress=False)
    before = {v.path: to_numpy(v) for v in qat.trainable_variables}
    qat.compile(keras.optimizers.Adam(1e-3), {"p": "sparse_categorical_crossentropy"}, jit_compile=jit)
    losses = qat.fit(X, {"p": Y}, epochs=3, batch_size=32, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    still = [path for path, value in before.items() if np.array_equal(value, to_numpy(_by_path(qat, path)))]
    assert not still
    converted = qi.convert(qat)
    # The softmax rests while the model trains, so compare what comes before it.
    found, expected = predicted(converted), qi.emulate(converted, X, "litert", progress=False)["p"]
    assert same_codes(found, expected)
    assert any(isinstance(layer, ExactSums) for layer in converted.layers)


def _by_path(model: keras.Model, path: str) -> Any:
    return next(v for v in model.variables if v.path == path)


def test_gradients_are_those_of_fake_quantization() -> None:
    """On data that no rounding separates: inputs on their grid, no bias, one layer."""
    tf = pytest.importorskip("tensorflow")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(4, use_bias=False)(inputs))
    x = (np.random.default_rng(0).integers(-128, 128, (64, 6)) / 64).astype("float32")
    x[0, 0] = -2
    found = {}
    for exact in (None, "litert"):
        qat = qi.prepare_qat(model, "w4a8", x, exact=exact, progress=False)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(qat(x, training=True)))
        variables = qat.trainable_variables
        found[exact] = {v.name: to_numpy(g) for v, g in zip(variables, tape.gradient(loss, variables), strict=True)}
    assert found[None].keys() == found["litert"].keys()
    for name, gradient in found[None].items():
        np.testing.assert_allclose(found["litert"][name], gradient, rtol=1e-4, atol=1e-5, err_msg=name)


def test_sums_beyond_what_float32_counts_are_added_up_in_halves() -> None:
    """A product of 4,096 inputs with large weights: in one part float32 would err, which the test also shows."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).uniform(0.9, 1.0, (32, 4096)).astype("float32")
    inputs = keras.Input((4096,))
    model = keras.Model(inputs, layers.Dense(3, kernel_initializer=keras.initializers.RandomUniform(0.9, 1.0))(inputs))
    qmodel, _ = qi.quantize_model(model, "w8a8", x, exact="litert", progress=False)
    sums = next(layer for layer in qmodel.layers if isinstance(layer, ExactSums))
    assert sums.halves
    np.testing.assert_array_equal(qmodel.predict(x, verbose=0), qi.emulate(qmodel, x, "litert", progress=False))


def test_average_pooling_counts_what_lies_inside() -> None:
    layer = ExactPool(layers.AveragePooling2D(3, strides=2, padding="same"), "litert")
    ones = np.ones((2, 6, 5, 3), "float32")
    sums, counts = layer(7 * ones, np.float32(0.5))
    assert to_numpy(counts)[0, :, :, 0].tolist() == [[6, 9, 6], [6, 9, 6], [4, 6, 4]]
    np.testing.assert_array_equal(to_numpy(sums), np.broadcast_to(7 * to_numpy(counts), sums.shape))


def test_unknown_targets_and_what_cannot_be_exact_are_refused() -> None:
    model = network()
    with pytest.raises(ConfigError, match=r"expected exact to be None or one of .*; received exact='tensorrt'"):
        qi.quantize_model(model, "w8a8", X, exact="tensorrt", progress=False)
    with pytest.raises(ConfigError, match="expected batch_norm='folded' with exact; received batch_norm='trained'"):
        qi.prepare_qat(model, "w8a8", X, exact="litert", batch_norm="trained", progress=False)
    with pytest.raises(ConfigError, match=r"expected a method without noise with exact; .* do choose 'lsq' or 'ste'"):
        qi.prepare_qat(model, "w8a8", X, exact="litert", method="noise", progress=False)


@pytest.mark.parametrize("target", EXACT_TARGETS)
def test_attention(target: str) -> None:
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 6, 8)).astype("float32")
    inputs = keras.Input((6, 8))
    model = keras.Model(inputs, layers.Dense(3)(layers.MultiHeadAttention(2, 4)(layers.Dense(8)(inputs), inputs)))
    qmodel, _ = qi.quantize_model(model, "w8a8", x, exact=target, progress=False)
    steps = [
        node.arguments.kwargs["step"]
        for layer in qmodel.layers
        if isinstance(layer, ExactGrid)
        for node in layer._inbound_nodes
    ]
    assert steps.count("matmul") == 2
    np.testing.assert_array_equal(qmodel.predict(x, verbose=0), qi.emulate(qmodel, x, target, progress=False))


def test_an_activation_within_the_layer() -> None:
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(500, 40)).astype("float32")
    model = keras.Sequential([keras.Input((40,)), layers.Dense(30, activation="relu"), layers.Dense(20)])
    qmodel, _ = qi.quantize_model(model, "w8a8", x, exact="litert", progress=False)
    assert sum(isinstance(layer, ExactSums) for layer in qmodel.layers) == 2
    np.testing.assert_array_equal(qmodel.predict(x, verbose=0), qi.emulate(qmodel, x, "litert", progress=False))


@pytest.mark.parametrize("target", EXACT_TARGETS)
@pytest.mark.parametrize("recipe", ["w8a8", "w4a8"])
@pytest.mark.parametrize(("kind", "share"), [("Conv2D", 1e-7), ("Dense", 1e-9), ("DepthwiseConv2D", 1e-8)])
def test_channels_without_weights(kind: str, share: float, recipe: str, target: str) -> None:
    """No int32 holds their biases at the scale of their weights, so those are coarser, here as in files."""
    layer = {
        "Conv2D": lambda: layers.Conv2D(4, 3),
        "Dense": lambda: layers.Dense(4),
        "DepthwiseConv2D": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2),
    }[kind]()
    x = np.random.default_rng(0).normal(0.2, 1, (32, 6, 6, 2)).astype("float32")
    model = settle(keras.Sequential([keras.Input((6, 6, 2)), layer, layers.ReLU()]))
    kernel, bias = layer.get_weights()
    kernel.reshape(-1, bias.size)[:, [1, 2]] *= share
    bias[1:3] = 0.7, -0.7
    layer.set_weights([kernel, bias])
    found, _ = qi.quantize_model(model, recipe, x, exact=target, progress=False)
    expected = np.asarray(qi.emulate(found, x, target, progress=False))
    assert np.abs(expected[..., 1]).min() > 0.5
    np.testing.assert_array_equal(found.predict(x, verbose=0), expected)
