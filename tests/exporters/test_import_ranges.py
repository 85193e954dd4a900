from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from onnx import helper, numpy_helper

import qi
from qi.core import PerGroup
from qi.errors import ConfigError, FileFormatError, InputError, StrictError, UnsupportedError
from qi.exporters import litert, onnx_runtime
from qi.exporters.deploy import export
from qi.exporters.import_ranges import import_ranges
from qi.exporters.litert_check import check
from qi.exporters.read_litert import read_litert
from qi.exporters.read_onnx import read_onnx
from qi.ir.routing import route
from qi.keras.emulate import float_graph
from tests.exporters.vendor_files import (
    float_onnx,
    images,
    onnx_quantized,
    perceptron,
    quiet,
    samples_for,
    small_cnn,
    tflite,
)
from tests.keras.models import settle
from tests.keras.warned import warned

WEIGHTS = ["c1", "c2", "dw", "pw", "c3", "d1", "logits"]  # in the order of the graph


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return small_cnn()


@pytest.fixture(scope="module")
def quantized(model: keras.Model) -> keras.Model:
    return qi.quantize_model(model, "w8a8", images(), progress=False)[0]


@pytest.fixture(scope="module")
def converted(model: keras.Model) -> bytes:
    return tflite(model, images())


@pytest.fixture(scope="module")
def headless(model: keras.Model) -> keras.Model:
    """Without its softmax, which ONNX Runtime's quantizer leaves in real numbers."""
    return keras.Model(model.input, model.get_layer("logits").output)


@pytest.fixture(scope="module")
def onnx_source(headless: keras.Model) -> bytes:
    return float_onnx(headless)


def imported(data: bytes, model: keras.Model, folder: Path, suffix: str = ".tflite", **options: Any) -> Any:
    path = folder / f"vendor{suffix}"
    path.write_bytes(data)
    return import_ranges(path, model, **options)


def wrapped(qmodel: keras.Model) -> dict[str, Any]:
    """The quantized kernels by the layer's name, without what naming outputs adds."""
    found = {}
    for layer in qmodel.layers:
        if isinstance(layer, qi.KerasQuantizationWrapper):
            (found[layer.name.removesuffix("_raw")],) = layer.get_quantized_tensors().values()
    return found


def check_weights(file: Any, qmodel: keras.Model) -> None:
    """Codes and scales of all kernels are the file's, bit for bit."""
    given = [node.weight for node in file.nodes if node.weight is not None]
    own = wrapped(qmodel)
    assert sorted(own) == sorted(WEIGHTS)
    for name, weight in zip(WEIGHTS, given, strict=True):
        tensor = own[name]
        codes = tensor.codes.reshape(weight.data.shape).astype(int)
        scale, zero_point = (np.broadcast_to(a, tensor.shape) for a in tensor.qparams.expanded(tensor.shape))
        shift = 128 if weight.data.dtype == np.uint8 and not zero_point.any() else 0
        np.testing.assert_array_equal(codes, weight.data.astype(int) - shift)
        np.testing.assert_array_equal(
            scale.reshape(weight.data.shape), np.broadcast_to(weight.scale, weight.data.shape)
        )


def activations(report: Any) -> dict[str, tuple[float, float]]:
    """(scale, lowest number) of each quantized activation."""
    return {row.layer: (row.scale_max, row.range_lo) for row in report.activations if row.quantized}


def check_activations(file: Any, report: Any) -> None:
    """Every scale with its zero point that an activation of the file has is in the model, and no other."""
    params = {tensor.qparams for node in file.nodes for tensor in node.outputs if tensor.qparams is not None}
    params |= {tensor.qparams for _, tensor in file.inputs if tensor.qparams is not None}
    given = {(float(p.scale), float((p.grid.qmin - p.zero_point) * np.float64(p.scale))) for p in params}
    assert set(activations(report).values()) == given


def test_tflite_converter(model: keras.Model, converted: bytes, tmp_path: Path) -> None:
    """Integers from input to output: everything is found, and the twin gives what the file gives, bit for bit."""
    qmodel, report = imported(converted, model, tmp_path, strict=True)
    assert [row.path for row in report.unquantized if row.name != "bias"] == []
    check_weights(read_litert(converted), qmodel)
    check_activations(read_litert(converted), report)
    x = images(32, seed=9)
    (expected,) = litert.run(converted, [x]).values()
    np.testing.assert_array_equal(qi.emulate(qmodel, x, "litert", progress=False), expected)
    assert report.settings == {"file": "vendor.tflite", "weights_found": 7, "weights_in_file": 7}


def test_tflite_converter_with_integer_borders(model: keras.Model, tmp_path: Path) -> None:
    data = tflite(model, images(), integer_io=True)
    qmodel, _ = imported(data, model, tmp_path, strict=True)
    x = images(32, seed=9)
    params = read_litert(data).inputs[0][1].qparams
    assert params is not None
    (codes,) = litert.run(data, [params.quantize(x).codes.astype(np.int8)]).values()
    on_grid = params.quantize(x).dequantize()
    np.testing.assert_array_equal(qi.emulate(qmodel, on_grid, "litert", raw=True, progress=False), codes)


def test_ai_edge_quantizer(model: keras.Model, checkout: Path) -> None:
    path = checkout / "tests" / "golden" / "vendor" / "aeq_w8a8.tflite"
    qmodel, report = import_ranges(path, model, strict=True)
    file = read_litert(path.read_bytes())
    check_weights(file, qmodel)
    check_activations(file, report)
    params = file.inputs[0][1].qparams
    assert params is not None
    x = params.quantize(images(32, seed=9))
    (codes,) = litert.run(path.read_bytes(), [x.codes.astype(np.int8)]).values()
    np.testing.assert_array_equal(qi.emulate(qmodel, x.dequantize(), "litert", raw=True, progress=False), codes)


def test_packed_weights_only(model: keras.Model, checkout: Path) -> None:
    """The depthwise kernel is float in that file, and stays so; so do all activations."""
    path = checkout / "tests" / "golden" / "vendor" / "aeq_w4.tflite"
    with warned() as told:
        qmodel, report = import_ranges(path, model, strict=True)
    (line,) = (str(w.message) for w in told)
    assert line.startswith("2 layers have weights that the file makes real numbers of")
    assert line.endswith("do emulate and export the model with dynamic=False ('d1', 'logits')")
    assert {row.bits for row in report.weights if row.quantized} == {4}
    assert [row.layer for row in report.weights if not row.quantized and row.name == "kernel"] == ["dw"]
    assert activations(report) == {}
    x = images(32, seed=9)
    (expected,) = litert.run(path.read_bytes(), [x]).values()
    np.testing.assert_allclose(qmodel.predict(x, verbose=0), expected, rtol=0, atol=1e-6)
    found = qi.emulate(qmodel, x, "litert", dynamic=False, progress=False)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_dynamic_range(tmp_path: Path) -> None:
    """Weights of large products only."""
    model = settle(keras.Sequential([keras.Input((64,)), layers.Dense(64, activation="relu"), layers.Dense(2)]))
    _, report = imported(tflite(model, None, full=False), model, tmp_path, strict=True)
    assert [row.quantized for row in report.weights if row.name == "kernel"] == [True, False]
    assert activations(report) == {}


OPTIONS: dict[str, dict[str, Any]] = {
    "uint8, tensors": {},
    "uint8, channels": {"per_channel": True},
    "int8": {"per_channel": True, "activation_type": "QInt8"},
    "int8, symmetric": {"activation_type": "QInt8", "extra_options": {"ActivationSymmetric": True}},
    "QOperator": {"quant_format": "QOperator", "per_channel": True},
}


def onnx_options(case: str) -> dict[str, Any]:
    from onnxruntime.quantization import QuantFormat, QuantType

    given: dict[str, Any] = {"activation_type": "QUInt8", "weight_type": "QInt8", "quant_format": "QDQ"} | OPTIONS[case]
    named = {key: getattr(QuantType, given[key]) for key in ("activation_type", "weight_type")}
    return given | named | {"quant_format": getattr(QuantFormat, given["quant_format"])}


@pytest.mark.parametrize("case", OPTIONS)
def test_onnx_runtime(case: str, headless: keras.Model, onnx_source: bytes, tmp_path: Path) -> None:
    data = onnx_quantized(onnx_source, images(), tmp_path, **onnx_options(case))
    qmodel, report = imported(data, headless, tmp_path, ".onnx", strict=True)
    assert [row.path for row in report.unquantized if row.name != "bias"] == []
    check_weights(read_onnx(data), qmodel)
    check_activations(read_onnx(data), report)
    x = images(32, seed=9)
    (expected,) = onnx_runtime.run(data, [x]).values()
    np.testing.assert_array_equal(qi.emulate(qmodel, x, "onnxruntime", progress=False), expected)


def test_onnx_runtime_dynamic(headless: keras.Model, onnx_source: bytes, tmp_path: Path) -> None:
    data = onnx_quantized(onnx_source, images(), tmp_path, dynamic=True)
    with warned() as told:
        qmodel, report = imported(data, headless, tmp_path, ".onnx", strict=True)
    assert [str(w.message).partition(",")[0] for w in told] == [
        "7 layers take what the file rounds to codes as it comes"
    ]
    check_weights(read_onnx(data), qmodel)
    assert activations(report) == {}


@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
def test_our_own_file_gives_the_model_back(
    suffix: str, model: keras.Model, quantized: keras.Model, tmp_path: Path
) -> None:
    x, path = images(32, seed=9), tmp_path / f"own{suffix}"
    export(quantized, path, samples=x, latency=False)
    again, _ = import_ranges(path, model, strict=True)
    np.testing.assert_array_equal(again.predict(x, verbose=0), quantized.predict(x, verbose=0))
    target = "litert" if suffix == ".tflite" else "onnxruntime"
    np.testing.assert_array_equal(*(qi.emulate(m, x, target, progress=False) for m in (again, quantized)))
    export(again, tmp_path / f"again{suffix}", samples=x, latency=False, strict=True)


def test_shared_layers_and_equal_weights_are_told_apart_by_their_places(tmp_path: Path) -> None:
    a, b = layers.Input((16,), name="a"), layers.Input((16,), name="b")
    first, second = layers.Dense(12, activation="relu", name="d"), layers.Dense(12, name="e")
    x, y = second(first(a)), second(first(b))
    z = layers.Multiply()([layers.Subtract()([x, y]), x])
    model = settle(keras.Model([a, b], layers.Dense(3, activation="tanh", name="o")(layers.Concatenate()([z, y, a]))))
    rng = np.random.default_rng(0)
    samples = {name: rng.normal(0, size, (64, 16)).astype(np.float32) for name, size in (("a", 1.0), ("b", 3.0))}
    data = tflite(model, samples)
    qmodel, _ = imported(data, model, tmp_path, strict=True)
    found = qi.emulate(qmodel, [samples["a"], samples["b"]], "litert", progress=False)
    order = [name for name, _ in read_litert(data).inputs]
    (expected,) = litert.run(data, [samples[name] for name in order]).values()
    np.testing.assert_array_equal(found, expected)


def test_a_scale_for_each_channel_and_multiplier(tmp_path: Path) -> None:
    model = settle(
        keras.Sequential([keras.Input((8, 8, 3), name="image"), layers.DepthwiseConv2D(3, depth_multiplier=2)])
    )
    x = images(32)[:, :8, :8]
    data = tflite(model, x)
    qmodel, _ = imported(data, model, tmp_path, strict=True)
    (expected,) = litert.run(data, [x]).values()
    np.testing.assert_array_equal(qi.emulate(qmodel, x, "litert", progress=False), expected)


def test_a_factor_that_the_file_has_elsewhere_is_a_step_of_the_model(tmp_path: Path) -> None:
    """The file scales attention's scores in a step of its own, where Keras' layer does so within."""
    x = inputs = layers.Input((8, 16), name="x")
    x = layers.MultiHeadAttention(2, 8, name="mha")(x, x)
    model = settle(keras.Model(inputs, layers.Dense(4, name="o")(x)))
    samples = np.random.default_rng(0).normal(size=(64, 8, 16)).astype(np.float32)
    data = tflite(model, samples)
    with warned() as told:
        qmodel, _ = imported(data, model, tmp_path)
    (line,) = (str(w.message) for w in told)
    assert "layers have a bias before which the file rounds" in line
    (given,) = (
        node.weight for node in read_litert(data).nodes if node.weight is not None and "query" in node.weight.name
    )
    own = wrapped(qmodel)["mha_query"]
    np.testing.assert_array_equal(own.codes.reshape(given.data.shape), given.data)
    np.testing.assert_array_equal(own.qparams.scale.reshape(-1), given.scale.reshape(-1))
    (expected,) = (
        np.concatenate(a) for a in zip(*(litert.run(data, [s[None]]).values() for s in samples), strict=True)
    )
    exact = np.asarray(model(samples))
    error = np.abs(np.asarray(qmodel(samples)) - exact).mean()
    assert error < 2 * np.abs(expected - exact).mean()


def test_factors_of_channels_that_the_file_has_elsewhere_go_into_the_scales(tmp_path: Path) -> None:
    """A batch normalization that the tool left behind the product, say."""
    model = settle(keras.Sequential([keras.Input((32,), name="x"), layers.Dense(8, use_bias=False, name="d")]))
    (kernel,) = model.get_weights()
    gain, scale = np.linspace(0.5, 4, 8, dtype=np.float32), np.float32(0.01)
    codes = np.clip(np.rint(kernel / gain / scale), -127, 127).astype(np.int8)
    constants = {"w": codes, "s": scale, "z": np.int8(0), "g": gain}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["real"]),
        helper.make_node("MatMul", ["x", "real"], ["h"]),
        helper.make_node("Mul", ["h", "g"], ["y"]),
    ]
    ends = [[helper.make_tensor_value_info(n, 1, ["n", size])] for n, size in (("x", 32), ("y", 8))]
    graph = helper.make_graph(nodes, "g", *ends, [numpy_helper.from_array(a, n) for n, a in constants.items()])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    with warned() as told:
        qmodel, _ = imported(data, model, tmp_path, ".onnx")
    assert any("'d' has the file's integers, but other scales" in str(w.message) for w in told)
    own = wrapped(qmodel)["d"]
    np.testing.assert_array_equal(own.codes, codes)
    np.testing.assert_allclose(own.qparams.scale.reshape(-1), scale * gain, rtol=0.02)


def test_what_the_file_lacks_stays_in_float(model: keras.Model, converted: bytes, tmp_path: Path) -> None:
    """A second head that the file doesn't know."""
    extra = layers.Dense(5, name="extra")(model.get_layer("gap").output)
    larger = settle_new(keras.Model(model.input, [model.output, extra]), "extra")
    with warned() as told:
        qmodel, report = imported(converted, larger, tmp_path)
    assert [str(w.message) for w in told] == ["2 tensors stay in float, as vendor.tflite has nothing like them"]
    reasons = {row.path: row.reason for row in report.unquantized if row.name != "bias"}
    assert set(reasons) == {"extra/kernel", "extra/output"}
    assert "no weight of the file is like it" in reasons["extra/kernel"]
    assert len(qmodel.outputs) == 2
    with pytest.raises(StrictError, match="extra/kernel"):
        imported(converted, larger, tmp_path, strict=True)


def settle_new(model: keras.Model, name: str) -> keras.Model:
    settle(model.get_layer(name), seed=5)
    return model


def test_a_file_of_another_model_tells_how_much_was_found(converted: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"of the 7 quantized weights of 'vendor\.tflite', 0 are like"):
        imported(converted, small_cnn(seed=7), tmp_path)


def test_a_weight_elsewhere_in_the_graph_is_none(tmp_path: Path) -> None:
    """The same layers in another order."""

    def chain(*names: str) -> keras.Model:
        made = {name: layers.Dense(16, name=name) for name in sorted(names)}
        x = inputs = layers.Input((16,), name="x")
        for name in names:
            x = made[name](x)
        model = keras.Model(inputs, x)
        for seed, name in enumerate(sorted(names)):
            settle(made[name], seed)
        return model

    samples = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
    data = tflite(chain("a", "b", "c", "d"), samples)
    with warned():
        _, report = imported(data, chain("a", "b", "d", "c"), tmp_path)
    reasons = {row.layer: row.reason for row in report.weights if row.name == "kernel"}
    assert reasons["a"] == reasons["b"] == ""
    assert "elsewhere in its graph" in reasons["d"]


@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
def test_a_float_file_is_refused(
    suffix: str, quantized: keras.Model, model: keras.Model, onnx_source: bytes, tmp_path: Path
) -> None:
    data = litert.write(route(float_graph(quantized), "litert")) if suffix == ".tflite" else onnx_source
    with pytest.raises(InputError, match=r"expected a quantized file; .* all 7 weights"):
        imported(data, model, tmp_path, suffix)


@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
@pytest.mark.parametrize("data", [b"", b"something else", bytes(1000)])
def test_something_else_is_refused(suffix: str, data: bytes, model: keras.Model, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError):
        imported(data, model, tmp_path, suffix)


def test_a_file_cut_off_is_refused(model: keras.Model, converted: bytes, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError):
        imported(converted[: len(converted) // 2], model, tmp_path)


def test_other_kinds_of_files_and_models_are_refused(
    model: keras.Model, quantized: keras.Model, converted: bytes, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="tflite"):
        imported(converted, model, tmp_path, ".bin")
    with pytest.raises(UnsupportedError, match="float model"):
        imported(converted, quantized, tmp_path)
    with pytest.raises(OSError, match="missing"):
        import_ranges(tmp_path / "missing.tflite", model)


def test_the_given_model_is_left_alone(model: keras.Model, converted: bytes, tmp_path: Path) -> None:
    before = [np.array(w) for w in model.get_weights()]
    imported(converted, model, tmp_path)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_damaged_files_end_in_errors_of_ours(model: keras.Model, converted: bytes, tmp_path: Path) -> None:
    """Some damage changes numbers only; whatever it is, nothing but an error for people comes out."""
    rng, outcomes = np.random.default_rng(3), []
    for _ in range(8):
        data = bytearray(converted)
        for place in rng.integers(len(data), size=2):
            data[place] ^= 1 << rng.integers(8)
        try:
            with quiet():
                imported(bytes(data), model, tmp_path)
            outcomes.append("read")
        except qi.QiError as error:
            outcomes.append(type(error).__name__)
    assert "read" in outcomes


def blocks_of(node: Any, qmodel: keras.Model, name: str) -> None:
    """A layer has the file's blocks: codes and scales, bit for bit."""
    (tensor,) = qmodel.get_layer(name).get_quantized_tensors().values()
    scale, zero_point = (np.broadcast_to(a, tensor.shape) for a in tensor.qparams.expanded(tensor.shape))
    np.testing.assert_array_equal(scale, node.weight.scale)
    np.testing.assert_array_equal(
        tensor.codes.astype(int) - zero_point, node.weight.data.astype(int) - node.weight.zero_point
    )
    assert tensor.qparams.granularity == PerGroup(0, 32, 1)
    assert tensor.qparams.grid.bits == 4


def test_blocks_of_ai_edge_quantizer(checkout: Path) -> None:
    """Its runtime rounds what these products take, row by row; the weights are just the file's."""
    path, model = checkout / "tests" / "golden" / "vendor" / "aeq_blocks32.tflite", perceptron()
    with warned() as told:
        qmodel, report = import_ranges(path, model, strict=True)
    (line,) = (str(w.message) for w in told)
    assert line.startswith("3 layers take what the file rounds to codes as it comes, row by row")
    assert line.endswith("('a', 'b', 'logits')")
    assert (report.settings["weights_found"], activations(report)) == (3, {})
    for node, name in zip(
        (n for n in read_litert(path.read_bytes()).nodes if n.weight), ("a", "b", "logits"), strict=True
    ):
        blocks_of(node, qmodel, name)
    x = samples_for(model, 32, seed=9)
    (expected,) = litert.run(path.read_bytes(), [x]).values()
    exact, found = np.asarray(model(x)), qmodel.predict(x, verbose=0)
    assert np.abs(found - expected).mean() < 0.1 * np.abs(exact - expected).mean()


def test_blocks_of_onnx_runtime(checkout: Path) -> None:
    path, model = checkout / "tests" / "golden" / "vendor" / "ort_blocks32.onnx", perceptron()
    qmodel, _ = import_ranges(path, model, strict=True)
    for node, name in zip(
        (n for n in read_onnx(path.read_bytes()).nodes if n.weight), ("a", "b", "logits"), strict=True
    ):
        blocks_of(node, qmodel, name)
    x = samples_for(model, 32, seed=9)
    (expected,) = onnx_runtime.run(path.read_bytes(), [x]).values()
    np.testing.assert_allclose(qi.emulate(qmodel, x, "onnxruntime", progress=False), expected, rtol=0, atol=3e-6)


def test_a_file_of_ours_that_another_tool_changed(quantized: keras.Model, model: keras.Model, tmp_path: Path) -> None:
    """Quantizers keep the digest that our files carry, which tells of the bytes before."""
    path = tmp_path / "own.tflite"
    export(quantized, path, samples=images(4), latency=False)
    data = bytearray(path.read_bytes())
    (node,) = (n for n in read_litert(bytes(data)).nodes if n.weight is not None and "logits" in n.weight.name)
    place = bytes(data).index(np.ascontiguousarray(node.weight.data.T).tobytes())
    data[place] ^= 1
    with pytest.raises(FileFormatError, match="as qi wrote it"):
        check(bytes(data))
    assert not check(bytes(data), changed=True).sealed
    with warned() as told:
        qmodel, report = imported(bytes(data), model, tmp_path, strict=True)
    text = "vendor.tflite was changed after QI wrote it: what it holds now is imported"
    assert text in report.warnings
    assert text in [str(w.message) for w in told]
    changed, before = (wrapped(m)["logits"] for m in (qmodel, quantized))
    assert np.count_nonzero(changed.codes != before.codes) == 1


@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
def test_kernels_of_recurrent_layers_stay_float_and_are_named(suffix: str, tmp_path: Path) -> None:
    memory = layers.LSTM(4, name="memory")
    model = settle(keras.Sequential([keras.Input((6, 5)), layers.Dense(5, name="a"), memory, layers.Dense(3)]))
    x = np.random.default_rng(0).normal(size=(64, 6, 5)).astype("float32")
    export(qi.quantize_model(model, "w8a8", x, progress=False)[0], tmp_path / f"m{suffix}", samples=x, latency=False)
    with warned():
        result, report = import_ranges(tmp_path / f"m{suffix}", model)
    reasons = {row.path: row.reason for row in report.unquantized}
    assert "aren't looked for" in reasons["memory/lstm_cell/recurrent_kernel"]
    assert result.get_layer("a").get_quantized_tensors()["kernel"].bits == 8
