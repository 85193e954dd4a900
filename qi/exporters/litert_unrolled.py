"""Recurrent layers in a LiteRT file that no operator does: a few operators for each step, side by side.

All steps share the weights, which are codes that DEQUANTIZE makes real once. The batch stays open; the length doesn't.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qi.core import QParams
from qi.exporters.litert_file import Draft
from qi.exporters.litert_linear import weight
from qi.exporters.litert_ops import WRITERS, refuse, writer
from qi.ir.graph import Op, Tensor
from qi.ir.recurrent import split_bias

__all__ = ["MOST_STEPS", "columns_of", "real_kernel", "unrolled_lstm"]

MOST_STEPS = 512
"""The longest sequence; each step takes some ten operators."""


def columns_of(kernel: Tensor, first: int, last: int) -> Tensor:
    """Some columns of a kernel."""
    columns, qparams = (slice(None), slice(first, last)), kernel.qparams
    if qparams is not None and qparams.scale.size > 1:
        scale, zero = (a[columns] if a.shape[1] > 1 else a for a in (qparams.scale, qparams.zero_point))
        qparams = QParams(scale, zero, qparams.grid, qparams.granularity)
    data = np.asarray(kernel.data)[columns]
    return Tensor(kernel.name, data.shape, kernel.dtype, qparams, data)


def real_kernel(draft: Draft, op: Op, kernel: Tensor) -> int:
    """The number of a kernel's real numbers, as [outputs, inputs]."""
    return weight(draft, Op("dense", [op.x, kernel], op.outputs, {"activation": "none"}, op.source))


class _Steps:
    """Writes the small operations of one recurrent operation."""

    def __init__(self, draft: Draft, op: Op) -> None:
        self.draft, self.op, self.units = draft, op, int(op.inputs[2].shape[0] or 0)
        bias = op.inputs[3].values() if len(op.inputs) > 3 else None
        self.given_bias, self.inner_bias = split_bias(op, bias)
        self.last = False
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], Tensor] = {}

    def tensor(self, shape: Sequence[int | None]) -> Tensor:
        """A further one, with a short name: there are thousands."""
        self._count += 1
        return Tensor(f"{self.op.y.name}.{self._count}", tuple(shape))

    def constant(self, values: np.ndarray) -> Tensor:
        """A constant, the same one for all steps."""
        key = str(values.dtype), values.shape, values.tobytes()
        if key not in self._constants:
            self._count += 1
            name = f"{self.op.y.name}.{self._count}"
            self._constants[key] = Tensor(name, values.shape, str(values.dtype), data=values)
        return self._constants[key]

    def row(self, values: np.ndarray) -> Tensor:
        """A constant that all samples share."""
        return self.constant(values.astype(np.float32)[None])

    def do(self, kind: str, *inputs: Tensor, final: bool = False, **attrs: object) -> Tensor:
        """An operation on corresponding elements; the final one of the last step gives the result."""
        result = final and self.last and not self.op.attrs["sequences"]
        y = self.op.y if result else self.tensor((None, max(int(t.shape[1] or 0) for t in inputs)))
        WRITERS.get(kind)(self.draft, Op(kind, list(inputs), [y], attrs, self.op.source))
        return y

    def join(self, kind: str, a: Tensor, b: Tensor, *, final: bool = False) -> Tensor:
        """A sum, difference or product."""
        return self.do(kind, a, b, final=final, activation="none")

    def function(self, key: str, x: Tensor, *, final: bool = False) -> Tensor:
        """The function of gates or of states; of what it has no kernel for, "linear" is a product with one."""
        name = self.op.attrs[key]
        if name == "linear":
            return self.join("mul", x, self.row(np.ones(1)), final=True) if final else x
        if name == "relu":
            return self.do("relu", x, final=final, max_value=None)
        return self.do("unary", x, final=final, function=name, alpha=None)

    def split(self, x: Tensor, parts: Sequence[int]) -> list[Tensor]:
        """Its last axis in parts of so many times the units."""
        if x.data is not None:
            return [self.row(array) for array in np.split(x.data[0], np.cumsum(parts)[:-1] * self.units)]
        made = [self.tensor((*x.shape[:-1], part * self.units)) for part in parts]
        sizes, axis = (
            self.constant(np.asarray(v, np.int32)) for v in (np.multiply(parts, self.units), len(x.shape) - 1)
        )
        options = self.draft.options("SplitVOptions", numSplits=len(parts))
        given, result = ([self.draft.tensor(t) for t in tensors] for tensors in ((x, sizes, axis), made))
        self.draft.operator("SPLIT_V", given, result, 1, options)
        return made

    def product(self, x: Tensor, kernel: int, bias: np.ndarray) -> Tensor:
        """Of each row with a kernel."""
        draft, y = self.draft, self.tensor((*x.shape[:-1], bias.size))
        options = draft.options("FullyConnectedOptions", keepNumDims=len(x.shape) > 2)
        inputs = [draft.tensor(x), kernel, draft.tensor(self.constant(bias.astype(np.float32)))]
        draft.operator("FULLY_CONNECTED", inputs, [draft.tensor(y)], 5 if len(x.shape) > 2 else 1, options)
        return y


Step = Callable[..., Tensor]


def _unrolled(draft: Draft, op: Op, parts: Sequence[int], prepare: Callable[[_Steps], Step]) -> None:
    """The same operations for each step.

    Args:
        draft: gets them.
        op: on a sequence of known length.
        parts: how a step takes the products of inputs: in parts of so many times the units.
        prepare: gives a function that writes a step: of the parts, then the state before (None: zeros); it gives the next.
    """
    count = op.x.shape[1]
    if count is None or not 0 < count <= MOST_STEPS:
        length = "an open length" if count is None else f"{count} steps"
        ways = (
            f"give the model an Input of 1 to {MOST_STEPS} steps, use an LSTM with its default activations, or export for "
            "ONNX Runtime"
        )
        raise refuse(op, f"on sequences of {length}, which LiteRT has no operator for", ways)
    steps = _Steps(draft, op)
    product = steps.product(op.x, real_kernel(draft, op, op.inputs[1]), steps.given_bias)
    given = [
        _unpacked(steps, column, count) for column in (steps.split(product, parts) if len(parts) > 1 else [product])
    ]
    write, state, states = prepare(steps), None, []
    for t, products in enumerate(zip(*given, strict=True)):
        steps.last = t == count - 1
        state = write(*products, state)
        states.append(draft.tensor(state))
    if op.attrs["sequences"]:
        options = draft.options("PackOptions", valuesCount=count, axis=1)
        draft.operator("PACK", states, [draft.tensor(op.y)], 1, options)


def _unpacked(steps: _Steps, x: Tensor, count: int) -> list[Tensor]:
    """The steps of [batch, steps, values]."""
    draft, made = steps.draft, [steps.tensor((None, x.shape[2])) for _ in range(count)]
    options = draft.options("UnpackOptions", num=count, axis=1)
    draft.operator("UNPACK", [draft.tensor(x)], [draft.tensor(t) for t in made], 1, options)
    return made


def _inner(steps: _Steps, first: int = 0, last: int = 0) -> Callable[[Tensor | None], Tensor]:
    """The product of states with some columns of their kernel; of zeros it is the bias."""
    kernel, bias = steps.op.inputs[2], steps.inner_bias[first : last or None]
    number = real_kernel(steps.draft, steps.op, columns_of(kernel, first, last or int(kernel.shape[1] or 0)))
    return lambda h: steps.row(bias) if h is None else steps.product(h, number, bias)


@writer("gru")
def _gru(draft: Draft, op: Op) -> None:
    _unrolled(draft, op, (2, 1), _gru_after if op.attrs["reset_after"] else _gru_before)


def _gru_after(steps: _Steps) -> Step:
    inner = _inner(steps)

    def step(gates: Tensor, candidate: Tensor, h: Tensor | None) -> Tensor:
        held, kept = steps.split(inner(h), (2, 1))
        z, r = _gates(steps, gates, held)
        return _mixed(steps, z, steps.join("add", candidate, steps.join("mul", r, kept)), h)

    return step


def _gru_before(steps: _Steps) -> Step:
    of_gates, of_candidate = _inner(steps, 0, 2 * steps.units), _inner(steps, 2 * steps.units)

    def step(gates: Tensor, candidate: Tensor, h: Tensor | None) -> Tensor:
        z, r = _gates(steps, gates, of_gates(h))
        kept = of_candidate(None if h is None else steps.join("mul", r, h))
        return _mixed(steps, z, steps.join("add", candidate, kept), h)

    return step


def _gates(steps: _Steps, given: Tensor, held: Tensor) -> list[Tensor]:
    return steps.split(steps.function("recurrent_activation", steps.join("add", given, held)), (1, 1))


def _mixed(steps: _Steps, z: Tensor, candidate: Tensor, h: Tensor | None) -> Tensor:
    """``z * h + (1 - z) * g(candidate)``."""
    rest = steps.join("sub", steps.row(np.ones(1)), z)
    new = steps.join("mul", rest, steps.function("activation", candidate), final=h is None)
    return new if h is None else steps.join("add", steps.join("mul", z, h), new, final=True)


@writer("simple_rnn")
def _simple_rnn(draft: Draft, op: Op) -> None:
    def prepare(steps: _Steps) -> Step:
        inner = _inner(steps)
        return lambda given, h: steps.function("activation", steps.join("add", given, inner(h)), final=True)

    _unrolled(draft, op, (1,), prepare)


def unrolled_lstm(draft: Draft, op: Op) -> None:
    """An LSTM step by step, with whatever functions."""

    def prepare(steps: _Steps) -> Step:
        inner, carry = _inner(steps), None

        def step(given: Tensor, h: Tensor | None) -> Tensor:
            nonlocal carry
            first, c, last = steps.split(steps.join("add", given, inner(h)), (2, 1, 1))
            i, f = steps.split(steps.function("recurrent_activation", first), (1, 1))
            new = steps.join("mul", i, steps.function("activation", c))
            carry = new if carry is None else steps.join("add", steps.join("mul", f, carry), new)
            o = steps.function("recurrent_activation", last)
            return steps.join("mul", o, steps.function("activation", carry), final=True)

        return step

    _unrolled(draft, op, (4,), prepare)
