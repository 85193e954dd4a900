from __future__ import annotations

import numpy as np
import pytest

from qi.errors import ConfigError, InputError, UnsupportedError
from qi.ir import Op, QGraph, Tensor, run, validate
from qi.ir.kinds import KINDS, TARGETS
from qi.ir.twin import real_values
from tests.ir.graphs import act, codes_of, graph_of, perceptron, real, weight

X = np.random.default_rng(0).uniform(-2, 2, (5, 4)).astype(np.float32)


def by_hand(graph: QGraph) -> np.ndarray:
    """The perceptron in exact numbers, rounded once an operation."""
    value = np.clip(np.rint(X / graph.ops[0].y.scale) + 5, -128, 127)
    for op in graph.ops[1:]:
        x, w, bias = op.inputs
        sums = (value - x.zero_point) @ w.data.astype(int) + bias.data
        exact = sums * np.float64(x.scale) * w.qparams.scale.astype(np.float64) / np.float64(op.y.scale)
        low = op.y.zero_point if op.attrs["activation"] == "relu" else -128
        value = np.clip(np.rint(exact) + op.y.zero_point, low, 127)
    return value


@pytest.mark.parametrize("target", ["litert", "onnxruntime"])
def test_a_graph_runs_in_integers(target: str) -> None:
    graph = perceptron()
    validate(graph)
    found = run(graph, [X], target)
    assert list(found) == ["y"]
    assert found["y"].dtype == np.int32
    expected = by_hand(graph)
    np.testing.assert_array_equal(found["y"], expected)
    assert len(np.unique(expected)) > 5


def test_the_target_is_the_one_it_was_routed_for() -> None:
    graph = perceptron()
    graph.target = "litert"
    np.testing.assert_array_equal(run(graph, [X])["y"], run(graph, [X], "litert")["y"])


@pytest.mark.parametrize("target", ["", "tflite"])
def test_a_graph_runs_for_a_known_target(target: str) -> None:
    with pytest.raises(ConfigError, match=f"received target='{target}'"):
        run(perceptron(), [X], target)


def test_every_tensor_can_be_had() -> None:
    graph = perceptron()
    found = run(graph, [X], "litert", every=True)
    assert list(found) == ["x", "x_codes", "hidden", "y"]
    np.testing.assert_array_equal(found["x"], X)
    np.testing.assert_array_equal(found["y"], run(graph, [X], "litert")["y"])


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ([], "expected 1 inputs; received 0"),
        ([X, X], "expected 1 inputs; received 2"),
        ([X[0]], r"expected 'x' of shape \(None, 4\); received \(4,\)"),
        ([X[:, :3]], r"expected 'x' of shape \(None, 4\); received \(5, 3\)"),
    ],
)
def test_inputs_fit_the_graph(arrays: list[np.ndarray], text: str) -> None:
    with pytest.raises(InputError, match=text):
        run(perceptron(), arrays, "litert")


def test_an_empty_batch_and_other_number_types_are_fine() -> None:
    graph = perceptron()
    assert run(graph, [X[:0]], "litert")["y"].shape == (0, 2)
    np.testing.assert_array_equal(run(graph, [X.astype(np.float64)], "litert")["y"], run(graph, [X], "litert")["y"])


def test_an_input_may_hold_codes() -> None:
    graph = perceptron()
    graph.inputs, graph.ops = [graph.ops[0].y], graph.ops[1:]
    codes = np.int8([[-128, 0, 5, 127]])
    found = run(graph, [codes], "litert", every=True)
    assert found["x_codes"].dtype == np.int32
    np.testing.assert_array_equal(found["x_codes"], codes)


def test_what_is_no_operation_on_codes_reads_them_as_real_numbers() -> None:
    a, b, y = codes_of("a", 2, qparams=act(0.5, 4)), real("b", 2), real("y", 2)
    graph = graph_of(Op("add", [a, b], [y], {"activation": "none"}), inputs=[a, b])
    found = run(graph, [np.int8([[4, 6]]), np.float32([[1, 2]])], "litert")["y"]
    np.testing.assert_array_equal(found, np.float32([[1, 3]]))
    assert found.dtype == np.float32


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_real_numbers_become_codes_where_codes_are_due(target: str) -> None:
    x, y, z = codes_of("x", 2, qparams=act(0.5)), codes_of("y", 2, qparams=act(0.25, -8)), real("z", 2)
    gain = Tensor("gain", (2,), data=np.float32([1, 3]))
    norm = Op("mul", [x, gain], [y], {"activation": "none"})  # mixed: a constant of plain values, codes out
    back = Op("dequantize", [y], [z])
    found = run(graph_of(norm, back, inputs=[x]), [np.int8([[2, -3]])], target, every=True)
    np.testing.assert_array_equal(found["y"], [[-4, -26]])
    assert found["y"].dtype == np.int32
    np.testing.assert_array_equal(found["z"], np.float32([[1, -4.5]]))


def test_weights_of_codes_serve_real_numbers() -> None:
    x, y = real("x", 2), real("y", 2)
    w = weight("w", [[1, -2], [3, 4]], [0.5, 2.0])
    graph = graph_of(Op("dense", [x, w], [y], {"activation": "none"}), inputs=[x])
    found = run(graph, [np.float32([[1, 10]])], "onnxruntime")["y"]
    np.testing.assert_array_equal(found, np.float32([[15.5, 76]]))


def test_a_missing_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(KINDS.get("mul").kernels, "litert")
    x, y = codes_of("x", 2), codes_of("y", 2)
    graph = graph_of(Op("mul", [x, x], [y], {"activation": "none"}, source="gate"), inputs=[x])
    with pytest.raises(UnsupportedError, match="received 'mul' of layer 'gate'"):
        run(graph, [np.int8([[1, 2]])], "litert")


def test_indices_alone_are_plain_numbers() -> None:
    ids, flat, rows = real("ids", 1, 2, dtype="int32"), real("flat", 2, dtype="int32"), codes_of("rows", 2, 3)
    table = Tensor("table", (4, 3), qparams=act(), data=np.arange(12, dtype=np.int8).reshape(4, 3))
    ops = [Op("reshape", [ids], [flat], {"shape": [None, 2]}), Op("embedding", [flat, table], [rows])]
    found = run(graph_of(*ops, inputs=[ids]), [np.array([[[3, 1]]])], "litert", every=True)
    np.testing.assert_array_equal(found["rows"], [[[9, 10, 11], [3, 4, 5]]])
    assert found["flat"].dtype == np.int32


def test_an_input_and_a_constant_may_be_outputs() -> None:
    graph = perceptron()
    graph.outputs = [*graph.inputs, *graph.outputs, *graph.outputs]
    assert list(run(graph, [X], "litert")) == ["x", "y"]


def test_a_tensor_taken_twice_lives_until_its_last_use() -> None:
    x, y, z = (real(name, 2) for name in "xyz")
    ops = [Op("add", [x, x], [y], {"activation": "none"}), Op("mul", [y, x], [z], {"activation": "none"})]
    np.testing.assert_array_equal(run(graph_of(*ops, inputs=[x]), [np.float32([[1, -3]])], "litert")["z"], [[2, 18]])


def test_what_codes_stand_for() -> None:
    plain = np.float32([1])
    assert real_values(real("x", 1), plain) is plain
    found = real_values(codes_of("q", 2, qparams=act(0.5, 4)), np.int32([[4, -128]]))
    np.testing.assert_array_equal(found, np.float32([[0, -66]]))
    assert found.dtype == np.float32
    w = weight("w", [[1, -2]], [0.5, 2.0])
    np.testing.assert_array_equal(real_values(w, w.data), w.values())
