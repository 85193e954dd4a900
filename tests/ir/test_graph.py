from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, LutGrid, QParams
from qi.errors import ConfigError
from qi.ir import Op, QGraph, Tensor
from tests.ir.graphs import act, codes_of, graph_of, per_channel, perceptron, real, weight


def test_a_tensor_knows_what_it_holds() -> None:
    x, q, w = real("x", 4), codes_of("q", 4, qparams=act(0.25, -7)), weight("w", [[1, -2]], [0.5, 2.0])
    assert (x.quantized, q.quantized, w.quantized) == (False, True, True)
    assert (x.constant, q.constant, w.constant) == (False, False, True)
    assert (q.scale, q.zero_point, q.grid) == (np.float32(0.25), -7, IntGrid(8))
    assert isinstance(q.scale, np.float32)


@pytest.mark.parametrize("tensor", [real("x", 4), weight("x", [[1, -2]], [0.5, 2.0])], ids=["plain", "channels"])
@pytest.mark.parametrize("name", ["scale", "zero_point"])
def test_one_scale_is_asked_of_what_has_none_or_several(tensor: Tensor, name: str) -> None:
    with pytest.raises(ConfigError, match=f"expected 'x' to have one {name}"):
        getattr(tensor, name)


def test_only_integers_of_a_grid_have_one() -> None:
    lut = Tensor("x", (None, 2), qparams=QParams(np.asarray(1.0), np.asarray(0), LutGrid([-4, 0, 4], 4)))
    for tensor in (real("x", 2), lut):
        with pytest.raises(ConfigError, match="expected 'x' to hold integers of a grid"):
            tensor.grid  # noqa: B018


def test_values_of_a_constant() -> None:
    w = weight("w", [[1, -2], [3, 0]], [0.5, 2.0])
    np.testing.assert_array_equal(w.values(), np.float32([[0.5, -4], [1.5, 0]]))
    shifted = Tensor("c", (2,), qparams=act(0.5, -3), data=np.int8([-3, 1]))
    np.testing.assert_array_equal(shifted.values(), np.float32([0, 2]))
    ids = Tensor("ids", (2,), "int32", data=np.int32([4, 5]))
    assert ids.values() is ids.data
    with pytest.raises(ConfigError, match="expected 'x' to be a constant"):
        real("x").values()


def test_an_operation_is_done_in_integers_where_all_its_real_numbers_are_codes() -> None:
    a, b = codes_of("a", 4), codes_of("b", 4)
    bias = Tensor("bias", (4,), "int32", data=np.zeros(4, np.int32))
    w = weight("w", np.ones((4, 4)), np.ones(4))
    assert Op("dense", [a, w, bias], [b], {"activation": "none"}).quantized
    assert not Op("dense", [a, w, bias], [real("y", 4)], {"activation": "none"}).quantized
    assert not Op("dense", [a, weight("v", np.ones((4, 4))), bias], [b], {"activation": "none"}).quantized


def test_an_operation_on_indices_alone_has_no_codes() -> None:
    ids, rows = real("ids", 2, 3, dtype="int32"), real("rows", 6, dtype="int32")
    assert not Op("reshape", [ids], [rows], {"shape": [None, 6]}).quantized


def test_tensors_are_found_once_and_in_order() -> None:
    graph = perceptron()
    assert [t.name for t in graph.tensors()] == ["x", "x_codes", "w0", "b0", "hidden", "w1", "b1", "y"]
    alone = QGraph("through", [real("x", 1)], [], [])
    alone.outputs = [*alone.inputs, weight("c", [1.0])]
    assert [t.name for t in alone.tensors()] == ["x", "c"]


def test_who_makes_and_who_takes_a_tensor() -> None:
    graph = perceptron()
    hidden = graph.ops[1].y
    assert graph.producers()[id(hidden)] is graph.ops[1]
    assert graph.consumers()[id(hidden)] == [graph.ops[2]]
    assert id(graph.outputs[0]) not in graph.consumers()
    a, b = codes_of("a", 1), codes_of("b", 1)
    twice = Op("add", [a, a], [b], {"activation": "none"})
    assert graph_of(twice, inputs=[a]).consumers()[id(a)] == [twice, twice]


def test_substitution_reaches_operations_and_outputs() -> None:
    graph, new = perceptron(), codes_of("new", 3)
    old = graph.ops[1].y
    graph.outputs = [*graph.outputs, old]
    graph.substitute(old, new)
    assert graph.ops[2].x is new
    assert graph.outputs[1] is new
    assert graph.ops[1].y is old


def test_a_copy_is_independent_and_shares_arrays() -> None:
    graph = perceptron()
    before = str(graph)
    copy = graph.copy()
    assert str(copy) == before
    assert not {id(t) for t in graph.tensors()} & {id(t) for t in copy.tensors()}
    assert all(a.data is b.data for a, b in zip(graph.tensors(), copy.tensors(), strict=True))
    copy.ops[1].attrs["activation"] = "relu6"
    copy.ops[1].y.name = "renamed"
    copy.ops.pop()
    copy.outputs = []
    copy.target = "litert"
    assert str(graph) == before


def test_unique_names() -> None:
    graph = perceptron()
    assert graph.unique("z") == "z"
    assert graph.unique("y") == "y_1"
    graph.ops[0].y.name = "y_1"
    assert graph.unique("y") == "y_2"


def test_a_graph_prints_as_a_program() -> None:
    graph = perceptron()
    assert str(graph).splitlines() == [
        "QGraph graph",
        "  x: float32[?x4] = input",
        "  x_codes: int8[?x4] (s=0.02 z=5) = quantize(x)",
        "  hidden: int8[?x3] (s=0.05 z=-128) = dense(x_codes, [w0: int8[4x3] (3 scales)], [b0: int32[3]]) activation=relu",
        "  y: int8[?x2] (s=0.1 z=3) = dense(hidden, [w1: int8[3x2] (2 scales)], [b1: int32[2]])",
        "  return y",
    ]
    graph.target = "litert"
    assert str(graph).startswith("QGraph graph for litert\n")


def test_a_tensor_prints_its_bits_and_scales() -> None:
    assert str(Tensor("n", ())) == "n: float32[scalar]"
    four = Tensor("w", (1, 2), qparams=per_channel([1, 2], 1, 2, bits=4), data=np.int8([[1, 2]]))
    assert str(four) == "w: int4[1x2] (2 scales)"
    lut = QParams(np.asarray(1.0), np.asarray(0), LutGrid([-4, 0, 4], 4))
    assert str(Tensor("t", (None,), qparams=lut)) == "t: lut[?] (s=1 z=0)"
