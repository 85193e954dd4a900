"""Which values carry a mask's large numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qi.recipes.plan import Role
from qi.torch.graph import trace
from qi.torch.masks import masked_scores
from qi.torch.traits import is_softmax, role_of


class Scores(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run = run
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

    def forward(self, x, m):
        return self.run(self, x, m)


def masked(run):
    graph, why = trace(Scores(run), (torch.randn(4, 4), torch.ones(4, 4)))
    assert graph is not None, why
    return [value.name for value in masked_scores(graph, is_softmax, lambda call: role_of(call) is Role.KEEPS)]


@pytest.mark.parametrize(
    ("run", "names"),
    [
        (lambda s, x, m: x.masked_fill(m == 0, -1e9).softmax(-1), ["masked_fill"]),
        (lambda s, x, m: torch.softmax(x.masked_fill(m == 0, float("-inf")), -1), ["masked_fill"]),
        (lambda s, x, m: torch.softmax(torch.where(m > 0, x, -1e9).view(2, 8), -1), ["where", "view"]),
        (lambda s, x, m: nn.functional.softmax(x + (1.0 - m) * -10000.0, -1), ["mul", "add"]),
        (lambda s, x, m: (x + s.mask).softmax(-1), ["mask", "add"]),
        (lambda s, x, m: (x + s.mask[:4, :4]).softmax(-1), ["mask", "getitem", "add"]),
        (lambda s, x, m: (x * 3.0 + m).softmax(-1), []),  # no large number
        (lambda s, x, m: x.masked_fill(m == 0, -1e9).relu(), []),  # no softmax
        (lambda s, x, m: (x.masked_fill(m == 0, -1e9).exp() + 1).softmax(-1), []),  # no number survives exp
    ],
)
def test_values(run, names):
    assert masked(run) == names


def test_inputs_that_hold_large_numbers_are_masks():
    module = Scores(lambda s, x, m: (x + m).softmax(-1))
    graph, _ = trace(module, (torch.randn(4, 4), torch.zeros(4, 4).fill_diagonal_(-torch.inf)))
    found = masked_scores(graph, is_softmax, lambda call: False)
    assert [value.name for value in found] == ["m", "add"]
