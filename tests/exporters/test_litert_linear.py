from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.core import IntGrid, PerGroup, QParams
from qi.errors import UnsupportedError
from qi.exporters import litert
from qi.exporters.litert_check import check
from qi.exporters.litert_file import schema
from qi.ir import Op, QGraph, Tensor, run
from qi.ir.routing import route
from tests.ir.graphs import act, codes_of, graph_of, grouped, real, weight
from tests.parity.operations import case

CODES = np.random.default_rng(0).integers(-128, 128, (4, 5, 5, 4)).astype(np.int8)


def dense(bits: int, inputs: int = 8, target: str = "litert") -> QGraph:
    graph = case("dense" if bits == 8 else f"dense_int{bits}", 3)
    return route(graph, target)


def tensors(data: bytes) -> dict[str, Any]:
    return {t.name.decode(): t for t in schema().ModelT.InitFromPackedBuf(data).subgraphs[0].tensors}


def versions(data: bytes) -> dict[int, int]:
    return {code: version for code, _, version in check(data).operators}


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_fully_connected_is_of_version_4(bits: int) -> None:
    """Converters stamp 5 to 12, which older runtimes refuse; 4 runs int8, int4 and int2 alike."""
    data = litert.write(dense(bits))
    assert versions(data)[schema().BuiltinOperator.FULLY_CONNECTED] == 4
    assert tensors(data)["w"].type == getattr(schema().TensorType, f"INT{bits}")


def test_a_scale_for_each_channel_even_where_all_are_one() -> None:
    x, y = codes_of("x", 4), codes_of("y", 3)
    w = weight("w", np.ones((4, 3)), [0.5, 0.5, 0.5])
    w.qparams = act(0.5)
    data = litert.write(route(graph_of(Op("dense", [x, w], [y], {"activation": "none"}, "d"), inputs=[x]), "litert"))
    found = tensors(data)["w"]
    assert found.quantization.scale.tolist() == [0.5] * 3
    assert (found.shape.tolist(), found.quantization.quantizedDimension) == ([3, 4], 0)


@pytest.mark.parametrize(
    ("kind", "shape", "axis"),
    [("conv2d", [6, 3, 2, 4], 0), ("depthwise_conv2d", [1, 3, 2, 8], 3), ("conv2d_transpose", [6, 3, 2, 4], 0)],
)
def test_layouts(kind: str, shape: list[int], axis: int) -> None:
    ours = {"conv2d": (3, 2, 4, 6), "depthwise_conv2d": (3, 2, 8), "conv2d_transpose": (3, 2, 6, 4)}[kind]
    channels = {"conv2d": 3, "depthwise_conv2d": 2, "conv2d_transpose": 2}[kind]
    w = weight("w", np.ones(ours), np.full(ours[channels], 0.1), channels)
    data = litert.write(route(linear(kind, w), "litert"), integer_io=True)
    found = tensors(data)["w"]
    assert (found.shape.tolist(), found.quantization.quantizedDimension) == (shape, axis)
    assert tensors(data)["y/bias"].quantization.scale.size == shape[axis]


def linear(kind: str, w: Any, **attrs: Any) -> QGraph:
    x = codes_of("x", 5, 5, 4)
    given = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilation": [1, 1], "activation": "none", **attrs}
    if kind == "conv2d":
        given.setdefault("groups", 1)
    height, width = w.shape[:2]
    d = given["dilation"]
    change = [(height - 1) * d[0], (width - 1) * d[1]]
    sign = 1 if kind == "conv2d_transpose" else -1
    size = [5 + sign * c - a - b for c, a, b in zip(change, given["pads"][::2], given["pads"][1::2], strict=True)]
    count = w.shape[-2 if kind == "conv2d_transpose" else -1]
    y = codes_of("y", *size, count, qparams=act(0.5))
    return graph_of(Op(kind, [x, w], [y], given, "layer"), inputs=[x])


@pytest.mark.parametrize("target", ["litert", "reference"])
@pytest.mark.parametrize("attrs", [{"dilation": [2, 3]}, {"pads": [1, 0, 0, 1]}, {"pads": [2, 1, 0, 0]}])
def test_transposed_convolutions_that_take_more_than_one_operator(attrs: dict[str, Any], target: str) -> None:
    rng = np.random.default_rng(1)
    w = weight("w", rng.integers(-127, 128, (3, 2, 6, 4)), rng.uniform(0.01, 0.02, 6), 2)
    graph = route(linear("conv2d_transpose", w, **attrs), target)
    found = litert.run(litert.write(graph, integer_io=True), [CODES], reference=target == "reference")["y"]
    np.testing.assert_array_equal(found, run(graph, [CODES])["y"])


def test_int2_convolutions_are_refused() -> None:
    w = weight("w", np.ones((1, 1, 4, 6)), np.full(6, 0.1))
    assert w.qparams is not None
    w.qparams = QParams(w.qparams.scale, w.qparams.zero_point, IntGrid(2, narrow=True), w.qparams.granularity)
    with pytest.raises(UnsupportedError, match=r"2 bits, of layer 'layer'; do give the layer 4 or 8 bits"):
        litert.write(route(linear("conv2d", w), "litert", packed=True))


def real_dense(inputs: int = 4, bits: int = 8) -> QGraph:
    """A product of which the weights alone are codes."""
    rng = np.random.default_rng(0)
    w = weight("w", rng.integers(-1, 2, (inputs, 3)), [0.1, 0.2, 0.3])
    assert w.qparams is not None
    w.qparams = QParams(w.qparams.scale, w.qparams.zero_point, IntGrid(bits, narrow=True), w.qparams.granularity)
    x = real("x", inputs)
    return graph_of(Op("dense", [x, w], [real("y", 3)], {"activation": "none"}, "d"), inputs=[x])


@pytest.mark.parametrize(
    ("bits", "inputs", "dynamic", "kind"),
    [
        (4, 8, True, 4),
        (4, 7, True, 8),
        (2, 8, True, 2),
        (2, 6, True, 8),
        (3, 8, True, 4),
        (4, 7, False, 4),
        (6, 8, True, 8),
    ],
)
def test_bits_of_weights_beside_real_numbers(bits: int, inputs: int, dynamic: bool, kind: int) -> None:
    """XNNPACK's dynamic kernels take packed rows that end with a byte only; LiteRT's own kernel gives other numbers."""
    data = litert.write(route(real_dense(inputs, bits), "litert", dynamic=dynamic))
    assert tensors(data)["w"].type == getattr(schema().TensorType, f"INT{kind}")


def test_values_are_written_where_there_is_no_type_for_codes() -> None:
    graph = route(real_dense(bits=16), "litert")
    data, x = litert.write(graph), np.eye(4, dtype=np.float32)
    assert [op.kind for op in graph.ops] == ["dense"]
    assert tensors(data)["w"].type == schema().TensorType.FLOAT32
    np.testing.assert_array_equal(litert.run(data, [x])["y"], graph.ops[0].inputs[1].values())


def test_groups_that_cannot_be_written_are_refused() -> None:
    w = grouped("w", np.random.default_rng(0), (3, 2, 4, 6), 2)
    graph = linear("conv2d_transpose", weight("w", np.ones((3, 2, 6, 4)), np.full(6, 0.1), 2))
    op = graph.ops[0]
    op.inputs[1] = Tensor(
        "w",
        (3, 2, 6, 4),
        qparams=QParams(np.ones((1, 1, 6, 2)), np.zeros((1, 1, 6, 2)), w.grid, PerGroup(3, 2, 2)),
        data=np.ones((3, 2, 6, 4), np.int8),
    )
    op.x.qparams = op.y.qparams = None
    with pytest.raises(UnsupportedError, match="give it one scale for each channel"):
        litert.write(route(graph, "litert"))


def test_weights_only() -> None:
    """Codes of a layer that stays in float are made real by the runtime."""
    graph, rng = route(real_dense(), "litert", dynamic=False), np.random.default_rng(1)
    values = rng.normal(size=(7, 4)).astype(np.float32)
    data = litert.write(graph)
    np.testing.assert_allclose(litert.run(data, [values])["y"], run(graph, [values])["y"], rtol=1e-5, atol=1e-4)
    assert tensors(data)["w"].type == schema().TensorType.INT8
