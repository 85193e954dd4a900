from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi.core import IntGrid, QParams
from qi.exporters.import_findings import findings, named
from qi.exporters.import_ranges import import_ranges
from qi.exporters.match_graph import CallView, Matching
from qi.exporters.read_litert import read_litert
from qi.exporters.vendor import Constant, VendorGraph, VendorNode, VendorTensor
from tests.exporters.vendor_files import tflite
from tests.keras.models import settle
from tests.keras.warned import warned

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


def imported(data: bytes, model: keras.Model, folder: Path) -> Any:
    (folder / "vendor.tflite").write_bytes(data)
    return import_ranges(folder / "vendor.tflite", model)


def with_a_constant(after: Any) -> tuple[keras.Model, np.ndarray]:
    """Numbers that differ are added to a product behind its clamp; (model, samples)."""
    x = layers.Input((16,), name="x")
    y = layers.Dense(12, activation="relu", name="d")(x)
    y = keras.ops.add(y, np.linspace(-1, 2, 12, dtype=np.float32)[None])
    model = settle(keras.Model(x, layers.Dense(4, name="e")(after(y))))
    return model, np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)


def test_constants_that_a_file_rounded_are_told_of(tmp_path: Path) -> None:
    model, samples = with_a_constant(layers.Activation("tanh"))
    with warned() as told:
        imported(tflite(model, samples), model, tmp_path)
    (line,) = (str(w.message) for w in told)
    assert "constants, which the file rounded in its own way" in line


def test_what_the_file_made_part_of_the_next_bias_is_no_part_of_ours(tmp_path: Path) -> None:
    """The converter adds the constant by the bias of the next product: with that bias, it would be added twice."""
    model, samples = with_a_constant(lambda y: y)
    data = tflite(model, samples)
    assert [node.kind for node in read_litert(data).nodes] == ["quantize", "linear", "relu", "linear"]
    with warned() as told:
        qmodel, report = imported(data, model, tmp_path)
    assert [str(w.message)[:27] for w in told] == ["1 tensors stay in float, as"]
    exact, found = np.asarray(model(samples)), qmodel.predict(samples, verbose=0)
    assert np.abs(found - exact).mean() < 0.02 * np.abs(exact).mean()
    assert [row.reason for row in report.unquantized if row.name == "output"] == [
        "no tensor of the file was found for it"
    ]
