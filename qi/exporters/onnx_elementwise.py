"""Operations on elements, means and norms as ONNX operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qi.exporters.onnx_builder import FIRST, LAST, Builder, constant_data, refused, writer
from qi.ir.graph import Op, Tensor
from qi.ir.norms import OF_CODES
from qi.ir.onnxruntime import integer_softmax, resize_factor
from qi.ir.tables import KIND as TABLE
from qi.registry import Registry

__all__ = ["FUNCTIONS"]

_Function = Callable[[Builder, Op, str], str]
FUNCTIONS: Registry[_Function] = Registry("function of one number in ONNX")


# Where real numbers become codes, and codes real numbers ---------------------------------------------------------------


@writer("quantize")
def _quantize(b: Builder, op: Op) -> None:
    """Codes become codes of another scale through a look-up table.

    A LeakyRelu of slope 1 gets ONNX Runtime's table of 256 entries; DequantizeLinear and QuantizeLinear alone would be joined
    with those around them, and other codes come out.
    """
    layout = b.layout_of([op.x], len(op.x.shape))
    real = b.real(op.x, layout)
    if op.x.quantized:
        real = b.node("LeakyRelu", [real], alpha=1.0)
    elif op.x.dtype != "float32":
        real = b.node("Cast", [real], to=b.type_of(np.dtype(np.float32)))
    b.put_codes(op.y, b.quantized(op, real), layout)


@writer("dequantize")
def _dequantize(b: Builder, op: Op) -> None:
    users = b.graph.consumers().get(id(op.y), [])
    if users and all(user.kind in OF_CODES for user in users):
        return  # they take the codes themselves
    layout = b.layout_of([op.x], len(op.x.shape))
    b.put_real(op.y, b.real(op.x, layout), layout)


@writer("cast")
def _cast(b: Builder, op: Op) -> None:
    layout = b.layout_of([op.x], len(op.x.shape))
    real = b.node("Cast", [b.real(op.x, layout)], to=b.type_of(np.dtype(op.attrs["to"])))
    b.put_real(op.y, real, layout)


# Two operands ------------------------------------------------------------------------------------------------------------


def _binary(kind: str, name: str) -> None:
    @writer(kind)
    def write(b: Builder, op: Op) -> None:
        layout, names = b.operands(op)
        b.finish(op, b.node(name, names), layout)


_COMPARISONS = {"less_equal": "LessOrEqual", "greater_equal": "GreaterOrEqual", "not_equal": "Equal"}


@writer("compare")
def _compare(b: Builder, op: Op) -> None:
    layout, names = b.operands(op)
    name = op.attrs["function"]
    found = b.node(_COMPARISONS.get(name, name.title()), names)
    b.put_real(op.y, b.node("Not", [found]) if name == "not_equal" else found, layout)


@writer("select")
def _select(b: Builder, op: Op) -> None:
    layout, names = b.operands(op)
    b.put_real(op.y, b.node("Where", names), layout)


for _kind, _name in {"add": "Add", "mul": "Mul", "div": "Div"}.items():
    _binary(_kind, _name)


@writer("maximum", "minimum")
def _maximum(b: Builder, op: Op) -> None:
    """On codes of one scale as numbers of int32, whose order is theirs."""
    name = {"maximum": "Max", "minimum": "Min"}[op.kind]
    if not op.quantized:
        layout, names = b.operands(op)
        b.finish(op, b.node(name, names), layout)
        return
    layout, (dtype, _) = b.layout_of(op.inputs, len(op.y.shape)), b.code_type(op.y)
    whole = [b.node("Cast", [b.codes(t, layout)], to=b.type_of(np.dtype(np.int32))) for t in op.inputs]
    b.put_codes(op.y, b.node("Cast", [b.node(name, whole)], f"{op.y.name}:codes", to=b.type_of(dtype)), layout)


@writer("sub")
def _sub(b: Builder, op: Op) -> None:
    """On codes as the sum with the second operand's negative, whose codes are 255 - q: there is no integer kernel for Sub."""
    if not op.quantized:
        layout, names = b.operands(op)
        b.finish(op, b.node("Sub", names), layout)
        return
    rank = len(op.y.shape)
    layout = b.layout_of(op.inputs, rank)
    operands = [b.operand(op.x, rank, layout), b.negated(op.inputs[1], rank, layout)]
    b.finish(op, b.node("Add", operands), layout)


@writer("prelu")
def _prelu(b: Builder, op: Op) -> None:
    layout, (x, alpha) = b.operands(op)
    b.finish(op, b.node("PRelu", [x, alpha]), layout)


# One operand ---------------------------------------------------------------------------------------------------------------


@writer("relu")
def _relu(b: Builder, op: Op) -> None:
    """On codes: a clip where the scale stays; else LeakyRelu's table with slope 0, and a clip of its codes above."""
    layout, (x,) = b.operands(op)
    top = op.attrs["max_value"]
    if not op.y.quantized:
        bounds = [b.constant(np.float32(v), "bound") for v in (0, top)] if top is not None else []
        b.put_real(op.y, b.node("Clip" if bounds else "Relu", [x, *bounds]), layout)
        return
    codes = b.quantized(op, b.node("LeakyRelu", [x], alpha=0.0))
    if top is not None:
        dtype, offset = b.code_type(op.y)
        last = op.y.zero_point + int(np.rint(np.float32(top) / op.y.scale))
        if last < op.y.grid.qmax:
            codes = b.node("Clip", [codes, "", b.constant(dtype.type(last + offset), "code")])
    b.put_codes(op.y, codes, layout)


@writer("unary")
def _unary(b: Builder, op: Op) -> None:
    name = op.attrs["function"]
    if name not in FUNCTIONS.names():
        raise refused(op, f"whose function is {name!r}", "use another activation function")
    layout, (x,) = b.operands(op)
    b.finish(op, FUNCTIONS.get(name)(b, op, x), layout)


@writer(TABLE)
def _table(b: Builder, op: Op) -> None:
    """Codes as int32, the sum with their table's place, and the entry there; codes of the file lie 128 higher."""
    x, table, places = op.inputs
    rank = len(op.y.shape)
    layout, (dtype, offset) = b.layout_of([x], rank), b.code_type(op.y)
    whole = b.node("Cast", [b.codes(x, layout)], to=b.type_of(np.dtype(np.int32)))
    at = b.constant_in(places, constant_data(places) - np.int32(b.code_type(x)[1]), rank, layout)
    entries = b.constant((constant_data(table).astype(np.int64) + offset).astype(dtype), table.name)
    place = b.node("Add", [whole, b.constant(at, places.name)])
    b.put_codes(op.y, b.node("Gather", [entries, place], f"{op.y.name}:codes"), layout)


def _simple(name: str, kind: str, **attrs: Any) -> None:
    FUNCTIONS.register(name)(lambda b, op, x: b.node(kind, [x], **attrs))


_simple("sigmoid", "Sigmoid")
_simple("tanh", "Tanh")
_simple("hard_sigmoid", "HardSigmoid", alpha=1 / 6, beta=0.5)
_simple("hard_swish", "HardSwish")
_simple("gelu", "Gelu")
_simple("gelu_tanh", "Gelu", approximate="tanh")
_simple("exp", "Exp")
_simple("abs", "Abs")
_simple("negative", "Neg")
_simple("sqrt", "Sqrt")
_simple("softplus", "Softplus")
_simple("log", "Log")
FUNCTIONS.register("silu")(lambda b, op, x: b.node("Mul", [x, b.node("Sigmoid", [x])]))
FUNCTIONS.register("rsqrt")(lambda b, op, x: b.node("Reciprocal", [b.node("Sqrt", [x])]))
FUNCTIONS.register("square")(lambda b, op, x: b.node("Mul", [x, x]))
FUNCTIONS.register("elu")(lambda b, op, x: b.node("Elu", [x], alpha=float(op.attrs["alpha"])))
FUNCTIONS.register("leaky_relu")(lambda b, op, x: b.node("LeakyRelu", [x], alpha=float(op.attrs["alpha"])))


# Along axes ----------------------------------------------------------------------------------------------------------------


@writer("softmax")
def _softmax(b: Builder, op: Op) -> None:
    """In real numbers as Exp(LogSoftmax(x)), which ONNX Runtime has no integer kernel for: that of Softmax isn't right."""
    x, axis = b.real(op.x, LAST), int(op.attrs["axis"])
    if integer_softmax(op):
        b.finish(op, b.node("Softmax", [x], axis=axis), LAST)
    else:
        b.finish(op, b.node("Exp", [b.node("LogSoftmax", [x], axis=axis)]), LAST)


@writer("mean")
def _mean(b: Builder, op: Op) -> None:
    """A GlobalAveragePool, which has an integer kernel as ReduceMean has not, of [batch, what stays, what goes, 1]."""
    axes, rank = [int(a) for a in op.attrs["axes"]], len(op.x.shape)
    image = rank == 4 and axes == [1, 2]
    if not op.quantized and not image:
        reduced = b.node("ReduceMean", [b.real(op.x, LAST), b.indices(axes)], keepdims=int(op.attrs["keepdims"]))
        b.finish(op, reduced, LAST)
        return
    source = op.x if image else _gathered(b, op, axes)
    count = int(source.shape[3 if image else 1] or 0)
    pooled = Tensor(f"{op.y.name}:pooled", (None, 1, 1, count), op.y.dtype, op.y.qparams)
    real = b.node("GlobalAveragePool", [b.real(source, FIRST if image else LAST)])
    b.finish(Op(op.kind, [source], [pooled], op.attrs, op.source), real, FIRST)
    if image and op.attrs["keepdims"]:
        b.put(op.y, b.value(pooled, FIRST), FIRST)
    else:
        b.put(op.y, b.node("Reshape", [b.value(pooled, FIRST), b.indices(b.sizes(op.y))]), LAST)


def _gathered(b: Builder, op: Op, axes: list[int]) -> Tensor:
    """[batch, the elements that stay, those of each mean, 1]: codes, channels first."""
    x = op.x
    kept = [a for a in range(1, len(x.shape)) if a not in axes]
    stays, goes = (math.prod(int(x.shape[a] or 0) for a in found) for found in (kept, axes))
    codes, perm = b.value(x, LAST), [0, *kept, *axes]
    if perm != sorted(perm):
        codes = b.node("Transpose", [codes], perm=perm)
    shape = (None, stays, goes, 1)
    gathered = Tensor(f"{x.name}:gathered", shape, x.dtype, x.qparams)
    b.put(gathered, b.node("Reshape", [codes, b.indices(b.sizes(gathered))]), LAST)
    return gathered


@writer("avg_pool2d")
def _avg_pool2d(b: Builder, op: Op) -> None:
    top, bottom, left, right = op.attrs["pads"]
    shapes = {"kernel_shape": list(op.attrs["pool"]), "strides": list(op.attrs["strides"])}
    real = b.node("AveragePool", [b.real(op.x, FIRST)], count_include_pad=0, pads=[top, left, bottom, right], **shapes)
    b.finish(op, real, FIRST)


@writer("resize_bilinear")
def _resize_bilinear(b: Builder, op: Op) -> None:
    """Where the height stays, rows go as channels: what ONNX Runtime computes otherwise depends on the operations around."""
    x, y = op.x, op.y
    if x.shape[1:] == y.shape[1:]:
        b.finish(op, b.real(x, FIRST), FIRST)
    elif x.shape[1] != y.shape[1]:
        b.finish(op, _resized(b, op), FIRST)
    else:
        flat = [
            Tensor(f"{t.name}:rows", (None, 1, t.shape[2], math.prod(_sizes(t)[::2])), t.dtype, t.qparams)
            for t in (x, y)
        ]
        rows = Op(op.kind, flat[:1], flat[1:], op.attrs, op.source)
        b.put(rows.x, b.reshaped(b.value(x, FIRST), rows.x, FIRST), FIRST)
        b.finish(rows, _resized(b, rows), FIRST)
        b.put(y, b.reshaped(b.value(rows.y, FIRST), y, FIRST), FIRST)


def _sizes(tensor: Tensor) -> list[int]:
    return [int(n or 0) for n in tensor.shape[1:]]


def _resized(b: Builder, op: Op) -> str:
    factors = [resize_factor(n, m) for n, m in zip(_sizes(op.x)[:2], _sizes(op.y)[:2], strict=True)]
    name = b.constant(np.array([1, 1, *factors], np.float32), "factors")
    how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return b.node("Resize", [b.real(_held(b, op.x), FIRST), "", name], **how)


def _held(b: Builder, x: Tensor) -> Tensor:
    """An image that stays where it is: reshaped to its own shape, in graphs that transpose.

    ONNX Runtime moves transpositions behind Resize, which may then have to resize axes that it has no kernel for.
    """
    if all(op.kind != "transpose" for op in b.graph.ops):
        return x
    held = Tensor(f"{x.name}:held", x.shape, x.dtype, x.qparams)
    b.put(held, b.reshaped(b.value(x, FIRST), held, FIRST), FIRST)
    return held
