from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import qi
from qi.errors import UnsupportedError
from qi.exporters import litert, onnx_runtime
from qi.exporters.deploy import export
from qi.exporters.import_ranges import import_ranges
from qi.exporters.read_litert import read_litert
from qi.exporters.read_onnx import read_onnx
from tests.exporters.vendor_files import float_onnx, onnx_quantized, samples_for, swish_net, tflite, transformer
from tests.keras.warned import warned


@pytest.fixture(scope="module")
def swish() -> keras.Model:
    return swish_net()


@pytest.fixture(scope="module")
def block() -> keras.Model:
    return transformer()


@pytest.fixture(scope="module")
def block_onnx(block: keras.Model) -> bytes:
    return float_onnx(block)


def imported(data: bytes, model: keras.Model, folder: Path, suffix: str, **options: Any) -> tuple[Any, Any, list[str]]:
    """(model, report, what was told)."""
    path = folder / f"vendor{suffix}"
    path.write_bytes(data)
    with warned() as told:
        qmodel, report = import_ranges(path, model, **options)
    return qmodel, report, [str(w.message) for w in told]


def layers_of(qmodel: keras.Model, name: str) -> list[str]:
    return [layer.name for layer in qmodel.layers if type(layer).__name__ == name]


def weight_types(kind: str) -> dict[str, Any]:
    from onnxruntime.quantization import QuantFormat, QuantType

    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8}
    return types | (
        {"quant_format": QuantFormat.QOperator} if kind == "QOperator" else {"quant_format": QuantFormat.QDQ}
    )


def test_swish_is_a_product_with_a_sigmoid_where_the_file_rounds_that(swish: keras.Model, tmp_path: Path) -> None:
    data = tflite(swish, samples_for(swish))
    qmodel, report, told = imported(data, swish, tmp_path, ".tflite", strict=True)
    assert told == []
    assert layers_of(qmodel, "Multiply") == ["s0_product", "expand_silu_product", "s1_product"]
    assert [row.path for row in report.unquantized if row.name != "bias"] == []
    x = samples_for(swish, 32, seed=9)
    (expected,) = litert.run(data, [x]).values()
    np.testing.assert_array_equal(qi.emulate(qmodel, x, "litert", progress=False), expected)


def test_swish_of_ai_edge_quantizer(swish: keras.Model, checkout: Path) -> None:
    path = checkout / "tests" / "golden" / "vendor" / "aeq_swish_w8a8.tflite"
    qmodel, _ = import_ranges(path, swish, strict=True)
    params = read_litert(path.read_bytes()).inputs[0][1].qparams
    assert params is not None
    x = params.quantize(samples_for(swish, 32, seed=9))
    (codes,) = litert.run(path.read_bytes(), [x.codes.astype(np.int8)]).values()
    np.testing.assert_array_equal(qi.emulate(qmodel, x.dequantize(), "litert", raw=True, progress=False), codes)


def test_swish_stays_whole_where_the_file_does_it_in_real_numbers(swish: keras.Model, tmp_path: Path) -> None:
    quantized, _ = qi.quantize_model(swish, "w8a8", samples_for(swish), progress=False)
    x, path = samples_for(swish, 32, seed=9), tmp_path / "own.tflite"
    export(quantized, path, samples=x, latency=False)
    qmodel, _ = import_ranges(path, swish, strict=True)
    assert layers_of(qmodel, "Multiply") == []
    np.testing.assert_array_equal(qmodel.predict(x, verbose=0), quantized.predict(x, verbose=0))


@pytest.mark.parametrize("kind", ["QDQ", "QOperator"])
def test_weights_with_zero_points_are_those_of_onnx_runtime(kind: str, swish: keras.Model, tmp_path: Path) -> None:
    """uint8 weights: imported, emulated and exported again, bit for bit; LiteRT has no kernel for them."""
    data = onnx_quantized(float_onnx(swish), samples_for(swish), tmp_path, **weight_types(kind))
    zeros = [node.weight.zero_point for node in read_onnx(data).nodes if node.weight is not None]
    assert any((zero != 128).all() for zero in zeros if zero is not None)
    qmodel, _, told = imported(data, swish, tmp_path, ".onnx", strict=True)
    assert told == []
    x = samples_for(swish, 32, seed=9)
    (expected,) = onnx_runtime.run(data, [x]).values()
    np.testing.assert_array_equal(qi.emulate(qmodel, x, "onnxruntime", progress=False), expected)
    assert export(qmodel, tmp_path / "again.onnx", samples=x, latency=False, strict=True).float_operations == ()
    with pytest.raises(
        UnsupportedError, match=r"zero point 0, as 'litert' has no integer kernel .* received layer 'stem'"
    ):
        export(qmodel, tmp_path / "again.tflite", samples=x, latency=False)


@pytest.mark.parametrize("kind", ["QDQ", "QOperator"])
def test_a_transformer_of_onnx_runtime(kind: str, block: keras.Model, block_onnx: bytes, tmp_path: Path) -> None:
    """The factors of normalizations are rounded in that file, and so they are in the model; normalizations themselves, and
    softmax, are done in real numbers there."""
    data = onnx_quantized(block_onnx, samples_for(block), tmp_path, **weight_types(kind))
    qmodel, report, (told,) = imported(data, block, tmp_path, ".onnx", strict=True)
    own = "('ln1', 'mha/softmax', 'ln2')" if kind == "QDQ" else "('mha/softmax', 'ln2')"
    assert "which our own files do in steps of their own" in told
    assert told.endswith(f"{own}")
    (node, _) = [node for node in read_onnx(data).nodes if node.kind == "norm"]
    for path, constant in zip(("gamma", "beta"), node.constants, strict=True):
        (own,) = (np.asarray(w) for w in qmodel.get_layer("ln1").weights if w.name == path)
        np.testing.assert_array_equal(own, constant.real())
        assert constant.quantized == (kind == "QDQ")
    x = samples_for(block, 16, seed=9)
    (expected,) = onnx_runtime.run(data, [x]).values()
    (step,) = (row.scale_max for row in report.activations if row.layer == "logits")
    steps = np.rint((qi.emulate(qmodel, x, "onnxruntime", progress=False) - expected) / step)
    assert np.abs(steps).max() <= 2
    assert np.mean(steps == 0) > 0.6


def test_the_factor_of_attention_stands_where_the_file_has_it(block: keras.Model, tmp_path: Path) -> None:
    """Rounded activations of products are what the file and the twin share: what is left are last bits of float32."""
    data = tflite(block, None, full=False)
    qmodel, _, told = imported(data, block, tmp_path, ".tflite", strict=True)
    assert told == []
    (name,) = layers_of(qmodel, "Rescaling")
    assert (name, qmodel.get_layer(name).scale) == ("mha_scores_factor", 0.25)
    (query,) = (n.weight for n in read_litert(data).nodes if n.weight is not None and "query" in n.weight.name)
    own = qmodel.get_layer("mha_query").get_quantized_tensors()["kernel"]
    np.testing.assert_array_equal(own.qparams.scale.reshape(-1), query.scale.reshape(-1))
    x = samples_for(block, 16, seed=9)
    (expected,) = litert.run(data, [x]).values()
    difference = np.abs(qi.emulate(qmodel, x, "litert", progress=False) - expected)
    assert difference.max() < 3e-3  # a step of a row that lies near a tie
    assert np.median(difference) < 1e-6


def test_what_a_file_does_in_codes_within_a_layer_is_told_by_name(block: keras.Model, tmp_path: Path) -> None:
    data = tflite(block, samples_for(block))
    qmodel, report, told = imported(data, block, tmp_path, ".tflite")
    assert [row.path for row in report.unquantized if row.kind == "activation"] == []
    assert layers_of(qmodel, "Rescaling") == ["mha_scores_factor"]
    for name, line in zip(("ln1", "ln2"), told, strict=False):
        assert "average" in line
        assert "rsqrt" in line
        assert f"belong to layer {name!r}, which the file takes apart" in line
    (parted,) = told[2:]
    assert parted.startswith("5 layers have a bias before which the file rounds")
    assert parted.endswith("('mha/query', 'mha/key', 'mha/value', 'up', 'down')")
    x = samples_for(block, 16, seed=9)
    (expected,) = litert.run(data, [x]).values()
    exact = np.asarray(block(x))
    assert np.abs(qi.emulate(qmodel, x, "litert", progress=False) - exact).mean() < 2 * np.abs(expected - exact).mean()
