"""Trained models in ONNX Runtime and in the twin: the same codes on every image, by integer kernels alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qi.exporters import onnx_file, onnx_runtime
from qi.ir import twin
from qi.ir.graph import QGraph
from qi.ir.routing import route
from tests.benchmarks.common import MODELS, load_data, load_float

pytestmark = pytest.mark.slow
IMAGES = 256


@pytest.fixture(scope="module")
def images(shared_dir: Path) -> np.ndarray:
    if not (shared_dir / "bench").is_dir():
        pytest.skip("no trained models in the reference data")
    return load_data().x_test[:IMAGES].astype(np.float32)


@pytest.fixture(scope="module", params=MODELS)
def graph(request: pytest.FixtureRequest, images: np.ndarray) -> QGraph:
    import qi
    from qi.keras.lower import lower

    del images
    qmodel, _ = qi.quantize_model(load_float(request.param), "w8a8", load_data().x_calib[:128], progress=False)
    return route(lower(qmodel), "onnxruntime")


def test_every_code_of_every_output(graph: QGraph, images: np.ndarray) -> None:
    data, expected = onnx_file.write(graph, integer_io=True), twin.run(graph, [images], every=True)
    codes = expected[graph.ops[0].y.name]
    for threads in (1, 2):
        found = onnx_runtime.run(data, [(codes + 128).astype(np.uint8)], threads=threads)
        for tensor in graph.outputs:
            assert np.array_equal(found[tensor.name].astype(int) - 128, expected[tensor.name])


def test_real_numbers_in_and_out(graph: QGraph, images: np.ndarray) -> None:
    found = onnx_runtime.run(onnx_file.write(graph), [images])
    for tensor in graph.outputs:
        codes = twin.run(graph, [images])[tensor.name]
        assert np.array_equal(found[tensor.name], (codes - tensor.zero_point).astype(np.float32) * tensor.scale)


def test_every_tensor_inside(graph: QGraph, images: np.ndarray) -> None:
    assert onnx_runtime.first_difference(graph, onnx_file.write(graph), [images[:16]]) is None


def test_integers_all_the_way(graph: QGraph) -> None:
    kernels = onnx_runtime.kernels(onnx_file.write(graph))
    assert (kernels[0], kernels[-1]) == ("QuantizeLinear", "DequantizeLinear")
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kernels[1:-1])
    assert onnx_runtime.float_kernels(onnx_file.write(graph)) == []
    assert kernels.count("Transpose") <= 1  # of what the last pool gives
