"""Weights and biases in an ONNX file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from qi.core import IntGrid, LutGrid, PerChannel, QParams
from qi.errors import UnsupportedError
from qi.exporters.onnx_builder import Builder
from qi.exporters.onnx_weights import bias, is_packed, weight
from qi.ir.graph import Op, QGraph, Tensor

CODES = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)


def tensor(scale: object, zero: object = 0, bits: int = 8, axis: int | None = None) -> Tensor:
    scale = np.asarray(scale, np.float32)
    granularity = [] if axis is None else [PerChannel(axis)]
    return Tensor(
        "w", CODES.shape, qparams=QParams(scale, np.zeros(scale.shape) + zero, IntGrid(bits), *granularity), data=CODES
    )


def constants(b: Builder) -> dict[str, np.ndarray]:
    return {proto.name: onnx.numpy_helper.to_array(proto) for proto in b.initializers}


@pytest.fixture
def builder() -> Builder:
    return Builder(QGraph("g", [], [], []), 21)


def test_one_scale_is_repeated_for_each_channel(builder: Builder) -> None:
    weight(builder, tensor(0.5), lambda a: a.T, 0)
    found = constants(builder)
    assert found["w"].dtype == np.int8
    assert np.array_equal(found["w"], CODES.T)
    assert found["w:scale"].tolist() == [0.5] * 4
    node = builder.nodes[-1]
    assert (node.op_type, node.attribute[0].i) == ("DequantizeLinear", 0)


def test_scales_follow_their_channels(builder: Builder) -> None:
    weight(builder, tensor([[1, 2, 3, 4]], axis=1), lambda a: a, 1)
    assert constants(builder)["w:scale"].tolist() == [1, 2, 3, 4]


def test_scales_of_other_axes_are_refused(builder: Builder) -> None:
    with pytest.raises(UnsupportedError, match="expected one scale, or one for each output channel, in 'w'"):
        weight(builder, tensor([[1], [2], [3]], axis=0), lambda a: a, 1)


def test_few_bits_are_packed_lower_half_first(builder: Builder) -> None:
    assert is_packed(tensor(1.0, bits=4))
    assert not is_packed(tensor(1.0, bits=5))
    weight(builder, tensor(1.0, bits=4), lambda a: a, 1)
    proto = builder.initializers[0]
    assert (proto.data_type, len(proto.raw_data)) == (onnx.TensorProto.INT4, 6)
    assert proto.raw_data[0] == (-6 & 15) | (-5 & 15) << 4
    assert np.array_equal(onnx.numpy_helper.to_array(proto).astype(int), CODES)


def test_look_up_tables_are_written_as_what_they_stand_for(builder: Builder) -> None:
    table = QParams(np.float32(0.5), 0, LutGrid([-64, 0, 64], 8))
    w = Tensor("w", (2,), qparams=None, data=np.float32([1, 2]))
    weight(builder, w, lambda a: a, 0)
    assert table.grid.levels == 3
    assert constants(builder)["w"].tolist() == [1, 2]
    assert builder.nodes == []


def test_a_bias_has_the_scale_of_the_sums(builder: Builder) -> None:
    x = Tensor("x", (None, 3), qparams=QParams(np.float32(0.25), 0, IntGrid(8)))
    b = Tensor("b", (4,), "int32", data=np.arange(4, dtype=np.int32))
    op = Op("dense", [x, tensor([[1, 2, 3, 4]], axis=1), b], [x])
    assert len(bias(builder, op)) == 1
    assert constants(builder)["b:scale"].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert bias(builder, Op("dense", op.inputs[:2], [x])) == []


def test_a_real_bias_stays_real(builder: Builder) -> None:
    b = Tensor("b", (4,), data=np.ones(4, np.float32))
    x = Tensor("x", (None, 3))
    assert bias(builder, Op("dense", [x, tensor(1.0), b], [x])) == ["b"]
    assert builder.nodes == []
