"""Operations on each element, or on few: their meaning in real numbers (float32)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from qi.ir.graph import Op
from qi.ir.kinds import real_kind
from qi.ir.linear import activated
from qi.ir.windows import window_counts, windows
from qi.registry import Registry

__all__ = ["COMPARISONS", "FUNCTIONS"]

FUNCTIONS: Registry[Callable[[np.ndarray, Op], np.ndarray]] = Registry("function of one number")


def _binary(name: str, function: Callable[..., np.ndarray]) -> None:
    def run(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return activated(op, np.asarray(function(a, b)))

    real_kind(name, 2, "activation")(run)


for _name, _ufunc in {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}.items():
    _binary(_name, _ufunc)


@real_kind("maximum", 2)
def _maximum(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    del op
    return np.asarray(np.maximum(a, b))


@real_kind("minimum", 2)
def _minimum(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    del op
    return np.asarray(np.minimum(a, b))


@real_kind("relu", attrs="max_value")
def _relu(op: Op, x: np.ndarray) -> np.ndarray:
    """From 0 up to ``max_value`` (None: no bound)."""
    return np.asarray(np.clip(x, 0, op.attrs["max_value"]), x.dtype)


@real_kind("prelu", 2)
def _prelu(op: Op, x: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    del op
    return np.where(x < 0, x * alpha, x)


@real_kind("unary", attrs="function alpha")
def _unary(op: Op, x: np.ndarray) -> np.ndarray:
    """A ``function`` of `FUNCTIONS`, with its parameter ``alpha`` where it has one."""
    return np.asarray(FUNCTIONS.get(op.attrs["function"])(x, op), x.dtype)


@real_kind("cast", attrs="to")
def _cast(op: Op, x: np.ndarray) -> np.ndarray:
    """To another type of numbers: what enters as integers and is reckoned with."""
    return x.astype(op.attrs["to"])


@real_kind("softmax", attrs="axis")
def _softmax(op: Op, x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=op.attrs["axis"], keepdims=True))
    return np.asarray(e / e.sum(axis=op.attrs["axis"], keepdims=True))


@real_kind("mean", attrs="axes keepdims")
def _mean(op: Op, x: np.ndarray) -> np.ndarray:
    return np.asarray(x.mean(axis=tuple(op.attrs["axes"]), keepdims=op.attrs["keepdims"]), x.dtype)


@real_kind("avg_pool2d", attrs="pool strides pads")
def _avg_pool2d(op: Op, x: np.ndarray) -> np.ndarray:
    """The mean of each window; what lies outside of x isn't counted."""
    sums = windows(op, x, 0).sum(axis=(3, 4))
    return np.asarray(sums / window_counts(op, x.shape)[..., None], x.dtype)


@real_kind("resize_bilinear", attrs="size")
def _resize_bilinear(op: Op, x: np.ndarray) -> np.ndarray:
    """To ``size`` with half-pixel centres."""
    for axis, size in zip((1, 2), op.attrs["size"], strict=True):
        n = x.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * (n / size) - 0.5, 0, n - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, n - 1)
        part = (at - low).astype(x.dtype).reshape([-1 if i == axis else 1 for i in range(4)])
        x = x.take(low, axis) * (1 - part) + x.take(high, axis) * part
    return x


@real_kind("layer_norm", (1, 3), "axes epsilon")
def _layer_norm(op: Op, x: np.ndarray, gamma: np.ndarray | None = None, beta: np.ndarray | None = None) -> np.ndarray:
    axes = tuple(op.attrs["axes"])
    mean = x.mean(axis=axes, keepdims=True)
    variance = np.square(x - mean).mean(axis=axes, keepdims=True)
    y = (x - mean) / np.sqrt(variance + np.float32(op.attrs["epsilon"]))
    y = y if gamma is None else y * gamma
    return np.asarray(y if beta is None else y + beta, x.dtype)


@real_kind("rms_norm", (1, 2), "axes epsilon")
def _rms_norm(op: Op, x: np.ndarray, gamma: np.ndarray | None = None) -> np.ndarray:
    """Over the root of the mean of squares."""
    squares = np.square(x).mean(axis=tuple(op.attrs["axes"]), keepdims=True)
    y = x / np.sqrt(squares + np.float32(op.attrs["epsilon"]))
    return np.asarray(y if gamma is None else y * gamma, x.dtype)


COMPARISONS = {
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
}
"""What a "compare" operation may ask of two numbers."""


@real_kind("compare", 2, "function")
def _compare(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Truth values; of two integers or two real numbers."""
    return np.asarray(COMPARISONS[op.attrs["function"]](a, b))


@real_kind("select", 3)
def _select(op: Op, condition: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The first of two where a truth value is true, else the second."""
    del op
    return np.where(condition, a, b)


@real_kind("batch_matmul", 2, "transpose_a transpose_b")
def _batch_matmul(op: Op, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The matrix product of the last two axes."""
    a = np.swapaxes(a, -1, -2) if op.attrs["transpose_a"] else a
    b = np.swapaxes(b, -1, -2) if op.attrs["transpose_b"] else b
    with np.errstate(invalid="ignore"):  # as in `qi.ir.linear.accumulate`
        return np.asarray(a @ b)


# Functions of one number --------------------------------------------------------------------------------------------------


def _function(name: str) -> Callable[[Callable[[np.ndarray, Op], np.ndarray]], object]:
    return FUNCTIONS.register(name)


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _one_and_exp(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what is divided by infinity is rightly 0
        return np.asarray(1 + np.exp(-x))


_function("sigmoid")(lambda x, op: 1 / _one_and_exp(x))
_function("tanh")(lambda x, op: np.tanh(x))
_function("silu")(lambda x, op: x / _one_and_exp(x))
_function("gelu")(lambda x, op: x * 0.5 * (1 + _erf(x / math.sqrt(2))))
_function("gelu_tanh")(lambda x, op: x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
_function("elu")(lambda x, op: np.where(x > 0, x, op.attrs["alpha"] * np.expm1(np.minimum(x, 0))))
_function("leaky_relu")(lambda x, op: np.where(x < 0, x * np.float32(op.attrs["alpha"]), x))
_function("hard_sigmoid")(lambda x, op: np.clip(x / 6 + 0.5, 0, 1))
_function("hard_swish")(lambda x, op: x * np.clip(x + 3, 0, 6) / 6)
_function("exp")(lambda x, op: np.exp(x))
_function("abs")(lambda x, op: np.abs(x))
_function("negative")(lambda x, op: -x)
_function("sqrt")(lambda x, op: np.sqrt(x))
_function("rsqrt")(lambda x, op: 1 / np.sqrt(x))
_function("square")(lambda x, op: np.square(x))
_function("softplus")(lambda x, op: np.logaddexp(x, 0))
_function("log")(lambda x, op: np.log(x))
