"""Operations in place, replaced: who took the changed tensor takes the new one; what can't be replaced is refused."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from qi.torch.graph import trace
from qi.torch.kinds import kind_of
from qi.torch.pure import drop_in_place, keep_detached


class Run(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run = run
        self.relu = nn.ReLU(inplace=True)
        self.register_buffer("held", torch.ones(3, 4))

    def forward(self, x):
        return self.run(self, x)


def aliased(m, x):
    y = x * 2
    z = y
    y += 1
    return z * y


def ignored(m, x):
    y = x * 2
    m.relu(y)  # the result is dropped: y itself changed
    return y + 1


def kept_identity(m, x):
    y = x * 2
    return m.relu(y) + y


def twice(m, x):
    return m.relu(m.relu(x - 1) - 1) + x


def functions(m, x):
    y = functional.relu(x * 2, True)
    y = functional.hardtanh(y, -1.0, 1.0, inplace=True)
    y = functional.leaky_relu(y, 0.1, True)
    y = torch.relu_(y)
    return y.mul_(2).clamp_(min=0).sub_(x)


def operators(m, x):
    y = x * 2
    y -= 1
    y *= x
    y /= 3
    return y


@pytest.mark.parametrize("run", [ignored, kept_identity, twice, functions, operators])
def test_numbers_stay_and_inputs_are_left_alone(run):
    module = Run(run)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    wanted = module(x.clone())
    graph, why = trace(module)  # without a sample nothing else would find a mistake
    assert graph is not None, why
    given = x.clone()
    assert torch.equal(graph.module(given), wanted)
    assert torch.equal(given, x)
    assert not any(str(node.target).endswith("_") for node in graph.module.graph.nodes if node.op == "call_method")
    assert not any(getattr(part, "inplace", False) for part in graph.module.modules())
    assert module.relu.inplace  # the given one


def test_an_alias_that_no_node_shows_is_found_by_the_numbers():
    graph, why = trace(Run(aliased), (torch.randn(3, 4),))
    assert graph is None
    assert "other numbers" in why


def of_a_view(m, x):
    y = x * 2
    y[0].add_(1)
    return y


def seen_through_a_view(m, x):
    y = x * 2
    z = y.view(-1)
    y.add_(1)
    return z


def of_a_buffer(m, x):
    m.held.add_(1)
    return x + m.held


def without_another_form(m, x):
    y = x * 2
    return y.zero_()


def into_another(m, x):
    return torch.add(x, 1, out=m.held)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (of_a_view, "under another name"),
        (seen_through_a_view, "under another name"),
        (of_a_buffer, "changes a parameter or buffer"),
        (without_another_form, "no form of 'zero_'"),
        (into_another, "out="),
    ],
)
def test_what_cant_be_replaced_is_refused(run, reason):
    graph, why = trace(Run(run))
    assert graph is None
    assert reason in why


def test_a_graph_is_changed_at_once():
    traced = fx.symbolic_trace(Run(operators))
    assert drop_in_place(traced) == ""
    used = {node.target for node in traced.graph.nodes if node.op == "call_function"}
    assert used == {operator.mul, operator.sub, operator.truediv}


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        with torch.no_grad():
            y = self.body(x).relu()
        return self.head(y) + y.sum()


def test_gradients_end_where_they_ended():
    module, x = Frozen(), torch.randn(2, 3)
    graph, why = trace(module, (x,))
    assert graph is not None, why
    assert torch.equal(graph.module(x), module(x))
    graph.module(x).sum().backward()
    assert graph.module.get_submodule("body").weight.grad is None
    assert graph.module.get_submodule("head").weight.grad is not None
    assert sum(call.kind == "detach" for call in graph.calls) == 1


def test_nothing_is_detached_without_need():
    traced = fx.symbolic_trace(nn.Sequential(nn.ReLU()))
    keep_detached(traced)
    assert not any(node.op == "call_method" and kind_of(node) == "detach" for node in traced.graph.nodes)


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: torch.where((x > 0) & (x < 1) | (x == 3), x, -x),
        lambda m, x: (~(x > 0)).float(),
        lambda m, x: functional.normalize(x, dim=-1),  # says out=None
    ],
)
def test_what_only_looks_like_an_operation_in_place(run):
    x = torch.randn(3, 4)
    graph, why = trace(Run(run), (x,))
    assert graph is not None, why
    assert torch.equal(graph.module(x), run(None, x))


def test_masks_changed_in_place():
    def masked(m, x):
        mask = x > 0
        mask &= x < 1
        mask |= x == 3
        mask ^= x == 0.5
        return x.masked_fill(mask, 0)

    x = torch.tensor([-1.0, 0.5, 0.7, 3.0])
    graph, why = trace(Run(masked), (x,))
    assert graph is not None, why
    assert torch.equal(graph.module(x), masked(None, x))
    assert operator.iand not in {node.target for node in graph.module.graph.nodes}
