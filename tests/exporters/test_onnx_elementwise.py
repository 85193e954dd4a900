"""Operations on elements, in the layout that is at hand, and their functions in real numbers."""

from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, QParams
from qi.errors import UnsupportedError
from qi.exporters import onnx_file, onnx_runtime
from qi.exporters.onnx_elementwise import FUNCTIONS
from qi.ir import elementwise, twin
from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.routing import route
from tests.parity.onnx_agreement import graph_of

Q = QParams(np.float32(0.05), 0, IntGrid(8))


def real(kind: str, *inputs: Tensor, shape: tuple[int, ...] = (6,), **attrs: object) -> QGraph:
    x, y = Tensor("x", (None, 6)), Tensor("y", (None, *shape))
    return route(QGraph("g", [x], [y], [Op(kind, [x, *inputs], [y], dict(attrs), "layer")]), "onnxruntime")


@pytest.mark.parametrize("function", elementwise.FUNCTIONS.names())
def test_functions_of_real_numbers(function: str) -> None:
    graph = real("unary", function=function, alpha={"elu": 0.7, "leaky_relu": 0.2}.get(function))
    x = np.abs(np.random.default_rng(0).normal(size=(50, 6))).astype(np.float32) + np.float32(0.01)
    x = x if function in ("sqrt", "rsqrt", "log") else x * np.float32([1, -1, 1, -1, 1, -1])
    found = onnx_runtime.run(onnx_file.write(graph), [x])["y"]
    np.testing.assert_allclose(found, twin.run(graph, [x])["y"], rtol=2e-6, atol=1e-6)


def test_a_function_without_a_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FUNCTIONS._entries, "tanh")
    with pytest.raises(UnsupportedError, match="'unary' of layer 'layer', whose function is 'tanh'"):
        onnx_file.write(real("unary", function="tanh", alpha=None))


@pytest.mark.parametrize("kind", ["add", "sub", "mul", "div"])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_two_operands_of_real_numbers(kind: str, activation: str) -> None:
    other = Tensor("other", (6,), data=np.float32([1, -2, 3, 0.5, -0.25, 8]))
    graph = real(kind, other, activation=activation)
    x = np.random.default_rng(0).normal(0, 4, (50, 6)).astype(np.float32)
    assert np.array_equal(onnx_runtime.run(onnx_file.write(graph), [x])["y"], twin.run(graph, [x])["y"])


@pytest.mark.parametrize("top", [None, 6.0])
def test_relu_of_real_numbers(top: float | None) -> None:
    graph = real("relu", max_value=top)
    x = np.random.default_rng(0).normal(0, 5, (50, 6)).astype(np.float32)
    assert np.array_equal(onnx_runtime.run(onnx_file.write(graph), [x])["y"], twin.run(graph, [x])["y"])


def test_a_tensor_plus_itself() -> None:
    x, y = Tensor("x", (None, 4), qparams=Q), Tensor("y", (None, 4), qparams=QParams(np.float32(0.1), 3, IntGrid(8)))
    graph = QGraph("g", [x], [y], [Op("add", [x, x], [y], {"activation": "none"}, "layer")], target="onnxruntime")
    codes = np.arange(-128, 128).reshape(64, 4)
    found = onnx_runtime.run(onnx_file.write(graph, integer_io=True), [(codes + 128).astype(np.uint8)])["y"]
    assert np.array_equal(found.astype(int) - 128, twin.run(graph, [codes])["y"])


@pytest.mark.parametrize("size", [[8, 6], [4, 12], [8, 3], [4, 3], [7, 5]])
def test_bilinear(size: list[int]) -> None:
    graph = graph_of("resize_bilinear", [(4, 3, 2)], [Q], Q, (*size, 2), size=size)
    codes = np.random.default_rng(0).integers(-128, 128, (9, 4, 3, 2))
    found = onnx_runtime.run(onnx_file.write(graph, integer_io=True), [(codes + 128).astype(np.uint8)])["y"]
    assert np.array_equal(found.astype(int) - 128, twin.run(graph, [codes])["y"])


def test_activations_of_sixteen_bits_are_real_numbers_inside() -> None:
    wide = QParams(np.float32(1e-4), 0, IntGrid(16))
    x, a, y = Tensor("x", (None, 4)), Tensor("a", (None, 4), qparams=wide), Tensor("y", (None, 4), qparams=wide)
    ops = [Op("quantize", [x], [a]), Op("add", [a, a], [y], {"activation": "none"}, "layer")]
    graph = route(QGraph("g", [x], [y], ops), "onnxruntime")
    values = np.random.default_rng(0).uniform(-2, 2, (50, 4)).astype(np.float32)
    found = onnx_runtime.run(onnx_file.write(graph), [values])["y"]
    codes = np.rint(found / np.float64(wide.scale))
    assert np.abs(codes - twin.run(graph, [values])["y"]).max() == 0


def test_integers_that_are_reckoned_with() -> None:
    x, real, y = Tensor("x", (None, 4), "uint8"), Tensor("real", (None, 4)), Tensor("y", (None, 4), qparams=Q)
    graph = QGraph("g", [x], [y], [Op("cast", [x], [real], {"to": "float32"}), Op("quantize", [real], [y])])
    graph = route(graph, "onnxruntime")
    values = np.arange(8, dtype=np.uint8).reshape(2, 4)
    found = onnx_runtime.run(onnx_file.write(graph), [values])["y"]
    codes = twin.run(graph, [values])["y"]
    assert np.array_equal(found, codes.astype(np.float32) * Q.scale)
