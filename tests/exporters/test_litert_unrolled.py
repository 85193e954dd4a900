"""Recurrent layers of LiteRT files, step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.errors import UnsupportedError
from qi.exporters import litert
from qi.exporters.litert_unrolled import MOST_STEPS, columns_of
from qi.ir import QGraph, run
from qi.ir.routing import route
from tests.exporters.test_litert_recurrent import operators
from tests.ir.graphs import weight
from tests.ir.recurrences import recurrence, sequences


def written(kind: str, **options: Any) -> tuple[QGraph, bytes]:
    routed = route(recurrence(kind, **options), "litert")
    return routed, litert.write(routed)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("all_steps", [True, False])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gru", {}),
        ("gru", {"bias": False}),
        ("gru", {"reset_after": False}),
        ("gru", {"activation": "linear", "recurrent_activation": "hard_sigmoid"}),
        ("gru", {"bits": 4}),
        ("gru", {"bits": None}),
        ("gru", {"steps": 1}),
        ("gru", {"units": 1}),
        ("gru", {"reset_after": False, "steps": 1}),
        ("simple_rnn", {}),
        ("simple_rnn", {"activation": "relu"}),
        ("simple_rnn", {"activation": "linear", "bias": False}),
        ("lstm", {"activation": "sigmoid"}),
        ("lstm", {"activation": "linear", "steps": 1}),
    ],
    ids=str,
)
def test_it_gives_what_the_twin_gives(kind: str, options: dict[str, Any], all_steps: bool, batch: int) -> None:
    routed, data = written(kind, **options, all_steps=all_steps)
    x = sequences(batch, options.get("steps", 7))
    np.testing.assert_allclose(litert.run(data, [x])["y"], run(routed, [x])["y"], rtol=1e-5, atol=2e-6)


def test_steps_share_their_weights() -> None:
    options: dict[str, Any] = {"units": 64, "features": 64}
    few, many = (written("gru", **options, steps=steps)[1] for steps in (2, 12))
    assert len(many) - len(few) < 10 * 2100
    assert [operators(data).count("DEQUANTIZE") for data in (few, many)] == [2, 2]
    assert [operators(data).count("FULLY_CONNECTED") for data in (few, many)] == [2, 12]  # the first state is zero
    assert len(written("gru", **options, steps=12, bits=None)[1]) > 2 * len(many)


@pytest.mark.parametrize("steps", [None, MOST_STEPS + 1])
def test_sequences_without_an_end_are_refused(steps: int | None) -> None:
    with pytest.raises(UnsupportedError) as caught:
        written("gru", steps=steps)
    text = str(caught.value)
    for part in ("LiteRT", "'gru'", "'memory'", "an open length" if steps is None else "513 steps", "ONNX Runtime"):
        assert part in text


def test_the_longest_sequence_is_written() -> None:
    options: dict[str, Any] = {"steps": MOST_STEPS, "units": 2, "features": 2, "all_steps": False}
    routed, data = written("gru", **options)
    x = sequences(2, MOST_STEPS, 2)
    np.testing.assert_allclose(litert.run(data, [x])["y"], run(routed, [x])["y"], atol=1e-5)


def test_columns_take_their_scales_along() -> None:
    kernel = weight("kernel", np.arange(12).reshape(2, 6) - 6, np.arange(1, 7), 1)
    np.testing.assert_array_equal(columns_of(kernel, 2, 5).values(), kernel.values()[:, 2:5])
    real = weight("kernel", np.arange(12).reshape(2, 6))
    np.testing.assert_array_equal(columns_of(real, 2, 5).values(), real.values()[:, 2:5])
