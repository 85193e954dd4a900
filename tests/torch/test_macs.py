"""Multiply-accumulates, against a count of what each output takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from qi.torch.graph import trace
from qi.torch.macs import multiply_accumulates

CASES: dict[str, tuple[nn.Module, Any, int | None]] = {
    "linear": (nn.Linear(8, 5), (2, 8), 40),
    "linear of steps": (nn.Linear(8, 5), (2, 3, 8), 3 * 40),
    "conv1d": (nn.Conv1d(4, 6, 3), (2, 4, 9), 7 * 6 * 4 * 3),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, stride=2), (2, 4, 9, 7), 4 * 3 * 6 * 2 * 9),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 5, 3), 5 * 3 * 4 * 6 * 4),
    "lstm": (nn.LSTM(4, 3, batch_first=True), (2, 7, 4), 7 * 4 * 3 * 4),
    "lstm, steps first": (nn.LSTM(4, 3), (7, 2, 4), 7 * 4 * 3 * 4),
}


@pytest.mark.parametrize("name", CASES)
def test_counts_for_one_sample(name: str) -> None:
    module, shape, expected = CASES[name]
    graph, why = trace(nn.Sequential(module), (torch.ones(shape),))
    assert graph is not None, why
    call = graph.calls[0]
    weight = "weight_ih_l0" if "lstm" in name else "weight"
    assert multiply_accumulates(call, weight, tuple(getattr(module, weight).shape)) == expected
    bias = "bias_ih_l0" if "lstm" in name else "bias"
    assert multiply_accumulates(call, bias, tuple(getattr(module, bias).shape)) is None


def test_what_multiplies_nothing_or_isnt_known() -> None:
    table = nn.Sequential(nn.Embedding(5, 4))
    graph, _ = trace(table, (torch.tensor([[1, 2]]),))
    assert multiply_accumulates(graph.calls[0], "weight", (5, 4)) is None
    graph, _ = trace(nn.Sequential(nn.Linear(4, 3)))
    assert multiply_accumulates(graph.calls[0], "weight", (3, 4)) is None
