from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest

from qi.core import IntGrid, LutGrid, PerChannel, QParams
from qi.errors import UnsupportedError
from qi.exporters.integers_record import domain_of, record_of
from qi.ir import Op, Tensor
from qi.ir.routing import route
from tests.ir.graphs import act, codes_of, graph_of, perceptron, real, weight


def test_everything_is_in_the_record() -> None:
    record, arrays = record_of(route(perceptron(), "reference"))
    tensors, operations = record["tensors"], record["operations"]
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert (record["inputs"], record["outputs"]) == (["graph_x"], ["graph_y"])
    assert [op["kind"] for op in operations] == ["quantize", "dense", "dense"]
    assert [op["domain"] for op in operations] == ["border", "integers", "integers"]
    assert tensors["graph_hidden"]["codes"] == {
        "bits": 8, "least": -128, "greatest": 127, "scale": float(np.float32(0.05)), "zero_point": -128,
    }  # fmt: skip
    first = operations[1]
    assert first["code_range"] == [-128, 127]
    assert first["layer"] == "dense0"
    assert first["inputs"] == ["graph_x_codes", "graph_w0", "graph_b0"]
    assert first["fixed_point"] == {"multiplier": "graph_op1_multiplier", "shift": "graph_op1_shift"}
    assert tensors["graph_w0"]["codes"] == {
        "bits": 8, "least": -127, "greatest": 127, "scales": "graph_w0_scales", "axis": 1, "zero_point": 0,
    }  # fmt: skip
    assert set(arrays) == {f"graph_{n}{i}" for n in "wb" for i in (0, 1)} | {"graph_w0_scales", "graph_w1_scales"} | {
        f"graph_op{i}_{key}" for i in (1, 2) for key in ("multiplier", "shift")
    }
    assert [arrays[name].dtype.name for name in ("graph_w0", "graph_b0", "graph_w0_scales")] == [
        "int8",
        "int32",
        "float32",
    ]


def test_the_activation_is_in_the_code_range() -> None:
    x, y = codes_of("x", 4), codes_of("y", 4, qparams=act(0.1, 5))
    graph = graph_of(Op("mul", [x, x], [y], {"activation": "relu6"}), inputs=[x])
    assert record_of(route(graph, "reference"))[0]["operations"][0]["code_range"] == [5, 65]


def test_names_are_different_in_c_too() -> None:
    names = ["a/b", "a b", "A_B", "op1", "op1_multiplier", "1", "ü", "", "long" * 30, "long" * 31, "int"]
    tensors = [codes_of("first", 2), *(codes_of(name, 2) for name in names)]
    ops = [Op("reshape", [a], [b], {"shape": [None, 2]}) for a, b in itertools.pairwise(tensors)]
    graph = graph_of(*ops, inputs=[tensors[0]])
    graph.name = "3 nets"
    record, _ = record_of(route(graph, "reference"))
    found = [*record["tensors"], *(op["id"] for op in record["operations"])]
    assert len({name.lower() for name in found}) == len(found) == len(tensors) + len(ops)
    assert all(re.fullmatch(r"m3_nets_[0-9A-Za-z_]{1,44}", name) for name in found)
    assert not [name for name in record["tensors"] if name.lower().startswith("m3_nets_op")]


def test_what_has_no_kernel_is_marked_and_stands_between_codes() -> None:
    x, y = codes_of("x", 4), codes_of("y", 4)
    graph = route(graph_of(Op("unary", [x], [y], {"function": "silu", "alpha": None}), inputs=[x]), "reference")
    record, _ = record_of(graph)
    assert [op["domain"] for op in record["operations"]] == ["border", "real", "border"]
    assert record["operations"][2]["code_range"] == [-128, 127]
    assert [domain_of(op) for op in graph.ops] == ["border", "real", "border"]
    assert "code_range" not in record["operations"][1]


def test_from_codes_to_codes_is_done_in_integers() -> None:
    op = Op("quantize", [codes_of("x", 4)], [codes_of("y", 4, qparams=act(0.2))])
    assert domain_of(op) == "integers"


def test_weights_that_int8_cannot_hold_are_real_in_real_operations() -> None:
    x, y = real("x", 2), real("y", 2)
    qparams = QParams(np.float32(0.5), 0, LutGrid((-100, 0, 100), 8))
    w = Tensor("w", (2, 2), qparams=qparams, data=np.array([[0, 1], [2, 1]], np.uint8))
    record, arrays = record_of(
        route(graph_of(Op("dense", [x, w], [y], {"activation": "none"}), inputs=[x]), "reference")
    )
    assert record["tensors"]["graph_w"]["type"] == "float32"
    assert "codes" not in record["tensors"]["graph_w"]
    np.testing.assert_array_equal(arrays["graph_w"], np.array([[-50, 0], [50, 0]]))


def test_weights_in_bytes_stay_codes_in_real_operations() -> None:
    x, y, w = real("x", 2), real("y", 3), weight("w", [[1, 2, 3], [4, 5, 6]], [0.1, 0.2, 0.3])
    record, arrays = record_of(
        route(graph_of(Op("dense", [x, w], [y], {"activation": "none"}), inputs=[x]), "reference")
    )
    assert record["tensors"]["graph_w"]["codes"]["scales"] == "graph_w_scales"
    assert arrays["graph_w"].dtype == np.int8


def test_open_sizes_are_refused() -> None:
    x, y = codes_of("x", None, 4), codes_of("y", None, 4)
    graph = graph_of(Op("mul", [x, x], [y], {"activation": "none"}), inputs=[x])
    with pytest.raises(UnsupportedError, match="Input of fixed sizes"):
        record_of(route(graph, "reference"))


@pytest.mark.parametrize("bits", [9, 16])
def test_wide_codes_are_refused(bits: int) -> None:
    x, y = (codes_of(name, 4, qparams=act(bits=bits)) for name in "xy")
    graph = graph_of(Op("mul", [x, x], [y], {"activation": "none"}), inputs=[x])
    with pytest.raises(UnsupportedError, match="at most 8 bits"):
        record_of(route(graph, "reference"))


def test_zero_points_of_channels_are_refused_in_integers() -> None:
    qparams = QParams(np.full((1, 2), 0.1), np.full((1, 2), 3), IntGrid(8), PerChannel(1))
    slopes = Tensor("s", (1, 2), qparams=qparams, data=np.ones((1, 2), np.int8))
    x, y = codes_of("x", 1, 2), codes_of("y", 1, 2)
    with pytest.raises(UnsupportedError, match="one zero point"):
        record_of(graph_of(Op("maximum", [x, slopes], [y]), inputs=[x]))
