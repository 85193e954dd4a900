"""Models of which the weights alone are integers, in both runtimes."""

from __future__ import annotations

import numpy as np
import pytest

from qi.core import PerChannel, QParams
from qi.exporters import litert, onnx_file, onnx_runtime
from qi.exporters.litert_file import schema
from qi.ir import Op, QGraph, Tensor, run
from qi.ir.routing import route
from tests.ir.graphs import graph_of, grouped, real, weight_only
from tests.parity.operations import case, samples

CONVOLUTION = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilation": [1, 1], "groups": 1, "activation": "relu"}


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


def types(data: bytes) -> set[str]:
    """The types of constants of many numbers in a LiteRT file."""
    fb = schema()
    names = {value: name for name, value in vars(fb.TensorType).items() if isinstance(value, int)}
    model = fb.ModelT.InitFromPackedBuf(data)
    filled = {i for i, buffer in enumerate(model.buffers) if buffer.data is not None and len(buffer.data) > 0}
    return {names[t.type] for t in model.subgraphs[0].tensors if t.buffer in filled}


def dynamic(rng: np.random.Generator, bits: int) -> tuple[QGraph, np.ndarray]:
    """A product of rank 2 or 3, with and without bias, and rows of one sign, of zeros, large and small."""
    inputs, outputs, top = int(rng.integers(1, 150)), int(rng.integers(1, 40)), 2 ** (bits - 1) - 1
    shape = (5, inputs) if rng.random() < 0.4 else (inputs,)
    x, y = real("x", *shape), real("y", *shape[:-1], outputs)
    scale = rng.uniform(1e-4, 0.02, (1, outputs)).astype(np.float32)
    w = grouped("w", rng, (inputs, outputs), inputs, bits)
    assert w.qparams is not None
    w.data = rng.integers(-top, top + 1, (inputs, outputs)).astype(np.int8)
    w.qparams = QParams(scale, np.zeros(scale.shape), w.grid, PerChannel(1))
    bias = [Tensor("b", (outputs,), data=rng.normal(size=outputs).astype(np.float32))][: int(rng.integers(0, 2))]
    op = Op("dense", [x, w, *bias], [y], {"activation": str(rng.choice(["none", "relu", "relu6"]))}, "d")
    batch = int(rng.integers(1, 9))
    values = rng.normal(size=(batch, *shape)) * np.exp(3 * rng.normal(size=(batch, *shape[:-1], 1)))
    form = int(rng.integers(0, 4))
    values = [
        values,
        np.maximum(values, 0),
        -1 - np.abs(values),
        values * (np.arange(batch) > 0).reshape(-1, *[1] * len(shape)),
    ]
    return graph_of(op, inputs=[x]), values[form].astype(np.float32)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_dynamic_products_bit_by_bit(bits: int) -> None:
    """XNNPACK's kernels, in one thread and two; rows of any length, also such as end within a byte."""
    rng = np.random.default_rng(bits)
    for i in range(40):
        graph, x = dynamic(rng, bits)
        routed = route(graph, "litert")
        found = litert.run(litert.write(routed), [x], threads=1 + i % 2)["y"]
        np.testing.assert_array_equal(found, run(routed, [x])["y"], err_msg=f"case {i}: {graph}")


@pytest.mark.parametrize(
    "kind", ["conv2d", "depthwise_conv2d", "conv2d_transpose", "dense", "dense_int4", "dense_int2"]
)
@pytest.mark.parametrize("bits", [8, 4])
def test_litert_makes_weights_real(kind: str, bits: int) -> None:
    """With both sets of kernels. Convolutions are never dynamic, which is several times slower."""
    for seed in range(4):
        graph = case(kind, seed)
        inputs = samples(graph, seed)
        w = graph.ops[-1].inputs[1]
        if bits == 4 and w.grid.bits == 8:
            assert w.data is not None
            assert w.qparams is not None
            w.data = w.data // 16
            grid = grouped("", np.random.default_rng(0), (1, 1), 1, bits=4).grid
            w.data = np.maximum(w.data, grid.qmin)
            w.qparams = QParams(w.qparams.scale, w.qparams.zero_point, grid, w.qparams.granularity)
        routed = route(weight_only(graph), "litert", dynamic=False)
        data, expected = litert.write(routed), run(routed, inputs)["y"]
        assert f"INT{w.grid.bits}" in types(data)
        for reference in (False, True):
            close(litert.run(data, inputs, reference=reference)["y"], expected)


@pytest.mark.parametrize("per", ["all", "column", "row"])
def test_litert_picks_rows_of_codes(per: str) -> None:
    graph = weight_only(case("embedding", 1))
    table, rng = graph.ops[-1].inputs[1], np.random.default_rng(0)
    rows, columns = (int(n or 0) for n in table.shape)
    shape = {"all": (), "column": (1, columns), "row": (rows, 1)}[per]
    scale = rng.uniform(0.01, 0.1, shape).astype(np.float32)
    more = [] if per == "all" else [PerChannel(1 if per == "column" else 0)]
    table.qparams = QParams(scale, np.zeros(shape), table.grid, *more)
    inputs = samples(graph)
    routed = route(graph, "litert")
    data = litert.write(routed)
    assert "INT8" in types(data)
    np.testing.assert_array_equal(litert.run(data, inputs)["y"], run(routed, inputs)["y"])


@pytest.mark.parametrize("inputs", [64, 70, 33])
@pytest.mark.parametrize("kind", ["dense", "conv2d"])
def test_scales_of_groups(kind: str, inputs: int) -> None:
    """The last group may be partial. Both runtimes hold 4 bits for each weight."""
    rng = np.random.default_rng(inputs)
    shape, image = ((inputs, 9), ()) if kind == "dense" else ((3, 3, inputs, 9), (4, 5))
    x, y, w = real("x", *image, inputs), real("y", *image, 9), grouped("w", rng, shape, 32)
    bias = Tensor("b", (9,), data=rng.normal(size=9).astype(np.float32))
    attrs = {"activation": "relu"} if kind == "dense" else CONVOLUTION
    graph = graph_of(Op(kind, [x, w, bias], [y], attrs, "layer"), inputs=[x])
    values = rng.normal(size=(3, *image, inputs)).astype(np.float32)
    expected = run(graph, [values], "reference")["y"]
    data = litert.write(route(graph, "litert"))
    assert "INT4" in types(data)
    close(litert.run(data, [values])["y"], expected)
    for packed in (False, True):
        content = onnx_file.write(route(graph, "onnxruntime", packed=packed), packed=packed)
        close(onnx_runtime.run(content, [values])["y"], expected)
        assert ("MatMulNBits" in onnx_runtime.kernels(content)) == (packed and kind == "dense")
