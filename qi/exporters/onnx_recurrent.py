"""Recurrent layers in an ONNX file: its own operations, which take the steps first, with weights of integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from qi.exporters.onnx_builder import LAST, Builder, refused, writer
from qi.exporters.onnx_weights import weight
from qi.ir.graph import Op, Tensor
from qi.ir.recurrent import GATES, split_bias

__all__: list[str] = []

_KINDS = {"lstm": "LSTM", "gru": "GRU", "simple_rnn": "RNN"}
_ORDERS = {"lstm": (0, 3, 1, 2), "gru": (0, 1, 2), "simple_rnn": (0,)}  # ONNX's gates: input, output, forget, candidate
_FUNCTIONS = {"tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu", "hard_sigmoid": "HardSigmoid", "linear": "Affine"}
_ALPHA = {"hard_sigmoid": 1 / 6, "linear": 1.0}  # of the functions that take parameters
_BETA = {"hard_sigmoid": 0.5, "linear": 0.0}


def _ordered(op: Op, array: np.ndarray) -> np.ndarray:
    """[.., gates * units] with the gates in ONNX's order."""
    parts = np.split(array, GATES[op.kind], axis=-1)
    return np.concatenate([parts[i] for i in _ORDERS[op.kind]], axis=-1)


def _kernel(b: Builder, op: Op, w: Tensor) -> str:
    """The real numbers of a kernel as [1, gates * units, inputs]."""
    if not w.constant:
        raise refused(op, "with weights that are computed", "give it constant ones")
    return weight(b, w, lambda array: _ordered(op, array).T[None], 1)


def _functions(op: Op) -> dict[str, Any]:
    """The attributes that name the functions of gates and states."""
    state, gate = op.attrs["activation"], op.attrs.get("recurrent_activation")
    names = {"lstm": [gate, state, state], "gru": [gate, state], "simple_rnn": [state]}[op.kind]
    attrs: dict[str, Any] = {"activations": [_FUNCTIONS[name] for name in names]}
    taking = [name for name in names if name in _ALPHA]
    if taking:
        attrs |= {
            "activation_alpha": [_ALPHA[name] for name in taking],
            "activation_beta": [_BETA[name] for name in taking],
        }
    return attrs


@writer(*_KINDS)
def _recurrent(b: Builder, op: Op) -> None:
    """The operation gives all states as [steps, 1, batch, units] and the last one as [1, batch, units]."""
    x, kernel, recurrent = op.inputs[:3]
    units = int(recurrent.shape[0] or 0)
    given = [b.node("Transpose", [b.real(x, LAST)], f"{op.y.name}:steps", perm=[1, 0, 2])]
    given += [_kernel(b, op, kernel), _kernel(b, op, recurrent)]
    if len(op.inputs) > 3:
        biases = [_ordered(op, bias) for bias in split_bias(op, op.inputs[3].values())]
        given.append(b.constant(np.concatenate(biases).astype(np.float32)[None], op.inputs[3].name))
    attrs = {"hidden_size": units, **_functions(op)}
    if op.kind == "gru":
        attrs["linear_before_reset"] = int(op.attrs["reset_after"])
    states = b.node(_KINDS[op.kind], given, f"{op.y.name}:states", **attrs)
    b.finish(op, _arranged(b, op, states), LAST)


def _arranged(b: Builder, op: Op, states: str) -> str:
    """The states with the batch in front: all, or the last."""
    if op.attrs["sequences"]:
        flat = b.node("Squeeze", [states, b.indices([1])], f"{op.y.name}:flat")
        return b.node("Transpose", [flat], f"{op.y.name}:batch_first", perm=[1, 0, 2])
    last = b.node("Gather", [states, b.constant(np.int64(-1), "last")], f"{op.y.name}:last", axis=0)
    return b.node("Squeeze", [last, b.indices([0])], f"{op.y.name}:flat")
