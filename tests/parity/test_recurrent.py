"""Recurrent operations in the runtimes beside the twin: codes behind a loop of real numbers that agree up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qi.exporters import litert, onnx_file, onnx_runtime
from qi.ir import run
from qi.ir.routing import route
from tests.ir.recurrences import recurrence, sequences

RUNTIMES: dict[str, tuple[Callable[..., bytes], Callable[..., Any]]] = {
    "litert": (litert.write, litert.run),
    "reference": (litert.write, lambda data, inputs, **options: litert.run(data, inputs, reference=True, **options)),
    "onnxruntime": (onnx_file.write, onnx_runtime.run),
}
TOLERATED = 0.003
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("lstm", {}),
    ("lstm", {"recurrent_activation": "hard_sigmoid"}),
    ("gru", {}),
    ("gru", {"reset_after": False}),
    ("simple_rnn", {}),
]


def codes(found: np.ndarray, tensor: Any) -> np.ndarray:
    return np.rint(found.astype(np.float64) / float(tensor.scale)).astype(int) + tensor.zero_point


@pytest.mark.parametrize("target", RUNTIMES)
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
def test_codes_differ_in_few_places_by_one_step(kind: str, options: dict[str, Any], target: str) -> None:
    write, execute = RUNTIMES[target]
    steps = []
    for seed, (units, features, length) in enumerate(((24, 16, 20), (9, 31, 11), (1, 1, 40), (40, 3, 5))):
        graph = recurrence(kind, units=units, features=features, steps=length, coded=True, seed=seed, **options)
        routed, x = route(graph, target), sequences(100, length, features, seed)
        found = execute(write(routed), [x])["y"]
        steps.append(np.abs(codes(found, routed.outputs[0]) - run(routed, [x])["y"]).ravel())
    differing = np.concatenate(steps)
    assert differing.size > 50_000
    assert differing.max() <= 1
    assert np.mean(differing > 0) <= TOLERATED


@pytest.mark.parametrize("target", RUNTIMES)
@pytest.mark.parametrize(("kind", "options"), KINDS, ids=str)
def test_real_numbers_differ_by_rounding_alone(kind: str, options: dict[str, Any], target: str) -> None:
    """Products are added in another order, and functions approximated otherwise."""
    write, execute = RUNTIMES[target]
    routed, x = route(recurrence(kind, units=32, features=32, steps=50, **options), target), sequences(20, 50, 32)
    expected = run(routed, [x])["y"]
    for threads in (1, 2):
        np.testing.assert_allclose(execute(write(routed), [x], threads=threads)["y"], expected, atol=5e-6)
