"""Functions of one number in LiteRT's integer kernels.

Tables of 256 codes, and fixed-point arithmetic for those that are nearly lines. XNNPACK and LiteRT's own kernels agree on most
of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from qi.errors import UnsupportedError
from qi.ir import fixed
from qi.ir.arithmetic import clipped
from qi.ir.elementwise import FUNCTIONS
from qi.ir.graph import Op
from qi.ir.kinds import kernel

__all__ = ["INTEGER_FUNCTIONS", "ratio"]

_ENOUGH = 2.0**20
_LEAST, _STEEPEST = 2.0**-8, 2.0**7  # slopes that XNNPACK takes
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _gelu(x: np.ndarray) -> np.ndarray:
    """``0.5 * x * erfc(-x * sqrt(0.5))``, each step in float32."""
    return np.asarray(np.float32(0.5) * x * _erfc(-x * np.float32(math.sqrt(0.5))).astype(np.float32))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    """``0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))``, each step in float32, tanh rounded well."""
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    tanh = np.tanh(inner.astype(np.float64)).astype(np.float32)
    return np.asarray(np.float32(0.5) * x * (np.float32(1) + tanh))


_IN_FLOAT32 = {"gelu": _gelu, "gelu_tanh": _gelu_tanh}


def _steps(op: Op) -> np.ndarray:
    """The function of each of the 256 codes in float32, times the reciprocal of the scale."""
    codes = np.arange(-128, 128, dtype=np.int32)
    real = (codes - op.x.zero_point).astype(np.float32) * op.x.scale
    name = op.attrs["function"]
    with np.errstate(over="ignore"):
        y = _IN_FLOAT32[name](real) if name in _IN_FLOAT32 else FUNCTIONS.get(name)(real, op)
        y = np.asarray(y, np.float32) * (np.float32(1) / op.y.scale)
    return np.asarray(np.clip(y, -_ENOUGH, _ENOUGH))


def _looked_up(op: Op, x: np.ndarray) -> np.ndarray:
    """A table, rounded half away from zero."""
    y = _steps(op)
    table = clipped(op, np.sign(y) * np.floor(np.abs(y) + np.float32(0.5)) + op.y.zero_point)
    return np.asarray(table[x + 128])


def _looked_up_even(op: Op, x: np.ndarray) -> np.ndarray:
    """XNNPACK's table: the zero point is added before it is rounded, half to even."""
    return np.asarray(clipped(op, np.rint(_steps(op) + np.float32(op.y.zero_point)))[x + 128])


def ratio(op: Op, factor: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Factor * sx / sy, in float32, as multiplier and exponent."""
    return fixed.multiplier_of(np.float64(np.float32(np.float32(factor) * op.x.scale) / op.y.scale))


def _centred(op: Op, x: np.ndarray) -> np.ndarray:
    return np.asarray(x.astype(np.int64) - op.x.zero_point)


def _leaky_relu(op: Op, x: np.ndarray) -> np.ndarray:
    """Two lines."""
    x = _centred(op, x)
    above, below = (fixed.multiplied_twice(x, ratio(op, factor)) for factor in (1.0, op.attrs["alpha"]))
    return clipped(op, np.where(x >= 0, above, below) + op.y.zero_point)


def _coarse_leaky_relu(op: Op, x: np.ndarray) -> np.ndarray:
    """XNNPACK's: both slopes have eight bits behind the point; LiteRT's own kernel does those that are less than one of these."""
    line = np.float32(op.x.scale / op.y.scale)
    slopes = line, np.float32(line * np.float32(op.attrs["alpha"]))
    if any(not _LEAST <= abs(slope) <= _STEEPEST for slope in slopes):
        return _leaky_relu(op, x)
    x, (above, below) = _centred(op, x), (int(np.rint(np.float32(256) * slope)) for slope in slopes)
    return clipped(op, ((x * np.where(x >= 0, above, below) + 128) >> 8) + op.y.zero_point)


def _abs(op: Op, x: np.ndarray) -> np.ndarray:
    return clipped(op, fixed.multiplied_twice(np.abs(_centred(op, x)), ratio(op)) + op.y.zero_point)


def _short(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(x, -(2**15), 2**15 - 1))


def _short_product(a: np.ndarray, b: int) -> np.ndarray:
    """``a * b / 2**15``, half away from zero, on 16 bits."""
    product = a * b
    nudged = product + np.where(product >= 0, 1 << 14, 1 - (1 << 14))
    return _short(np.where(nudged >= 0, nudged >> 15, -((-nudged) >> 15)))


def _short_factor(factor: np.float32) -> tuple[int, int]:
    """A factor as a multiplier of 15 bits and an exponent."""
    multiplier, exponent = fixed.multiplier_of(np.float64(factor))
    return int(min((int(multiplier) + (1 << 15)) >> 16, 2**15 - 1)), int(exponent)


def _hard_swish(op: Op, x: np.ndarray) -> np.ndarray:
    """On 16 bits: x with seven more bits, times what x / 3, held between -1 and 1, makes of it."""
    fine = op.x.scale * np.float32(1 / 128)
    (gain, down), (slope, up) = _short_factor(fine / op.y.scale), _short_factor(fine / np.float32(3 / 32768))
    x = _centred(op, x) << 7
    scaled = _short_product(x, gain)
    part = _short(x << (up - 1)) if up > 0 else x
    part = _short_product(part, slope)
    part = _short(part << 1) if up > 0 else fixed.shifted_right(part, -up)
    part = (part + (1 << 15)) >> 1
    product = part * scaled
    halved = np.where(product >= 0, product >> 15, -((-product) >> 15))
    return clipped(op, fixed.shifted_right(halved, max(-down, 0)) + op.y.zero_point)


_Function: TypeAlias = Callable[[Op, np.ndarray], np.ndarray]
_REFERENCE: dict[str, _Function] = {
    **dict.fromkeys(("sigmoid", "tanh", "gelu", "gelu_tanh", "exp"), _looked_up),
    "leaky_relu": _leaky_relu,
    "abs": _abs,
    "hard_swish": _hard_swish,
}
_LITERT = _REFERENCE | dict.fromkeys(("sigmoid", "tanh", "elu"), _looked_up_even) | {"leaky_relu": _coarse_leaky_relu}
INTEGER_FUNCTIONS = {"litert": frozenset(_LITERT), "reference": frozenset(_REFERENCE)}
"""The functions that each target has an integer kernel for."""


def _chosen(table: dict[str, _Function]) -> Callable[[Op, np.ndarray], np.ndarray]:
    def run(op: Op, x: np.ndarray) -> np.ndarray:
        if op.attrs["function"] not in table:
            raise UnsupportedError(
                f"expected a function that LiteRT does in integers; received {op.attrs['function']!r} of layer "
                f"{op.source!r}; do leave it in float"
            )
        return table[op.attrs["function"]](op, x)

    return run


kernel("unary", "litert")(_chosen(_LITERT))
kernel("unary", "reference")(_chosen(_REFERENCE))


@kernel("relu", "litert", "reference")
def _relu(op: Op, x: np.ndarray) -> np.ndarray:
    """From the code of 0 up to that of `max_value`."""
    y = fixed.multiplied_twice(_centred(op, x), ratio(op)) + op.y.zero_point
    top = op.attrs["max_value"]
    bound = 127 if top is None else op.y.zero_point + int(np.floor(np.float32(top) / op.y.scale + np.float32(0.5)))
    return clipped(op, np.clip(y, op.y.zero_point, bound))


@kernel("prelu", "litert", "reference")
def _prelu(op: Op, x: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Two lines, the lower one with a slope for each channel."""
    slopes = op.inputs[1]
    x = _centred(op, x)
    below = fixed.multiplied_twice(x * (alpha - slopes.zero_point), ratio(op, float(slopes.scale)))
    return clipped(op, np.where(x >= 0, fixed.multiplied_twice(x, ratio(op)), below) + op.y.zero_point)
