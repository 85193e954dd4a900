"""Callbacks: what they change, from which epoch on, and that nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import qi
from qi import (
    BitWidthSchedule,
    ConfigError,
    FreezeBatchNorm,
    FreezeRanges,
    InputError,
    StartQuantization,
)
from qi.keras.sites import quantizer_sites
from qi.keras.variables import to_numpy
from tests.backends import needs_compiler, needs_tensorflow
from tests.keras.tiny_qat import Watch, X, Y, bits, compiled, fit, float_model, qat_model, ranges, state

ENGINES = [{"jit_compile": False}, pytest.param({"jit_compile": True}, marks=needs_compiler), {"run_eagerly": True}]
STILL = 0.0  # a learning rate


def sgd(rate: float) -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(rate)


def assert_same(a: Any, b: Any) -> None:
    for x, y in zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True):
        np.testing.assert_array_equal(x, y)


# Starting late ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_before_its_epoch_the_model_trains_as_in_float(engine: dict[str, bool]) -> None:
    expected = fit(compiled(float_model(), **engine), epochs=3)
    model = qat_model("w2a2", **engine)
    found = fit(model, StartQuantization(2), epochs=3)
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(found[name][:2], expected[name][:2], rtol=1e-5)
        assert abs(found[name][2] - expected[name][2]) > 0.01 * expected[name][2]
    np.testing.assert_allclose(found["val_loss"][2], compiled(qi.convert(model)).evaluate(X, Y, verbose=0), rtol=1e-5)


def test_ranges_keep_their_values_while_nothing_is_quantized() -> None:
    model = qat_model(optimizer=keras.optimizers.AdamW(0.01, weight_decay=0.5))
    before, kernel = ranges(model), to_numpy(model.get_layer("first").layer.kernel)
    watch = Watch(ranges=ranges)
    fit(model, StartQuantization(1), watch, epochs=2)
    assert_same(watch.seen["ranges"][0], before)
    assert not np.array_equal(to_numpy(model.get_layer("first").layer.kernel), kernel)
    assert not np.array_equal(ranges(model)["first/kernel/step"], before["first/kernel/step"])


def test_weights_and_activations_start_on_their_own() -> None:
    model = qat_model("w2a2", optimizer=sgd(STILL))
    losses = fit(model, StartQuantization(2, weights=False), StartQuantization(1, activations=False), epochs=3)["loss"]
    expected = [
        compiled(made).evaluate(X, Y, verbose=0)
        for made in (float_model(), qi.quantize_model(float_model(), "w2", progress=False)[0], qi.convert(model))
    ]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_after_training_the_model_is_quantized_whatever_the_epoch() -> None:
    model = qat_model("w2a2", optimizer=sgd(STILL))
    quantized = model.evaluate(X, Y, verbose=0)
    losses = fit(model, StartQuantization(5), epochs=1)
    assert losses["val_loss"][0] == pytest.approx(compiled(float_model()).evaluate(X, Y, verbose=0), rel=1e-5)
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(quantized)
    np.testing.assert_array_equal(model.predict(X, verbose=0), to_numpy(model(X)))
    assert fit(model, epochs=1)["loss"][0] == pytest.approx(quantized)


def test_gradients_pass_as_they_are_in_half_precision() -> None:
    bound = quantizer_sites(qat_model("w2a2"))[0].bound
    bound.configure(enabled=False)
    x = keras.ops.convert_to_tensor(X.astype(np.float16) * 100)
    out = bound(x)
    assert keras.backend.standardize_dtype(out.dtype) == "float16"
    np.testing.assert_array_equal(to_numpy(out), to_numpy(x))
    assert keras.backend.standardize_dtype(bound(keras.ops.ones((2, 4), "int32")).dtype) == "float32"


# Frozen ranges ----------------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "momentum": ("lsq", lambda: keras.optimizers.SGD(0.02, momentum=0.9)),
    "weight decay": ("ste_learned", lambda: keras.optimizers.AdamW(0.01, weight_decay=0.5)),
    "accumulation": ("lsq", lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2)),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_ranges_stay_and_weights_train(optimizer: str) -> None:
    method, make = OPTIMIZERS[optimizer]
    # Compiled once: what is compiled is tested above and below.
    compiled_once = {"run_eagerly": optimizer != "momentum"}
    model = qat_model(method=method, activation_method="lsq_plus", optimizer=make(), **compiled_once)
    watch = Watch(ranges=ranges, kernel=lambda m: to_numpy(m.get_layer("first").layer.kernel))
    before = ranges(model)
    fit(model, FreezeRanges(1), watch, epochs=3)
    first, second, third = watch.seen["ranges"]
    assert any(not np.array_equal(first[name], before[name]) for name in before)
    assert_same([second, third], [first, first])
    kernels = watch.seen["kernel"]
    assert not np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[1], kernels[2])
    fit(model)  # without the callback they train again
    assert any(not np.array_equal(value, third[name]) for name, value in ranges(model).items())


def test_freezing_leaves_the_optimizers_state_alone() -> None:
    states: list[Any] = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            states.append(state(self.model))

    fit(qat_model(optimizer=keras.optimizers.Adam(0.01)), Look(), FreezeRanges(1), Look(), epochs=2)
    assert_same(states[2], states[3])
    assert any(np.any(value) for value in states[2][-10:])


def test_only_the_ranges_of_activations_freeze() -> None:
    model = qat_model(optimizer=keras.optimizers.Adam(0.01))
    before = ranges(model)
    fit(model, FreezeRanges(0, weights=False))
    for name, value in ranges(model).items():
        assert np.array_equal(value, before[name]) == ("kernel" not in name), name


@needs_tensorflow
def test_a_train_step_of_ones_own_freezes_too() -> None:
    class Own(keras.Model):
        def train_step(self, data: Any) -> Any:
            import tensorflow as tf

            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            weights = self.trainable_weights
            self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            return {"loss": loss}

    start = float_model()
    model = compiled(qi.prepare_qat(Own(start.input, start.output), "w4a4", X, progress=False))
    assert isinstance(model, Own)
    before = ranges(model)
    fit(model, FreezeRanges(0))
    assert_same(ranges(model), before)


# Batch normalization ----------------------------------------------------------------------------------------------------


def statistics(model: keras.Model) -> list[np.ndarray]:
    norm = model.get_layer("norm")
    return [to_numpy(v).copy() for v in (norm.moving_mean, norm.moving_variance)]


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_frozen_batch_normalizations_use_their_moving_statistics(engine: dict[str, bool]) -> None:
    model = qat_model(norm=True, optimizer=sgd(STILL), **engine)
    watch = Watch(statistics=statistics)
    found = fit(model, FreezeBatchNorm(1), watch, epochs=2)
    assert abs(found["loss"][0] - found["val_loss"][0]) > 1e-3  # a batch's statistics, and moving ones
    np.testing.assert_allclose(found["loss"][1], found["val_loss"][1], rtol=1e-5)
    assert_same(watch.seen["statistics"][1], watch.seen["statistics"][0])
    fit(model)  # without the callback they move on
    assert not np.array_equal(statistics(model)[0], watch.seen["statistics"][1][0])


def test_gamma_and_beta_train_on() -> None:
    model = qat_model(norm=True)
    norm = model.get_layer("norm")
    before = to_numpy(norm.gamma).copy(), to_numpy(norm.beta).copy()
    fit(model, FreezeBatchNorm(0), FreezeBatchNorm(0))
    assert not np.array_equal(to_numpy(norm.gamma), before[0])
    assert not np.array_equal(to_numpy(norm.beta), before[1])
    assert "call" not in vars(norm)


# Bits -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_bits_step_down_while_the_model_trains(engine: dict[str, bool]) -> None:
    model = qat_model("w8a8", **engine)
    watch = Watch(bits=bits, levels=lambda m: len(np.unique(to_numpy(m(X))[:, 0])))
    found = fit(model, BitWidthSchedule({1: 4, 2: 2}), watch, epochs=3)
    assert [set(now.values()) for now in watch.seen["bits"]] == [{8}, {4}, {2}]
    assert watch.seen["levels"][0] > 16
    assert watch.seen["levels"][2] <= 4
    converted = qi.convert(model)
    np.testing.assert_array_equal(converted.predict(X, verbose=0), model.predict(X, verbose=0))
    assert {q.num_bits for layer in converted.layers for q in getattr(layer, "quantizers", {}).values()} == {2}
    np.testing.assert_allclose(found["val_loss"][-1], model.evaluate(X, Y, verbose=0), rtol=1e-5)


POWER = qi.TensorSpec(bits=4, method="power_of_two")
POWERS = qi.Recipe(name="powers", weights=POWER, activations=POWER)
METHODS = [
    ("w4a4", "lsq"),
    ("w4a4", "lsq_plus"),
    ("w4a4", "ste"),
    ("w4a4", "ste_learned"),
    ("w4a4", "dorefa"),
    ("w4a4", "noise"),
    (POWERS, "tqt"),
    (POWERS, "ste"),
]


@pytest.mark.parametrize(("recipe", "method"), METHODS, ids=lambda value: getattr(value, "name", value))
def test_new_bits_cover_the_same_range(recipe: Any, method: str) -> None:
    model = qat_model(recipe, method=method)
    for site in quantizer_sites(model):
        before = site.bound.current()
        site.bound.replace(site.bound.with_bits(7))
        after = site.bound.current()
        assert (before.num_bits, after.num_bits) == (4, 7)
        step = np.max(before.max_range - before.min_range) / 15
        np.testing.assert_allclose(after.min_range, before.min_range, atol=step * 1.01)
        np.testing.assert_allclose(after.max_range, before.max_range, atol=step * 1.01)
        if before.grid.narrow and recipe is not POWERS:
            np.testing.assert_allclose(after.max_range, before.max_range, rtol=1e-6)


def test_a_model_saved_between_steps_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    callbacks = [lambda: BitWidthSchedule({1: 5, 3: 3}), lambda: FreezeRanges(3), lambda: StartQuantization(1)]
    whole = qat_model(norm=True, optimizer=keras.optimizers.Adam(0.01), run_eagerly=True)
    fit(whole, *(make() for make in callbacks), epochs=4)
    half = qat_model(norm=True, optimizer=keras.optimizers.Adam(0.01), run_eagerly=True)
    fit(half, *(make() for make in callbacks), FreezeBatchNorm(9), epochs=2)
    half.save(tmp_path / "half.keras")
    again = keras.models.load_model(tmp_path / "half.keras")
    assert set(bits(again).values()) == {5}
    assert_same(again.predict(X, verbose=0), half.predict(X, verbose=0))
    for model in (again, half):
        fit(model, *(make() for make in callbacks), epochs=4, initial_epoch=2)
        assert set(bits(model).values()) == {3}
        for found, expected in zip(state(model), state(whole), strict=True):
            np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)


def test_what_a_checkpoint_holds_while_everything_is_frozen(tmp_path: Path) -> None:
    path = str(tmp_path / "now.keras")
    model = qat_model(norm=True)
    watch = Watch(prediction=lambda m: m.predict(X, verbose=0))
    fit(model, FreezeRanges(0), FreezeBatchNorm(0), watch, keras.callbacks.ModelCheckpoint(path))
    again = keras.models.load_model(path)
    assert_same(again.predict(X, verbose=0), watch.seen["prediction"][0])
    assert [v.path for v in again.trainable_variables] == [v.path for v in model.trainable_variables]
    assert again.get_layer("norm").trainable


def test_chosen_layers_change() -> None:
    model = qat_model("w8a8")
    fit(
        model,
        BitWidthSchedule({0: 4}, layers=["first", "relu*"]),
        BitWidthSchedule({0: 6}, activations=False, layers=lambda name: name.startswith("last")),
    )
    assert bits(model) == {
        "x_quant/output": 8,
        "first/kernel": 4,
        "relu_quant/output": 4,
        "last_raw/kernel": 6,
        "last/output": 8,
    }


def test_frozen_ranges_and_new_bits_in_one_epoch() -> None:
    for order in (1, -1):
        model = qat_model("w8a8", run_eagerly=True)
        callbacks = [FreezeRanges(1), BitWidthSchedule({1: 3})][::order]
        watch = Watch(ranges=ranges, bits=bits)
        fit(model, *callbacks, watch, epochs=3)
        assert set(watch.seen["bits"][1].values()) == {3}
        assert_same(watch.seen["ranges"][2], watch.seen["ranges"][1])
        ratio = watch.seen["ranges"][1]["first/kernel/step"] / watch.seen["ranges"][0]["first/kernel/step"]
        np.testing.assert_allclose(np.abs(ratio), 127 / 3, rtol=1e-6)


# Other models -----------------------------------------------------------------------------------------------------------

SYMMETRIC = qi.QuantizationMethod.SYMMETRIC
W8 = qi.TrainableQuantizerWeightsConfig(SYMMETRIC, 8)
A8 = qi.TrainableQuantizerActivationConfig(SYMMETRIC, 8, {"threshold": 4.0})


def wrapped(layer: keras.layers.Layer) -> qi.KerasQuantizationWrapper:
    dispatcher = qi.KerasNodeQuantizationDispatcher(qi.LSQQuantizer(W8), [qi.LSQQuantizer(A8)])
    return qi.KerasQuantizationWrapper(layer, dispatcher)


class Subclassed(keras.Model):
    """A wrapper with quantized outputs in a Sequential model in a subclassed one."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inner = keras.Sequential([wrapped(keras.layers.Dense(6, name="deep")), keras.layers.ReLU()])
        self.head = wrapped(keras.layers.Dense(2, name="head"))

    def call(self, inputs: Any) -> Any:
        return self.head(self.inner(inputs))


def test_nested_and_subclassed_models() -> None:
    keras.utils.set_random_seed(1)
    model = compiled(Subclassed(), run_eagerly=True)
    model(X)
    watch = Watch(bits=bits, ranges=ranges)
    fit(model, BitWidthSchedule({1: 3}), FreezeRanges(1), StartQuantization(1), watch, epochs=3)
    assert [set(now.values()) for now in watch.seen["bits"]] == [{8}, {3}, {3}]
    assert len(bits(model)) == 4
    assert_same(watch.seen["ranges"][2], watch.seen["ranges"][1])


def test_files_hold_the_new_bits_of_quantized_outputs(tmp_path: Path) -> None:
    inputs = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), wrapped(keras.layers.Dense(6, name="deep"))])
    model = compiled(keras.Model(inputs, wrapped(keras.layers.Dense(2, name="head"))(inner(inputs))), run_eagerly=True)
    fit(model, BitWidthSchedule({0: 3}))
    model.save(tmp_path / "nested.keras")
    again = keras.models.load_model(tmp_path / "nested.keras")
    assert list(bits(again).values()) == [3, 3, 3, 3]
    assert_same(again.predict(X, verbose=0), model.predict(X, verbose=0))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch", "mirrored"])
def test_on_other_backends_and_several_devices(backend: str, checkout: Path) -> None:
    if backend != "mirrored":
        pytest.importorskip(backend)
    keras_backend = "tensorflow" if backend == "mirrored" else backend
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(Path(__file__).with_name("callbacks_on_backend.py")), backend],
        env=os.environ | {"KERAS_BACKEND": keras_backend, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == f"{backend} holds"


# Bad input --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [StartQuantization, FreezeRanges, FreezeBatchNorm, lambda e: BitWidthSchedule({e: 4})])
@pytest.mark.parametrize("epoch", [-1, 1.5, True, None, "2"])
def test_an_illegal_epoch(make: Any, epoch: Any) -> None:
    with pytest.raises(ConfigError, match="expected an epoch, an integer from 0"):
        make(epoch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({0: 0},), "expected bits from 1 to 16"),
        (({0: 17},), "expected bits from 1 to 16"),
        (({0: 4.0},), "expected bits from 1 to 16"),
        (({0: True},), "expected bits from 1 to 16"),
        (({},), "expected bits by epoch"),
        ((4,), "expected bits by epoch"),
        (({0: 4}, False, False), "expected weights or activations"),
        (({0: 4}, 1), "expected weights to be True or False"),
        (({0: 4}, True, True, 3), "expected names of layers"),
        (({0: 4}, True, True, [3]), "expected names of layers"),
    ],
)
def test_an_illegal_schedule(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BitWidthSchedule(*arguments)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (BitWidthSchedule({1: 4}, layers="frist"), "received 'frist', which is none. Did you mean 'first'"),
        (BitWidthSchedule({1: 4}, layers=lambda name: False), "received a function that chooses none"),
        (BitWidthSchedule({5: 1}), "narrow_range only for a signed grid of at least 2 bits"),
        (FreezeBatchNorm(1), "expected a model with batch normalizations"),
    ],
)
def test_a_model_that_a_callback_does_not_fit(callback: Any, message: str) -> None:
    model = qat_model()
    before = state(model)
    with pytest.raises(ConfigError, match=message):
        fit(model, callback)
    assert_same(state(model)[: len(before)], before)  # on torch, fit builds the optimizer before it calls callbacks


@pytest.mark.parametrize("callback", [StartQuantization(1), FreezeRanges(1), BitWidthSchedule({1: 4})])
def test_a_model_without_trainable_quantizers(callback: Any) -> None:
    for model in (float_model(), qi.convert(qat_model())):
        with pytest.raises(ConfigError, match="expected a model with trainable quantizers of weights or activations"):
            fit(compiled(model), callback)


@needs_tensorflow  # elsewhere fit builds the model before it calls callbacks
def test_an_unbuilt_model() -> None:
    with pytest.raises(InputError, match="expected a built model; layer 'quant_deep' isn't"):
        fit(compiled(Subclassed()), FreezeRanges(1))
