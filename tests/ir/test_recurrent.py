"""Recurrent operations beside their definitions, written out for one sample and one unit at a time in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qi.ir import run
from qi.ir.recurrent import ACTIVATIONS, GATES, RECURRENT, split_bias
from qi.ir.routing import route
from qi.ir.validate import validate
from tests.ir.recurrences import recurrence, sequences

FUNCTIONS: dict[str, Callable[[float], float]] = {
    "tanh": lambda v: float(np.tanh(v)),
    "sigmoid": lambda v: float(1 / (1 + np.exp(-v))),
    "relu": lambda v: max(v, 0.0),
    "hard_sigmoid": lambda v: min(max(v / 6 + 0.5, 0.0), 1.0),
    "linear": lambda v: v,
}


def defined(op: Any, x: np.ndarray) -> np.ndarray:
    """The states of one sample, [steps, units]."""
    kernel, recurrent = (t.values().astype(np.float64) for t in op.inputs[1:3])
    units, gates = recurrent.shape[0], GATES[op.kind]
    bias = op.inputs[3].values().astype(np.float64) if len(op.inputs) > 3 else np.zeros(gates * units)
    given, inner = (bias[0], bias[1]) if bias.ndim == 2 else (bias, np.zeros_like(bias))
    g, f = FUNCTIONS[op.attrs["activation"]], FUNCTIONS[op.attrs.get("recurrent_activation", "linear")]
    h, carry, states = np.zeros(units), np.zeros(units), []
    for row in x.astype(np.float64):
        new = np.zeros(units)
        outer = lambda k, u, row=row: float(row @ kernel[:, k * units + u] + given[k * units + u])
        held = lambda k, u, h=h: float(h @ recurrent[:, k * units + u] + inner[k * units + u])
        if op.kind == "gru":
            resets = np.array([f(outer(1, u) + held(1, u)) for u in range(units)])
        for u in range(units):
            if op.kind == "simple_rnn":
                new[u] = g(outer(0, u) + held(0, u))
            elif op.kind == "lstm":
                i, forget, c, o = (outer(k, u) + held(k, u) for k in range(4))
                carry[u] = f(forget) * carry[u] + f(i) * g(c)
                new[u] = f(o) * g(carry[u])
            else:
                after = op.attrs["reset_after"]
                kept = resets[u] * held(2, u) if after else held(2, u, resets * h)
                z = f(outer(0, u) + held(0, u))
                new[u] = z * h[u] + (1 - z) * g(outer(2, u) + kept)
        h = new
        states.append(h)
    return np.array(states)


CASES: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"bias": bias}) for kind in sorted(RECURRENT) for bias in (True, False)),
    ("gru", {"reset_after": False}),
    ("gru", {"reset_after": False, "bias": False}),
    *((kind, {"activation": name}) for kind in sorted(RECURRENT) for name in ACTIVATIONS),
    *((kind, {"recurrent_activation": name}) for kind in ("lstm", "gru") for name in ACTIVATIONS),
]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_states_are_as_defined(kind: str, options: dict[str, Any]) -> None:
    graph, x = recurrence(kind, **options), sequences(3)
    validate(graph)
    found = run(graph, [x], "litert")["y"]
    assert found.dtype == np.float32
    expected = np.stack([defined(graph.ops[0], sample) for sample in x])
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("kind", sorted(RECURRENT))
def test_the_last_state_alone(kind: str) -> None:
    x = sequences(3)
    whole, last = (run(recurrence(kind, all_steps=each), [x], "litert")["y"] for each in (True, False))
    np.testing.assert_array_equal(last, whole[:, -1])


@pytest.mark.parametrize("kind", sorted(RECURRENT))
@pytest.mark.parametrize("target", ["litert", "onnxruntime", "reference"])
def test_it_is_an_island_between_codes(kind: str, target: str) -> None:
    routed = route(recurrence(kind, coded=True, bias=False), target, integer_only=True)
    assert [op.kind for op in routed.ops] == ["quantize", "dequantize", kind, "quantize"]
    assert routed.ops[2].inputs[1].quantized
    validate(routed)


def test_a_bias_in_two_parts() -> None:
    op = recurrence("gru").ops[0]
    bias = op.inputs[3].values()
    given, inner = split_bias(op, bias)
    np.testing.assert_array_equal(np.stack([given, inner]), bias)
    given, inner = split_bias(op, bias[0])
    np.testing.assert_array_equal(given, bias[0])
    assert not inner.any()
    assert [part.shape for part in split_bias(op, None)] == [(18,), (18,)]
