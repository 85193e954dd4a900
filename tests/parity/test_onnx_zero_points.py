"""Weights with a zero point, as ONNX Runtime's quantizer makes by default: its kernels and the twin agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.core import IntGrid, PerChannel, QParams
from qi.ir import Op, QGraph, Tensor
from qi.ir.passes import fuse
from tests.ir.graphs import act, real
from tests.parity.onnx_agreement import differences

LAYER: dict[str, Any] = {"strides": [1, 1], "pads": [1, 1, 1, 1], "dilation": [1, 1], "activation": "relu"}
CASES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "dense": ("dense", (19, 13), {"activation": "relu"}),
    "convolution": ("conv2d", (3, 3, 6, 11), LAYER | {"groups": 1}),
    "groups": ("conv2d", (3, 3, 2, 12), LAYER | {"groups": 3}),
    "depthwise": ("depthwise_conv2d", (3, 3, 6), LAYER),
    "transposed": ("conv2d_transpose", (3, 3, 5, 6), LAYER | {"strides": [2, 2]}),
}


def layer(case: str, zero_points: str, bits: int = 8) -> QGraph:
    """One product: uint8 weights with a zero point for the tensor, for channels, or one that all channels have."""
    kind, shape, attrs = CASES[case]
    rng = np.random.default_rng(len(case))
    axis, sizes = (2, 8) if kind == "conv2d_transpose" else (len(shape) - 1, 7)
    count = shape[axis]
    along = [-1 if i == axis else 1 for i in range(len(shape))]
    zeros = {"tensor": 97, "channels": rng.integers(90, 160, count), "equal": np.full(count, 150)}[zero_points]
    if zero_points == "tensor":
        qparams = QParams(np.float32(0.01), np.asarray(zeros), IntGrid(bits, signed=False))
    else:
        scales = rng.uniform(0.003, 0.02, count).astype(np.float32).reshape(along)
        qparams = QParams(scales, np.reshape(zeros, along), IntGrid(bits, signed=False), PerChannel(axis))
    weight = Tensor("w", shape, "float32", qparams, rng.integers(0, 256, shape).astype(np.uint8))
    given = (shape[0],) if kind == "dense" else (sizes, sizes, 6)
    size = 2 * (sizes - 1) + 1 if kind == "conv2d_transpose" else sizes
    result = (count,) if kind == "dense" else (size, size, count)
    x, codes, y = real("x", *given), Tensor("codes", (None, *given), qparams=act(0.03, -7)), real("y", *result)
    bias = Tensor("b", (count,), data=rng.normal(size=count).astype(np.float32))
    out = Tensor("out", y.shape, qparams=act(0.07, -100))
    ops = [Op("quantize", [x], [codes]), Op(kind, [codes, weight, bias], [y], dict(attrs), "layer")]
    return fuse(QGraph("graph", [x], [out], [*ops, Op("quantize", [y], [out])], ["x"], ["out"]))


@pytest.mark.parametrize(
    ("case", "zero_points"),
    [*((case, "tensor") for case in CASES), ("dense", "channels"), ("convolution", "equal"), ("depthwise", "equal")],
)
def test_the_runtime_gives_what_the_twin_gives(case: str, zero_points: str) -> None:
    steps = differences(layer(case, zero_points), integer_only=True, batch=16)
    assert steps.size > 100
    assert not steps.any()
