"""How each kind of operation becomes operators of a LiteRT file: the table, and what its entries share.

Versions are the lowest that a runtime needs for the types at hand, so that old runtimes take the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qi.core import IntGrid, QParams
from qi.errors import UnsupportedError
from qi.exporters.litert_file import Draft
from qi.ir.arithmetic import code_range
from qi.ir.graph import Op, Tensor
from qi.ir.kinds import KINDS
from qi.ir.tables import KIND as TABLE
from qi.registry import Registry

__all__ = [
    "WRITERS",
    "activation",
    "pad",
    "padding",
    "refuse",
    "rescale",
    "strided_slice",
    "window",
    "write_operation",
    "writer",
]

WRITERS: Registry[Callable[[Draft, Op], None]] = Registry("kind of operation that a LiteRT file holds")
_TARGET = "LiteRT"
_INT8 = IntGrid(8)


def writer(*kinds: str) -> Callable[[Callable[[Draft, Op], None]], Callable[[Draft, Op], None]]:
    """Registers what writes some kinds of operations: it takes the draft and the operation."""

    def add(function: Callable[[Draft, Op], None]) -> Callable[[Draft, Op], None]:
        for kind in kinds:
            WRITERS.register(kind)(function)
        return function

    return add


_STAYS = frozenset({"avg_pool2d", "maximum", "minimum", "resize_bilinear"})  # between the codes that they take


def write_operation(draft: Draft, op: Op) -> None:
    """Adds an operation. Codes of fewer than 8 bits lie in int8: MINIMUM and MAXIMUM cut off what a kernel gives beyond them."""
    y = op.y
    write = WRITERS.get(op.kind)
    if y.qparams is None or y.grid == _INT8 or _within(op):
        write(draft, op)
        return
    qparams = QParams(y.qparams.scale, y.qparams.zero_point, _INT8)
    whole = Tensor(draft.unique(f"{y.name}/whole"), y.shape, y.dtype, qparams)
    wide = Op(op.kind, op.inputs, [whole], op.attrs, op.source)
    write(draft, wide)
    low, high = code_range(wide)
    bounds = [("MAXIMUM", y.grid.qmin)] if low < y.grid.qmin else []
    bounds += [("MINIMUM", y.grid.qmax)] if high > y.grid.qmax else []
    number = draft.tensor(whole)
    for code, bound in bounds:
        last = code == bounds[-1][0]
        given, number = number, draft.tensor(y) if last else draft.new(f"{y.name}/{code.lower()}", y.shape, y)
        limit = draft.constant(f"{y.name}/bound", np.full(1, bound, np.int8), qparams)
        draft.operator(code, [given, limit], [number], 2, draft.options("MaximumMinimumOptions"))


def _within(op: Op) -> bool:
    """Whether an operation gives no code beyond those it takes, or those that its table holds."""
    if op.kind == TABLE:
        return True
    taken = [t for t in op.inputs if t.quantized]
    return (KINDS.get(op.kind).moves or op.kind in _STAYS) and all(t.qparams == op.y.qparams for t in taken)


def refuse(op: Op, what: str, ways_out: str) -> UnsupportedError:
    """The error for an operation that LiteRT can't carry.

    Args:
        op: it.
        what: about it.
        ways_out: what its owner may do.
    """
    return UnsupportedError(
        f"expected operations that {_TARGET} carries; received {op.kind!r} {what}, of layer {op.source!r}; do {ways_out}"
    )


def activation(draft: Draft, op: Op) -> int:
    """The fused activation: none where the range of the codes does its work."""
    name = op.attrs["activation"]
    if op.quantized and code_range(op) == (op.y.grid.qmin, op.y.grid.qmax):
        name = "none"
    kinds = draft.fb.ActivationFunctionType
    return int({"none": kinds.NONE, "relu": kinds.RELU, "relu6": kinds.RELU6}[name])


def padding(op: Op, size: tuple[int, int]) -> str:
    """What the operation's pads are by name: "VALID" or "SAME", or "" if they are neither.

    Args:
        op: with attributes ``pads``, ``strides`` and perhaps ``dilation``, on an image of known size.
        size: of its window.
    """
    pads = list(op.attrs["pads"])
    if not any(pads):
        return "VALID"
    same: list[int] = []
    for n, k, s, d in zip(op.x.shape[1:3], size, op.attrs["strides"], op.attrs.get("dilation", (1, 1)), strict=True):
        if n is None:
            raise refuse(op, f"on an image of open size {op.x.shape}", "give the model an Input of fixed sizes")
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        same += [total // 2, total - total // 2]
    return "SAME" if same == pads else ""


def window(draft: Draft, op: Op, size: tuple[int, int], fill: float | None = None) -> tuple[int, int]:
    """(the number of the input, the padding's), with the pads as an operator of their own where no padding means them.

    Args:
        draft: gets that operator.
        op: with attributes as for `padding`.
        size: of its window.
        fill: the code to pad with; by default that of zero.
    """
    x, how = draft.tensor(op.x), padding(op, size)
    if how:
        return x, getattr(draft.fb.Padding, how)
    top, bottom, left, right = op.attrs["pads"]
    pads = [[0, 0], [top, bottom], [left, right], [0, 0]]
    shape = [n if n is None else n + sum(p) for n, p in zip(op.x.shape, pads, strict=True)]
    return pad(draft, op, x, pads, shape, fill), draft.fb.Padding.VALID


def pad(draft: Draft, op: Op, x: int, pads: Any, shape: list[int | None], fill: float | None = None) -> int:
    """Adds a padded copy of the operation's input; gives its number."""
    amounts = draft.constant(f"{op.y.name}/pads", np.asarray(pads, np.int32))
    y = draft.new(f"{op.y.name}/padded", shape, op.x)
    if fill is None:
        draft.operator("PAD", [x, amounts], [y], 2 if op.x.quantized else 1, draft.options("PadOptions"))
        return y
    value = np.asarray([fill], np.int8 if op.x.quantized else np.float32)
    filler = draft.constant(f"{op.y.name}/fill", value, op.x.qparams)
    draft.operator("PADV2", [x, amounts, filler], [y], 2 if op.x.quantized else 1, draft.options("PadV2Options"))
    return y


def rescale(draft: Draft, op: Op, x: int) -> None:
    """Codes of the input's scale as the output's: a product with one. QUANTIZE from int8 to int8 knows ratios to 8 bits only."""
    one = draft.constant(f"{op.y.name}/one", np.ones(1, np.int8), QParams(np.ones(()), np.zeros(()), IntGrid(8)))
    draft.operator("MUL", [x, one], [draft.tensor(op.y)], 2, draft.options("MulOptions"))


def strided_slice(
    draft: Draft, op: Op, x: int, begin: Sequence[int], end: Sequence[int | None], strides: Sequence[int]
) -> None:
    """Cuts the operation's output out of x; an end of None is as far as it goes."""
    values = {"begin": begin, "end": [0 if n is None else n for n in end], "strides": strides}
    further = [draft.numbers(f"{op.y.name}/{name}", value) for name, value in values.items()]
    open_ends = [i for i, n in enumerate(end) if n is None]
    options = draft.options(
        "StridedSliceOptions",
        beginMask=sum(1 << i for i in open_ends if not begin[i]),
        endMask=sum(1 << i for i in open_ends),
    )
    draft.operator("STRIDED_SLICE", [x, *further], [draft.tensor(op.y)], 2 if op.quantized else 1, options)
