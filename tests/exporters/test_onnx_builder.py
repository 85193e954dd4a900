"""Names, constants and layouts of an ONNX file that grows."""

from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, QParams
from qi.errors import ConfigError
from qi.exporters.onnx_builder import FIRST, LAST, Builder, axis_in, constant_data, order, refused
from qi.ir.graph import Op, QGraph, Tensor

Q = QParams(np.float32(0.5), -3, IntGrid(8))


@pytest.fixture
def builder() -> Builder:
    return Builder(QGraph("g", [Tensor("x", (None, 2))], [], []), 18)


def test_order_and_axes() -> None:
    assert order(4) == [0, 3, 1, 2]
    assert order(2) == [0, 1]
    assert [axis_in(FIRST, 4, axis) for axis in range(4)] == [0, 2, 3, 1]
    assert axis_in(LAST, 4, 3) == 3


def test_names_are_unique_and_those_of_inputs_taken(builder: Builder) -> None:
    assert [builder.name("x"), builder.name("y"), builder.name("y")] == ["x_1", "y", "y_1"]


def test_equal_constants_are_written_once(builder: Builder) -> None:
    first = builder.constant(np.float32(1), "one")
    assert builder.constant(np.float32(1), "other") == first
    assert builder.constant(np.int8(1)) != first
    assert [list(proto.dims) for proto in builder.initializers] == [[], []]


def test_codes_have_128_added(builder: Builder) -> None:
    dtype, offset = builder.code_type(Tensor("t", (None,), qparams=Q))
    assert (dtype, offset) == (np.dtype(np.uint8), 128)
    wide = Tensor("t", (None,), qparams=QParams(np.float32(1), 0, IntGrid(16)))
    assert builder.code_type(wide) == (np.dtype(np.uint16), 32768)


def test_a_layout_is_made_once(builder: Builder) -> None:
    tensor = Tensor("t", (None, 4, 5, 6), qparams=Q)
    builder.put(tensor, "codes", LAST)
    assert builder.codes(tensor, FIRST) == builder.codes(tensor, FIRST) == "t:channels_first"
    assert [node.op_type for node in builder.nodes] == ["Transpose"]
    assert builder.places() == {}


def test_layout_of_operands(builder: Builder) -> None:
    first, last, flat = (
        Tensor(name, shape) for name, shape in zip("abc", [(None, 2, 2, 2)] * 2 + [(None, 2)], strict=True)
    )
    builder.put(first, "a", FIRST)
    builder.put(last, "b", LAST)
    builder.put(flat, "c", LAST)
    assert builder.layout_of([first, last], 4) == FIRST
    assert builder.layout_of([last], 4) == LAST
    assert builder.layout_of([first, flat], 4) == LAST


def test_only_a_range_that_the_type_has_not_is_clipped(builder: Builder) -> None:
    for activation, kinds in (("none", ["QuantizeLinear"]), ("relu", ["QuantizeLinear", "Clip"])):
        builder.nodes.clear()
        builder.quantized(Op("add", [], [Tensor("y", (None,), qparams=Q)], {"activation": activation}), "real")
        assert [node.op_type for node in builder.nodes] == kinds


def test_a_constant_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="'t' to be a constant"):
        constant_data(Tensor("t", (1,)))


def test_a_refusal_names_layer_target_and_way_out() -> None:
    error = refused(Op("fft", [], [], source="block/fft"), "which has no writer")
    assert all(word in str(error) for word in ("'fft'", "'block/fft'", "ONNX", "do leave it out"))
