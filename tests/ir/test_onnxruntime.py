"""The formulas of ONNX Runtime's integer kernels, by hand; tests/parity compares them with the runtime itself."""

from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, QParams
from qi.ir import twin
from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.onnxruntime import exponentials, integer_softmax
from qi.ir.routing import route

F = np.float32


def one(
    kind: str, inputs: list[tuple[float, int]], y: tuple[float, int], codes: list[list[float]], **attrs: object
) -> list[int]:
    """The codes that an operation on few codes gives; tensors are (scale, zero point)."""
    made = [
        Tensor(f"x{i}", (None, len(codes[0])), qparams=QParams(F(s), z, IntGrid(8))) for i, (s, z) in enumerate(inputs)
    ]
    output = Tensor("y", (None, None), qparams=QParams(F(y[0]), y[1], IntGrid(8)))
    graph = QGraph("g", made, [output], [Op(kind, made, [output], dict(attrs), "layer")])
    return twin.run(graph, [np.array([row]) for row in codes], "onnxruntime")["y"][0].tolist()


def test_products_add_the_zero_point_before_they_round() -> None:
    """0.5 + 128 and 0.5 + 129 go to 128 and 130: half to even sees the sum."""
    assert one("mul", [(0.5, 0), (1, 0)], (1, 0), [[1], [1]], activation="none") == [0]
    assert one("mul", [(0.5, 0), (1, 0)], (1, 1), [[1], [1]], activation="none") == [2]


def test_squares_are_products() -> None:
    assert one("unary", [(0.5, 0)], (0.5, 1), [[1, 3]], function="square", alpha=None) == [2, 6]  # 129.5 and 133.5


def test_sums_round_once() -> None:
    assert one("add", [(0.5, 0), (0.5, 0)], (1, 1), [[1, 2], [2, 3]], activation="none") == [2, 4]  # 130.5 and 131.5
    assert one("sub", [(0.5, 0), (0.5, 0)], (1, 0), [[4, 2], [2, 3]], activation="none") == [1, 0]


def test_a_mean_is_of_integers() -> None:
    assert one("mean", [(1, 0)], (1, 0), [[1, 2]], axes=[1], keepdims=False) == 2


def test_an_average_pool_adds_the_zero_point_before_it_rounds_unless_it_sees_all() -> None:
    x = Tensor("x", (None, 1, 3, 1), qparams=QParams(F(1), 1, IntGrid(8)))
    y = Tensor("y", (None, 1, 2, 1), qparams=QParams(F(1), 1, IntGrid(8)))
    op = Op("avg_pool2d", [x], [y], {"pool": [1, 2], "strides": [1, 1], "pads": [0, 0, 0, 0]}, "layer")
    graph = QGraph("g", [x], [y], [op])
    codes = np.array([1, 2, 3]).reshape(1, 1, 3, 1)
    assert twin.run(graph, [codes], "onnxruntime")["y"].ravel().tolist() == [2, 2]  # 129.5 and 130.5
    whole = np.array([1, 2]).reshape(1, 1, 2, 1)
    x.shape = (None, 1, 2, 1)
    assert twin.run(graph, [whole], "onnxruntime")["y"].ravel().tolist() == [1]  # rint(0.5) + 1


def test_relu_is_a_table() -> None:
    assert one("relu", [(0.5, 0)], (0.25, -128), [[-5, 0, 3, 100]], max_value=6.0) == [-128, -128, -122, -104]


def test_softmax_in_steps_of_1_256() -> None:
    found = one("softmax", [(0.1, 0)], (1 / 256, -128), [[0, 0, -128, -128]], axis=1)
    assert found == [0, 0, -128, -128]


@pytest.mark.parametrize(
    ("scale", "zero_point", "integer"), [(1 / 256, -128, True), (1 / 255, -128, False), (1 / 256, 0, False)]
)
def test_only_one_scale_of_softmax_is_done_in_integers(scale: float, zero_point: int, integer: bool) -> None:
    x = Tensor("x", (None, 4), qparams=QParams(F(0.1), 0, IntGrid(8)))
    y = Tensor("y", (None, 4), qparams=QParams(F(scale), zero_point, IntGrid(8)))
    op = Op("softmax", [x], [y], {"axis": 1}, "layer")
    assert integer_softmax(op) == integer
    routed = route(QGraph("g", [x], [y], [op]), "onnxruntime", integer_only=True)
    assert [o.quantized for o in routed.ops if o.kind.startswith("softmax")] == [integer]


def test_exponentials_are_shifted_so_that_sums_hold() -> None:
    x, y = (
        Tensor(name, (None, 4), qparams=QParams(F(s), -128, IntGrid(8))) for name, s in (("x", 0.1), ("y", 1 / 256))
    )
    found = exponentials(Op("softmax", [x], [y], {"axis": 1}, "layer"))
    shift = np.log(np.finfo(F).max / F(4)) - 5
    np.testing.assert_array_equal(found, np.exp(shift - np.arange(256) * np.float64(F(0.1))).astype(F))
    assert np.isfinite([4 * found[0], 256 * found[0]]).all()


@pytest.mark.parametrize(
    ("sizes", "integer"), [((10,), True), ((64, 128), True), ((8, 1024), True), ((65, 128), False), ((1, 1025), False)]
)
def test_large_softmaxes_are_islands(sizes: tuple[int, ...], integer: bool) -> None:
    x = Tensor("x", (None, *sizes), qparams=QParams(F(0.1), 0, IntGrid(8)))
    y = Tensor("y", (None, *sizes), qparams=QParams(F(1 / 256), -128, IntGrid(8)))
    graph = QGraph("g", [x], [y], [Op("softmax", [x], [y], {"axis": len(sizes)}, "layer")])
    kinds = [op.kind for op in route(graph, "onnxruntime").ops]
    assert kinds == (["softmax"] if integer else ["dequantize", "softmax_of_codes", "quantize"])
    assert [op.kind for op in route(graph, "onnxruntime", integer_only=True).ops] == ["softmax"]


@pytest.mark.parametrize(
    ("function", "island"), [("tanh", True), ("gelu", True), ("sigmoid", False), ("leaky_relu", False)]
)
def test_functions_without_a_kernel_are_islands(function: str, island: bool) -> None:
    x = Tensor("x", (None, 4), qparams=QParams(F(0.1), 0, IntGrid(8)))
    y = Tensor("y", (None, 4), qparams=QParams(F(0.1), 0, IntGrid(8)))
    graph = QGraph("g", [x], [y], [Op("unary", [x], [y], {"function": function, "alpha": 0.2}, "layer")])
    kinds = [op.kind for op in route(graph, "onnxruntime").ops]
    assert kinds == (["dequantize", "unary", "quantize"] if island else ["unary"])


def test_bilinear_of_half_pixels() -> None:
    x = Tensor("x", (None, 1, 2, 1), qparams=QParams(F(1), 0, IntGrid(8)))
    y = Tensor("y", (None, 1, 4, 1), qparams=QParams(F(1), 0, IntGrid(8)))
    graph = QGraph("g", [x], [y], [Op("resize_bilinear", [x], [y], {"size": [1, 4]}, "layer")])
    codes = np.array([0, 8]).reshape(1, 1, 2, 1)
    assert twin.run(graph, [codes], "onnxruntime")["y"].ravel().tolist() == [0, 2, 6, 8]
