"""What files hold of wrapped layers, and that models come back from them bit by bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from qi.core import unpack
from qi.errors import InputError
from qi.keras import KerasNodeQuantizationDispatcher, KerasQuantizationWrapper
from qi.keras.variables import to_numpy, weights_of
from qi.quantizers import (
    ActivationPOTInferableQuantizer,
    ActivationUniformInferableQuantizer,
    WeightsLUTSymmetricInferableQuantizer,
    WeightsPOTInferableQuantizer,
    WeightsSymmetricInferableQuantizer,
    WeightsUniformInferableQuantizer,
)

X = np.random.default_rng(9).normal(size=(8, 6)).astype(np.float32)
STATES = ["unfrozen", "beside", "in place"]
W4 = WeightsSymmetricInferableQuantizer(4, [0.5, 0.7, 0.9], per_channel=True)
QUANTIZERS = {
    "symmetric": W4,
    "narrow": WeightsSymmetricInferableQuantizer(8, 0.9, narrow_range=True),
    "unsigned": WeightsSymmetricInferableQuantizer(3, 0.9, signed=False),
    "power of two": WeightsPOTInferableQuantizer(5, [0.5, 1.0, 0.25], per_channel=True),
    "uniform": WeightsUniformInferableQuantizer(7, [-0.2, -0.9, 0.0], [0.5, 0.1, 1.0], per_channel=True),
    "16 bits": WeightsUniformInferableQuantizer(16, -1.0, 0.9),
    "1 bit": WeightsSymmetricInferableQuantizer(1, 0.5),
    "table": WeightsLUTSymmetricInferableQuantizer(3, [-70, -20, 0, 33, 90], [0.9, 1.0, 1.1], per_channel=True),
    "small table": WeightsLUTSymmetricInferableQuantizer(4, [-70, 0, 33], 0.9),
    "groups": WeightsSymmetricInferableQuantizer(4, [[0.5, 0.6, 0.7], [0.8, 0.9, 1.0]], per_channel=True, group_size=4),
}


def wrap(layer, quantizers=W4, activations=None, **kwargs):
    return KerasQuantizationWrapper(layer, KerasNodeQuantizationDispatcher(quantizers, activations), **kwargs)


def settle(model, state: str):
    """Freezes all wrappers of a model, or none."""
    if state != "unfrozen":
        for layer in model._flatten_layers():
            if isinstance(layer, KerasQuantizationWrapper):
                layer.freeze(in_place=state == "in place")
    return model


def dense_model(quantizer=W4, state="beside", **kwargs):
    layer = keras.layers.Dense(3, name="fc", bias_initializer="ones", **kwargs)
    return settle(keras.Sequential([keras.Input((6,)), wrap(layer, quantizer, name="w")]), state)


def saved(model, folder: Path, custom=None):
    """The model as Keras alone reads it back."""
    model.save(folder / "m.keras")
    return keras.models.load_model(folder / "m.keras", custom_objects=custom)


def check_same(model, again, inputs=X, predict=False) -> None:
    """Outputs agree bit by bit; of models that are called as they are, or compiled by `predict`, which takes far longer."""
    expected, found = (m.predict(inputs, verbose=0) if predict else m(inputs, training=False) for m in (model, again))
    for a, b in zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


def contents(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Every array of a .keras file by its path, and the configuration."""
    found: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        with archive.open("model.weights.h5") as stream, h5py.File(stream) as file:
            file.visititems(
                lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
            )
    return found, config


# --- .keras ---


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_saved_model_is_bit_equal(name, state, tmp_path):
    model = dense_model(QUANTIZERS[name], state)
    again = saved(model, tmp_path)
    check_same(model, again)
    wrapper, copy = model.get_layer("w"), again.get_layer("w")
    assert copy.frozen is wrapper.frozen
    assert copy.quantizers == wrapper.quantizers
    np.testing.assert_array_equal(copy.get_quantized_weights()["kernel"], wrapper.get_quantized_weights()["kernel"])
    check_same(model, saved(again, tmp_path))  # and once more


@pytest.mark.parametrize("name", QUANTIZERS)
def test_frozen_weights_are_stored_as_packed_codes_and_scales_alone(name, tmp_path):
    model = dense_model(QUANTIZERS[name], "beside")
    model.save(tmp_path / "m.keras")
    arrays, config = contents(tmp_path / "m.keras")
    tensor = model.get_layer("w").get_quantized_tensors()["kernel"]
    folder = "layers/keras_quantization_wrapper/vars/"
    codes = arrays.pop(folder + "kernel:codes")
    assert codes.dtype == np.uint8
    assert codes.size == -(-18 * tensor.bits // 8)
    signed = tensor.codes.dtype.kind == "i"
    np.testing.assert_array_equal(unpack(codes, tensor.bits, (6, 3), signed=signed), tensor.codes)
    np.testing.assert_array_equal(arrays.pop(folder + "kernel:scale"), tensor.qparams.scale)
    zero_point = arrays.pop(folder + "kernel:zero_point", np.zeros(tensor.qparams.scale.shape))
    np.testing.assert_array_equal(zero_point, tensor.qparams.zero_point)
    assert arrays.pop(folder + "bias").tolist() == [1, 1, 1]
    assert [name for name, array in arrays.items() if array.size] == []  # no float kernel anywhere
    assert "0.5, 0.7" not in json.dumps(config)
    assert "qi>KerasQuantizationWrapper" in json.dumps(config)


def test_many_scales_stay_out_of_the_configuration(tmp_path):
    quantizer = WeightsSymmetricInferableQuantizer(4, 1.0, per_channel=True, group_size=2)
    layer = keras.layers.Dense(64)
    model = keras.Sequential([keras.Input((64,)), wrap(layer, quantizer, name="w")])
    scales = model.get_layer("w")._bindings["kernel"].bound.variables["scale"]
    scales.assign(np.random.default_rng(0).uniform(0.1, 0.2, (32, 64)))
    settle(model, "beside").save(tmp_path / "m.keras")
    arrays, config = contents(tmp_path / "m.keras")
    assert next(a for n, a in arrays.items() if n.endswith("scale")).shape == (32, 64)
    assert len(json.dumps(config)) < 5000
    check_same(model, keras.models.load_model(tmp_path / "m.keras"), np.ones((2, 64), np.float32))


def test_a_frozen_file_is_small(tmp_path):
    def four(wrapped: bool):
        layers = [keras.layers.Dense(256, name=f"d{i}") for i in range(4)]
        q = WeightsSymmetricInferableQuantizer(4, 0.2, per_channel=True)
        return keras.Sequential([keras.Input((256,)), *([wrap(layer, q) for layer in layers] if wrapped else layers)])

    four(False).save(tmp_path / "float.keras")
    settle(four(True), "beside").save(tmp_path / "m.keras")
    assert (tmp_path / "m.keras").stat().st_size < 0.17 * (tmp_path / "float.keras").stat().st_size


class Block(keras.layers.Layer):
    """Sub-layers named by Keras, and no build of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = keras.layers.Dense(4), keras.layers.Dense(3)
        self.drop = keras.layers.Dropout(0.5)

    def call(self, x):
        return self.second(self.drop(self.first(x)))


def bidirectional():
    x = keras.Input((2, 3))
    layer = keras.layers.Bidirectional(keras.layers.LSTM(3, dropout=0.1))
    layer(x)
    paths = [path for path in weights_of(layer) if path.endswith("/kernel")]
    return keras.Model(x, wrap(layer, dict.fromkeys(paths, W3))(x)), X.reshape(8, 2, 3)


def attention():
    x = keras.Input((2, 3))
    layer = keras.layers.MultiHeadAttention(2, 3, dropout=0.1)
    layer(x, x)
    quantizers = {"query/kernel": W3, "value/kernel": W3}
    return keras.Model(x, wrap(layer, quantizers, [A8, A8])(x, x, return_attention_scores=True)), X.reshape(8, 2, 3)


def convolutions():
    x = keras.Input((4, 4, 3))
    y = wrap(keras.layers.DepthwiseConv2D(2), W3, A8)(x)
    y = wrap(keras.layers.Conv2DTranspose(4, 2), W3)(y)
    y = wrap(keras.layers.SeparableConv2D(2, 2), {"depthwise_kernel": W3, "pointwise_kernel": W3})(y)
    return keras.Model(x, y), np.random.default_rng(1).normal(size=(2, 4, 4, 3)).astype(np.float32)


def tokens():
    x = keras.Input((4,), dtype="int32")
    y = wrap(keras.layers.Embedding(9, 4, mask_zero=True), W3)(x)
    return keras.Model(x, wrap(keras.layers.GRU(3), {"recurrent_kernel": W3})(y)), np.arange(8).reshape(2, 4) % 9


def composite():
    block = wrap(Block(), {"first/kernel": W3, "second/kernel": W3})
    return keras.Sequential([keras.Input((6,)), block]), X


def nested_and_shared():
    shared = wrap(keras.layers.Dense(6), W3)
    inner = keras.Sequential([keras.Input((6,)), wrap(keras.layers.Dense(6), W3), keras.layers.ReLU()])
    x, z = keras.Input((6,), name="x"), keras.Input((6,), name="z")
    norm = wrap(
        keras.Sequential([keras.layers.Dense(6, name="d"), keras.layers.BatchNormalization()]), {"d/kernel": W3}
    )
    return keras.Model({"x": x, "z": z}, [inner(shared(x)), norm(inner(z)), shared(z)]), {"x": X, "z": -X}


W3 = WeightsSymmetricInferableQuantizer(3, 0.8, per_channel=True)
A8 = ActivationPOTInferableQuantizer(8, 4.0)
MODELS = [bidirectional, attention, convolutions, tokens, composite, nested_and_shared]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_structures_come_back_bit_equal(make, state, tmp_path):
    keras.utils.set_random_seed(2)
    model, inputs = make()
    settle(model, state)
    check_same(model, saved(model, tmp_path, {"Block": Block}), inputs, predict=True)


@pytest.mark.parametrize("state", STATES)
def test_a_layer_that_is_also_used_bare_keeps_its_float_weights(state, tmp_path):
    dense = keras.layers.Dense(6, name="bare")
    wrapper = wrap(dense, WeightsSymmetricInferableQuantizer(2, 0.8), name="w")
    x = keras.Input((6,))
    model = settle(keras.Model(x, [wrapper(x), dense(x), wrapper(dense(x))]), state)
    again = saved(model, tmp_path)
    check_same(model, again)
    np.testing.assert_array_equal(to_numpy(again.get_layer("bare").kernel), to_numpy(dense.kernel))
    check_same(model, saved(again, tmp_path))


def test_two_wrappers_on_one_layer(tmp_path):
    dense = keras.layers.Dense(3)
    first, second = wrap(dense, name="first"), wrap(dense, WeightsPOTInferableQuantizer(2, 0.5), name="second")
    x = keras.Input((6,))
    model = settle(keras.Model(x, [first(x), second(x)]), "beside")
    check_same(model, saved(model, tmp_path))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("state", STATES)
def test_other_dtypes(dtype, state, tmp_path):
    model = dense_model(WeightsSymmetricInferableQuantizer(8, 0.7), state, dtype=dtype)
    again = saved(model, tmp_path)
    check_same(model, again)
    assert again.get_layer("w").layer.kernel.dtype == model.get_layer("w").layer.kernel.dtype


def test_outputs_keep_their_quantizers(tmp_path):
    dense = keras.layers.Dense(3)
    model = keras.Sequential([keras.Input((6,)), wrap(dense, None, ActivationUniformInferableQuantizer(4, -1, 2))])
    again = saved(model, tmp_path)
    check_same(model, again)
    assert again.layers[0].dispatcher.activation_quantizers == model.layers[0].dispatcher.activation_quantizers


@pytest.mark.parametrize("state", STATES)
def test_it_goes_on_training(state, tmp_path):
    model = dense_model(W4, state)
    model.compile("sgd", "mse")
    again = saved(model, tmp_path)
    kernel = to_numpy(again.get_layer("w").layer.kernel)
    assert len(again.trainable_variables) == len(model.trainable_variables) == (2 if state == "unfrozen" else 1)
    for m in (model, again):
        m.fit(X, X[:, :3], verbose=0, shuffle=False)
    check_same(model, again)
    assert np.array_equal(to_numpy(again.get_layer("w").layer.kernel), kernel) is (state != "unfrozen")


def test_an_unbuilt_wrapper_has_a_configuration():
    wrapper = wrap(keras.layers.Dense(3))
    again = KerasQuantizationWrapper.from_config(wrapper.get_config())
    assert again.dispatcher.weight_quantizers == wrapper.dispatcher.weight_quantizers
    assert again(X).shape == (8, 3)


# --- weights alone, and copies ---


@pytest.mark.parametrize("state", STATES)
def test_weight_files(state, tmp_path):
    model, other = (
        dense_model(W4, state),
        dense_model(WeightsSymmetricInferableQuantizer(4, [9.0] * 3, per_channel=True), state),
    )
    model.save_weights(tmp_path / "m.weights.h5")
    other.load_weights(tmp_path / "m.weights.h5")
    check_same(model, other)
    assert other.get_layer("w").quantizers == model.get_layer("w").quantizers


@pytest.mark.parametrize("state", STATES)
def test_clones_take_weights(state):
    model = dense_model(W4, state)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    check_same(model, clone)


@pytest.mark.parametrize(("of", "into"), [("beside", "unfrozen"), ("unfrozen", "beside")])
def test_files_of_another_state_are_refused(of, into, tmp_path):
    dense_model(W4, of).save_weights(tmp_path / "m.weights.h5")
    wanted = "'kernel'" if into == "unfrozen" else "'kernel:codes'"
    with pytest.raises(ValueError, match=rf"expected {wanted} for layer 'fc'; the file holds \['bias'"):
        dense_model(W4, into).load_weights(tmp_path / "m.weights.h5")


def test_files_of_other_bits_are_refused(tmp_path):
    dense_model(W4).save_weights(tmp_path / "m.weights.h5")
    other = dense_model(WeightsSymmetricInferableQuantizer(8, [1.0] * 3, per_channel=True))
    with pytest.raises(ValueError, match=r"expected 8-bit codes of shape \(6, 3\); received 9 bytes"):
        other.load_weights(tmp_path / "m.weights.h5")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kernel:codes", np.full(18, 128, np.uint8), "from -127 to 127"),  # a code that a narrow grid lacks
        ("kernel:scale", np.full((1, 1), np.nan, np.float32), "scales to be positive and finite, .*received scale=nan"),
        ("kernel:scale", np.ones((1, 2), np.float32), "shape"),
        ("kernel:zero_point", np.full((1, 1), 0.5, np.float32), "zero points to be integers"),
    ],
    ids=["code", "nan scale", "scale shape", "zero point"],
)
def test_damaged_files_are_refused(key, value, message, tmp_path):
    model = dense_model(QUANTIZERS["narrow"])
    model.save_weights(tmp_path / "m.weights.h5")
    with h5py.File(tmp_path / "m.weights.h5", "r+") as file:
        group = file["layers/keras_quantization_wrapper/vars"]
        if key in group:
            del group[key]
        group[key] = value
    with pytest.raises(ValueError, match=message):
        model.load_weights(tmp_path / "m.weights.h5")


def test_a_weight_changed_after_freezing_is_not_saved(tmp_path):
    model = dense_model(W4, "in place")
    layer = model.get_layer("w").layer
    layer.kernel.assign(to_numpy(layer.kernel) + 0.01)
    with pytest.raises(
        InputError, match="frozen weight 'kernel' of layer 'fc' on its grid; it was changed after freeze"
    ):
        model.save(tmp_path / "m.keras")
    model.get_layer("w").freeze()
    check_same(model, saved(model, tmp_path))


def test_a_fresh_process_needs_keras_and_one_import(tmp_path, checkout):
    model, inputs = nested_and_shared()
    settle(model, "beside").save(tmp_path / "m.keras")
    np.savez(tmp_path / "x.npz", **inputs)
    np.savez(tmp_path / "y.npz", *model.predict(inputs, verbose=0))
    script = (
        "import keras, numpy as np, qi.keras, sys\n"
        "model = keras.models.load_model(sys.argv[1] + '/m.keras')\n"
        "found = model.predict(dict(np.load(sys.argv[1] + '/x.npz')), verbose=0)\n"
        "for a, b in zip(found, np.load(sys.argv[1] + '/y.npz').values(), strict=True):\n"
        "    np.testing.assert_array_equal(a, b)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
