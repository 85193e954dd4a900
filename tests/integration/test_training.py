"""Training with quantizers in every way that Keras offers, and what files keep of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from qi import (
    KerasActivationQuantizationHolder,
    KerasNodeQuantizationDispatcher,
    KerasQuantizationWrapper,
    Recipe,
    TensorSpec,
    convert,
    prepare_qat,
)
from qi.keras.variables import to_numpy
from qi.quantizers import (
    LSQPlusQuantizer,
    LSQQuantizer,
    QuantizationMethod,
    TQTQuantizer,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
    training_methods,
)
from tests.keras.fresh import run_fresh

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 6, 6, 1)).astype("float32")
Y = (X[:, :3].mean(axis=(1, 2, 3)) > X[:, 3:].mean(axis=(1, 2, 3))).astype("int32")
POT = Recipe(
    "pot",
    weights=TensorSpec(bits=4, method="power_of_two", granularity="per_channel"),
    activations=TensorSpec(bits=8, method="power_of_two"),
)


def float_model(kind: type[keras.Model] = keras.Model, seed: int = 1, **options: Any) -> keras.Model:
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(4, 3, strides=2, use_bias=False, name="conv", **options)(inputs)
    x = layers.ReLU(name="relu", **options)(layers.BatchNormalization(name="norm", **options)(x))
    x = layers.Dense(2, name="head", **options)(layers.Flatten(name="flat", **options)(x))
    return kind(inputs, layers.Softmax(name="softmax", dtype="float32")(x))


def prepared(recipe: Any = "w4a8", model: keras.Model | None = None, **options: Any) -> keras.Model:
    return prepare_qat(model or float_model(), recipe, X, **{"progress": False} | options)


def compiled(model: keras.Model, rate: float = 0.01, **options: Any) -> keras.Model:
    optimizer = options.pop("optimizer", None) or keras.optimizers.Adam(rate)
    model.compile(optimizer, "sparse_categorical_crossentropy", **options)
    return model


def fit(model: keras.Model, epochs: int = 4) -> list[float]:
    return model.fit(X, Y, batch_size=16, epochs=epochs, shuffle=False, verbose=0).history["loss"]


def quantizer_values(model: keras.Model) -> dict[str, np.ndarray]:
    """The trainable variables of quantizers, by path."""
    names = ("step", "offset", "threshold", "log2_threshold", "alpha", "min_range", "max_range")
    return {v.path: to_numpy(v) for v in model.trainable_variables if v.name.endswith(names)}


def check_learned(model: keras.Model, before: dict[str, np.ndarray], losses: list[float]) -> None:
    """The loss fell, and gradients reached every quantizer."""
    assert losses[-1] < losses[0]
    after = quantizer_values(model)
    assert before
    assert [path for path, value in before.items() if np.array_equal(after[path], value)] == []


def check_converted(model: keras.Model) -> keras.Model:
    converted = convert(model)
    np.testing.assert_array_equal(converted.predict(X, verbose=0), model.predict(X, verbose=0))
    return converted


# Through fit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"jit_compile": True}, {"jit_compile": False}], ids=str)
def test_fit(options: dict[str, Any]) -> None:
    model = compiled(prepared(), **options)
    before = quantizer_values(model)
    assert len(before) == 5  # two kernels; image, relu, head (the softmax is fixed)
    check_learned(model, before, fit(model, 2 if "run_eagerly" in options else 4))
    check_converted(model)


@pytest.mark.parametrize("method", sorted({*training_methods()} - {"lsq", "tqt"}))
def test_every_method_learns(method: str) -> None:
    model = compiled(prepared(method=method))
    before, kernel = quantizer_values(model), to_numpy(model.get_layer("conv").layer.kernel)
    losses = fit(model)
    assert losses[-1] < losses[0]
    # All but what lies beyond a range that the recipe chose smaller than the weights.
    assert np.mean(to_numpy(model.get_layer("conv").layer.kernel) != kernel) > 0.7
    after = quantizer_values(model)
    assert bool(before) is (method not in ("ste", "dorefa", "stochastic"))
    if before:
        assert (
            sum(np.any(after[path] != value) for path, value in before.items()) >= 3
        )  # an end that clips nothing stays
    check_converted(model)


def test_powers_of_two_learn() -> None:
    model = compiled(prepared(POT), rate=0.05)
    before = quantizer_values(model)
    assert all(path.endswith("log2_threshold") for path in before)
    check_learned(model, before, fit(model))
    check_converted(model)


@pytest.mark.parametrize("batch_norm", ["folded", "trained"])
def test_normalizations_while_it_trains(batch_norm: str) -> None:
    model = compiled(prepared(batch_norm=batch_norm))
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert len(norms) == (batch_norm == "trained")
    before = [to_numpy(norm.moving_mean) for norm in norms]
    losses = fit(model)
    assert losses[-1] < losses[0]
    assert all(np.all(to_numpy(norm.moving_mean) != mean) for norm, mean in zip(norms, before, strict=True))
    converted = convert(model)
    assert "norm" not in [layer.name for layer in converted.layers]
    # The softmax lies on a grid of 1/256: a last digit may move a value by one step of it.
    difference = np.abs(converted.predict(X, verbose=0) - model.predict(X, verbose=0))
    assert difference.max() <= (1 / 256 if batch_norm == "trained" else 0)


def test_mixed_precision() -> None:
    model = compiled(prepared(model=float_model(dtype="mixed_float16")))
    assert isinstance(model.optimizer, keras.optimizers.Optimizer)
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    before = quantizer_values(model)
    check_learned(model, before, fit(model))
    converted = check_converted(model)
    assert converted.get_layer("conv").layer.compute_dtype == "float16"


def test_mixed_precision_with_a_scaled_loss() -> None:
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))
    model = compiled(prepared(model=float_model(dtype="mixed_float16")), optimizer=scaled)
    before = quantizer_values(model)
    check_learned(model, before, fit(model))


def test_gradient_accumulation_of_keras() -> None:
    """Two batches of 16 with one update are one batch of 32: LSQ's gradients don't depend on the batch's size."""
    models = [
        compiled(prepared(), optimizer=keras.optimizers.SGD(0.05, gradient_accumulation_steps=steps))
        for steps in (2, None)
    ]
    before = quantizer_values(models[0])
    for model, size in zip(models, (16, 32), strict=True):
        losses = model.fit(X, Y, batch_size=size, epochs=3, shuffle=False, verbose=0).history["loss"]
    check_learned(models[0], before, losses)
    for one, other in zip(*(model.trainable_variables for model in models), strict=True):
        np.testing.assert_allclose(to_numpy(one), to_numpy(other), rtol=1e-3, atol=1e-5)


# Loops and steps of one's own -------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="test_training")
class Clipped(keras.Model):
    """A train_step of its own: gradients clipped by their global norm."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients, norm = tf.clip_by_global_norm(tape.gradient(loss, self.trainable_variables), 1.0)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss, "norm": norm}


def test_a_train_step_of_ones_own() -> None:
    model = compiled(prepared(model=float_model(Clipped)))
    assert type(model) is Clipped
    before = quantizer_values(model)
    history = model.fit(X, Y, batch_size=16, epochs=4, shuffle=False, verbose=0).history
    check_learned(model, before, history["loss"])
    assert min(history["norm"]) > 0
    assert type(check_converted(model)) is Clipped


def test_a_loop_of_ones_own_and_gradients_added_up_by_hand() -> None:
    model, together = prepared(), prepared()
    loss_of = keras.losses.SparseCategoricalCrossentropy()
    before = quantizer_values(model)

    def gradients_of(network: keras.Model, rows: slice) -> tuple[Any, list[Any]]:
        with tf.GradientTape() as tape:
            loss = loss_of(Y[rows], network(X[rows], training=True))
        return loss, tape.gradient(loss, network.trainable_variables)

    by_hand, at_once = keras.optimizers.SGD(0.05), keras.optimizers.SGD(0.05)
    losses = []
    for _ in range(4):
        halves = [gradients_of(model, slice(start, start + 32)) for start in (0, 32)]
        mean = [(a + b) / 2 for a, b in zip(halves[0][1], halves[1][1], strict=True)]
        by_hand.apply(mean, model.trainable_variables)
        whole = gradients_of(together, slice(0, 64))
        at_once.apply(whole[1], together.trainable_variables)
        losses.append(float(whole[0]))
    check_learned(model, before, losses)
    for one, other in zip(model.trainable_variables, together.trainable_variables, strict=True):
        np.testing.assert_allclose(to_numpy(one), to_numpy(other), rtol=1e-3, atol=1e-5)
    check_converted(model)


# One layer at a time, in a model of one's own ---------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="test_training")
class OneByOne(keras.Model):
    """A subclassed model that wraps each layer and holds each activation itself."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        power = TrainableQuantizerWeightsConfig(
            weights_quantization_method=QuantizationMethod.POWER_OF_TWO,
            weights_n_bits=9,
            weights_quantization_params={},
            enable_weights_quantization=True,
            weights_channels_axis=-1,
            weights_per_channel_threshold=True,
            min_threshold=0,
        )
        plain = TrainableQuantizerWeightsConfig(QuantizationMethod.SYMMETRIC, 4)
        inner = TrainableQuantizerActivationConfig(QuantizationMethod.UNIFORM, 4, {"min_range": 0.0, "max_range": 2.0})
        outer = TrainableQuantizerActivationConfig(QuantizationMethod.SYMMETRIC, 8, {"threshold": 3.0})
        self.first = KerasQuantizationWrapper(
            layers.Conv2D(4, 3, strides=2, activation="relu"), KerasNodeQuantizationDispatcher(TQTQuantizer(power))
        )
        self.hold = KerasActivationQuantizationHolder(LSQPlusQuantizer(inner))
        self.flat = layers.Flatten()
        self.second = KerasQuantizationWrapper(
            layers.Dense(2), KerasNodeQuantizationDispatcher(LSQQuantizer(plain), LSQQuantizer(outer))
        )

    def call(self, inputs: Any, training: Any = None) -> Any:
        x = self.hold(self.first(inputs, training=training), training=training)
        return keras.ops.softmax(self.second(self.flat(x), training=training))


def test_a_subclassed_model_layer_by_layer(tmp_path: Path) -> None:
    keras.utils.set_random_seed(4)
    model = compiled(OneByOne())
    model(X)
    before = quantizer_values(model)
    # log2 thresholds, step and offset of the holder, steps of kernel and output
    assert len(before) == 5
    check_learned(model, before, fit(model))

    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert fit(again, 2) == fit(model, 2)
    expected = model(X).numpy()
    np.testing.assert_array_equal(to_numpy(convert(model)(X)), expected)
    first, hold, second = (part.convert2inferable() for part in (model.first, model.hold, model.second))
    found = keras.ops.softmax(second(model.flat(hold(first(X)))))
    np.testing.assert_array_equal(to_numpy(found), expected)
    assert [first.trains, second.trains, hold.bound.trains] == [False] * 3


# Files ------------------------------------------------------------------------------------------------------------------

FRESH = """
import json, sys, keras, numpy as np, qi.keras
for name in ("converted", "stopped"):
    folder = f"{sys.argv[1]}/{name}"
    model = keras.models.load_model(folder + "/m.keras")
    x = np.load(folder + "/x.npy")
    np.save(folder + "/found.npy", model.predict(x, verbose=0))
y = np.load(folder + "/y.npy")
history = model.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0).history
print("RESULT " + json.dumps(history["loss"]))
model.save(folder + "/after.keras")
np.save(folder + "/after.npy", qi.convert(model).predict(x, verbose=0))
"""
"""A process for both files, as the start of one takes longer than all that it does."""


class Stored(NamedTuple):
    """A model that was saved, what it gave then, and the folder in which the fresh process has left what it found."""

    model: keras.Model
    given: np.ndarray
    folder: Path


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stored, Stored, str]:
    """A converted model, one that is in training, and what a fresh process printed that has read both."""
    trained = compiled(prepared("w2a4", batch_norm="trained"))
    fit(trained, 2)
    stopped = compiled(prepared(method="noise", activation_method="lsq_plus", batch_norm="trained"))
    fit(stopped, 2)
    folder, stored = tmp_path_factory.mktemp("fresh"), []
    for name, model in (("converted", convert(trained)), ("stopped", stopped)):
        (folder / name).mkdir()
        model.save(folder / name / "m.keras")
        np.save(folder / name / "x.npy", X)
        np.save(folder / name / "y.npy", Y)
        stored.append(Stored(model, model.predict(X, verbose=0), folder / name))
    return stored[0], stored[1], run_fresh(FRESH, folder)


def test_a_converted_model_is_bit_equal_in_a_fresh_process(fresh: tuple[Stored, Stored, str]) -> None:
    np.testing.assert_array_equal(np.load(fresh[0].folder / "found.npy"), fresh[0].given)


def test_training_goes_on_in_a_fresh_process_where_it_stopped(fresh: tuple[Stored, Stored, str]) -> None:
    _, (model, at_rest, folder), printed = fresh
    losses = fit(model, 2)
    (line,) = [line for line in printed.splitlines() if line.startswith("RESULT ")]
    np.testing.assert_array_equal(np.load(folder / "found.npy"), at_rest)
    assert json.loads(line.removeprefix("RESULT ")) == losses
    np.testing.assert_array_equal(np.load(folder / "after.npy"), convert(model).predict(X, verbose=0))
    after = keras.models.load_model(folder / "after.keras")
    for one, other in zip(after.variables, model.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other), err_msg=one.path)
    for one, other in zip(after.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other), err_msg=one.path)


@pytest.mark.parametrize("method", training_methods())
def test_every_method_goes_on_from_a_file(method: str, tmp_path: Path) -> None:
    """Not compiled, as the tests above are: compiling it takes longer than all the rest."""
    model = compiled(prepared(POT if method == "tqt" else "w4a8", method=method), run_eagerly=True)
    fit(model, 1)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(to_numpy(again(X)), to_numpy(model(X)))
    assert fit(again, 1) == fit(model, 1)
    np.testing.assert_array_equal(to_numpy(convert(again)(X)), to_numpy(convert(model)(X)))


def test_weight_files_and_clones() -> None:
    model = compiled(prepared())
    fit(model, 1)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone.predict(X, verbose=0), model.predict(X, verbose=0))
    check_converted(clone)


# Real data --------------------------------------------------------------------------------------------------------------


def digits_model() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv2D(12, 3, strides=2, activation="relu")(x)
    x = layers.Dense(24, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(10)(x), name="digits")


def test_two_bit_weights_recover_on_real_digits() -> None:
    """LSQ beats what quantization after training gives, with the same recipe, by more than three points."""
    datasets = pytest.importorskip("sklearn.datasets")
    found = datasets.load_digits()
    x, y = (found.images[..., None] / 16).astype("float32"), found.target
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:1200], order[1200:]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def trained(model: keras.Model, rate: float, epochs: int) -> float:
        model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
        if epochs:
            model.fit(x[train], y[train], batch_size=32, epochs=epochs, shuffle=False, verbose=0)
        return float(model.evaluate(x[test], y[test], verbose=0)[1])

    model = digits_model()
    exact = trained(model, 0.004, 8)
    qat = prepare_qat(model, "w2a4", x[train][:256], method="lsq", progress=False)
    start = trained(qat, 0.002, 0)
    after = trained(qat, 0.002, 5)
    assert exact > 0.93
    assert after >= start + 0.03
    assert after > exact - 0.05
    converted = convert(qat)
    np.testing.assert_array_equal(converted.predict(x[test], verbose=0), qat.predict(x[test], verbose=0))
