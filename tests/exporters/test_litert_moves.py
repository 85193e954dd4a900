from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.errors import UnsupportedError
from qi.exporters import litert
from qi.ir import Op
from qi.ir.kinds import KINDS
from qi.ir.routing import route
from tests.ir.graphs import act, codes_of, graph_of, real, weight

RNG = np.random.default_rng(0)
MOVES: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("reshape", (2, 3, 4), {"shape": [None, 24]}),
    ("reshape", (24,), {"shape": [None, 2, 3, 4]}),
    ("transpose", (2, 3, 4), {"perm": [0, 3, 1, 2]}),
    ("pad", (2, 3), {"pads": [[0, 0], [1, 2], [0, 3]]}),
    ("slice", (5, 6), {"begin": [0, 1, 2], "end": [None, 5, 6], "strides": [1, 2, 3]}),
    ("reverse", (5, 6), {"axis": 1}),
    ("reverse", (2, 3, 4), {"axis": 3}),
    ("resize_nearest", (2, 3, 4), {"factors": [3, 7]}),
    ("tile", (2, 3), {"multiples": [1, 2, 3]}),
    ("broadcast", (1, 3), {"shape": [None, 4, 3]}),
    ("max", (4, 5), {"axes": [1], "keepdims": False}),
]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("kind", "shape", "attrs"), MOVES)
@pytest.mark.parametrize("coded", [True, False])
def test_moves(kind: str, shape: tuple[int, ...], attrs: dict[str, Any], coded: bool, batch: int) -> None:
    make = codes_of if coded else real
    x = RNG.integers(-128, 128, (batch, *shape)).astype(np.int8 if coded else np.float32)
    op = Op(kind, [make("x", *shape)], [make("y")], attrs, "layer")
    if coded:
        for tensor in (op.x, op.y):
            tensor.qparams = act(0.1, -9)
    expected = KINDS.get(kind).real(op, x, fill=-9 if coded else 0)
    op.y.shape = (None, *expected.shape[1:])
    graph = route(graph_of(op, inputs=[op.x]), "litert")
    np.testing.assert_array_equal(litert.run(litert.write(graph, integer_io=True), [x])["y"], expected)


def test_concat_keeps_its_order() -> None:
    a, b, y = codes_of("a", 2, 3), codes_of("b", 2, 1), codes_of("y", 2, 4)
    graph = route(graph_of(Op("concat", [b, a], [y], {"axis": 2}, "c"), inputs=[a, b]), "litert")
    x = [RNG.integers(-128, 128, (2, 2, n)).astype(np.int8) for n in (3, 1)]
    np.testing.assert_array_equal(
        litert.run(litert.write(graph, integer_io=True), x)["y"], np.concatenate(x[::-1], axis=2)
    )


@pytest.mark.parametrize("coded", [True, False])
def test_embedding(coded: bool) -> None:
    table = weight("table", RNG.integers(-127, 128, (5, 3)), [0.1], 0)
    table.qparams = act(0.1)
    ids, y = real("ids", 2, dtype="int32"), codes_of("y", 2, 3) if coded else real("y", 2, 3)
    graph = route(graph_of(Op("embedding", [ids, table], [y], {}, "e"), inputs=[ids]), "litert")
    assert table.data is not None
    rows = table.data[[[4, 0]]]
    found = litert.run(litert.write(graph, integer_io=True), [np.int32([[4, 0]])])["y"]
    np.testing.assert_allclose(found, rows if coded else rows * np.float32(0.1), rtol=1e-6)


def test_broadcasts_to_a_higher_rank_are_refused() -> None:
    x = codes_of("x", 3)
    graph = graph_of(
        Op("broadcast", [x], [codes_of("y", 2, 3)], {"shape": [None, 2, 3]}, "b"), inputs=[x], target="litert"
    )
    with pytest.raises(UnsupportedError, match="layer 'b'"):
        litert.write(graph)
