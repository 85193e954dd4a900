"""ONNX Runtime and the twin give the same codes on random graphs of several layers."""

from __future__ import annotations

import numpy as np

from qi.exporters import onnx_file, onnx_runtime
from qi.ir import twin
from qi.ir.routing import route
from tests.parity.random_graphs import random_graph


def test_random_graphs() -> None:
    differing = []
    for seed in range(50):
        graph = route(random_graph(seed), "onnxruntime")
        x = [np.random.default_rng(seed).normal(0, 3, (4, *graph.inputs[0].shape[1:])).astype(np.float32)]
        data, expected = onnx_file.write(graph), twin.run(graph, x)
        for threads in (1, 2):
            found = onnx_runtime.run(data, x, threads=threads)
            for tensor in graph.outputs:
                real = (expected[tensor.name] - tensor.zero_point).astype(np.float32) * tensor.scale
                if not np.array_equal(found[tensor.name], real):
                    differing.append((seed, threads, tensor.name, onnx_runtime.first_difference(graph, data, x)))
    assert differing == []
