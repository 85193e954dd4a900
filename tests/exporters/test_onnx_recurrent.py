from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from qi.errors import UnsupportedError
from qi.exporters import onnx_file, onnx_runtime
from qi.ir import Tensor, run
from qi.ir.routing import route
from tests.ir.graphs import grouped
from tests.ir.recurrences import recurrence, sequences

OPERATIONS = {"lstm": "LSTM", "gru": "GRU", "simple_rnn": "RNN"}


def written(kind: str, **options: Any) -> tuple[Any, bytes]:
    routed = route(recurrence(kind, **options), "onnxruntime", packed=True)
    return routed, onnx_file.write(routed)


@pytest.mark.parametrize("kind", OPERATIONS)
def test_it_is_one_operation_with_integer_weights(kind: str) -> None:
    _, data = written(kind)
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    nodes = {node.op_type: node for node in model.graph.node}
    assert OPERATIONS[kind] in nodes
    arrays = {init.name: onnx.numpy_helper.to_array(init) for init in model.graph.initializer}
    kernels = [name for name, array in arrays.items() if array.ndim == 3]
    assert sorted(arrays[name].dtype.name for name in kernels) == ["int8", "int8"]
    made_real = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert {node.input[0] for node in made_real} == set(kernels)
    assert all(arrays[node.input[1]].shape == arrays[node.input[0]].shape[1:2] for node in made_real)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("all_steps", [True, False])
@pytest.mark.parametrize("kind", OPERATIONS)
def test_the_batch_and_the_length_are_open(kind: str, all_steps: bool, batch: int) -> None:
    routed, data = written(kind, steps=None, all_steps=all_steps)
    for steps in (1, 9):
        x = sequences(batch, steps)
        found = onnx_runtime.run(data, [x])["y"]
        np.testing.assert_allclose(found, run(routed, [x])["y"], atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gru", {"reset_after": False}),
        ("lstm", {"bias": False}),
        ("gru", {"bias": False}),
        ("lstm", {"activation": "relu", "recurrent_activation": "hard_sigmoid"}),
        ("gru", {"activation": "hard_sigmoid", "recurrent_activation": "hard_sigmoid"}),
        ("lstm", {"activation": "sigmoid", "recurrent_activation": "tanh"}),
        ("simple_rnn", {"activation": "linear"}),
        ("lstm", {"bits": None}),
        ("gru", {"bits": 4}),
    ],
)
def test_options(kind: str, options: dict[str, Any]) -> None:
    routed, data = written(kind, **options)
    x = sequences(3)
    np.testing.assert_allclose(onnx_runtime.run(data, [x])["y"], run(routed, [x])["y"], atol=2e-6)


def test_packed_weights_of_groups_need_a_later_opset() -> None:
    graph = recurrence("lstm", features=32, units=32)
    rng = np.random.default_rng(0)
    for i, name in ((1, "kernel"), (2, "recurrent")):
        graph.ops[0].inputs[i] = grouped(name, rng, (32, 128), 16)
    routed = route(graph, "onnxruntime", packed=True)
    data = onnx_file.write(routed)
    assert onnx.load_from_string(data).opset_import[0].version == 21
    x = sequences(2, features=32)
    np.testing.assert_allclose(onnx_runtime.run(data, [x])["y"], run(routed, [x])["y"], atol=2e-6)


def test_computed_weights_are_refused() -> None:
    graph = recurrence("gru")
    graph.ops[0].inputs[2] = Tensor("given", (6, 18))
    graph.inputs.append(graph.ops[0].inputs[2])
    with pytest.raises(UnsupportedError, match="'memory', with weights that are computed"):
        onnx_file.write(route(graph, "onnxruntime"))
