"""Which conditions of a forward have one answer, and that traces take it."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from qi.torch.conditions import is_settled
from qi.torch.graph import trace


class Run(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run, self.norm = run, nn.LayerNorm(6)

    def forward(self, x):
        return self.run(self, x)


@pytest.mark.parametrize(
    ("run", "settled"),
    [
        (lambda x: x.dim() == 3, True),
        (lambda x: x.ndim > 2, True),
        (lambda x: x.dtype == torch.float32, True),
        (lambda x: x.is_floating_point(), True),
        (lambda x: x.shape[-1] == 6, True),
        (lambda x: x.size(1) != 6, True),
        (lambda x: x.shape[1:] == (3, 6), True),
        (lambda x: x.shape[1] // 2 == x.size(2), True),
        (lambda x: x.shape[0] == 1, False),
        (lambda x: x.size(0) == 1, False),
        (lambda x: x.shape == (2, 3, 6), False),
        (lambda x: x.shape[:1] == (2,), False),
        (lambda x: x.shape[1] > 2, False),
        (lambda x: x.sum() == 0, False),
        (lambda x: x, False),
    ],
)
def test_settled(run, settled):
    last = list(fx.symbolic_trace(run).graph.nodes)[-1].args[0]
    assert is_settled(last) is settled


def checked(m, x):
    y = m.norm(x)
    assert y.dim() == 3
    if y.shape[-1] != 6:
        y = y * 2
    batch, _, width = y.shape
    if width == 6 and y.dtype != torch.float64:
        y = y + 1
    return y.view(batch, -1)


def test_traces_take_the_answers():
    x, other = torch.randn(2, 3, 6), torch.randn(5, 4, 6)
    module = Run(checked)
    graph, why = trace(module, (x,))
    assert graph is not None, why
    assert [call.kind for call in graph.calls] == ["LayerNorm", "add", "view"]
    assert torch.equal(graph.module(other), module(other))
    graph, _ = trace(Run(lambda m, x: x * 2 if x.dim() == 2 else x), (x,))
    assert not graph.calls


def test_without_samples_nobody_knows():
    graph, why = trace(Run(checked))
    assert graph is None
    assert "do trace with sample inputs" in why


def test_conditions_on_numbers_and_on_the_batch_are_refused():
    for run in (lambda m, x: x if x.shape[0] == 2 else -x, lambda m, x: x if x.shape[1] > 2 else -x):
        graph, why = trace(Run(run), (torch.randn(2, 3, 6),))
        assert graph is None
        assert "control flow" in why


def test_graphs_refuse_sizes_that_would_be_answered_otherwise():
    padded = Run(lambda m, x: nn.functional.pad(x, (0, 1)) if x.shape[-1] % 2 != 0 else x)
    for width in (4, 5):
        graph, why = trace(padded, (torch.randn(2, 3, width),))
        assert graph is not None, why
        same = torch.randn(7, 3, width + 2)
        assert torch.equal(graph.module(same), padded(same))
        with pytest.raises(AssertionError, match="expected inputs of sizes for which 'ne' is"):
            graph.module(torch.randn(2, 3, width + 1))


def test_types_may_change_where_a_model_is_moved():
    graph, _ = trace(Run(lambda m, x: x * 2 if x.dtype == torch.float32 else x), (torch.ones(2),))
    assert graph.module(torch.ones(2).double()).dtype == torch.float64


WRITTEN = """
def asserting(m, x):
    assert x.shape[0] <= 8 and x.size(1) > 1, f"received {x.shape}"
    assert x.shape[1] < 9
    return x * 2

def sums(m, x):
    assert x.sum() > 0
    return x
"""
made = {}
exec(WRITTEN, made)  # pytest rewrites the asserts of this file


def test_what_a_forward_asserts_of_sizes_its_graph_asserts():
    graph, why = trace(Run(made["asserting"]), (torch.ones(2, 3),))
    assert graph is not None, why
    assert [call.kind for call in graph.calls] == ["mul"]
    graph.module(torch.ones(8, 2))
    for sizes in ((9, 2), (2, 1), (2, 9)):
        with pytest.raises(AssertionError, match="the forward asserts"):
            graph.module(torch.ones(sizes))


def test_what_is_asserted_of_numbers_is_refused():
    assert "control flow" in trace(Run(made["sums"]), (torch.ones(2),))[1]


def test_shapes_are_handed_on_size_by_size():
    def heads(m, x):
        first, *rest = x.size()
        assert len(x.shape) == 3
        return x.view(*x.shape[:-1], 2, -1).transpose(1, 2) * (first + sum(rest))

    graph, why = trace(Run(heads), (torch.ones(2, 3, 6),))
    assert graph is not None, why
    other = torch.randn(5, 4, 6)
    assert torch.equal(graph.module(other), heads(None, other))
    with pytest.raises(AssertionError, match="expected inputs of sizes"):
        graph.module(torch.ones(2, 3, 6, 6))
    assert trace(Run(heads))[0] is None
    assert "len() of 'x'" in trace(Run(lambda m, x: x / len(x)), (torch.ones(2, 3),))[1]
    assert "cannot be iterated" in trace(Run(lambda m, x: list(x.unbind(1))), (torch.ones(2, 3),))[1]
