"""prepare_qat and convert: where training starts, what it leaves, and what becomes of the given model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import qi
from qi import (
    ConfigError,
    InputError,
    KerasActivationQuantizationHolder,
    KerasNodeQuantizationDispatcher,
    KerasQuantizationWrapper,
    Recipe,
    Rule,
    StrictError,
    TensorSpec,
    UnsupportedError,
    calibrate,
    convert,
    prepare_qat,
    quantize_model,
)
from qi.keras.prepare import prepare
from qi.keras.variables import to_numpy
from qi.quantizers import (
    LSQPlusQuantizer,
    LSQQuantizer,
    PACTQuantizer,
    QuantizationMethod,
    STEQuantizer,
    TQTQuantizer,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
    training_methods,
)
from qi.testing.engines import model_gradients
from tests.keras.models import MODELS, build, samples
from tests.keras.test_ptq import assert_unchanged, flat, snapshot
from tests.keras.warned import warned

POT = Recipe(
    "pot", weights=TensorSpec(bits=4, method="power_of_two"), activations=TensorSpec(bits=8, method="power_of_two")
)
UNIFORM = Recipe(
    "uniform",
    weights=TensorSpec(bits=4, method="uniform", range="minmax"),
    activations=TensorSpec(bits=6, method="uniform"),
)
PER_TENSOR = Recipe(
    "per_tensor",
    weights=TensorSpec(bits=4, granularity="per_tensor"),
    activations=TensorSpec(bits=8, method="symmetric"),
)
RECIPES: dict[str, Any] = {
    "w4a8": "w4a8",
    "w2a4": "w2a4",
    "w4_g2": "w4_g2",
    "pot": POT,
    "uniform": UNIFORM,
    "per_tensor": PER_TENSOR,
}
# What isn't defined: squashed weights with a zero point, noise within powers of two, logarithms of other thresholds.
UNDEFINED = {
    *(("dorefa", recipe) for recipe in ("pot", "uniform")),
    ("noise", "pot"),
    *(("tqt", recipe) for recipe in RECIPES if recipe != "pot"),
}


def prepared(model: keras.Model, recipe: Any = "w4a8", data: Any = None, **options: Any) -> keras.Model:
    return prepare_qat(model, recipe, data, **{"progress": False} | options)


def quantized(model: keras.Model, recipe: Any, data: Any = None) -> keras.Model:
    with warned():
        return quantize_model(model, recipe, data, progress=False)[0]


def step(model: keras.Model, x: Any, rate: float = 0.01) -> None:
    """One step of gradient descent; every trainable variable must get a gradient."""
    loss = lambda outputs: sum(ops.mean((ops.cast(y, "float32") - 0.3) ** 2) for y in outputs)
    _, gradients = model_gradients(model, x, loss)
    assert [v.path for v, g in zip(model.trainable_variables, gradients, strict=True) if g is None] == []
    keras.optimizers.SGD(rate).apply([ops.convert_to_tensor(g) for g in gradients], model.trainable_variables)


def check_equal(model: keras.Model, other: keras.Model, x: Any) -> None:
    for a, b in zip(flat(model(x, training=False)), flat(other(x, training=False)), strict=True):
        np.testing.assert_array_equal(a, b)


def check_close(model: keras.Model, other: keras.Model, x: Any, tolerance: float = 1e-5) -> None:
    for a, b in zip(flat(model(x, training=False)), flat(other(x, training=False)), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(a).max())


def wrappers(model: keras.Model) -> list[KerasQuantizationWrapper]:
    return [layer for layer in model.layers if isinstance(layer, KerasQuantizationWrapper)]


def holders(model: keras.Model) -> list[KerasActivationQuantizationHolder]:
    return [layer for layer in model.layers if isinstance(layer, KerasActivationQuantizationHolder)]


def norms(model: keras.Model) -> list[layers.BatchNormalization]:
    return [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]


def small() -> keras.Model:
    keras.utils.set_random_seed(7)
    hidden = layers.Dense(6, activation="relu", bias_initializer="ones", name="hidden")
    return keras.Sequential([keras.Input((4,)), hidden, layers.Dense(3, name="head")], name="small")


# Where training starts, and what it leaves ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.backend) if n == "residual" else n for n in MODELS])
def test_every_structure(name: str) -> None:
    model = build(name)
    x = samples(model, 16)
    before = snapshot(model)
    reference = quantized(model, "w4a8", x)
    with warned():
        qat = prepared(model, "w4a8", x)
    check_close(reference, qat, x, 1e-6)
    assert (qat.name, qat.output_names) == (model.name, reference.output_names)
    assert [tensor.name for tensor in qat.inputs] == [tensor.name for tensor in reference.inputs]
    keras.tree.assert_same_structure(reference.output, qat.output)
    step(qat, x)
    converted = convert(qat)
    check_equal(qat, converted, x)
    assert (converted.name, converted.output_names) == (model.name, reference.output_names)
    assert all(wrapper.frozen for wrapper in wrappers(converted))
    assert not any(holder.bound.trains for holder in holders(converted))
    assert_unchanged(before, snapshot(model))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("method", training_methods())
def test_every_method_with_every_recipe(method: str, recipe: str) -> None:
    model, x = small(), np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    if (method, recipe) == ("dorefa", "w4_g2"):
        with pytest.raises(ConfigError, match="received group_size=2; do take another method for groups"):
            prepared(model, recipe, method=method)
        return
    if (method, recipe) in UNDEFINED:
        with pytest.raises(ConfigError, match=rf"training method that is defined for .*received '{method}'; do choose"):
            prepared(model, RECIPES[recipe], x, method=method)
        return
    qat = prepared(model, RECIPES[recipe], x, method=method)
    if method != "dorefa":  # which squashes the weights
        check_close(quantized(model, RECIPES[recipe], x), qat, x)
    for variable in qat.trainable_variables:  # wherever training may lead
        variable.assign(variable * 1.13 + 0.003)
    check_equal(qat, convert(qat), x)


def test_predictions_of_compiled_models_are_bit_equal() -> None:
    model = build("residual")
    x = samples(model, 16)
    qat = prepared(model, "w4a8", x)
    step(qat, x)
    expected = qat.predict(x, verbose=0)
    np.testing.assert_array_equal(convert(qat).predict(x, verbose=0), expected)
    qat.compile(jit_compile=True)
    converted = convert(qat)
    converted.compile(jit_compile=True)
    np.testing.assert_array_equal(converted.predict(x, verbose=0), qat.predict(x, verbose=0))


def test_conversion_only_reads_the_trained_model() -> None:
    model, x = small(), np.ones((4, 4), "float32")
    qat = prepared(model, "w4a8", x)
    before = snapshot(qat)
    converted = convert(qat)
    assert_unchanged(before, snapshot(qat))
    expected = converted(x).numpy()
    step(qat, x, rate=0.3)
    np.testing.assert_array_equal(converted(x).numpy(), expected)


def test_two_methods_and_an_estimator() -> None:
    x = np.random.default_rng(0).uniform(0, 1, (8, 4)).astype("float32")
    options = {"estimator": "ewgs", "estimator_options": {"delta": 0.2}}
    qat = prepared(small(), "w4a8", x, method="ste", activation_method="pact", **options)
    kernel = qat.get_layer("hidden").dispatcher.weight_quantizers["kernel"]
    assert isinstance(kernel, STEQuantizer)
    assert (kernel.estimator, kernel.estimator_options) == ("ewgs", {"delta": 0.2})
    assert isinstance(holders(qat)[0].quantizer, PACTQuantizer)
    assert holders(qat)[0].quantizer.estimator == "ewgs"


def test_weights_alone_need_no_data() -> None:
    qat = prepared(small(), "w4")
    assert holders(qat) == []
    assert [wrapper.name for wrapper in wrappers(qat)] == ["hidden", "head"]


def test_statistics_in_place_of_data() -> None:
    model, x = small(), np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    statistics = calibrate(model, x, "w4a8", progress=False)
    check_equal(prepared(model, "w4a8", x), prepared(model, "w4a8", statistics=statistics), x)
    with pytest.raises(InputError, match="data or statistics; received both"):
        prepared(model, "w4a8", x, statistics=statistics)


def test_what_does_not_train_still_does_not() -> None:
    model = small()
    model.get_layer("hidden").trainable = False
    qat = prepared(model, "w4")
    assert [v.name for v in qat.get_layer("hidden").layer.trainable_variables] == []
    assert [v.name for v in qat.get_layer("head").layer.trainable_variables] == ["kernel", "bias"]


# Shared scales, fixed ranges --------------------------------------------------------------------------------------------


def branches() -> keras.Model:
    """A concatenation whose first part is an output as well: all three tensors share a scale."""
    inputs = keras.Input((4,), name="x")
    first, second = layers.Dense(3, name="first")(inputs), layers.Dense(3, name="second")(inputs)
    joined = layers.Concatenate(name="joined")([first, second])
    return keras.Model(inputs, [first, layers.Dense(2, name="head")(joined)], name="branches")


def test_a_group_has_one_holder_even_where_an_output_is_in_it() -> None:
    keras.utils.set_random_seed(0)
    model, x = branches(), np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    qat = prepared(model, "w4a8", x)
    assert len(holders(qat)) == len(prepare(model, "w4a8").plan.groups) == 3  # input, both branches, head
    assert qat.output_names == ["first", "head"]
    (shared,) = [holder for holder in holders(qat) if len(holder._inbound_nodes) == 2]
    before = to_numpy(shared.bound.variables["step"])
    step(qat, x)
    assert to_numpy(shared.bound.variables["step"]) != before
    converted = convert(qat)
    check_equal(qat, converted, x)
    assert len(holders(converted)) == 3
    assert converted.output_names == ["first", "head"]


@pytest.mark.parametrize("name", ["residual", "mobile", "movers", "unfoldable", "activations"])
def test_holders_are_as_many_as_groups(name: str) -> None:
    model = build(name)
    qat = prepared(model, "w8a8", samples(model, 8))
    groups = prepare(model, "w8a8").plan.groups
    assert len(holders(qat)) == len(groups)
    fixed = [holder for holder in holders(qat) if not holder.trainable_variables]
    assert len(fixed) == sum(group.fixed is not None for group in groups)


def test_the_last_softmax_rests_while_the_model_trains() -> None:
    inputs = keras.Input((4,))
    middle = layers.Softmax(name="middle")(layers.Dense(6)(inputs))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="last")(middle))
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    qat = prepared(model, "w8a8", x)
    rests = {holder.name: getattr(holder.quantizer, "rests_in_training", False) for holder in holders(qat)}
    assert rests["last"]
    assert sum(rests.values()) == 1
    codes = 256 * qat(x, training=False).numpy()
    np.testing.assert_array_equal(codes, np.round(codes))
    codes = 256 * qat(x, training=True).numpy()
    assert np.abs(codes - np.round(codes)).max() > 0.1
    check_equal(qat, convert(qat), x)


# Normalizations that train ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "convolutions_2d", "shared", "tokens"])
def test_normalizations_train_and_fold_at_conversion(name: str) -> None:
    model = build(name)
    x = samples(model, 16)
    # Weights alone: a last digit can't push an activation over to the next code.
    folded, qat = prepared(model, "w4"), prepared(model, "w4", batch_norm="trained")
    check_close(folded, qat, x)
    assert len(norms(qat)) > len(norms(folded)) == 0
    rng = np.random.default_rng(3)
    for norm in norms(qat):
        if norm.scale:
            norm.gamma.assign(norm.gamma * rng.choice([-1.0, 1.0], norm.gamma.shape))
    step(qat, x)
    assert any(np.any(to_numpy(norm.gamma) < 0) for norm in norms(qat) if norm.scale)
    converted = convert(qat)
    assert norms(converted) == []
    check_close(qat, converted, x)
    for wrapper in wrappers(qat):
        final = converted.get_layer(wrapper.name).get_quantized_tensors()
        for path, tensor in wrapper.get_quantized_tensors().items():
            np.testing.assert_array_equal(np.abs(final[path].codes), np.abs(tensor.codes))
            ratio = final[path].dequantize() / np.where(tensor.codes == 0, 1, tensor.dequantize())
            np.testing.assert_array_equal(np.sign(final[path].codes), np.sign(ratio * tensor.codes))


def test_statistics_of_normalizations_move_in_training() -> None:
    model = build("residual")
    x = samples(model, 16)
    qat = prepared(model, "w4a8", x, batch_norm="trained")
    before = [to_numpy(norm.moving_mean) for norm in norms(qat)]
    step(qat, x)
    assert all(np.any(to_numpy(norm.moving_mean) != old) for norm, old in zip(norms(qat), before, strict=True))


def own_model(quantizer: Any, outputs: Any = None, *, signs: Any = (1.5, -0.7, 0.2, -2.0)) -> keras.Model:
    """A wrapped convolution and a normalization, put together by hand."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((6, 6, 2))
    dispatcher = KerasNodeQuantizationDispatcher(quantizer, outputs)
    norm = layers.BatchNormalization(name="norm")
    result = norm(KerasQuantizationWrapper(layers.Conv2D(4, 3, name="conv"), dispatcher)(inputs))
    norm.gamma.assign(signs)
    norm.moving_mean.assign([0.1, 0.2, 0.3, 0.4])
    return keras.Model(inputs, result)


def weights_config(method: QuantizationMethod, per_channel: bool = True, **params: Any) -> Any:
    return TrainableQuantizerWeightsConfig(method, 4, params, weights_per_channel_threshold=per_channel)


SYMMETRIC = QuantizationMethod.SYMMETRIC
FOLDS = LSQQuantizer(weights_config(SYMMETRIC, narrow_range=True))
STAYS = {
    "one scale": LSQQuantizer(weights_config(SYMMETRIC, per_channel=False, narrow_range=True)),
    "a code without its negative": LSQQuantizer(weights_config(SYMMETRIC)),
    "zero points": LSQPlusQuantizer(weights_config(QuantizationMethod.UNIFORM)),
    "powers of two": TQTQuantizer(weights_config(QuantizationMethod.POWER_OF_TWO, narrow_range=True)),
    "groups": LSQQuantizer(weights_config(SYMMETRIC, narrow_range=True, group_size=2)),
    "the bias": {"kernel": FOLDS, "bias": LSQQuantizer(weights_config(SYMMETRIC, per_channel=False, threshold=1.0))},
}


@pytest.mark.parametrize("case", STAYS)
def test_normalizations_stay_where_a_fold_would_change_codes(case: str) -> None:
    model, x = own_model(STAYS[case]), np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype("float32")
    converted = convert(model)
    assert len(norms(converted)) == 1
    check_equal(model, converted, x)


@pytest.mark.parametrize(
    ("quantizer", "signs"),
    [(FOLDS, (1.5, -0.7, 0.2, -2.0)), (STAYS["a code without its negative"], (1.5, 0.7, 0.2, 2.0))],
)
def test_normalizations_of_ones_own_models_fold_where_codes_stay(quantizer: Any, signs: Any) -> None:
    model, x = own_model(quantizer, signs=signs), np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype("float32")
    converted = convert(model)
    assert norms(converted) == []
    check_close(model, converted, x)


def test_a_wrapper_with_quantized_outputs_is_frozen_and_stands_alone() -> None:
    config = TrainableQuantizerActivationConfig(QuantizationMethod.UNIFORM, 8, {"min_range": -2.0, "max_range": 2.0})
    model, x = (
        own_model(FOLDS, LSQQuantizer(config)),
        np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype("float32"),
    )
    converted = convert(model)
    check_equal(model, converted, x)
    (wrapper,), (trained,) = wrappers(converted), wrappers(model)
    assert wrapper.frozen
    assert wrapper.layer is not trained.layer
    assert [q.num_bits for q in wrapper.output_quantizers] == [8]
    assert len(norms(converted)) == 1  # the outputs are quantized before it


# Classes, rules, what stays in float ------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="test_qat")
class Counting(keras.Model):
    """A train_step of its own that says so."""

    def train_step(self, data: Any) -> dict[str, Any]:
        return super().train_step(data) | {"mine": 1.0}


@keras.saving.register_keras_serializable(package="test_qat")
class Scaled(layers.Dense):
    """A layer of the user's with the weights of one that is known."""

    def call(self, inputs: Any, training: Any = None) -> Any:
        return 2.0 * super().call(inputs)


@keras.saving.register_keras_serializable(package="test_qat")
class Mixer(layers.Layer):
    """A layer with a matrix that nobody told how to quantize."""

    def build(self, shape: Any) -> None:
        self.matrix = self.add_weight(name="matrix", shape=(shape[-1], 3))

    def call(self, inputs: Any) -> Any:
        return inputs @ self.matrix


def test_the_class_of_the_model_is_kept() -> None:
    inputs = keras.Input((4,))
    model = Counting(inputs, layers.Dense(2)(inputs))
    x = np.ones((8, 4), "float32")
    qat = prepared(model, "w4a8", x)
    assert isinstance(qat, Counting)
    qat.compile("sgd", "mse")
    assert qat.fit(x, x[:, :2], verbose=0).history["mine"] == [1.0]
    converted = convert(qat)
    assert isinstance(converted, Counting)
    check_equal(qat, converted, x)


def test_classes_with_a_constructor_are_refused() -> None:
    class Own(keras.Model):
        def __init__(self, units: int) -> None:
            inputs = keras.Input((4,))
            super().__init__(inputs, layers.Dense(units)(inputs))

    class Row(keras.Sequential):
        pass

    with pytest.raises(UnsupportedError, match="class Own, which has a constructor of its own or is Sequential"):
        prepared(Own(2), "w4")
    with pytest.raises(UnsupportedError, match="do give keras"):
        prepared(Row([keras.Input((4,)), layers.Dense(2)]), "w4")


def test_unbuilt_subclassed_models_are_refused() -> None:
    class Subclassed(keras.Model):
        def call(self, inputs: Any) -> Any:
            return inputs

    for function in (prepared, convert):
        with pytest.raises(InputError, match="whose input shape isn't known"):
            function(Subclassed())


def test_layers_of_ones_own_train_like_their_ancestors() -> None:
    inputs = keras.Input((4,))
    model, x = keras.Model(inputs, Scaled(3, name="scaled")(inputs)), np.ones((8, 4), "float32")
    qat = prepared(model, "w2a8", x)
    assert type(wrappers(qat)[0].layer) is Scaled
    step(qat, x)
    converted = convert(qat)
    assert type(wrappers(converted)[0].layer) is Scaled
    check_equal(qat, converted, x)


def test_matrices_that_stay_in_float_are_told() -> None:
    inputs = keras.Input((3, 4))
    model = keras.Model(inputs, layers.PReLU(name="slopes")(inputs))
    with warned() as found:
        qat = prepared(model, "w4")
    (told,) = (str(w.message) for w in found)
    assert told.startswith("1 weight matrices stay in float: slopes/alpha (slopes of an activation, by which")
    assert found[0].filename == __file__
    assert wrappers(qat) == []
    with pytest.raises(StrictError, match="slopes/alpha"):
        prepared(model, "w4", strict=True)
    with warned() as found:
        prepared(model, Recipe("r", weights=TensorSpec(bits=4), rules=(Rule("slopes", weights="float"),)), strict=True)
    assert found == []


def test_a_matrix_of_a_users_own_layer_trains_with_a_quantizer() -> None:
    inputs = keras.Input((4,))
    model, x = keras.Model(inputs, Mixer(name="mixer")(inputs)), np.ones((8, 4), "float32")
    qat = prepared(model, "w4", strict=True)
    assert [list(wrapper.quantizers) for wrapper in wrappers(qat)] == [["matrix"]]
    step(qat, x)
    check_equal(qat, convert(qat), x)


def test_rules_decide_as_for_quantize_model() -> None:
    rules = (Rule("head", weights=TensorSpec(bits=8), activations="float"), Rule("hidden", weights="float"))
    recipe = Recipe("r", weights=TensorSpec(bits=2), activations=TensorSpec(bits=4, method="uniform"), rules=rules)
    model, x = small(), np.ones((4, 4), "float32")
    qat = prepared(model, recipe, x)
    assert [(w.name, w.quantizers["kernel"].num_bits) for w in wrappers(qat)] == [("head", 8)]
    assert len(holders(qat)) == 2  # input and hidden
    check_equal(quantized(model, recipe, x), qat, x)


def test_public_names() -> None:
    assert qi.prepare_qat is prepare_qat
    assert qi.convert is convert
