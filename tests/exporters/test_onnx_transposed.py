"""Transposed convolutions as ordinary ones."""

from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, PerChannel, QParams
from qi.exporters import onnx_file, onnx_runtime
from qi.ir import twin
from qi.ir.graph import Op, QGraph, Tensor

X, Y = QParams(np.float32(0.1), 7, IntGrid(8)), QParams(np.float32(0.35), -20, IntGrid(8))


def graph(kernel: tuple[int, int], strides: list[int], pads: list[int], dilation: list[int]) -> QGraph:
    rng = np.random.default_rng([*kernel, *strides])
    scale = rng.uniform(0.005, 0.02, (1, 1, 4, 1)).astype(np.float32)
    weights = QParams(scale, np.zeros(scale.shape), IntGrid(8, narrow=True), PerChannel(2))
    w = Tensor("w", (*kernel, 4, 3), qparams=weights, data=rng.integers(-127, 128, (*kernel, 4, 3)).astype(np.int8))
    b = Tensor("b", (4,), "int32", data=rng.integers(-9000, 9000, 4).astype(np.int32))
    sizes = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip((5, 4), strides, kernel, dilation, strict=True)]
    sizes = [sizes[0] - pads[0] - pads[1], sizes[1] - pads[2] - pads[3]]
    x, y = Tensor("x", (None, 5, 4, 3), qparams=X), Tensor("y", (None, *sizes, 4), qparams=Y)
    attrs = {"strides": strides, "pads": pads, "dilation": dilation, "activation": "none"}
    return QGraph("g", [x], [y], [Op("conv2d_transpose", [x, w, b], [y], attrs, "layer")], target="onnxruntime")


@pytest.mark.parametrize(
    ("kernel", "strides", "pads", "dilation"),
    [
        ((3, 3), [1, 1], [1, 1, 1, 1], [1, 1]),
        ((3, 3), [2, 2], [0, 1, 0, 1], [1, 1]),
        ((4, 4), [2, 2], [1, 1, 1, 1], [1, 1]),
        ((5, 2), [3, 1], [1, 1, 0, 0], [1, 1]),
        ((2, 2), [3, 3], [0, -1, 0, -1], [1, 1]),
        ((1, 1), [2, 2], [0, -1, 0, -1], [1, 1]),
        ((3, 2), [1, 1], [2, 2, 0, 1], [2, 1]),
        ((2, 2), [2, 3], [0, 0, 0, 0], [2, 2]),
        ((4, 4), [2, 2], [6, 0, 0, 6], [1, 1]),
    ],
)
def test_integers_agree_with_the_definition(
    kernel: tuple[int, int], strides: list[int], pads: list[int], dilation: list[int]
) -> None:
    made = graph(kernel, strides, pads, dilation)
    codes = np.random.default_rng(0).integers(-128, 128, (3, 5, 4, 3))
    data = onnx_file.write(made, integer_io=True)
    found = onnx_runtime.run(data, [(codes + 128).astype(np.uint8)])["y"].astype(int) - 128
    assert np.array_equal(found, twin.run(made, [codes])["y"])
    assert onnx_runtime.integer_kernels(data) == ["QLinearConv"]
    assert onnx_runtime.float_kernels(data) == []
