"""Dropout by functions, in graphs that follow the eval mode: it comes back in training."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from qi.torch.attention import split_attention
from qi.torch.dropouts import drops_out, free_path, restore_dropout
from qi.torch.graph import trace


class Run(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, x):
        return self.run(self, x)


class Block(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.inner, self.relu = Run(run), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.inner(x * 2)
        return self.relu(y) + y


X = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        ("dropout", "Dropout"),
        ("dropout2d", "Dropout2d"),
        ("alpha_dropout", "AlphaDropout"),
        ("feature_alpha_dropout", "FeatureAlphaDropout"),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_functions_become_modules(function, kind, inplace):
    called = getattr(functional, function)
    module = Block(lambda m, x: called(x, 0.3, training=m.training, inplace=inplace))
    graph, why = trace(module, (X,))
    assert graph is not None, why
    call = next(call for call in graph.calls if call.path.startswith("inner"))
    assert (call.path, call.kind, call.op.p) == (f"inner.{function}", kind, 0.3)
    assert torch.equal(graph.module(X), module.eval()(X))
    found, wanted = graph.module.train(), module.train()
    torch.manual_seed(0)
    expected = wanted(X.clone())
    torch.manual_seed(0)
    assert torch.equal(found(X), expected)


def test_what_always_drops_out_stays_as_it_is():
    graph, _ = trace(Run(lambda m, x: functional.dropout(x, 0.5, True)))
    assert graph.calls[0].node.kwargs["training"] is True
    graph, _ = trace(Run(lambda m, x: functional.dropout(x, 0.5, False)))
    assert graph.calls[0].kind == "dropout"


def test_attention_drops_out_where_it_did():
    def attend(m, q):
        return functional.scaled_dot_product_attention(q, q, q, dropout_p=0.4 if m.training else 0.0)

    graph, _ = trace(Run(attend), (X,))
    graph, kept = split_attention(graph)
    assert not kept
    torch.testing.assert_close(graph.module(X), attend(Run(attend).eval(), X))
    rates = [part.p for part in graph.module.modules() if isinstance(part, nn.Dropout)]
    assert rates == [0.4]
    assert not torch.equal(graph.module.train()(X), graph.module(X))


def test_other_differences_are_told():
    def nodes(run, training):
        return fx.Tracer().trace(Run(run).train(training))

    def both(run):
        module = Run(run)
        traced = fx.GraphModule(module, nodes(run, False))
        return restore_dropout(traced, nodes(run, True))

    assert both(lambda m, x: x + 1)
    assert not both(lambda m, x: x + 1 if m.training else x)
    assert not both(lambda m, x: x + (1 if m.training else 2))
    assert not both(lambda m, x: functional.dropout(x, 0.1 if m.training else 0.2, m.training))


def test_which_graphs_drop_out():
    def drops(run):
        return drops_out(fx.symbolic_trace(run).graph)

    assert drops(lambda x: functional.dropout(x))
    assert drops(lambda x: functional.scaled_dot_product_attention(x, x, x))
    assert not drops(lambda x: functional.relu(x))


def test_free_paths():
    module = nn.Sequential(nn.ReLU())
    assert [free_path(module, path) for path in ("1", "0", "a.0")] == ["1", "0_1", "a.0"]
