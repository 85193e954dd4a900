"""Graphs of one recurrent operation, without any framework."""

from __future__ import annotations

from typing import Any

import numpy as np

from qi.ir import Op, QGraph, Tensor
from qi.ir.recurrent import GATES
from tests.ir.graphs import act, codes_of, graph_of, per_channel, real

__all__ = ["recurrence", "sequences"]

_GATES = {"lstm": {"recurrent_activation": "sigmoid"}, "gru": {"recurrent_activation": "sigmoid", "reset_after": True}}


def recurrence(
    kind: str,
    *,
    units: int = 6,
    features: int = 5,
    steps: int | None = 7,
    bits: int | None = 8,
    coded: bool = False,
    bias: bool = True,
    all_steps: bool = True,
    seed: int = 0,
    **attrs: Any,
) -> QGraph:
    """A graph of a recurrent operation with seeded weights.

    Args:
        kind: of the operation.
        units: values of a state.
        features: values of a step.
        steps: of a sequence; None: open.
        bits: of the weights; None: real numbers.
        coded: whether it takes and gives codes.
        bias: whether it has one.
        all_steps: whether it gives the states of all steps.
        seed: of weights.
        attrs: in place of Keras' defaults.
    """
    rng, width = np.random.default_rng(seed), GATES[kind] * units

    def kernel(name: str, rows: int) -> Tensor:
        if bits is None:
            return Tensor(name, (rows, width), data=rng.normal(0, rows**-0.5, (rows, width)).astype(np.float32))
        top = 2 ** (bits - 1) - 1
        qparams = per_channel(rng.uniform(0.5, 2, width) / top / rows**0.5, 1, 2, bits)
        codes = rng.integers(-top, top + 1, (rows, width)).astype(np.int8)
        return Tensor(name, codes.shape, "float32", qparams, codes)

    given = {"activation": "tanh", "sequences": all_steps, **_GATES.get(kind, {}), **attrs}
    x, y_shape = real("x", steps, features), (steps, units) if all_steps else (units,)
    weights = [kernel("kernel", features), kernel("recurrent", units)]
    if bias:
        shape = (2, width) if given.get("reset_after") else (width,)
        weights.append(Tensor("bias", shape, data=rng.normal(0, 0.5, shape).astype(np.float32)))
    if not coded:
        return graph_of(Op(kind, [x, *weights], [real("y", *y_shape)], given, "memory"), inputs=[x])
    codes, y = codes_of("codes", steps, features, qparams=act(0.02, 3)), codes_of("y", *y_shape, qparams=act(1 / 128))
    ops = [Op("quantize", [x], [codes], {}, "x"), Op(kind, [codes, *weights], [y], given, "memory")]
    return graph_of(*ops, inputs=[x])


def sequences(count: int, steps: int = 7, features: int = 5, seed: int = 1) -> np.ndarray:
    """Samples for such a graph."""
    return np.random.default_rng(seed).normal(size=(count, steps, features)).astype(np.float32)
