"""The wrapper on single layers, called eagerly; whole models are in tests/integration/test_wrapped_models.py."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from qi.dispatch import NodeQuantizationDispatcher
from qi.errors import ConfigError, InputError
from qi.keras import KerasNodeQuantizationDispatcher, KerasQuantizationWrapper
from qi.keras.variables import to_numpy, weights_of
from qi.quantizers import (
    ActivationPOTInferableQuantizer,
    ActivationUniformInferableQuantizer,
    DoReFaWeightsQuantizer,
    LSQQuantizer,
    QuantizationMethod,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
    WeightsLUTSymmetricInferableQuantizer,
    WeightsPOTInferableQuantizer,
    WeightsSymmetricInferableQuantizer,
    WeightsUniformInferableQuantizer,
)
from qi.testing.engines import model_gradients

RNG = np.random.default_rng(3)
W4 = WeightsSymmetricInferableQuantizer(4, 0.7, per_channel=True)
ACTIVATION = ActivationUniformInferableQuantizer(4, -1.0, 2.0)
LAYERS = {
    "Dense": (lambda: keras.layers.Dense(3), (4, 6), ["kernel"]),
    "Conv1D": (lambda: keras.layers.Conv1D(3, 2), (2, 5, 4), ["kernel"]),
    "Conv2D": (lambda: keras.layers.Conv2D(3, 2, activation="relu"), (2, 5, 5, 4), ["kernel"]),
    "Conv3D": (lambda: keras.layers.Conv3D(2, 2), (1, 3, 3, 3, 2), ["kernel"]),
    "DepthwiseConv2D": (lambda: keras.layers.DepthwiseConv2D(2), (1, 5, 5, 4), ["kernel"]),
    "Conv2DTranspose": (lambda: keras.layers.Conv2DTranspose(3, 2), (1, 5, 5, 4), ["kernel"]),
    "SeparableConv2D": (
        lambda: keras.layers.SeparableConv2D(3, 2),
        (1, 5, 5, 4),
        ["depthwise_kernel", "pointwise_kernel"],
    ),
    "EinsumDense": (lambda: keras.layers.EinsumDense("ab,bc->ac", 3), (4, 6), ["kernel"]),
    "Embedding": (lambda: keras.layers.Embedding(7, 4), (2, 5), ["embeddings"]),
    "LSTM": (lambda: keras.layers.LSTM(3), (2, 5, 4), ["lstm_cell/kernel", "recurrent_kernel"]),
    "GRU": (lambda: keras.layers.GRU(3), (2, 5, 4), ["recurrent_kernel"]),
    "Bidirectional": (
        lambda: keras.layers.Bidirectional(keras.layers.LSTM(3, name="l")),
        (2, 5, 4),
        ["forward_l/lstm_cell/kernel", "backward_l/lstm_cell/kernel"],
    ),
    "TimeDistributed": (lambda: keras.layers.TimeDistributed(keras.layers.Dense(3, name="d")), (2, 5, 4), ["d/kernel"]),
    "MultiHeadAttention": (lambda: keras.layers.MultiHeadAttention(2, 3), (2, 5, 4), ["query/kernel", "value/kernel"]),
    "Sequential": (
        lambda: keras.Sequential([keras.layers.Dense(4, name="a"), keras.layers.Dense(3, name="b")]),
        (4, 6),
        ["a/kernel", "b/kernel"],
    ),
}
each_layer = pytest.mark.parametrize("name", LAYERS)


def inputs_of(name: str) -> list[np.ndarray]:
    shape = LAYERS[name][1]
    x = RNG.integers(0, 7, shape) if name == "Embedding" else RNG.normal(size=shape).astype(np.float32)
    return [x, x] if name == "MultiHeadAttention" else [x]


def built(name: str, quantizer=W4, **kwargs) -> tuple[keras.layers.Layer, KerasQuantizationWrapper, list[np.ndarray]]:
    """(layer with random weights, its wrapper, inputs)."""
    make, _, paths = LAYERS[name]
    layer, inputs = make(), inputs_of(name)
    layer(*inputs)
    for path, variable in weights_of(layer).items():
        if "seed" not in path:
            variable.assign(RNG.uniform(-1, 1, variable.shape))
    dispatcher = KerasNodeQuantizationDispatcher(dict.fromkeys(paths, quantizer), **kwargs)
    return layer, KerasQuantizationWrapper(layer, dispatcher), inputs


def run(layer, inputs) -> np.ndarray:
    return to_numpy(layer(*inputs))


def assert_same(found: np.ndarray, wanted: np.ndarray, name: str) -> None:
    """Bit for bit, but for torch's LSTMs: another kernel runs where weights ask for no gradient."""
    of_torch = keras.backend.backend() == "torch" and name in ("LSTM", "Bidirectional")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 if of_torch else 0)


def dense(quantizer=W4, units=3, **kwargs) -> tuple[keras.layers.Dense, KerasQuantizationWrapper]:
    layer = keras.layers.Dense(units, **kwargs)
    layer.build((None, 6))
    layer.kernel.assign(RNG.uniform(-1, 1, (6, units)))
    wrapper = KerasQuantizationWrapper(layer, KerasNodeQuantizationDispatcher(quantizer))
    wrapper.build()
    return layer, wrapper


X = RNG.normal(size=(4, 6)).astype(np.float32)


# --- what it computes ---


@each_layer
def test_it_is_the_layer_with_quantized_weights_and_leaves_the_layer_alone(name):
    layer, wrapper, inputs = built(name)
    before, plain = [to_numpy(v) for v in layer.variables], run(layer, inputs)
    quantized = run(wrapper, inputs)
    for variable, value in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)
    np.testing.assert_array_equal(run(layer, inputs), plain)
    assert not np.array_equal(quantized, plain)
    for path, value in wrapper.get_quantized_weights().items():  # the layer itself, given those weights, says the same
        weights_of(layer)[path].assign(value)
    assert_same(run(layer, inputs), quantized, name)


@each_layer
@pytest.mark.parametrize("in_place", [False, True])
def test_frozen_it_computes_the_same(name, in_place):
    layer, wrapper, inputs = built(name)
    before, variables = run(wrapper, inputs), len(wrapper.variables)
    originals = [to_numpy(v) for v in layer.variables]
    assert wrapper.freeze(in_place=in_place) is wrapper
    assert wrapper.frozen
    assert_same(run(wrapper, inputs), before, name)
    assert len(wrapper.variables) == variables
    same = [np.array_equal(to_numpy(v), value) for v, value in zip(layer.variables, originals, strict=True)]
    assert all(same) is not in_place


@each_layer
def test_quantized_weights_lie_on_the_grid(name):
    _, wrapper, inputs = built(name)
    wrapper(*inputs)
    for path, value in wrapper.get_quantized_weights().items():
        quantizer = wrapper.quantizers[path]
        axis = quantizer.channel_axis
        qparams = quantizer.qparams(value.shape)
        codes = np.rint(value / qparams.scale)
        np.testing.assert_array_equal(value, codes * qparams.scale)
        assert codes.min() >= -8
        assert codes.max() <= 7
        for channel in np.moveaxis(value, axis, 0):
            assert len(np.unique(channel)) <= 16
        tensor = wrapper.get_quantized_tensors()[path]
        np.testing.assert_array_equal(tensor.codes, codes)
    assert len(wrapper.quantizers) == len(LAYERS[name][2])


def test_an_unbuilt_layer_is_built_by_the_first_call():
    wrapper = KerasQuantizationWrapper(keras.layers.Dense(3), KerasNodeQuantizationDispatcher(W4))
    assert not wrapper.built
    assert wrapper(X).shape == (4, 3)
    assert wrapper.compute_output_shape((None, 6)) == (None, 3)
    assert wrapper.name == f"quant_{wrapper.layer.name}"


def test_the_seeds_keywords_and_any_dispatcher():
    layer, _ = dense()
    wrapper = KerasQuantizationWrapper(layer=layer, dispatcher=NodeQuantizationDispatcher(W4), name="w")
    assert isinstance(wrapper.dispatcher, KerasNodeQuantizationDispatcher)
    assert wrapper.name == "w"
    by_hand = X @ W4(to_numpy(layer.kernel)) + to_numpy(layer.bias)
    np.testing.assert_allclose(run(wrapper, [X]), by_hand, rtol=1e-5, atol=1e-6)  # sums of other orders


@pytest.mark.parametrize(
    "quantizer",
    [
        WeightsPOTInferableQuantizer(3, [0.5, 1.0, 0.25], per_channel=True),
        WeightsUniformInferableQuantizer(5, -0.31, 0.77),
        WeightsLUTSymmetricInferableQuantizer(3, [-70, -20, 0, 33, 90], 0.9, per_channel=True),
        WeightsSymmetricInferableQuantizer(4, [[0.5, 1, 2], [1, 2, 4]], per_channel=True, group_size=3),
        WeightsSymmetricInferableQuantizer(16, 1.0),
        WeightsSymmetricInferableQuantizer(1, 0.5, signed=False),
    ],
    ids=lambda q: f"{type(q).__name__}-{q.num_bits}",
)
def test_any_weight_quantizer(quantizer):
    layer, wrapper = dense(quantizer, use_bias=False)
    expected = quantizer.with_axes(-1, -2)(to_numpy(layer.kernel))
    np.testing.assert_array_equal(wrapper.get_quantized_weights()["kernel"], expected)
    reference = keras.layers.Dense(3, use_bias=False)
    reference.build((None, 6))
    reference.kernel.assign(expected)
    for _ in range(2):
        np.testing.assert_array_equal(run(wrapper, [X]), run(reference, [X]))
        wrapper.freeze()


def test_a_bias_can_be_quantized_too():
    layer, wrapper = dense({"kernel": W4, "bias": WeightsPOTInferableQuantizer(8, 2.0)})
    layer.bias.assign([0.123, -0.456, 9.0])
    assert set(wrapper.get_quantized_weights()) == {"kernel", "bias"}
    assert to_numpy(wrapper(np.zeros((1, 6)))).tolist() == [[0.125, -0.453125, 1.984375]]


def test_a_dispatcher_without_quantizers_changes_nothing():
    layer, _ = dense()
    wrapper = KerasQuantizationWrapper(layer, KerasNodeQuantizationDispatcher())
    np.testing.assert_array_equal(run(wrapper, [X]), run(layer, [X]))
    assert wrapper.get_quantized_weights() == {}


def test_a_composite_without_a_build_of_its_own():
    class Block(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.first, self.second = keras.layers.Dense(5), keras.layers.Dense(3)

        def call(self, x):
            return self.second(self.first(x))

    wrapper = KerasQuantizationWrapper(Block(), KerasNodeQuantizationDispatcher({"second/kernel": W4}))
    assert wrapper(X).shape == (4, 3)
    assert set(wrapper.quantizers) == {"second/kernel"}


def test_two_wrappers_on_one_layer():
    layer, first = dense()
    second = KerasQuantizationWrapper(layer, KerasNodeQuantizationDispatcher(WeightsPOTInferableQuantizer(2, 1.0)))
    plain = run(layer, [X])
    results = [run(first, [X]), run(second, [X])]
    first.freeze()
    again = [run(first, [X]), run(second, [X])]
    np.testing.assert_array_equal(results, again)
    np.testing.assert_array_equal(run(layer, [X]), plain)
    assert not np.array_equal(*results)


# --- outputs ---


def test_outputs_are_quantized_in_their_order():
    layer = keras.layers.LSTM(3, return_state=True)
    quantizers = [ActivationPOTInferableQuantizer(bits, 1.0) for bits in (2, 3, 4)]
    x = RNG.normal(size=(2, 5, 4)).astype(np.float32)
    wrapper = KerasQuantizationWrapper(layer, KerasNodeQuantizationDispatcher(None, quantizers))
    found = wrapper(x)
    for q, y, plain in zip(quantizers, found, layer(x), strict=True):
        np.testing.assert_array_equal(to_numpy(y), q(to_numpy(plain)))


def test_one_activation_quantizer_for_each_output():
    layer = keras.layers.LSTM(3, return_state=True, name="memory")
    wrapper = KerasQuantizationWrapper(layer, KerasNodeQuantizationDispatcher(None, [ACTIVATION, ACTIVATION]))
    with pytest.raises(ConfigError, match="each of the 3 outputs of layer 'memory'; received 2"):
        wrapper(RNG.normal(size=(2, 5, 4)))


def test_weights_and_output():
    layer, wrapper = dense()
    both = KerasQuantizationWrapper(layer, KerasNodeQuantizationDispatcher({"kernel": W4}, ACTIVATION))
    np.testing.assert_array_equal(run(both, [X]), ACTIVATION(run(wrapper, [X])))


# --- refusals ---


@pytest.mark.parametrize(
    ("layer", "dispatcher", "message"),
    [
        ("dense", W4, "expected a Keras layer; received layer='dense' of type str"),
        (keras.layers.Dense(3), W4, r"received dispatcher=Weights.*do wrap quantizers in qi\.KerasNode"),
        (keras.layers.Dense(3), {"kernel": W4}, "expected a KerasNodeQuantizationDispatcher"),
        (keras.layers.Dense(3), None, "received dispatcher=None"),
        (dense()[1], NodeQuantizationDispatcher(), "expected a layer that isn't wrapped yet; .*'quant_dense"),
    ],
    ids=["layer", "quantizer", "dict", "none", "wrapper"],
)
def test_wrong_arguments_are_refused(layer, dispatcher, message):
    with pytest.raises(ConfigError, match=message):
        KerasQuantizationWrapper(layer, dispatcher)


@pytest.mark.parametrize(
    ("quantizers", "message"),
    [
        ({"kernal": W4}, r"'kernal', which doesn't exist; do choose one of \['kernel', 'bias'\] Did you mean 'kernel'"),
        (
            WeightsSymmetricInferableQuantizer(4, [1.0, 2.0], per_channel=True),
            "weight 'kernel' of layer 'fc': expected 1 or 3",
        ),
        (WeightsSymmetricInferableQuantizer(4, 1.0, input_rank=4), r"'kernel' of layer 'fc': .*input_rank=4"),
        (WeightsSymmetricInferableQuantizer(4, 1.0, per_channel=True, channel_axis=2), "channel_axis from -2 to 1"),
    ],
    ids=["path", "size", "rank", "axis"],
)
def test_what_doesnt_fit_the_layer_is_refused_when_built(quantizers, message):
    wrapper = KerasQuantizationWrapper(keras.layers.Dense(3, name="fc"), KerasNodeQuantizationDispatcher(quantizers))
    with pytest.raises(ConfigError, match=message):
        wrapper(X)


def test_an_unbuilt_layer_of_several_inputs_is_refused():
    layer = keras.layers.MultiHeadAttention(2, 4, name="attention")
    wrapper = KerasQuantizationWrapper(layer, KerasNodeQuantizationDispatcher({"query/kernel": W4}))
    x = np.zeros((1, 5, 4), np.float32)
    with pytest.raises(InputError, match=r"'attention' to be built, .*do call it once before wrapping it"):
        wrapper(x, x)


def test_freezing_needs_weights():
    wrapper = KerasQuantizationWrapper(keras.layers.Dense(3), KerasNodeQuantizationDispatcher(W4), name="w")
    with pytest.raises(InputError, match="'w' has no weights yet; do call it once, or build it"):
        wrapper.freeze()


@pytest.mark.parametrize("in_place", [False, True])
def test_nan_in_a_weight_is_refused_when_frozen_and_nothing_changes(in_place):
    layer, wrapper = dense({"bias": WeightsPOTInferableQuantizer(8, 1.0), "kernel": W4}, name="fc")
    kernel = to_numpy(layer.kernel).copy()
    kernel[2, 1] = np.nan
    layer.kernel.assign(kernel)
    layer.bias.assign([0.3, 0.3, 0.3])
    with pytest.raises(InputError, match="expected finite weights; received NaN in 'kernel' of layer 'fc'"):
        wrapper.freeze(in_place=in_place)
    assert not wrapper.frozen
    assert to_numpy(layer.bias).tolist() == np.float32([0.3, 0.3, 0.3]).tolist()
    assert np.isnan(run(wrapper, [X])).any()  # as it does without a wrapper
    layer.kernel.assign(np.nan_to_num(kernel))
    wrapper.freeze(in_place=in_place)
    assert wrapper.frozen


# --- freezing ---


@pytest.mark.parametrize("in_place", [False, True])
def test_freezing_twice_is_freezing_once(in_place):
    _layer, wrapper = dense()
    wrapper.freeze(in_place=in_place)
    paths, state = [v.path for v in wrapper.variables], [to_numpy(v) for v in wrapper.variables]
    wrapper.freeze(in_place=in_place).freeze()
    assert [v.path for v in wrapper.variables] == paths
    for variable, value in zip(wrapper.variables, state, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)


def test_frozen_beside_then_in_place():
    layer, wrapper = dense()
    expected = run(wrapper, [X])
    count = len(wrapper.variables)
    wrapper.freeze().freeze(in_place=True)
    np.testing.assert_array_equal(to_numpy(layer.kernel), W4(wrapper.get_quantized_weights()["kernel"]))
    np.testing.assert_array_equal(run(wrapper, [X]), expected)
    assert len(wrapper.variables) == count
    assert any(v is layer.kernel for v in wrapper.variables)


def test_frozen_beside_it_no_longer_follows_the_layer_until_frozen_again():
    layer, wrapper = dense()
    wrapper.freeze()
    frozen = run(wrapper, [X])
    layer.kernel.assign(to_numpy(layer.kernel) * 0.5)
    np.testing.assert_array_equal(run(wrapper, [X]), frozen)
    wrapper.freeze()
    assert not np.array_equal(run(wrapper, [X]), frozen)
    np.testing.assert_array_equal(wrapper.get_quantized_weights()["kernel"], W4(to_numpy(layer.kernel)))


def test_a_weight_changed_after_freezing_is_noticed():
    layer, wrapper = dense(name="fc")
    wrapper.freeze(in_place=True)
    layer.kernel.assign(to_numpy(layer.kernel) * 0.9)
    with pytest.raises(
        InputError, match="frozen weight 'kernel' of layer 'fc' on its grid; it was changed after freeze"
    ):
        wrapper.get_quantized_weights()
    wrapper.freeze()
    np.testing.assert_array_equal(wrapper.get_quantized_weights()["kernel"], to_numpy(layer.kernel))


@pytest.mark.parametrize("in_place", [False, True])
def test_frozen_weights_dont_train_and_stay_so(in_place):
    layer, wrapper = dense()
    assert {id(v) for v in wrapper.trainable_variables} == {id(layer.kernel), id(layer.bias)}
    wrapper.freeze(in_place=in_place)
    for _ in range(2):
        assert [id(v) for v in wrapper.trainable_variables] == [id(layer.bias)]
        assert [id(v) for v in wrapper.trainable_weights] == [id(layer.bias)]
        wrapper.trainable = False
        assert wrapper.trainable_variables == []
        wrapper.trainable = True
    if not in_place:
        assert layer.kernel.trainable  # it is the layer's own business


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("in_place", [False, True])
def test_weights_of_other_dtypes(dtype, bits, in_place):
    quantizer = WeightsSymmetricInferableQuantizer(bits, 0.7, per_channel=True)
    layer, wrapper = dense(quantizer, dtype=dtype)
    assert layer.kernel.dtype == dtype
    before = to_numpy(wrapper(X))
    wrapper.freeze(in_place=in_place)
    after = to_numpy(wrapper(X))
    assert before.dtype == after.dtype == to_numpy(layer.kernel).dtype
    np.testing.assert_array_equal(after, before)
    assert wrapper.get_quantized_weights()["kernel"].dtype == before.dtype


def test_an_adapted_layer_inside_computes_alike_once_reloaded(tmp_path: Path) -> None:
    norm = keras.layers.Normalization(name="norm")
    norm.adapt(np.linspace(3, 9, 32, dtype="float32").reshape(8, 4))
    inside = keras.Sequential([keras.Input((4,)), norm, keras.layers.Dense(3, name="dense")], name="inside")
    x = RNG.normal(6, 2, (5, 4)).astype(np.float32)
    for layer, weights in ((inside, {"dense/kernel": W4}), (norm, {})):
        dispatcher = KerasNodeQuantizationDispatcher(weights)
        for frozen in (False, True):
            model = keras.Sequential([keras.Input((4,)), KerasQuantizationWrapper(layer, dispatcher)])
            if frozen:
                model.layers[0].freeze()
            expected = to_numpy(model(x))
            model.save(tmp_path / "model.keras")
            again = keras.models.load_model(tmp_path / "model.keras")
            np.testing.assert_array_equal(to_numpy(again(x)), expected)
            assert np.abs(expected - x[:, :3].mean()).max() > 1


# --- trainable quantizers ---


def trainable(cls=LSQQuantizer, bits=3, method=QuantizationMethod.SYMMETRIC):
    return cls(TrainableQuantizerWeightsConfig(method, bits))


@each_layer
def test_a_trainable_quantizer_goes_where_an_inferable_one_goes(name):
    layer, wrapper, inputs = built(name, trainable())
    result = run(wrapper, inputs)
    paths = LAYERS[name][2]
    assert len([v for v in wrapper.trainable_variables if v.name.endswith("_step")]) == len(paths)
    converted = wrapper.convert2inferable()
    assert converted.name == wrapper.name
    assert_same(run(converted, inputs), result, name)
    assert_same(run(converted.freeze(), inputs), result, name)
    assert converted.layer is layer


def test_dorefa_bakes_the_squashed_weight_into_a_copy():
    layer, wrapper = dense(trainable(DoReFaWeightsQuantizer))
    before, result = to_numpy(layer.kernel), run(wrapper, [X])
    converted = wrapper.convert2inferable()
    np.testing.assert_array_equal(run(converted, [X]), result)
    assert converted.layer is not layer
    np.testing.assert_array_equal(to_numpy(layer.kernel), before)
    assert not np.array_equal(to_numpy(converted.layer.kernel), before)


def test_steps_and_weights_get_gradients():
    layer, wrapper = dense(trainable())
    _, gradients = model_gradients(wrapper, X, lambda outputs: keras.ops.sum(outputs[0] ** 2))
    assert len(gradients) == 3
    assert all(np.any(g) for g in gradients)
    assert any(v is layer.kernel for v in wrapper.trainable_variables)


def test_what_trains_is_not_frozen():
    _, wrapper = dense(trainable())
    with pytest.raises(ConfigError, match=r"inferable quantizers to freeze; \['kernel'\] .*; do call convert2inf"):
        wrapper.freeze()


def test_converting_twice_or_too_early_is_refused():
    _, wrapper = dense(trainable())
    with pytest.raises(ConfigError, match=r"expected trainable quantizers in .*; they all are inferable already"):
        wrapper.convert2inferable().convert2inferable()
    unbuilt = KerasQuantizationWrapper(keras.layers.Dense(3), KerasNodeQuantizationDispatcher(trainable()))
    with pytest.raises(InputError, match="expected a built wrapper"):
        unbuilt.convert2inferable()


def test_diverged_training_is_not_converted():
    _, wrapper = dense(trainable())
    step = next(v for v in wrapper.trainable_variables if v.name == "kernel_step")
    step.assign(np.full(step.shape, np.nan))
    with pytest.raises(InputError, match="training diverged"):
        wrapper.convert2inferable()


def test_a_trainable_quantizer_of_activations_is_refused_for_weights():
    config = TrainableQuantizerActivationConfig(QuantizationMethod.SYMMETRIC, 3, {"threshold": 1.0})
    with pytest.raises(ConfigError, match="expected a quantizer of weights for weight 'kernel'; received LSQQuantizer"):
        KerasNodeQuantizationDispatcher({"kernel": LSQQuantizer(config)})
