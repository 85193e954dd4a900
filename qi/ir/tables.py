"""Tables: any function of one code, as a look-up that every runtime does in integers.

What integer kernels lack (functions such as swish; factors, shifts and slopes that are constants) is tabulated where no real
numbers may be left: each of the 256 codes has its result in a table, one table for each constant's element. The look-up is
``y = table[x + places]``: codes as int32, a sum of integers, a gather; so it rounds nothing, and the table rounds but once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qi.ir.graph import Op, QGraph, Tensor
from qi.ir.kinds import KINDS, kernel, real_kind
from qi.ir.scaled import scaled

__all__ = ["KIND", "tabulate"]

KIND = "table"
_CODES = 256
_MOST = 1024  # tables of one operation, 256 bytes each
_FUNCTIONS = frozenset({"quantize", "unary", "relu", "prelu", "add", "sub", "mul", "div", "maximum", "minimum"})


@real_kind(KIND, 3)
def _looked_up_real(op: Op, x: np.ndarray, table: np.ndarray, places: np.ndarray) -> np.ndarray:
    """By the code that is nearest to each number."""
    codes = np.clip(np.rint(x / op.x.scale) + op.x.zero_point, op.x.grid.qmin, op.x.grid.qmax)
    return np.asarray(table[codes.astype(np.int64) + places])


@kernel(KIND, "litert", "onnxruntime", "reference")
def _looked_up(op: Op, x: np.ndarray, table: np.ndarray, places: np.ndarray) -> np.ndarray:
    del op
    return np.asarray(table[x + places])


def tabulate(graph: QGraph, native: Callable[[Op], bool]) -> None:
    """Puts a "table" where functions of one tensor of codes, one after the other, end in codes again.

    A factor and a shift for each channel become a convolution instead (`qi.ir.scaled`), which is smaller and faster.

    Args:
        graph: changed in place.
        native: whether the target does an operation on codes in integers by itself; then it stays.
    """
    for op in list(graph.ops):
        left = any(op is other for other in graph.ops)  # it isn't gone with a former one
        if left and not (op.quantized and native(op)):
            _bring_together(graph, op)
            chain = _chain(graph, op)
            made = (scaled(graph, chain, native) or _table(graph, chain)) if chain else []
            if made:
                at = graph.ops.index(op)
                graph.ops[at:at] = made
                graph.ops = [other for other in graph.ops if all(other is not gone for gone in chain)]


def _bring_together(graph: QGraph, op: Op) -> None:
    """Gives the greatest or least of tensors of codes inputs of its own scale, of which it can be told by the codes.

    Rounding keeps the order of numbers, so what comes out is the code of the greatest (or least) number all the same.
    """
    if op.kind not in ("maximum", "minimum") or not op.quantized:
        return
    if any(t.constant or t.grid.bits > 8 for t in (*op.inputs, *op.outputs)):
        return
    for i, tensor in enumerate(op.inputs):
        if tensor.qparams != op.y.qparams:
            same = Tensor(graph.unique(f"{tensor.name}/rescaled"), tensor.shape, tensor.dtype, op.y.qparams)
            at = graph.ops.index(op)
            graph.ops[at:at] = _table(graph, [Op("quantize", [tensor], [same], {}, op.source)])
            op.inputs[i] = same


def _chain(graph: QGraph, op: Op) -> list[Op]:
    """The operations from this one up to codes of at most 8 bits, each a function of the former's result; [] without those."""
    x = _variable(op)
    if x is None or not x.quantized or x.grid.bits > 8:
        return []
    consumers, outputs, found = graph.consumers(), {id(t) for t in graph.outputs}, [op]
    while not found[-1].y.quantized:
        users = consumers.get(id(found[-1].y), [])
        if len(users) != 1 or id(found[-1].y) in outputs:
            return []
        if users[0].kind != "quantize" and _variable(users[0]) is None:
            return []
        found.append(users[0])
    return found if found[-1].y.grid.bits <= 8 else []


def _variable(op: Op) -> Tensor | None:
    """What an operation is a function of, element by element; None if it is another kind of operation."""
    taken = [t for t in op.inputs if not t.constant]
    return taken[0] if op.kind in _FUNCTIONS and len(taken) == 1 and taken[0].shape == op.y.shape else None


def _table(graph: QGraph, chain: Sequence[Op]) -> list[Op]:
    """The look-up that does what a chain does; none where that takes too many tables.

    Its entries are computed in double precision, so that every machine rounds them to the same codes.
    """
    x, y = next(t for t in chain[0].inputs if not t.constant), chain[-1].y
    rank = len(x.shape)
    shapes = [t.values().shape for op in chain for t in op.inputs if t.constant]
    shape = np.broadcast_shapes((1,) * rank, *shapes)
    count = int(np.prod(shape))
    if shape[0] != 1 or count > _MOST:
        return []
    codes = np.arange(-_CODES // 2, _CODES // 2).clip(x.grid.qmin, x.grid.qmax)
    real = ((codes - x.zero_point) * np.float64(x.scale)).reshape(_CODES, *(1,) * (rank - 1))
    with np.errstate(all="ignore"):
        for op in chain:
            if op.kind != "quantize":
                given = [t.values().astype(np.float64) if t.constant else real for t in op.inputs]
                real = KINDS.get(op.kind).real(op, *given)
    real = np.where(np.isnan(real), 0, real)  # beyond where a function is defined, as logarithms below 0
    steps = np.broadcast_to(np.rint(real / np.float64(y.scale)), (_CODES, *shape[1:])).reshape(_CODES, count)
    entries = np.clip(steps + y.zero_point, y.grid.qmin, y.grid.qmax).T.reshape(-1).astype(np.int8)
    places = (np.arange(count, dtype=np.int32) * _CODES + _CODES // 2).reshape(shape[1:])
    constants = [
        Tensor(graph.unique(f"{y.name}/table"), entries.shape, "float32", y.qparams, entries),
        Tensor(graph.unique(f"{y.name}/places"), places.shape, "int32", data=places),
    ]
    return [Op(KIND, [x, *constants], [y], {}, chain[0].source)]
