from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.core import IntGrid, QParams
from qi.exporters.import_findings import findings, named
from qi.exporters.match_graph import CallView, Matching
from qi.exporters.vendor import Constant, VendorGraph, VendorNode, VendorTensor

CODES = QParams(np.asarray(np.float32(0.5)), np.asarray(0), IntGrid(8))


class Call:
    path = "layer"

    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []


def told(**options: Any) -> list[str]:
    """Of one operation on codes that is a call of the model."""
    x, y = VendorTensor("x", CODES), VendorTensor("y", CODES)
    node = VendorNode(options.pop("kind", "linear"), [x], [y], **options)
    call = Call()
    return findings(
        [CallView(call, node.kind)], Matching({id(call): node}), VendorGraph([("x", x)], [("y", y)], [node])
    )


def codes(*numbers: int) -> Constant:
    return Constant("c", np.array(numbers, np.int8), np.float32([0.1]), np.array([0]))


def test_names_are_counted_and_listed() -> None:
    assert named(["a", "b"], "layers") == ["2 layers ('a', 'b')"]
    assert named([], "layers") == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dynamic": True}, "1 layers take what the file rounds to codes as it comes"),
        ({"plain": True}, "1 layers have weights that the file makes real numbers of"),
        ({"parted": True}, "1 layers have a bias before which the file rounds to codes"),
        ({"real": True}, "1 layers take codes and are done in real numbers"),
        ({"kind": "mul", "constants": [codes(1, 2)]}, "1 layers add or multiply constants"),
    ],
)
def test_what_differs_is_told_with_the_layers_path(options: dict[str, Any], sentence: str) -> None:
    (line,) = told(**options)
    assert line.startswith(sentence)
    assert line.endswith("('layer')")


@pytest.mark.parametrize(
    "options", [{}, {"kind": "mul", "constants": [codes(1)]}, {"kind": "norm", "constants": [codes(1, 2)]}]
)
def test_nothing_is_told_of_what_is_the_same(options: dict[str, Any]) -> None:
    assert told(**options) == []


def test_weights_and_operations_of_nobody_are_told_of() -> None:
    x, y, z = VendorTensor("x", CODES), VendorTensor("y", CODES), VendorTensor("z", QParams(0.25, 3, IntGrid(8)))
    nodes = [VendorNode("linear", [x], [y], codes(1, 2)), VendorNode("rsqrt", [y], [z])]
    found = Matching(left=nodes)
    lines = findings([], found, VendorGraph([("x", x)], [("z", z)], nodes))
    assert lines[0] == "1 quantized weights of the file are like none of the model's, and aren't imported ('c')"
    assert lines[1].startswith("operations of the file (rsqrt) belong to no layer of the model")
