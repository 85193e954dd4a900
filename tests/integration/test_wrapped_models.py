"""Wrapped layers in whole models: every way to build one, to compile it, to train it."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np
import pytest

from qi.keras import (
    KerasActivationQuantizationHolder,
    KerasNodeQuantizationDispatcher,
    KerasQuantizationWrapper,
)
from qi.keras.variables import to_numpy
from qi.quantizers import (
    ActivationUniformInferableQuantizer,
    WeightsLUTSymmetricInferableQuantizer,
    WeightsSymmetricInferableQuantizer,
    WeightsUniformInferableQuantizer,
)

W4 = WeightsSymmetricInferableQuantizer(4, 0.8, per_channel=True)
A8 = ActivationUniformInferableQuantizer(8, -3.0, 5.0)
X = np.random.default_rng(5).normal(size=(16, 8, 8, 3)).astype(np.float32)
FLAT = X[:, 0, 0]
TARGET = FLAT[:, :2]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    keras.utils.set_random_seed(11)


def wrap(layer, quantizers=W4, activations=None, **kwargs):
    return KerasQuantizationWrapper(layer, KerasNodeQuantizationDispatcher(quantizers, activations), **kwargs)


def convolutional(wrapped: bool) -> list[keras.layers.Layer]:
    """Layers of a small image model, the weighted ones wrapped or not."""
    maybe = wrap if wrapped else lambda layer, *_: layer
    return [
        maybe(keras.layers.Conv2D(4, 3, name="conv", activation="relu"), W4, A8),
        KerasActivationQuantizationHolder(A8) if wrapped else keras.layers.Activation("linear"),
        maybe(keras.layers.DepthwiseConv2D(3, name="depthwise"), WeightsUniformInferableQuantizer(8, -0.5, 0.4)),
        keras.layers.GlobalAveragePooling2D(),
        maybe(keras.layers.Dense(2, name="head"), WeightsLUTSymmetricInferableQuantizer(2, [-99, -20, 0, 70], 0.9)),
    ]


class Subclassed(keras.Model):
    def __init__(self, several, **kwargs):
        super().__init__(**kwargs)
        self.several = several

    def call(self, x):
        for layer in self.several:
            x = layer(x)
        return x


def functional(several, **kwargs):
    inputs = x = keras.Input(X.shape[1:])
    for layer in several:
        x = layer(x)
    return keras.Model(inputs, x, **kwargs)


KINDS = {
    "Sequential": lambda layers: keras.Sequential([keras.Input(X.shape[1:]), *layers]),
    "unbuilt Sequential": keras.Sequential,
    "Functional": functional,
    "subclassed": Subclassed,
}


@pytest.fixture(params=["float32", "mixed_float16", "mixed_bfloat16"])
def policy(request) -> Iterator[str]:
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


# Every kind is traced under every policy; XLA takes seconds a model, so mixed precision meets it once.
COMBINATIONS = [
    (kind, jit, policy)
    for kind in KINDS
    for jit in (False, True)
    for policy in ("float32", "mixed_float16", "mixed_bfloat16")
    if not jit or policy == "float32" or kind == "Functional"
]


@pytest.mark.parametrize(("kind", "jit", "policy"), COMBINATIONS, indirect=["policy"])
def test_every_kind_of_model_predicts_and_trains(kind, jit, policy):
    model = KINDS[kind](convolutional(wrapped=True))
    model.compile("sgd", "mse", jit_compile=jit)
    predicted = model.predict(X, verbose=0)
    assert predicted.shape == (16, 2)
    assert predicted.dtype == {"float32": "float32", "mixed_float16": "float16"}.get(policy, predicted.dtype)
    before = {v.path: to_numpy(v) for v in model.trainable_variables}
    assert len(before) == 6
    history = model.fit(X, TARGET, epochs=2, batch_size=8, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    for variable in model.trainable_variables:
        assert variable.dtype == "float32"
        assert not np.array_equal(to_numpy(variable), before[variable.path]), variable.path


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_a_model_predicts_as_its_float_model_with_quantized_weights(jit, policy):
    wrapped, plain = functional(convolutional(wrapped=True)), functional(convolutional(wrapped=False))
    quantized = {
        layer.layer.name: (layer.get_quantized_weights()["kernel"], to_numpy(layer.layer.bias))
        for layer in wrapped.layers
        if isinstance(layer, KerasQuantizationWrapper)
    }
    for name, weights in quantized.items():
        plain.get_layer(name).set_weights(weights)
    middle = functional(convolutional(wrapped=False)[:1])
    middle.get_layer("conv").set_weights(quantized["conv"])
    tail = keras.Sequential([keras.Input(middle.output.shape[1:]), *plain.layers[-3:]])
    expected = to_numpy(tail(A8(to_numpy(middle(X)))))
    wrapped.compile(jit_compile=jit)
    found = wrapped.predict(X, verbose=0)
    # Sums in another order, or a step of an activation where one falls upon a tie.
    tolerance = {"float32": 1e-5, "mixed_float16": 2e-2, "mixed_bfloat16": 8e-2}[policy]
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=tolerance)
    for layer in wrapped.layers:
        if isinstance(layer, KerasQuantizationWrapper):
            layer.freeze()
    wrapped.compile(jit_compile=jit)
    np.testing.assert_array_equal(wrapped.predict(X, verbose=0), found)


@pytest.mark.parametrize("outer", ["mixed_float16", "mixed_bfloat16"])
def test_an_outer_layers_mixed_precision_doesnt_touch_what_is_quantized(outer):
    quantizer = WeightsUniformInferableQuantizer(8, -1.23, 1.37)
    dense = keras.layers.Dense(64, dtype=outer, use_bias=False)
    wrapper = wrap(dense, quantizer)
    alone = to_numpy(wrapper(FLAT))
    np.testing.assert_array_equal(to_numpy(Subclassed([wrapper], dtype=outer)(FLAT)), alone)
    cast = quantizer(to_numpy(dense.kernel)).astype(alone.dtype)
    np.testing.assert_array_equal(to_numpy(keras.ops.matmul(keras.ops.cast(FLAT, outer[6:]), cast)), alone)


# --- training ---


@pytest.mark.parametrize("in_place", [False, True])
def test_a_frozen_kernel_is_left_alone_while_the_bias_trains(in_place):
    wrapper = wrap(keras.layers.Dense(2))
    model = keras.Sequential([keras.Input((3,)), wrapper])
    wrapper.freeze(in_place=in_place)
    model.compile("sgd", "mse")
    kernel, before = to_numpy(wrapper.layer.kernel), wrapper.get_quantized_weights()["kernel"]
    model.fit(FLAT, TARGET, epochs=2, verbose=0)
    np.testing.assert_array_equal(to_numpy(wrapper.layer.kernel), kernel)
    np.testing.assert_array_equal(wrapper.get_quantized_weights()["kernel"], before)
    assert np.all(to_numpy(wrapper.layer.bias) != 0)


def test_training_moves_the_float_kernel_by_the_straight_through_gradient():
    wrapper = wrap(keras.layers.Dense(2, use_bias=False))
    model = keras.Sequential([keras.Input((3,)), wrapper])
    kernel = to_numpy(wrapper.layer.kernel).copy()
    kernel[0, 0] = 3.0  # outside of the range: clipped, so it gets no gradient
    wrapper.layer.kernel.assign(kernel)
    quantized = wrapper.get_quantized_weights()["kernel"]
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model.fit(FLAT, TARGET, batch_size=16, verbose=0)
    gradient = 2 * FLAT.T @ (FLAT @ quantized - TARGET) / TARGET.size
    expected = kernel - 0.1 * gradient * (np.abs(kernel) <= 0.8)
    np.testing.assert_allclose(to_numpy(wrapper.layer.kernel), expected, atol=1e-6)
    assert to_numpy(wrapper.layer.kernel)[0, 0] == 3


def regularized(wrapped: bool, state: str = "unfrozen"):
    layer = keras.layers.Dense(
        2,
        kernel_initializer=keras.initializers.Constant(0.55),
        kernel_regularizer=keras.regularizers.L2(0.25),
        bias_regularizer=keras.regularizers.L1(0.1),
        bias_initializer=keras.initializers.Constant(0.3),
        activity_regularizer=keras.regularizers.L2(0.5),
    )
    wrapper = wrap(layer, WeightsSymmetricInferableQuantizer(8, 1.0)) if wrapped else layer
    model = keras.Sequential([keras.Input((3,)), wrapper])
    if state != "unfrozen":
        wrapper.freeze(in_place=state == "in place")
    model.compile("sgd", "mse")
    return model, layer


@pytest.mark.parametrize("state", ["unfrozen", "beside", "in place"])
def test_regularizers_are_counted_once(state):
    model, layer = regularized(True, state)
    kernel = to_numpy(layer.kernel)
    penalty = 0.1 * 0.6 + (0.25 * (kernel**2).sum() if state == "unfrozen" else 0)  # a constant isn't regularized
    y = FLAT @ WeightsSymmetricInferableQuantizer(8, 1.0)(kernel) + np.float32(0.3)
    expected = ((y - TARGET) ** 2).mean() + penalty + 0.5 * (y**2).sum() / 16
    assert model.evaluate(FLAT, TARGET, batch_size=16, verbose=0) == pytest.approx(expected, rel=1e-5)
    assert model.fit(FLAT, TARGET, batch_size=16, verbose=0).history["loss"][0] == pytest.approx(expected, rel=1e-5)
    model(FLAT)
    assert len(model.losses) == (3 if state == "unfrozen" else 2)


def test_losses_that_a_layer_adds_itself():
    class Penalized(keras.layers.Dense):
        def call(self, inputs, training=None):
            self.add_loss(keras.ops.sum(self.kernel**2))
            return super().call(inputs)

    wrapper = wrap(Penalized(2))
    wrapper(FLAT)
    (loss,) = wrapper.losses
    expected = (wrapper.get_quantized_weights()["kernel"] ** 2).sum()  # the layer sees its quantized kernel
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def composite() -> keras.Sequential:
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, name="dense"),
            keras.layers.BatchNormalization(name="bn", momentum=0.5),
            keras.layers.Dropout(0.5, name="drop"),
        ],
        name="composite",
    )


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("state", ["unfrozen", "beside", "in place"])
def test_statistics_of_a_wrapped_composite_move_in_training_only(jit, state):
    inside = composite()
    wrapper = wrap(inside, {"dense/kernel": W4})
    model = keras.Sequential([keras.Input((3,)), wrapper])
    if state != "unfrozen":
        wrapper.freeze(in_place=state == "in place")
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=jit)
    bn, drop = inside.get_layer("bn"), inside.get_layer("drop")
    seed = to_numpy(drop.seed_generator.state)
    model.predict(FLAT, verbose=0)
    assert to_numpy(bn.moving_mean).tolist() == [0] * 4
    kernel = wrapper.get_quantized_weights()["dense/kernel"]
    model.fit(FLAT, np.zeros((16, 4)), batch_size=16, verbose=0)
    expected = 0.5 * (FLAT @ kernel).mean(axis=0)
    np.testing.assert_allclose(to_numpy(bn.moving_mean), expected, atol=1e-6)
    assert not np.array_equal(to_numpy(drop.seed_generator.state), seed)


def test_dropout_drops_in_training_only_and_anew_each_time():
    wrapper = wrap(composite(), {"dense/kernel": W4})
    outputs = [to_numpy(wrapper(FLAT, training=mode)) for mode in (False, None, True, True)]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert (outputs[2] == 0).mean() > 0.2
    assert not np.array_equal(outputs[2], outputs[3])
    assert (outputs[0] == 0).mean() < 0.1


# --- graphs ---


@pytest.mark.parametrize("state", ["unfrozen", "beside"])
def test_a_shared_wrapper_and_its_layer_used_bare(state):
    dense = keras.layers.Dense(3)
    wrapper = wrap(dense)
    x = keras.Input((3,))
    model = keras.Model(x, [wrapper(x), wrapper(dense(x)), dense(x)])
    kernel = to_numpy(dense.kernel)
    if state == "beside":
        wrapper.freeze()
    once, twice, bare = model.predict(FLAT, verbose=0)
    np.testing.assert_allclose(bare, FLAT @ kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(once, FLAT @ W4(kernel), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(twice, FLAT @ kernel @ W4(kernel), rtol=1e-4, atol=1e-5)
    assert len([v for v in model.trainable_variables if v is dense.kernel]) == 1


@pytest.mark.parametrize("recurrent", [keras.layers.LSTM, keras.layers.GRU])
def test_masks_reach_the_layer_and_go_on(recurrent):
    def model_of(wrapped: bool):
        tokens = keras.Input((5,), dtype="int32")
        layers = [
            keras.layers.Embedding(9, 4, mask_zero=True),
            recurrent(3, return_sequences=True),
            recurrent(2),
        ]
        paths = [{"embeddings": W8}, {"recurrent_kernel": W8}, {"recurrent_kernel": W8}]
        x = tokens
        for layer, quantizers in zip(layers, paths, strict=True):
            x = (wrap(layer, quantizers) if wrapped else layer)(x)
        return keras.Model(tokens, x)

    W8 = WeightsSymmetricInferableQuantizer(16, 2.0)
    wrapped, plain = model_of(True), model_of(False)
    wrapped_layers = [w.layer for w in wrapped.layers[1:] if isinstance(w, KerasQuantizationWrapper)]
    for ours, theirs in zip(wrapped_layers, plain.layers[-3:], strict=True):
        theirs.set_weights(ours.get_weights())
    tokens = np.array([[1, 2, 3, 0, 0], [4, 0, 0, 0, 0], [5, 6, 7, 8, 1]], np.int32)
    found = wrapped.predict(tokens, verbose=0)
    np.testing.assert_allclose(found, plain.predict(tokens, verbose=0), atol=1e-3)
    np.testing.assert_array_equal(to_numpy(wrapped(tokens)), found)
    shorter = wrapped.predict(np.array([[1, 2, 3, 0, 0]], np.int32), verbose=0)
    padded = np.array([[1, 2, 3, 0, 0]], np.int32)
    unmasked = wrapped.predict(padded + np.array([[0, 0, 0, 1, 1]], np.int32), verbose=0)
    assert not np.allclose(shorter, unmasked, atol=1e-4)


def test_quantized_outputs_keep_their_mask():
    tokens = keras.Input((3,), dtype="int32")
    embedded = wrap(keras.layers.Embedding(9, 4, mask_zero=True), {"embeddings": W4}, A8)(tokens)
    model = keras.Model(tokens, [embedded, keras.layers.GlobalAveragePooling1D()(embedded)])
    values, mean = model.predict(np.array([[1, 2, 0]], np.int32), verbose=0)
    np.testing.assert_allclose(mean, values[:, :2].mean(axis=1), rtol=1e-6)


def test_a_layer_that_ends_masks_ends_them_wrapped():
    embedded = keras.layers.Embedding(9, 4, mask_zero=True)(np.array([[1, 2, 0]]))
    flattened = keras.layers.Flatten()
    assert not flattened.supports_masking
    with pytest.warns(UserWarning, match="does not support masking and will therefore destroy"):
        found = wrap(flattened, None, A8)(embedded)
    assert keras.layers.Dense(2).compute_mask(found, getattr(found, "_keras_mask", None)) is None


def test_several_inputs_and_arguments():
    attention = keras.layers.MultiHeadAttention(2, 3)
    query, value = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    attention(query, value)
    wrapper = wrap(attention, {"query/kernel": W4, "attention_output/kernel": W4})
    q, v = keras.Input((5, 6)), keras.Input((5, 6))
    model = keras.Model([q, v], wrapper(q, v, use_causal_mask=True, return_attention_scores=True))
    out, scores = model.predict([query, value], verbose=0)
    for y, eager in zip(
        (out, scores), wrapper(query, value, use_causal_mask=True, return_attention_scores=True), strict=True
    ):
        np.testing.assert_allclose(y, to_numpy(eager), atol=1e-6)
    assert np.all(scores[..., 0, 1:] == 0)  # causal
    concat = wrap(keras.layers.Concatenate(), None, A8)
    np.testing.assert_array_equal(to_numpy(concat([FLAT, FLAT])), A8(np.concatenate([FLAT, FLAT], axis=1)))


def test_inside_time_distributed_and_nested_models():
    inner = keras.Sequential([keras.Input((3,)), wrap(keras.layers.Dense(3, name="inner"))])
    wrapper = wrap(keras.layers.Dense(2, name="outer"))
    x = keras.Input((8, 3))
    model = keras.Model(x, keras.layers.TimeDistributed(wrapper)(keras.layers.TimeDistributed(inner)(x)))
    data = X[:, 0]
    first = inner.layers[0]
    expected = data @ first.get_quantized_weights()["kernel"] @ wrapper.get_quantized_weights()["kernel"]
    np.testing.assert_allclose(model.predict(data, verbose=0), expected, atol=1e-5)
