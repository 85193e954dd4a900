"""Operations on each element, or on few, in a LiteRT file; those on real numbers may take several operators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qi.exporters.litert_file import Draft
from qi.exporters.litert_ops import activation, padding, refuse, rescale, window, writer
from qi.ir.graph import Op, Tensor
from qi.ir.tables import KIND as TABLE

__all__ = ["LEAVE_IN_FLOAT", "Steps"]

LEAVE_IN_FLOAT = "leave its activations in float by a rule of the recipe"


@writer("quantize")
def _quantize(draft: Draft, op: Op) -> None:
    if op.x.quantized:
        rescale(draft, op, draft.tensor(op.x))
    else:
        draft.operator("QUANTIZE", [draft.tensor(op.x)], [draft.tensor(op.y)], 1)


@writer("dequantize")
def _dequantize(draft: Draft, op: Op) -> None:
    draft.operator("DEQUANTIZE", [draft.tensor(op.x)], [draft.tensor(op.y)], 2)


@writer("cast")
def _cast(draft: Draft, op: Op) -> None:
    kinds = draft.fb.TensorType
    before, after = (getattr(kinds, str(t.dtype).upper()) for t in (op.x, op.y))
    x, y = draft.tensor(op.x), draft.tensor(op.y)
    draft.operator("CAST", [x], [y], 1, draft.options("CastOptions", inDataType=before, outDataType=after))


def _plain(draft: Draft, op: Op, code: str, versions: tuple[int, int], options: object = None) -> None:
    """One operator; `versions` for real numbers and for codes."""
    inputs = [_operand(draft, op, t) for t in op.inputs]
    draft.operator(code, inputs, [draft.tensor(op.y)], versions[op.quantized], options)


def _operand(draft: Draft, op: Op, tensor: Tensor) -> int:
    """An input: of an operation on real numbers, constant codes are made real."""
    if tensor.constant and tensor.quantized and not op.quantized:
        return draft.constant(tensor.name, tensor.values())
    return draft.tensor(tensor)


def _binary(kind: str, code: str, name: str) -> None:
    @writer(kind)
    def write(draft: Draft, op: Op) -> None:
        if kind == "div" and op.quantized:
            raise refuse(op, "on codes", LEAVE_IN_FLOAT)
        fused = activation(draft, op)
        _plain(draft, op, code, (1, 2), draft.options(name, fusedActivationFunction=fused))


for _kind in ("add", "sub", "mul", "div"):
    _binary(_kind, _kind.upper(), f"{_kind.capitalize()}Options")


@writer("maximum", "minimum")
def _maximum(draft: Draft, op: Op) -> None:
    if op.quantized and any(t.qparams != op.y.qparams for t in op.inputs):
        raise refuse(op, "of tensors with several scales", "let its inputs and its output share one quantizer")
    _plain(draft, op, op.kind.upper(), (1, 2), draft.options("MaximumMinimumOptions"))


@writer("compare")
def _compare(draft: Draft, op: Op) -> None:
    name = op.attrs["function"]
    options = draft.options(f"{name.title().replace('_', '')}Options")
    draft.operator(name.upper(), [draft.tensor(t) for t in op.inputs], [draft.tensor(op.y)], 1, options)


@writer("select")
def _select(draft: Draft, op: Op) -> None:
    draft.operator("SELECT_V2", [_operand(draft, op, t) for t in op.inputs], [draft.tensor(op.y)], 1)


@writer("relu")
def _relu(draft: Draft, op: Op) -> None:
    top = op.attrs["max_value"]
    if top in (None, 6):
        _plain(draft, op, "RELU" if top is None else "RELU6", (1, 2))
    elif op.quantized:
        raise refuse(op, f"with max_value={top}", LEAVE_IN_FLOAT)
    else:
        low = draft.real(f"{op.y.name}/relu", op.y.shape)
        draft.operator("RELU", [draft.tensor(op.x)], [low])
        bound = draft.constant(f"{op.y.name}/max_value", np.asarray([top], np.float32))
        draft.operator("MINIMUM", [low, bound], [draft.tensor(op.y)], 1, draft.options("MaximumMinimumOptions"))


@writer("prelu")
def _prelu(draft: Draft, op: Op) -> None:
    _plain(draft, op, "PRELU", (1, 1))


@writer("softmax")
def _softmax(draft: Draft, op: Op) -> None:
    axis, last = op.attrs["axis"], len(op.x.shape) - 1
    options = draft.options("SoftmaxOptions", beta=1.0)
    if axis == last:
        _plain(draft, op, "SOFTMAX", (1, 2), options)
        return
    order = [i for i in range(last + 1) if i != axis] + [axis]
    shape = [op.x.shape[i] for i in order]
    x, y = (draft.new(f"{op.y.name}/{name}", shape, t) for name, t in (("turned", op.x), ("softmax", op.y)))
    version, how = 2 if op.quantized else 1, draft.options("TransposeOptions")
    there, back = (
        draft.numbers(f"{op.y.name}/order", order),
        draft.numbers(f"{op.y.name}/back", np.argsort(order).tolist()),
    )
    draft.operator("TRANSPOSE", [draft.tensor(op.x), there], [x], version, how)
    draft.operator("SOFTMAX", [x], [y], version, options)
    draft.operator("TRANSPOSE", [y, back], [draft.tensor(op.y)], version, how)


@writer("mean")
def _mean(draft: Draft, op: Op) -> None:
    _reduce(draft, op, "MEAN")


@writer("max")
def _max(draft: Draft, op: Op) -> None:
    _reduce(draft, op, "REDUCE_MAX")


def _reduce(draft: Draft, op: Op, code: str) -> None:
    axes = draft.numbers(f"{op.y.name}/axes", op.attrs["axes"])
    options = draft.options("ReducerOptions", keepDims=bool(op.attrs["keepdims"]))
    draft.operator(code, [draft.tensor(op.x), axes], [draft.tensor(op.y)], 2 if op.quantized else 1, options)


@writer("avg_pool2d", "max_pool2d")
def _pool(draft: Draft, op: Op) -> None:
    (ph, pw), (sh, sw) = op.attrs["pool"], op.attrs["strides"]
    lowest = op.x.grid.qmin if op.quantized else float(np.finfo(np.float32).min)
    fill = lowest if op.kind == "max_pool2d" else None
    if op.kind == "avg_pool2d" and not padding(op, (ph, pw)):
        raise refuse(op, f"with pads {op.attrs['pads']}", "use padding='same' or 'valid'")
    x, how = window(draft, op, (ph, pw), fill)
    options = draft.options("Pool2DOptions", padding=how, strideH=sh, strideW=sw, filterHeight=ph, filterWidth=pw)
    code = "AVERAGE_POOL_2D" if op.kind == "avg_pool2d" else "MAX_POOL_2D"
    if op.x.qparams == op.y.qparams:
        draft.operator(code, [x], [draft.tensor(op.y)], 2 if op.quantized else 1, options)
        return
    mean = draft.new(f"{op.y.name}/mean", op.y.shape, op.x)
    draft.operator(code, [x], [mean], 2, options)
    rescale(draft, op, mean)


@writer("resize_bilinear")
def _resize_bilinear(draft: Draft, op: Op) -> None:
    size = draft.numbers(f"{op.y.name}/size", op.attrs["size"])
    options = draft.options("ResizeBilinearOptions", halfPixelCenters=True)
    draft.operator("RESIZE_BILINEAR", [draft.tensor(op.x), size], [draft.tensor(op.y)], 3, options)


@writer("batch_matmul")
def _batch_matmul(draft: Draft, op: Op) -> None:
    options = draft.options("BatchMatMulOptions", adjX=op.attrs["transpose_a"], adjY=op.attrs["transpose_b"])
    _plain(draft, op, "BATCH_MATMUL", (1, 2), options)


# Functions of one number ------------------------------------------------------------------------------------------------

# The operator, and its versions for real numbers and for codes (0: none).
_UNARY = {
    "sigmoid": ("LOGISTIC", (1, 2)),
    "tanh": ("TANH", (1, 2)),
    "gelu": ("GELU", (1, 2)),
    "gelu_tanh": ("GELU", (1, 2)),
    "elu": ("ELU", (1, 1)),
    "leaky_relu": ("LEAKY_RELU", (1, 2)),
    "hard_swish": ("HARD_SWISH", (1, 1)),
    "exp": ("EXP", (1, 2)),
    "abs": ("ABS", (1, 2)),
    "negative": ("NEG", (1, 0)),
    "sqrt": ("SQRT", (1, 0)),
    "rsqrt": ("RSQRT", (1, 2)),
    "square": ("SQUARE", (1, 0)),
    "log": ("LOG", (1, 2)),
}


@writer("unary")
def _unary(draft: Draft, op: Op) -> None:
    function = op.attrs["function"]
    if not op.quantized and function in _COMPOSED:
        _COMPOSED[function](draft, op)
        return
    code, versions = _UNARY.get(function, ("", (0, 0)))
    if not versions[op.quantized]:
        raise refuse(op, f"with function={function!r} on codes", LEAVE_IN_FLOAT)
    if function == "elu" and op.attrs["alpha"] != 1:
        raise refuse(op, f"elu with alpha={op.attrs['alpha']} on codes", LEAVE_IN_FLOAT)
    options = None
    if code == "GELU":
        options = draft.options("GeluOptions", approximate=function == "gelu_tanh")
    elif code == "LEAKY_RELU":
        options = draft.options("LeakyReluOptions", alpha=op.attrs["alpha"])
    _plain(draft, op, code, versions, options)


@writer(TABLE)
def _table(draft: Draft, op: Op) -> None:
    """Codes as int32, the sum with their table's place, and the entry there."""
    kinds, (x, table, places) = draft.fb.TensorType, op.inputs
    whole, place = (draft.plain(f"{op.y.name}/{name}", op.y.shape, "int32") for name in ("whole", "place"))
    cast = draft.options("CastOptions", inDataType=kinds.INT8, outDataType=kinds.INT32)
    draft.operator("CAST", [draft.tensor(x)], [whole], 1, cast)
    draft.operator("ADD", [whole, draft.tensor(places)], [place], 1, draft.options("AddOptions"))
    draft.operator("GATHER", [draft.tensor(table), place], [draft.tensor(op.y)], 2, draft.options("GatherOptions"))


class Steps:
    """Operators on real numbers, one after the other, of the shape of an operation's output."""

    def __init__(self, draft: Draft, op: Op) -> None:
        self.draft, self.op, self.count = draft, op, 0

    def number(self, value: float) -> int:
        """A constant."""
        return self.draft.constant(f"{self.op.y.name}/number", np.asarray([value], np.float32))

    def do(self, code: str, *inputs: int, name: str = "", last: bool = False, **fields: object) -> int:
        """An operator; its result has the operation's shape.

        Args:
            code: such as "EXP".
            inputs: numbers of tensors.
            name: of its options.
            last: whether the result is the operation's output.
            fields: of its options.
        """
        y = (
            self.draft.tensor(self.op.y)
            if last
            else self.draft.real(f"{self.op.y.name}/{code.lower()}", self.op.y.shape)
        )
        self.draft.operator(code, inputs, [y], 1, self.draft.options(name, **fields) if name else None)
        return y

    def binary(self, code: str, a: int, b: int, last: bool = False) -> int:
        """An operator of two tensors, such as "ADD"."""
        return self.do(code, a, b, name=f"{code.capitalize()}Options", last=last)


def _silu(draft: Draft, op: Op) -> None:
    """The product ``x * sigmoid(x)``."""
    steps, x = Steps(draft, op), draft.tensor(op.x)
    steps.binary("MUL", x, steps.do("LOGISTIC", x), last=True)


def _hard_sigmoid(draft: Draft, op: Op) -> None:
    """``min(max(x / 6 + 0.5, 0), 1)``."""
    steps, x = Steps(draft, op), draft.tensor(op.x)
    line = steps.binary("ADD", steps.binary("MUL", x, steps.number(1 / 6)), steps.number(0.5))
    above = steps.do("RELU", line)
    steps.do("MINIMUM", above, steps.number(1), name="MaximumMinimumOptions", last=True)


def _softplus(draft: Draft, op: Op) -> None:
    """``max(x, 0) + log(1 + exp(-abs(x)))``."""
    steps, x = Steps(draft, op), draft.tensor(op.x)
    e = steps.do("EXP", steps.do("NEG", steps.do("ABS", x)))
    log = steps.do("LOG", steps.binary("ADD", e, steps.number(1)))
    steps.binary("ADD", steps.do("RELU", x), log, last=True)


def _elu(draft: Draft, op: Op) -> None:
    """max(x, 0) + alpha * (exp(min(x, 0)) - 1), which runtimes without ELU know too."""
    steps, x = Steps(draft, op), draft.tensor(op.x)
    low = steps.do("EXP", steps.do("MINIMUM", x, steps.number(0), name="MaximumMinimumOptions"))
    below = steps.binary("MUL", steps.binary("SUB", low, steps.number(1)), steps.number(op.attrs["alpha"]))
    steps.binary("ADD", steps.do("RELU", x), below, last=True)


_COMPOSED: dict[str, Callable[[Draft, Op], None]] = {
    "silu": _silu,
    "elu": _elu,
    "hard_sigmoid": _hard_sigmoid,
    "softplus": _softplus,
}
