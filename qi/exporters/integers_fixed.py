"""The fixed-point numbers of each integer operation: what its kernel multiplies with, shifts by and looks up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from qi.errors import UnsupportedError
from qi.ir import Op
from qi.ir.fixed_functions import ratio
from qi.ir.fixed_softmax import fixed_exponentials
from qi.ir.kinds import kernel_of
from qi.ir.linear import LINEAR
from qi.ir.reference import linear_factor, matrix_factor, mean_factor, sum_factors

__all__ = ["Parameters", "fixed_point"]

Parameters: TypeAlias = dict[str, "int | np.ndarray"]
_Factor: TypeAlias = tuple[np.ndarray, np.ndarray]

_LEFT, _RIGHT = 30, -31


def fixed_point(op: Op) -> Parameters:
    """What the kernel of an operation on codes needs beside codes, zero points and attributes.

    A real factor is ``multiplier * 2**(shift - 31)``, with ``0 <= multiplier < 2**31``.

    Args:
        op: with an integer kernel of "reference".

    Returns:
        numbers, and arrays: int32 multipliers, int8 shifts, int8 tables, the int32 table of softmax.

    Raises:
        UnsupportedError: a factor that fixed-point numbers can't hold.
    """
    if op.kind in LINEAR:
        return _linear(op)
    return _FORMS[op.kind](op) if op.kind in _FORMS else {}


def _checked(op: Op, factor: _Factor) -> _Factor:
    multiplier, shift = factor
    if np.any(multiplier < 0) or np.any(multiplier >= 2**31) or np.any(shift > _LEFT) or np.any(shift < _RIGHT):
        raise UnsupportedError(
            f"expected scales whose ratio lies between 2**{_RIGHT} and 2**{_LEFT}; received those of {op.kind!r} of layer "
            f"{op.source!r} (shifts {np.min(shift)} to {np.max(shift)}); do calibrate it on other samples"
        )
    return multiplier, shift


def _single(op: Op, factor: _Factor, prefix: str = "") -> Parameters:
    multiplier, shift = _checked(op, factor)
    return {f"{prefix}multiplier": int(multiplier), f"{prefix}shift": int(shift)}


def _linear(op: Op) -> Parameters:
    """A factor for each output channel, also where the weights have one scale."""
    channels = int(op.y.shape[-1] or 0)
    multiplier, shift = (np.broadcast_to(part, (channels,)) for part in _checked(op, linear_factor(op)))
    return {"multiplier": multiplier.astype(np.int32), "shift": shift.astype(np.int8)}


def _sum(op: Op) -> Parameters:
    (first, second), last = sum_factors(op)
    return {
        "left_shift": 20,
        **_single(op, first, "input0_"),
        **_single(op, second, "input1_"),
        **_single(op, last, "output_"),
    }


def _product(op: Op) -> Parameters:
    return _single(op, ratio(op, float(op.inputs[1].scale)))


def _mean(op: Op) -> Parameters:
    count = math.prod(int(op.x.shape[axis] or 0) for axis in op.attrs["axes"])
    return {"count": count, **_single(op, mean_factor(op, count))}


def _average(op: Op) -> Parameters:
    """None where the scale stays as it is: then the mean of the codes is the result."""
    return {} if op.x.qparams == op.y.qparams else _single(op, ratio(op))


def _requantize(op: Op) -> Parameters:
    return _single(op, ratio(op)) if op.x.quantized else {}


def _prelu(op: Op) -> Parameters:
    return {**_single(op, ratio(op)), **_single(op, ratio(op, float(op.inputs[1].scale)), "negative_")}


def _table(op: Op) -> Parameters:
    """The output's code for each of the 256 codes of the input: the kernel itself, on all of them."""
    codes = np.arange(-128, 128, dtype=np.int32)
    return {"table": np.asarray(kernel_of(op, "reference")(op, codes)).astype(np.int8)}


_FORMS: dict[str, Callable[[Op], Parameters]] = {
    "add": _sum,
    "sub": _sum,
    "mul": _product,
    "batch_matmul": lambda op: _single(op, matrix_factor(op)),
    "mean": _mean,
    "avg_pool2d": _average,
    "quantize": _requantize,
    "prelu": _prelu,
    "unary": _table,
    "relu": _table,
    "softmax": lambda op: {"table": fixed_exponentials(op).astype(np.int32)},
}
