from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, QParams
from qi.errors import FileFormatError
from qi.exporters.vendor import (
    Constant,
    VendorGraph,
    VendorNode,
    VendorTensor,
    activation_params,
    along,
    attach_biases,
)


def params(scale: float = 0.5, zero_point: int = 0) -> QParams:
    return QParams(np.asarray(scale), np.asarray(zero_point), IntGrid(8))


def chain(*kinds: str, **qparams: QParams) -> tuple[VendorGraph, list[VendorTensor]]:
    """x -> kinds[0] -> t1 -> kinds[1] -> t2..., with the parameters of tensors by name."""
    tensors = [VendorTensor(name, qparams.get(name)) for name in ["x", *(f"t{i + 1}" for i in range(len(kinds)))]]
    nodes = [VendorNode(kind, [a], [b]) for kind, a, b in zip(kinds, tensors, tensors[1:], strict=False)]
    return VendorGraph([("x", tensors[0])], [("y", tensors[-1])], nodes), tensors


def test_a_constant_keeps_its_scales_where_they_belong_when_axes_change() -> None:
    codes = np.arange(6, dtype=np.int8).reshape(2, 3)
    weight = Constant("w", codes, np.array([[0.5], [2.0]], np.float32), np.array([[1], [0]]))
    turned = weight.changed(lambda a: a.T)
    assert turned.data.shape == (3, 2)
    np.testing.assert_array_equal(turned.real(), weight.real().T)
    np.testing.assert_array_equal(weight.real(), [[-0.5, 0.0, 0.5], [6.0, 8.0, 10.0]])


def test_roots_lead_over_moves_and_steps_to_codes() -> None:
    graph, t = chain("add", "quantize", "move", "relu")
    assert graph.root(t[3]) is t[1]
    assert graph.root(t[4]) is t[4]
    assert [node.kind for node in graph.users(t[1])] == ["relu"]


def test_a_tensor_has_the_scale_that_all_who_take_it_round_it_to() -> None:
    graph, t = chain("add", "move", "quantize", "relu", t3=params(0.25))
    assert graph.settled(t[1]) == params(0.25)
    assert graph.stated(t[3]) == params(0.25)
    assert graph.stated(t[1]) is None
    also = VendorNode("softmax", [t[1]], [VendorTensor("real")])
    assert VendorGraph(graph.inputs, graph.outputs, [*graph.nodes, also]).settled(t[1]) is None


def test_a_circle_ends() -> None:
    a, b = VendorTensor("a"), VendorTensor("b")
    graph = VendorGraph([], [("a", a)], [VendorNode("move", [a], [b]), VendorNode("move", [b], [a])])
    assert graph.root(a) in (a, b)
    assert graph.users(a) == []


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -1.0])
def test_an_impossible_scale_is_refused(scale: float) -> None:
    with pytest.raises(FileFormatError, match="'x'"):
        activation_params("x", [scale], [0], 8, signed=True)
    assert activation_params("x", [0.5, 0.5], [0], 8, signed=True) is None


def test_scales_lie_along_their_axis() -> None:
    assert along("w", [1, 2, 3], 2, 1, 3).shape == (1, 3)
    assert along("w", [1], 3, 0, 9).shape == (1, 1, 1)
    with pytest.raises(FileFormatError, match="each of its 4 channels; received 3"):
        along("w", [1, 2, 3], 2, 1, 4)


@pytest.mark.parametrize("parted", [False, True])
def test_a_constant_that_is_added_is_the_bias(parted: bool) -> None:
    graph, t = chain("linear", "add", **({"t1": params()} if parted else {}))
    graph.nodes[0].weight = Constant("w", np.zeros((2, 3), np.int8))
    graph.nodes[1].constants = [Constant("b", np.ones(3, np.float32))]
    joined = attach_biases(graph)
    assert [node.kind for node in joined.nodes] == ["linear"]
    assert joined.nodes[0].bias is not None
    assert joined.nodes[0].outputs == [t[2]]
    assert joined.nodes[0].parted is parted


def test_what_is_added_in_another_shape_is_none() -> None:
    graph, _ = chain("linear", "add")
    graph.nodes[0].weight = Constant("w", np.zeros((2, 3), np.int8))
    graph.nodes[1].constants = [Constant("b", np.ones(4, np.float32))]
    assert [node.kind for node in attach_biases(graph).nodes] == ["linear", "add"]


def test_negative_scales_turn_codes_around() -> None:
    codes = np.array([[0, 3, 15], [7, 8, 15]], np.uint8)
    scale = np.array([[-0.5], [0.25]], np.float32)
    block = Constant("w", codes, scale, np.full((2, 1), 8), 4)
    found = block.upright()
    np.testing.assert_array_equal(found.real(), block.real())
    assert found.scale is not None
    assert (found.scale > 0).all()
    assert found.data.max() <= 15
    signed = Constant("w", np.array([[-8, 0, 7]], np.int8), np.float32([[-2]]), np.zeros((1, 1), np.int64), 4)
    np.testing.assert_array_equal(signed.upright().real(), [[16, 0, -14]])
    assert (signed.upright().data.min(), signed.upright().data.max()) == (-8, 7)


def test_a_block_of_zeros_may_have_no_scale() -> None:
    block = Constant("w", np.array([[8, 8], [9, 7]], np.uint8), np.float32([[0], [1]]), np.full((2, 1), 8), 4)
    np.testing.assert_array_equal(block.upright().real(), [[0, 0], [1, -1]])
    assert block.upright().scale.tolist() == [[1], [1]]  # type: ignore[union-attr]
