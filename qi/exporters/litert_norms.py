"""Normalizations, and softmax of codes, in a LiteRT file: a dozen operators on real numbers each."""

from __future__ import annotations

from qi.exporters.litert_elementwise import LEAVE_IN_FLOAT, Steps
from qi.exporters.litert_file import Draft
from qi.exporters.litert_ops import refuse, writer
from qi.ir.formulas import SMALL_EPSILON
from qi.ir.graph import Op
from qi.ir.norms import epsilon_of, reciprocal_of

__all__: list[str] = []


class _Rows(Steps):
    """Steps that also give one number for each row, along the operation's axes."""

    def __init__(self, draft: Draft, op: Op, axes: list[int]) -> None:
        super().__init__(draft, op)
        self.axes = draft.numbers(f"{op.y.name}/axes", axes)
        self.shape = [1 if i in axes else n for i, n in enumerate(op.y.shape)]

    def row(self, code: str, *inputs: int) -> int:
        """An operator on numbers of rows, such as "SUB"."""
        y = self.draft.real(f"{self.op.y.name}/{code.lower()}", self.shape)
        named = code in ("ADD", "SUB", "MUL", "DIV")
        self.draft.operator(code, inputs, [y], 1, self.draft.options(f"{code.capitalize()}Options") if named else None)
        return y

    def reduced(self, code: str, of: int) -> int:
        """One number for each row, such as "MEAN"."""
        y = self.draft.real(f"{self.op.y.name}/{code.lower()}", self.shape)
        self.draft.operator(code, [of, self.axes], [y], 1, self.draft.options("ReducerOptions", keepDims=True))
        return y

    def weighted(self, code: str, a: int, b: int) -> None:
        """The last steps: a and b combined, times gamma, plus beta."""
        weights = [self.draft.constant(t.name, t.values()) for t in self.op.inputs[1:]]
        y = self.binary(code, a, b, last=not weights)
        for step, weight, last in zip(("MUL", "ADD"), weights, (len(weights) == 1, True), strict=False):
            y = self.binary(step, y, weight, last=last)


@writer("layer_norm_of_codes", "rms_norm_of_codes")
def _norm_of_codes(draft: Draft, op: Op) -> None:
    """The steps of `qi.ir.norms`, one operator each; MEAN multiplies with a reciprocal."""
    steps = _Rows(draft, op, list(op.attrs["axes"]))
    q = steps.do("ROUND", steps.binary("MUL", draft.tensor(op.x), steps.number(float(reciprocal_of(op)))))
    variance = steps.reduced("MEAN", steps.binary("MUL", q, q))
    if op.kind == "layer_norm_of_codes":
        mean = steps.reduced("MEAN", q)
        variance = steps.row("SUB", variance, steps.row("MUL", mean, mean))
        if epsilon_of(op) < SMALL_EPSILON:
            variance = steps.row("RELU", variance)
        q = steps.binary("SUB", q, mean)
    variance = steps.row("ADD", variance, steps.number(float(epsilon_of(op))))
    root = steps.row("SQRT", variance)
    root = steps.row("ADD", root, steps.row("DIV", variance, root))
    steps.weighted("DIV", q, steps.row("MUL", root, steps.number(0.5)))


@writer("layer_norm", "rms_norm")
def _norm(draft: Draft, op: Op) -> None:
    """``(x - mean) * rsqrt(mean((x - mean)**2) + epsilon) * gamma + beta``; without the mean for "rms_norm"."""
    if op.quantized:
        raise refuse(op, "on codes", LEAVE_IN_FLOAT)
    steps, x = _Rows(draft, op, list(op.attrs["axes"])), draft.tensor(op.x)
    centred = steps.binary("SUB", x, steps.reduced("MEAN", x)) if op.kind == "layer_norm" else x
    variance = steps.reduced("MEAN", steps.binary("MUL", centred, centred))
    steps.weighted("MUL", centred, steps.row("RSQRT", steps.row("ADD", variance, steps.number(op.attrs["epsilon"]))))


@writer("softmax_of_codes")
def _softmax_of_codes(draft: Draft, op: Op) -> None:
    """The steps of `qi.ir.softmax`, one operator each."""
    steps, x = _Rows(draft, op, [op.attrs["axis"]]), draft.tensor(op.x)
    top = steps.row("SUB", steps.reduced("REDUCE_MAX", x), steps.number(op.attrs["shift"]))
    e = steps.do("ROUND", steps.do("EXP", steps.binary("SUB", x, top)))
    steps.binary("DIV", e, steps.reduced("SUM", e), last=True)
