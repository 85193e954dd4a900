"""Every pair of codes through ONNX Runtime's sums and products, every code through its tables."""

from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, QParams
from qi.exporters import onnx_file, onnx_runtime
from qi.ir import twin
from qi.ir.graph import QGraph
from tests.parity.onnx_agreement import graph_of

INT8 = IntGrid(8)
CODES = np.arange(-128, 128)
PAIRS = [grid.astype(np.int32) for grid in np.meshgrid(CODES, CODES)]


def both(graph: QGraph, codes: list[np.ndarray], threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(the twin's codes, those of the file)."""
    data = onnx_file.write(graph, integer_io=True)
    found = onnx_runtime.run(data, [(array + 128).astype(np.uint8) for array in codes], threads=threads)
    return twin.run(graph, codes)["y"], found["y"].astype(np.int32) - 128


def parameters(seed: int, product: bool = False) -> list[QParams]:
    """Two inputs' and the output's: random ones, and powers of two, whose results are full of ties."""
    rng = np.random.default_rng(seed)
    a, b = np.exp(rng.uniform(np.log(0.003), np.log(0.3), 2)) if seed % 2 else 2.0 ** rng.integers(-6, -2, 2)
    y = a * b * rng.uniform(20, 400) if product else max(a, b) * rng.uniform(0.5, 2.5)
    y = y if seed % 2 else 2.0 ** np.floor(np.log2(y)) * rng.choice([1, 1.5])
    return [QParams(np.float32(s), int(rng.integers(-128, 128)), INT8) for s in (a, b, y)]


@pytest.mark.parametrize("kind", ["add", "sub", "mul"])
@pytest.mark.parametrize("seed", range(6))
def test_every_pair(kind: str, seed: int) -> None:
    a, b, y = parameters(seed, kind == "mul")
    activation = ("none", "relu", "relu6")[seed % 3]
    graph = graph_of(kind, [(256,), (256,)], [a, b], y, (256,), activation=activation)
    for threads in (1, 2):
        expected, found = both(graph, PAIRS, threads)
        assert np.array_equal(expected, found)
    assert onnx_runtime.float_kernels(onnx_file.write(graph)) == []


TABLES = {
    "relu": ("relu", {"max_value": None}),
    "relu6": ("relu", {"max_value": 6.0}),
    "sigmoid": ("unary", {"function": "sigmoid", "alpha": None}),
    "leaky_relu": ("unary", {"function": "leaky_relu", "alpha": 0.2}),
    "square": ("unary", {"function": "square", "alpha": None}),
    "another scale": ("quantize", {}),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_code(name: str) -> None:
    kind, attrs = TABLES[name]
    for seed in range(12):
        x, _, y = parameters(seed)
        graph = graph_of(kind, [(1,)], [x], y, (1,), **attrs)
        expected, found = both(graph, [CODES[:, None]])
        assert np.array_equal(expected, found)
    data = onnx_file.write(graph, integer_io=True)
    assert len(onnx_runtime.integer_kernels(data)) >= 1
    assert onnx_runtime.float_kernels(data) == []


def test_softmax() -> None:
    """Ties may fall to either side, one in a million."""
    rng, wrong, count = np.random.default_rng(0), 0, 0
    for size in (2, 3, 10, 100, 1000):
        x, y = parameters(2 * size + 1)[0], QParams(np.float32(1 / 256), -128, INT8)
        graph = graph_of("softmax", [(size,)], [x], y, (size,), axis=1)
        codes = rng.integers(-128, 128, (20000 // size, size))
        codes[0], codes[1], codes[2, 1:] = -128, 127, -128
        expected, found = both(graph, [codes])
        assert np.abs(expected - found).max() <= 1
        wrong, count = wrong + np.count_nonzero(expected != found), count + found.size
        assert onnx_runtime.kernels(onnx_file.write(graph, integer_io=True)) == ["QLinearSoftmax"]
    assert wrong <= count * 1e-4


@pytest.mark.parametrize("whole", [True, False])
def test_average_pool_at_ties(whole: bool) -> None:
    """Input and output share a scale, so that every mean is a multiple of 1 / count: ties abound."""
    rng = np.random.default_rng(1)
    for pool in ([2, 2], [4, 2], [1, 2], [4, 3]):
        q = QParams(np.float32(rng.uniform(0.01, 0.2)), int(rng.integers(-128, 128)), INT8)
        sizes = pool if whole else [7, 9]
        given = [1, 1] if whole else [n - p + 1 for n, p in zip(sizes, pool, strict=True)]
        graph = graph_of("avg_pool2d", [(*sizes, 5)], [q], q, (*given, 5), pool=pool, strides=[1, 1], pads=[0, 0, 0, 0])
        expected, found = both(graph, [rng.integers(-128, 128, (64, *sizes, 5))])
        assert np.array_equal(expected, found)
