"""What moves values works on codes, in the layout they are in."""

from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, QParams
from qi.exporters import onnx_file, onnx_runtime
from qi.ir import twin
from qi.ir.graph import QGraph
from tests.parity.onnx_agreement import behind_convolutions, graph_of

Q = QParams(np.float32(0.1), 7, IntGrid(8))
X = (4, 6, 3)
MOVES = {
    "reshape": ((24, 3), {"shape": [None, 24, 3]}),
    "flatten": ((72,), {"shape": [None, 72]}),
    "transpose": ((3, 4, 6), {"perm": [0, 3, 1, 2]}),
    "transpose of channels": ((6, 3, 4), {"perm": [0, 2, 3, 1]}),
    "transpose of places": ((6, 4, 3), {"perm": [0, 2, 1, 3]}),
    "pad": ((7, 6, 3), {"pads": [[0, 0], [1, 2], [0, 0], [0, 0]]}),
    "slice": ((2, 6, 2), {"begin": [0, 0, 0, 1], "end": [None, 3, 6, 3], "strides": [1, 2, 1, 1]}),
    "slice of all": ((4, 6, 3), {"begin": [0, 0, 0, 0], "end": [None, 4, 6, 3], "strides": [1, 1, 1, 1]}),
    "reverse": ((4, 6, 3), {"axis": 1}),
    "reverse of channels": ((4, 6, 3), {"axis": 3}),
    "max_pool2d": ((2, 3, 3), {"pool": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0]}),
    "max": ((3,), {"axes": [1, 2], "keepdims": False}),
    "max of channels": ((4, 6), {"axes": [3], "keepdims": False}),
    "max kept": ((4, 1, 3), {"axes": [2], "keepdims": True}),
    "resize_nearest": ((8, 18, 3), {"factors": [2, 3]}),
    "tile": ((4, 12, 3), {"multiples": [1, 1, 2, 1]}),
    "broadcast": ((4, 6, 3), {"shape": [None, 4, 6, 3]}),
}


def graph(name: str) -> QGraph:
    kind = {"flatten": "reshape"}.get(name, name.partition(" ")[0])
    given, attrs = MOVES[name]
    return graph_of(kind, [X], [Q], Q, given, **attrs)


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("first", [False, True])
def test_codes_are_moved(name: str, first: bool) -> None:
    made = graph(name)
    if first:
        made = _between(made)
    codes = np.random.default_rng(0).integers(-128, 128, (3, *X))
    data = onnx_file.write(made, integer_io=True)
    found = onnx_runtime.run(data, [(codes + 128).astype(np.uint8)])
    for tensor, expected in twin.run(made, [codes]).items():
        assert np.array_equal(found[tensor].astype(int) - 128, expected)
    assert onnx_runtime.float_kernels(data) == []
    assert {"QuantizeLinear", "DequantizeLinear"} & set(onnx_runtime.kernels(data)) == set()


def _between(made: QGraph) -> QGraph:
    """Behind a convolution: inputs as real numbers for a moment, as that is where convolutions are put."""
    from qi.ir.graph import Op, Tensor

    x = made.inputs[0]
    real = Tensor("real", x.shape)
    made.ops.insert(0, Op("quantize", [real], [x], {}, "input"))
    made.inputs = [real]
    made = behind_convolutions(made, 3)
    made.inputs, made.ops = [x], made.ops[1:]
    return made


def test_a_sequence_between_convolutions_stays_channels_first() -> None:
    made = graph_of("reshape", [(1, 6, 3)], [Q], Q, (6, 3), shape=[None, 6, 3])
    made = _between(made)
    data = onnx_file.write(made, integer_io=True)
    kinds = onnx_runtime.kernels(data)
    assert kinds.count("Transpose") <= 2
