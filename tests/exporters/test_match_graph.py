from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qi.core import IntGrid, QParams
from qi.exporters.match_graph import CallView, Matching, match, parts_of, shaped_like
from qi.exporters.vendor import Constant, VendorGraph, VendorNode, VendorTensor


@dataclass(eq=False)
class Value:
    name: str
    producer: Any = None


@dataclass(eq=False)
class Call:
    inputs: list[Value]
    outputs: list[Value] = field(default_factory=list)


class Pair:
    """A model and a file that grow side by side; values and tensors by name."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.tensors: dict[str, VendorTensor] = {}
        self.views: dict[str, CallView] = {}
        self.nodes: dict[str, VendorNode] = {}

    def own(self, kind: str, inputs: str, output: str, weight: Any = None, bias: Any = None) -> None:
        """A call of the model."""
        call = Call([self.values.setdefault(n, Value(n)) for n in inputs.split()])
        call.outputs = [self.values.setdefault(output, Value(output, call))]
        array = None if weight is None else np.asarray(weight, np.float32)
        self.views[output] = CallView(
            call, kind, "kernel", array, (-1,), None if bias is None else np.asarray(bias, np.float32)
        )

    def given(self, kind: str, inputs: str, output: str, weight: Any = None, bias: Any = None) -> None:
        """A node of the file."""
        tensors = [self.tensors.setdefault(n, VendorTensor(n)) for n in inputs.split()]
        result = self.tensors.setdefault(output, VendorTensor(output))
        stored = None if bias is None else Constant("b", np.asarray(bias, np.float32))
        self.nodes[output] = VendorNode(kind, tensors, [result], None if weight is None else quantized(weight), stored)

    def match(self, inputs: str = "x", outputs: str = "y") -> Matching:
        self.file = file = VendorGraph(
            [(n, self.tensors[n]) for n in inputs.split()],
            [(n, self.tensors[n]) for n in outputs.split()],
            list(self.nodes.values()),
        )
        ends = ([self.values[n] for n in names.split()] for names in (inputs, outputs))
        self.found = match(list(self.views.values()), file, *ends)
        return self.found

    def partners(self) -> dict[str, str]:
        """The node of each call, by the names of what they give."""
        names = {id(node): name for name, node in self.nodes.items()}
        found = {name: self.found.nodes.get(id(view.call)) for name, view in self.views.items()}
        return {name: names[id(node)] for name, node in found.items() if node is not None}

    def places(self) -> dict[str, str]:
        """The tensor of each value."""
        found = {name: self.found.places.get(id(value)) for name, value in self.values.items()}
        return {name: tensor.name for name, tensor in found.items() if tensor is not None}


def quantized(weight: Any) -> Constant:
    array = np.asarray(weight, np.float32)
    scale = np.float32(np.abs(array).max() / 127)
    return Constant(
        "w", np.rint(array / scale).astype(np.int8), scale.reshape((1,) * array.ndim), np.zeros((1,) * array.ndim)
    )


def kernel(seed: int, shape: tuple[int, ...] = (16, 16)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_products_are_found_by_their_weights_and_the_rest_from_there() -> None:
    p = Pair()
    p.own("linear", "x", "a", kernel(0))
    p.own("linear", "x", "b", kernel(1))
    p.own("add", "a b", "y")
    p.given("linear", "x", "n", kernel(1))
    p.given("linear", "x", "m", kernel(0))
    p.given("add", "n m", "y")
    p.match()
    assert p.partners() == {"a": "m", "b": "n", "y": "y"}
    assert p.places() == {"x": "x", "a": "m", "b": "n", "y": "y"}
    assert p.found.left == []


def test_equal_weights_are_told_apart_by_what_lies_around_them() -> None:
    p = Pair()
    for start, first, last in (("x", "a", "c"), ("z", "b", "d")):
        p.own("linear", start, first, kernel(0))
        p.own("linear", first, last, kernel(1 if last == "c" else 2))
    for start, first, last in (("z", "b", "d"), ("x", "a", "c")):  # in another order
        p.given("linear", start, first, kernel(0))
        p.given("linear", first, last, kernel(1 if last == "c" else 2))
    p.match("x z", "c d")
    assert p.partners() == {name: name for name in "abcd"}


def test_a_weight_at_another_place_is_parted_again() -> None:
    p = Pair()
    for build, order in ((p.own, (0, 1, 2)), (p.given, (0, 2, 1))):
        for i, seed in enumerate(order):
            build("linear", "x t0 t1".split()[i], f"t{i}" if i < 2 else "y", kernel(seed))
    p.match()
    assert p.partners() == {"t0": "t0", "y": "t1"}  # with one of two that changed places gone, the other's is right
    assert "elsewhere" in p.found.reasons[id(p.views["t1"].call)]


def test_a_weight_like_none_says_so() -> None:
    p = Pair()
    p.own("linear", "x", "y", kernel(0))
    p.given("linear", "x", "y", kernel(1))
    p.match()
    assert p.partners() == {}
    assert "likeness 0." in p.found.reasons[id(p.views["y"].call)]


def test_the_order_of_operands_counts_where_it_matters() -> None:
    for kind, fits in (("add", True), ("sub", False), ("concat", False)):
        p = Pair()
        p.own("linear", "x", "a", kernel(0))
        p.own("linear", "x", "b", kernel(1))
        p.own(kind, "a b", "c")
        p.own("custom", "c", "y")
        p.given("linear", "x", "a", kernel(0))
        p.given("linear", "x", "b", kernel(1))
        p.given(kind, "b a", "c")
        p.given("other", "c", "y")
        p.match()
        assert ("c" in p.partners()) is fits, kind


def test_moves_and_steps_to_codes_are_looked_through_on_both_sides() -> None:
    p = Pair()
    p.own("linear", "x", "a", kernel(0))
    p.own("move", "a", "flat")
    p.own("linear", "flat", "y", kernel(1))
    p.given("quantize", "x", "codes")
    p.given("linear", "codes", "a", kernel(0))
    p.given("quantize", "a", "q")
    p.given("linear", "q", "y", kernel(1))
    p.match()
    assert p.places() == {"x": "x", "a": "a", "y": "y"}
    assert p.found.place(p.values["flat"]) is p.tensors["a"]


def test_a_clamp_that_the_file_has_not_is_taken_over_by_the_product() -> None:
    for explicit in (False, True):
        p = Pair()
        p.own("linear", "x", "before", kernel(0))
        p.own("relu", "before", "y")
        p.given("linear", "x", "h" if explicit else "y", kernel(0))
        if explicit:
            p.given("relu", "h", "y")
        p.match()
        assert p.places() == {"x": "x", "y": "y"} | ({"before": "h"} if explicit else {})
        assert (id(p.values["before"]) in p.found.absorbed) is not explicit


def test_an_operation_is_found_from_behind_where_its_operand_is_unknown() -> None:
    p = Pair()
    p.own("custom", "x", "a")
    p.own("average", "a", "b")
    p.own("linear", "b", "y", kernel(0))
    p.given("strange", "x", "s")
    p.given("average", "s", "t")
    p.given("linear", "t", "y", kernel(0))
    p.match()
    assert p.partners() == {"b": "t", "y": "y"}
    assert p.places() == {"x": "x", "a": "s", "b": "t", "y": "y"}
    assert [node.kind for node in p.found.left] == ["strange"]


def test_the_bias_tells_on_which_side_the_file_has_a_factor() -> None:
    bias = np.linspace(-1, 1, 16)
    for own_bias, factors in ((bias / 4, {"y": 0.25}), (bias, {"a": 4.0}), (np.zeros(16), {})):
        p = Pair()
        p.own("custom", "x", "a")
        p.own("linear", "a", "b", kernel(0) / 4, own_bias)
        p.own("relu", "b", "y")
        p.given("strange", "x", "s")
        p.given("linear", "s", "t", kernel(0), bias)
        p.given("relu", "t", "u")
        p.given("other", "u", "end")
        p.tensors["y"] = p.tensors["end"]
        p.views["end"] = CallView(Call([p.values["y"]], [Value("end")]), "custom")
        p.values["end"] = p.views["end"].call.outputs[0]
        p.match("x", "end")
        found = {name: p.found.factor(value) for name, value in p.values.items()}
        if "y" in factors:
            np.testing.assert_allclose([found["b"], found["y"], found["a"]], [0.25, 0.25, 1], rtol=0.01)
        elif "a" in factors:
            np.testing.assert_allclose([found["a"], found["b"], found["y"]], [4, 1, 1], rtol=0.01)
        else:
            assert "a" not in p.places()
            assert "b" not in p.places()
        np.testing.assert_allclose(p.found.gains[id(p.views["b"].call)], 0.25, rtol=0.01)


def test_a_weight_takes_the_shape_of_a_variable_with_its_scales() -> None:
    scale = np.linspace(0.1, 0.6, 6, dtype=np.float32).reshape(1, 1, 6)
    weight = Constant("w", np.arange(24, dtype=np.int8).reshape(2, 2, 6), scale, np.zeros((1, 1, 6)))
    shaped = shaped_like(weight, (2, 2, 3, 2))
    assert shaped is not None
    np.testing.assert_array_equal(shaped.real(), weight.real().reshape(2, 2, 3, 2))
    assert shaped_like(weight, (5, 5)) is None
    assert shaped_like(weight, (2, 2, 6)) is weight


def test_parameters_are_those_of_tensors() -> None:
    params = QParams(np.asarray(0.5), np.asarray(0), IntGrid(8))
    p = Pair()
    p.own("linear", "x", "y", kernel(0))
    p.given("linear", "x", "y", kernel(0))
    p.tensors["y"].qparams = params
    found = p.match()
    place = found.place(p.values["y"])
    assert place is not None
    assert place.qparams == params


def test_what_a_file_folded_into_the_next_product_has_no_tensor() -> None:
    """Both sides of the sum would lie at one tensor, which holds only what is before it."""
    p = Pair()
    p.own("linear", "x", "a", kernel(0))
    p.own("add", "a", "b")
    p.own("linear", "b", "y", kernel(1))
    p.given("linear", "x", "a", kernel(0))
    p.given("linear", "a", "y", kernel(1))
    p.match()
    assert p.partners() == {"a": "a", "y": "y"}
    assert p.places() == {"x": "x", "a": "a", "y": "y"}
    assert p.found.folded == {id(p.values["b"])}


def test_operations_between_what_a_layer_takes_and_gives_are_its_parts() -> None:
    p = Pair()
    p.own("linear", "x", "a", kernel(0))
    p.own("", "a", "b")
    p.own("linear", "b", "y", kernel(1))
    p.given("linear", "x", "a", kernel(0))
    p.given("average", "a", "m")
    p.given("sub", "a m", "b")
    p.given("linear", "b", "y", kernel(1))
    p.given("relu", "y", "z")
    p.views["b"].call.path = "norm"  # type: ignore[attr-defined]
    p.match()
    parts = parts_of(list(p.views.values()), p.found, p.file)
    assert parts == {id(p.nodes[name]): "norm" for name in ("m", "b")}
    assert {node.kind for node in p.found.left} == {"average", "sub", "relu"}
