"""Sums, differences and products of all 256 x 256 pairs of codes; all 256 codes through functions of one number."""

from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, QParams
from qi.exporters import litert
from qi.ir import twin
from qi.ir.fixed_functions import INTEGER_FUNCTIONS
from qi.ir.graph import Op, QGraph, Tensor

SCALES = [(0.1, 0.1, 0.1), (0.05, 0.3, 0.2), (0.3, 0.05, 0.11), (0.011, 0.012, 0.03), (1.0, 0.5, 1.5), (0.02, 2.0, 0.9)]
ZERO_POINTS = [(0, 0, 0), (-128, 5, 17)]
CODES = np.arange(-128, 128)


def graph_of(kind: str, inputs: list[QParams], output: QParams, size: int, target: str, **attrs: object) -> QGraph:
    codes = [Tensor(f"x{i}", (None, size), qparams=qparams) for i, qparams in enumerate(inputs)]
    y = Tensor("y", (None, size), qparams=output)
    return QGraph(kind, codes, [y], [Op(kind, codes, [y], attrs, "layer")], target=target)


def agree(graph: QGraph, arrays: list[np.ndarray]) -> bool:
    data = litert.write(graph, integer_io=True)
    inputs = [array.astype(np.int8)[None] for array in arrays]
    found = litert.run(data, inputs, reference=graph.target == "reference")["y"]
    return np.array_equal(found, twin.run(graph, inputs)["y"])


@pytest.mark.parametrize("target", ["litert", "reference"])
@pytest.mark.parametrize("kind", ["add", "sub", "mul"])
def test_all_pairs(kind: str, target: str) -> None:
    a, b = (array.ravel() for array in np.meshgrid(CODES, CODES))
    for scales in SCALES:
        factor = 40.0 if kind == "mul" else 1.0
        for zeros in ZERO_POINTS:
            sa, sb, sy = (QParams(np.float32(s), z, IntGrid(8)) for s, z in zip(scales, zeros, strict=True))
            sy = QParams(
                np.float32(scales[0] * scales[1] * factor) if kind == "mul" else sy.scale, zeros[2], IntGrid(8)
            )
            assert agree(graph_of(kind, [sa, sb], sy, a.size, target, activation="none"), [a, b]), (scales, zeros)


@pytest.mark.parametrize(
    ("target", "function"), [(t, f) for t, names in INTEGER_FUNCTIONS.items() for f in sorted(names)]
)
def test_all_codes(target: str, function: str) -> None:
    fixed = {"sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0)}.get(function)
    for sx, zx in ((0.02, 0), (0.05, -128), (0.0313, 77), (0.1, 3)):
        # Half of the input's scale makes ties in ELU and leaky ReLU.
        for sy, zy in [fixed] if fixed else [(sx * 2, 11), (sx * 0.83, -90), (sx, zx)]:
            x, y = (QParams(np.float32(s), z, IntGrid(8)) for s, z in ((sx, zx), (sy, zy)))
            alpha = {"elu": 1.0, "leaky_relu": 0.2}.get(function)
            graph = graph_of("unary", [x], y, 256, target, function=function, alpha=alpha)
            assert agree(graph, [CODES]), (sx, zx, sy, zy)


@pytest.mark.parametrize("target", ["litert", "reference"])
def test_quantize_at_ties(target: str) -> None:
    steps = np.arange(-140, 140) + 0.5
    for scale, zero_point in ((1.0, 0), (0.1, 5), (0.3, -77), (0.03125, 100)):
        qparams = QParams(np.float32(scale), zero_point, IntGrid(8))
        ties = (steps * np.float32(scale)).astype(np.float32)
        x = np.concatenate([ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))])[
            None
        ]
        given, y = Tensor("x", (None, x.size)), Tensor("y", (None, x.size), qparams=qparams)
        graph = QGraph("quantize", [given], [y], [Op("quantize", [given], [y], {}, "input")], target=target)
        found = litert.run(litert.write(graph), [x], reference=target == "reference", tensors=["y"])["y"]
        assert np.array_equal(found, twin.run(graph, [x])["y"]), scale
