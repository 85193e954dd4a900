"""Models from files: Keras 3's, the ``.h5`` files of Keras 2, SavedModels, and policies of other precisions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi import FileFormatError, UnsupportedError, convert, load_model, prepare_qat, quantize_model
from qi.cli.main import main
from qi.core import sqnr_db
from qi.keras.variables import to_numpy
from tests.keras.models import settle
from tests.keras.warned import warned

SHAPE = (8, 8, 4)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def outputs(model: keras.Model, x: Any) -> list[np.ndarray]:
    return [to_numpy(y) for y in keras.tree.flatten(model(x, training=False))]


def mobile() -> keras.Model:
    """Of layers whose records Keras 3 has changed."""
    image = keras.Input(SHAPE, name="image")
    x = layers.Conv2D(6, 3, padding="same", name="conv")(image)
    x = layers.ReLU(6.0, name="clamp")(layers.BatchNormalization(name="norm")(x))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = layers.SeparableConv2D(5, 3, name="separable")(x)
    x = layers.Conv2DTranspose(4, 3, name="transposed")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return settle(keras.Model(image, layers.Dense(3, activation="softmax", name="top")(x), name="mobile"))


def check(model: keras.Model, x: Any, path: Path, least: float = 25.0) -> tuple[keras.Model, Any]:
    """Quantizes, saves, reloads, trains a step, converts: the same bits wherever they have to be."""
    before = [to_numpy(v) for v in model.variables if "seed" not in v.path]
    quantized, report = quantize_model(model, "w8a8_minmax", x, progress=False)
    found = outputs(quantized, x)
    assert min(map(sqnr_db, outputs(model, x), found)) > least
    assert [row for row in report.unquantized if not row.reason] == []
    qi.save_model(quantized, path)
    for array, other in zip(found, outputs(load_model(path), x), strict=True):
        np.testing.assert_array_equal(array, other)
    qat = prepare_qat(model, "w8a8_minmax", x, progress=False)
    qat.compile("sgd", "mse", jit_compile=False)
    assert np.isfinite(qat.train_on_batch(x, outputs(model, x)[0].astype("float32")))
    for array, other in zip(outputs(qat, x), outputs(convert(qat), x), strict=True):
        np.testing.assert_array_equal(array, other)
    after = [to_numpy(v) for v in model.variables if "seed" not in v.path]
    np.testing.assert_equal(after, before)
    return quantized, report


# Files of Keras 3 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_file_of_this_keras(suffix: str, tmp_path: Path) -> None:
    model, path, x = mobile(), tmp_path / f"float{suffix}", noise(40, *SHAPE)
    model.save(path)
    loaded = load_model(path)
    np.testing.assert_array_equal(outputs(loaded, x)[0], outputs(model, x)[0])
    check(loaded, x, tmp_path / "quantized.keras")


def test_a_compiled_h5_whose_loss_cannot_be_read(tmp_path: Path) -> None:
    model, path, x = mobile(), tmp_path / "float.h5", noise(8, *SHAPE)
    model.compile("sgd", "mse")
    model.train_on_batch(x, noise(8, 3))
    model.save(path)
    with pytest.raises(ValueError, match="mse"):  # as long as Keras itself can't, there is something to get around
        keras.models.load_model(path)
    with warned() as found:
        loaded = load_model(path)
    assert "loaded without its losses and metrics, which this Keras can't read" in str(found[-1].message)
    assert not loaded.compiled
    np.testing.assert_array_equal(outputs(loaded, x)[0], outputs(model, x)[0])
    assert not load_model(path, compile=False).compiled


# Files of Keras 2 ------------------------------------------------------------------------------------------------------

GROUPED = ("DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose")


def as_keras_2(path: Path) -> Path:
    """Makes of an ``.h5`` file of Keras 3 what Keras 2 wrote: its version, entries, nodes and names of weights."""
    with h5py.File(path, "r+") as file:
        file.attrs["keras_version"] = b"2.15.0"
        record = json.loads(file.attrs["model_config"])
        for layer in record["config"]["layers"]:
            config = layer["config"]
            config["dtype"] = "float32"
            if "batch_shape" in config:
                config["batch_input_shape"] = config.pop("batch_shape")
            if layer["class_name"] in GROUPED:
                config["groups"] = 1
            if layer["class_name"] in ("LSTM", "GRU"):
                config["time_major"] = False
            if layer["class_name"] == "MultiHeadAttention":
                config.update(query_shape=[None, 6, 8], key_shape=[None, 6, 8], value_shape=[None, 6, 8])
            layer["inbound_nodes"] = [_old_node(node) for node in layer["inbound_nodes"]]
            for key in ("module", "registered_name", "build_config"):
                layer.pop(key, None)
        file.attrs["model_config"] = json.dumps(record).encode()
        _old_names(file["model_weights"])
    return path


def _old_node(node: Any) -> Any:
    first, *others = [tensor["config"]["keras_history"] for tensor in node["args"]]
    return [[*first, {"value": others[0]} if others else {}]]


def _old_names(weights: Any) -> None:
    """Weights of Keras 2 end in ":0", and a depthwise kernel has a name of its own."""
    for group in weights.values():
        names = [name.decode() if isinstance(name, bytes) else name for name in group.attrs["weight_names"]]
        old = [f"{name}:0".replace("depthwise/kernel", "depthwise/depthwise_kernel") for name in names]
        for name, changed in zip(names, old, strict=True):
            group.move(name, changed)
        group.attrs["weight_names"] = [name.encode() for name in old]


def test_a_mobile_network_of_keras_2(tmp_path: Path) -> None:
    model, path, x = mobile(), tmp_path / "old.h5", noise(40, *SHAPE)
    model.save(path)
    as_keras_2(path)
    with h5py.File(path) as file:
        assert "depthwise/depthwise_kernel:0" in file["model_weights/depthwise"]
    with pytest.raises((TypeError, ValueError), match="groups"):
        keras.models.load_model(path)
    loaded = load_model(path, compile=False)
    assert {type(layer).__module__.partition(".")[0] for layer in loaded.layers} == {"keras"}
    np.testing.assert_array_equal(outputs(loaded, x)[0], outputs(model, x)[0])
    check(loaded, x, tmp_path / "quantized.keras")


def test_recurrences_and_attention_of_keras_2(tmp_path: Path) -> None:
    steps = keras.Input((6, 8), name="steps")
    x = layers.MultiHeadAttention(2, 4, name="attention")(steps, steps)
    model = settle(keras.Model(steps, layers.GRU(4, name="gru")(layers.LSTM(5, return_sequences=True, name="lstm")(x))))
    path, data = tmp_path / "old.h5", noise(40, 6, 8)
    model.save(path)
    loaded = load_model(as_keras_2(path), compile=False)
    np.testing.assert_array_equal(outputs(loaded, data)[0], outputs(model, data)[0])


def test_the_command_line_reads_files_of_keras_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path, x = mobile(), tmp_path / "old.h5", noise(40, *SHAPE)
    model.save(path)
    as_keras_2(path)
    np.save(tmp_path / "x.npy", x)
    arguments = [
        str(path),
        "--data",
        str(tmp_path / "x.npy"),
        "--recipe",
        "w8a8_minmax",
        "-o",
        str(tmp_path / "q.keras"),
    ]
    assert main(["quantize", *arguments, "--quiet"]) == 0
    assert main(["inspect", str(tmp_path / "q.keras")]) == 0
    assert "depthwise" in capsys.readouterr().out
    assert sqnr_db(outputs(model, x)[0], outputs(load_model(tmp_path / "q.keras"), x)[0]) > 25


def test_a_layer_that_keras_3_has_not(tmp_path: Path) -> None:
    path = tmp_path / "old.h5"
    mobile().save(path)
    with h5py.File(as_keras_2(path), "r+") as file:
        record = json.loads(file.attrs["model_config"])
        record["config"]["layers"][2]["class_name"] = "TFOpLambda"
        file.attrs["model_config"] = json.dumps(record).encode()
    with pytest.raises(UnsupportedError, match=r"of class TFOpLambda, which is an operation of TensorFlow's; do build"):
        load_model(path)


# SavedModels -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, keras.Model]:
    folder, model = tmp_path_factory.mktemp("exported") / "mobile", mobile()
    model.export(folder, verbose=False)
    return folder, model


def test_a_saved_model_is_no_model_file(exported: tuple[Path, keras.Model]) -> None:
    with pytest.raises(FileFormatError, match=r"received '.*mobile', a folder; do save the model as .keras or .h5"):
        load_model(exported[0])


@pytest.mark.filterwarnings("ignore::qi.errors.QuantizationWarning")
def test_a_layer_around_a_saved_model_stays_in_float_and_says_so(
    exported: tuple[Path, keras.Model], tmp_path: Path
) -> None:
    folder, float_model = exported
    image = keras.Input(SHAPE, name="image")
    saved = layers.TFSMLayer(folder, call_endpoint="serve", name="saved")
    model = settle_head(keras.Model(image, layers.Dense(2, name="head")(saved(image))))
    x = noise(40, *SHAPE)
    before = [to_numpy(v) for v in saved.variables]
    quantized, report = quantize_model(model, "w8a8_minmax", x, progress=False)
    rows = {row.path: row for row in report.weights}
    assert rows["head/kernel"].quantized
    inside = [row for row in report.weights if row.layer == "saved"]
    assert len(inside) == len(float_model.variables)
    assert all(not row.quantized and row.reason for row in inside)
    assert sqnr_db(outputs(model, x)[0], outputs(quantized, x)[0]) > 25
    np.testing.assert_equal([to_numpy(v) for v in saved.variables], before)


def settle_head(model: keras.Model) -> keras.Model:
    model.get_layer("head").kernel.assign(noise(3, 2))
    return model


# Precisions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float16", "bfloat16", "float64"])
def test_policies(policy: str, tmp_path: Path) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        model = mobile()
    finally:
        keras.config.set_dtype_policy("float32")
    x = noise(40, *SHAPE)
    with warned():
        quantized, _ = check(model, x, tmp_path / "quantized.keras", least=20.0)
    assert quantized.output.dtype == model.output.dtype or policy == "float64"
    assert [layer.dtype_policy.name for layer in model.layers] == [policy] * len(model.layers)


def test_a_map_of_policies(tmp_path: Path) -> None:
    policies = keras.dtype_policies.DTypePolicyMap(default_policy="float32")
    policies["attention/query"] = keras.DTypePolicy("bfloat16")
    steps = keras.Input((5, 8), name="steps")
    x = layers.MultiHeadAttention(2, 4, name="attention", dtype=policies)(steps, steps)
    x = layers.Dense(3, dtype="mixed_float16", name="head")(layers.Flatten(name="flat")(x))
    model = settle(keras.Model(steps, x))
    assert model.get_layer("attention").query_dense.compute_dtype == "bfloat16"
    with warned():
        check(model, noise(40, 5, 8), tmp_path / "quantized.keras", least=20.0)


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
@pytest.mark.parametrize("work", [quantize_model, prepare_qat, qi.calibrate])
@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize` method:UserWarning")
def test_what_keras_has_quantized_is_refused(work: Any, mode: str) -> None:
    stack = [keras.Input((8,)), layers.Dense(6, name="first"), layers.Dense(3, name="second")]
    model = keras.Sequential(stack, name="mlp")
    model.quantize(mode)
    with pytest.raises(
        UnsupportedError, match=rf"Keras has quantized 2 layers \('first' to {mode}...\); do start from"
    ):
        work(model, data=noise(40, 8), progress=False)
