"""Packed weights in an ONNX file: whole numbers in float32, which any order of adding sums exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qi.core import IntGrid, QParams
from qi.exporters import onnx_file, onnx_runtime
from qi.ir import Op, QGraph, run
from qi.ir.routing import route
from tests.ir.graphs import act, codes_of, graph_of, weight
from tests.parity.operations import case, samples

KINDS = ("conv2d_int4", "depthwise_conv2d_int4", "conv2d_transpose", "dense_int4", "dense_int2")
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]] = {  # input, weight, output, channels
    "conv2d": ((6, 6, 40), (3, 3, 40, 8), (4, 4, 8), 3),
    "depthwise_conv2d": ((6, 6, 8), (3, 3, 8), (4, 4, 8), 2),
    "conv2d_transpose": ((3, 3, 40), (4, 4, 8, 40), (6, 6, 8), 2),
    "dense": ((360,), (360, 8), (8,), 1),
}


def four_bits(graph: QGraph) -> QGraph:
    """The graph with weights of 4 bits."""
    w = graph.ops[-1].inputs[1]
    assert w.qparams is not None
    assert w.data is not None
    w.data = np.clip(w.data, -7, 7)
    w.qparams = QParams(w.qparams.scale, w.qparams.zero_point, IntGrid(4, narrow=True), w.qparams.granularity)
    return graph


def ties(kind: str) -> QGraph:
    """An operation whose every second sum lies right between two codes: ``float32(0.1 * 0.1) / sy`` is a half."""
    given, of_weight, gives, axis = SHAPES[kind]
    rng = np.random.default_rng(3)
    w = weight("w", rng.integers(-7, 8, of_weight), np.full(of_weight[axis], 0.1), axis)
    y = act(float(2 * (np.float32(0.1) * np.float32(0.1))), 3)
    pads = [1, 1, 1, 1] if kind == "conv2d_transpose" else [0, 0, 0, 0]
    strides = [2, 2] if kind == "conv2d_transpose" else [1, 1]
    attrs: dict[str, Any] = {"strides": strides, "pads": pads, "dilation": [1, 1], "activation": "none"}
    attrs |= {"groups": 1} if kind == "conv2d" else {}
    x = codes_of("x", *given, qparams=act(0.1, 5))
    return four_bits(graph_of(Op(kind, [x, w], [codes_of("y", *gives, qparams=y)], attrs, "layer"), inputs=[x]))


@pytest.mark.parametrize("kind", sorted(SHAPES))
@pytest.mark.parametrize("optimized", [True, False])
def test_codes_near_a_tie_are_those_of_integer_kernels(kind: str, optimized: bool) -> None:
    """Also where the runtime optimizes nothing. Sums of real numbers would be a last bit off, and fall to either side."""
    graph = ties(kind)
    routed, plain = (route(graph, "onnxruntime", packed=packed) for packed in (True, False))
    codes = 5 + np.random.default_rng(0).integers(-3, 4, (64, *SHAPES[kind][0]))
    expected = run(plain, [codes])["y"]
    assert (np.abs(expected) < 127).mean() > 0.5
    np.testing.assert_array_equal(run(routed, [codes])["y"], expected)
    data, fed = onnx_file.write(routed, integer_io=True), [(codes + 128).astype(np.uint8)]
    np.testing.assert_array_equal(onnx_runtime.run(data, fed, optimized=optimized)["y"].astype(int) - 128, expected)
    real = onnx_runtime.run(onnx_file.write(plain, integer_io=True), fed, optimized=False)["y"].astype(int) - 128
    assert (real != expected).mean() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_packed_weights_gives_the_numbers_of_one_without(kind: str) -> None:
    for seed in range(8):
        graph = four_bits(case(kind, seed)) if kind == "conv2d_transpose" else case(kind, seed)
        files = [route(graph, "onnxruntime", packed=packed) for packed in (True, False)]
        assert all(op.quantized for op in files[0].ops[1:])
        packed, plain = (onnx_runtime.run(onnx_file.write(r), samples(graph), threads=2)["y"] for r in files)
        np.testing.assert_array_equal(packed, plain)


def test_weights_lie_two_to_the_byte_and_scales_each_for_itself() -> None:
    graph = case("conv2d_int4", 5)
    model = onnx.load_from_string(onnx_file.write(route(graph, "onnxruntime", packed=True)))
    stored = {t.name: t for t in model.graph.initializer}
    x, w = graph.ops[-1].inputs[:2]
    assert stored["w"].data_type == onnx.TensorProto.INT4
    assert len(stored["w"].raw_data) == -(-int(np.prod(w.shape)) // 2)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(stored["w:scale_1"]).reshape(-1), w.scales())
    scalars = {float(onnx.numpy_helper.to_array(t)) for n, t in stored.items() if n.startswith("scale")}
    assert scalars == {1.0, float(x.scale), float(graph.outputs[0].scale)}


@pytest.mark.parametrize(("count", "bits"), [(18_000, 4), (20_000, 8)])
def test_sums_beyond_what_float32_counts_lie_in_bytes(count: int, bits: int) -> None:
    """20,000 inputs of 4 bits may sum up to more than 2**24: the integer kernel does these."""
    x, w = codes_of("x", count, qparams=act(0.1, 0)), weight("w", np.full((count, 2), 7), [0.01, 0.02])
    y = codes_of("y", 2, qparams=act(300.0))
    graph = four_bits(graph_of(Op("dense", [x, w], [y], {"activation": "none"}, "layer"), inputs=[x]))
    routed = route(graph, "onnxruntime", packed=True)
    assert routed.ops[0].inputs[1].grid.bits == bits
    assert ("QGemm" in onnx_runtime.kernels(onnx_file.write(routed, integer_io=True))) == (bits == 8)
