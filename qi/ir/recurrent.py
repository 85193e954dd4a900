"""Recurrent layers: one operation for all steps of a sequence, in real numbers; weights may be constants with codes.

They go from the first step to the last, from states of zero. What goes backwards is a "reverse" before one and after it.
Gates lie side by side as in Keras: input, forget, candidate, output of an LSTM; update, reset, candidate of a GRU.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qi.ir.elementwise import FUNCTIONS
from qi.ir.graph import Op
from qi.ir.kinds import real_kind

__all__ = ["ACTIVATIONS", "GATES", "RECURRENT", "split_bias"]

GATES = {"lstm": 4, "gru": 3, "simple_rnn": 1}
"""Kinds of recurrent operations, and how many matrices lie side by side in their kernels."""
RECURRENT = frozenset(GATES)

ACTIVATIONS = ("tanh", "sigmoid", "relu", "hard_sigmoid", "linear")
"""What gates and states may pass."""


def _function(op: Op, key: str) -> Callable[[np.ndarray], np.ndarray]:
    name = op.attrs[key]
    if name == "linear":
        return lambda x: x
    if name == "relu":
        return lambda x: np.maximum(x, np.float32(0))
    return lambda x: np.asarray(FUNCTIONS.get(name)(x, op), x.dtype)


def split_bias(op: Op, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(what is added to the product with the inputs, to that with the states): a GRU that resets after has both.

    Args:
        op: recurrent.
        bias: [gates * units], [2, gates * units], or None for zeros.
    """
    count = int(op.inputs[2].shape[1] or 0)
    if bias is None:
        return np.zeros(count, np.float32), np.zeros(count, np.float32)
    return (bias[0], bias[1]) if bias.ndim == 2 else (bias, np.zeros_like(bias))


def _steps(
    op: Op, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, state: np.ndarray, step: Callable[..., np.ndarray]
) -> np.ndarray:
    """The states that `step` gives of (products of inputs with kernels, state), of all steps or of the last."""
    products = x @ kernel + bias
    states = np.zeros((*x.shape[:2], state.shape[-1]), np.float32)
    for t in range(x.shape[1]):
        state = step(products[:, t], state)
        states[:, t] = state
    return states if op.attrs["sequences"] else state


def _zeros(x: np.ndarray, recurrent: np.ndarray) -> np.ndarray:
    return np.zeros((len(x), recurrent.shape[0]), np.float32)


@real_kind("lstm", (3, 4), "activation recurrent_activation sequences")
def _lstm(
    op: Op, x: np.ndarray, kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray | None = None
) -> np.ndarray:
    """Of ``z = x @ kernel + h @ recurrent + bias`` by gates: ``c = f(zf) * c + f(zi) * g(zc)``, ``h = f(zo) * g(c)``.

    With g the ``activation`` and f the ``recurrent_activation``.
    """
    gate, function, carry = _function(op, "recurrent_activation"), _function(op, "activation"), _zeros(x, recurrent)

    def step(product: np.ndarray, h: np.ndarray) -> np.ndarray:
        nonlocal carry
        i, f, c, o = np.split(product + h @ recurrent, 4, axis=1)
        carry = gate(f) * carry + gate(i) * function(c)
        return np.asarray(gate(o) * function(carry))

    return _steps(op, x, kernel, split_bias(op, bias)[0], _zeros(x, recurrent), step)


@real_kind("gru", (3, 4), "activation recurrent_activation reset_after sequences")
def _gru(
    op: Op, x: np.ndarray, kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray | None = None
) -> np.ndarray:
    """By gates ``z = f(xz + hz)``, ``r = f(xr + hr)``, ``c = g(xc + r * hc)``: ``h = z * h + (1 - z) * c``.

    With ``x* = x @ kernel + bias`` and ``h* = h @ recurrent + recurrent bias``; without ``reset_after`` the reset comes before
    the product: ``c = g(xc + (r * h) @ recurrent)``.
    """
    gate, function = _function(op, "recurrent_activation"), _function(op, "activation")
    given, inner = split_bias(op, bias)
    units = recurrent.shape[0]

    def step(product: np.ndarray, h: np.ndarray) -> np.ndarray:
        xz, xr, xc = np.split(product, 3, axis=1)
        if op.attrs["reset_after"]:
            hz, hr, hc = np.split(h @ recurrent + inner, 3, axis=1)
            candidate = xc + gate(xr + hr) * hc
        else:
            hz, hr = np.split(h @ recurrent[:, : 2 * units], 2, axis=1)
            candidate = xc + (gate(xr + hr) * h) @ recurrent[:, 2 * units :]
        z = gate(xz + hz)
        return np.asarray(z * h + (np.float32(1) - z) * function(candidate), np.float32)

    return _steps(op, x, kernel, given, _zeros(x, recurrent), step)


@real_kind("simple_rnn", (3, 4), "activation sequences")
def _simple_rnn(
    op: Op, x: np.ndarray, kernel: np.ndarray, recurrent: np.ndarray, bias: np.ndarray | None = None
) -> np.ndarray:
    """``h = g(x @ kernel + bias + h @ recurrent)``."""
    function = _function(op, "activation")
    step = lambda product, h: function(product + h @ recurrent)
    return _steps(op, x, kernel, split_bias(op, bias)[0], _zeros(x, recurrent), step)
