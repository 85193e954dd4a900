from __future__ import annotations

from functools import partial
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi.errors import InputError
from qi.keras import verify
from qi.keras.graph import Graph, flatten_model
from qi.keras.prepare import calibrate, prepare
from qi.keras.ptq import quantize_model
from qi.keras.verify import check_copies
from tests.keras.models import MODELS, build, samples, settle

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")


class Scaled(layers.Layer):
    """Its scale is in no configuration."""

    scale = 1.0

    def call(self, x: Any) -> Any:
        return x * self.scale


class Drawn(layers.Layer):
    """Adds random numbers whose seed Keras doesn't know of."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.draw = partial(keras.random.normal, seed=keras.random.SeedGenerator())

    def call(self, x: Any) -> Any:
        return x + self.draw(keras.ops.shape(x))


class Sampled(layers.Layer):
    """Adds random numbers that Keras' seeds don't rule."""

    def call(self, x: Any) -> Any:
        return x + np.random.default_rng().normal()


class Unready(Scaled):
    """Its copy can't be called, or on numbers only."""

    always = False

    def call(self, x: Any) -> Any:
        if self.scale == 1.0 and (self.always or hasattr(x, "numpy")):
            raise RuntimeError("not adapted")
        return x * self.scale


def model_with(layer: Any, scale: float = 3.0) -> keras.Model:
    layer.scale = scale
    inputs = keras.Input((4,), name="x")
    return settle(keras.Model(inputs, layers.Dense(2, name="head")(layer(layers.Dense(4, name="first")(inputs)))))


def ways(model: keras.Model) -> list[Any]:
    """Quantization with no data, with data, and calibration."""
    return [
        lambda: quantize_model(model, "w8"),
        lambda: quantize_model(model, "w8a8", X, progress=False),
        lambda: calibrate(model, X, progress=False),
    ]


@pytest.mark.parametrize("way", range(3))
def test_state_that_a_configuration_lacks_is_told_not_lost(way: int) -> None:
    with pytest.raises(InputError, match="layer 'scaled' of class Scaled computes something else") as caught:
        ways(model_with(Scaled(name="scaled")))[way]()
    assert f"(SQNR 3.5 dB on {[2, 4, 4][way]} samples); do put its state into get_config" in str(caught.value)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16", "float64"])
def test_a_small_difference_is_seen_at_every_precision(policy: str) -> None:
    share = 1.003 if policy.startswith("float") else 1.05
    with pytest.raises(InputError, match="layer 'scaled'"):
        quantize_model(model_with(Scaled(name="scaled", dtype=policy), share), "w8")
    quantize_model(model_with(Scaled(dtype=policy), 1.0), "w8")


@pytest.mark.parametrize("always", [True, False])
def test_a_copy_that_fails_is_told(always: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with(Unready())
    monkeypatch.setattr(Unready, "always", always)
    with pytest.raises(InputError, match=r"(?s)class Unready fails when rebuilt .*not adapted"):
        quantize_model(model, "w8")


def test_a_function_of_a_nested_layer_is_told() -> None:
    def relu(x: Any) -> Any:
        return 2 * x

    inputs = keras.Input((3, 4))
    nested = layers.TimeDistributed(layers.Dense(2, activation=relu), name="each")
    with pytest.raises(InputError, match="layer 'each' of class TimeDistributed"):
        quantize_model(settle(keras.Model(inputs, nested(inputs))), "w8")


@pytest.mark.parametrize("make", [Drawn, Sampled])
def test_random_numbers_are_no_alarm(make: Any) -> None:
    quantize_model(model_with(make()), "w8")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_copies_of_keras_layers_compute_the_same(name: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        model = build(name)
    finally:
        keras.config.set_dtype_policy("float32")
    ready = prepare(model, "w8a8")
    checked: list[Any] = []
    check = verify._check
    monkeypatch.setattr(verify, "_check", lambda *args: checked.append(args) or check(*args))
    for sample in ([], keras.tree.flatten(samples(model, 8))):
        check_copies(ready.given, ready.graph, sample)
    stand_for = {id(pair): pair for pair, *_ in checked}.values()
    assert sum(len(pair.copies) for pair in stand_for) == 2 * len(ready.graph.calls)
    assert sum(len(pair.given) for pair in stand_for) == 2 * len(ready.given.calls)


def test_the_given_model_is_not_changed_by_running_it() -> None:
    inputs = keras.Input((4,))
    norm = layers.BatchNormalization(name="norm")
    model = settle(keras.Model(inputs, norm(layers.Dropout(0.5, seed=1)(inputs), training=True)))
    before = [v.numpy() for v in model.variables]
    quantize_model(model, "w8")
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable)


def test_a_normalization_of_rounding_errors_is_no_alarm() -> None:
    inputs = keras.Input((4,))
    norm = layers.BatchNormalization(center=False, epsilon=1e-9)
    model = settle(keras.Model(inputs, norm(layers.Dense(3, name="dense")(inputs))))
    sample = np.full((40, 4), 0.7, "float32")
    norm.moving_mean.assign(model.get_layer("dense")(sample)[0])  # what is left is rounding error
    ready = prepare(model, "w8a8")
    check_copies(ready.given, ready.graph, [sample])


def deep() -> keras.Model:
    inputs = keras.Input((None, None, 3))
    x = layers.MaxPooling2D(16)(layers.Conv2D(4, 3, name="conv")(inputs))
    scaled = Scaled(name="scaled")
    x = scaled(layers.Conv2D(4, 3, name="deep")(x))
    scaled.scale = 2.0
    return keras.Model(inputs, x)


def test_open_sizes_are_large_enough_for_deep_networks() -> None:
    with pytest.raises(InputError, match="layer 'scaled'"):
        quantize_model(deep(), "w8")


def test_models_that_run_on_small_inputs_only_are_checked() -> None:
    inputs = keras.Input((None,), dtype="int32")
    positions = layers.Embedding(50, 4, name="tokens")(inputs) + keras.ops.ones((1, 24, 4))
    scaled = Scaled(name="scaled")
    model = keras.Model(inputs, scaled(positions))
    scaled.scale = 2.0
    with pytest.raises(InputError, match="layer 'scaled'"):
        quantize_model(model, "w8")


class Picky(layers.Layer):
    def call(self, x: Any) -> Any:
        if not keras.ops.is_tensor(x) or not hasattr(x, "numpy"):
            return x
        raise ValueError("no such input")


def test_a_model_that_can_t_run_on_made_up_inputs_is_not_checked() -> None:
    quantize_model(model_with(Picky()), "w8")


def test_fixed_batches_stay_whole() -> None:
    inputs = keras.Input(batch_shape=(6, 4))
    model = settle(keras.Model(inputs, layers.Dense(2)(keras.ops.reshape(inputs, (3, 8)))))
    quantize_model(model, "w8")
    calibrate(model, np.ones((12, 4), "float32"), batch_size=6, progress=False)


def test_values_are_let_go_of_once_nothing_needs_them() -> None:
    given = flatten_model(build("residual"))
    freed = verify._last_uses(given, verify._pairs(given, Graph("", [], [], [])))
    order = [id(call) for call in given.calls]
    places = {value: order.index(call) for call, values in freed.items() for value in values}
    consumers = given.consumers()
    for call in given.calls:
        last = max(order.index(id(after)) for after in consumers.get(id(call.outputs[0]), [call]))
        assert places[id(call.outputs[0])] == last
