"""What a tracer enters, what it makes of arguments, and how it words what went wrong."""

from __future__ import annotations

import copy
import pickle
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from qi.torch.follow import same_in_training
from qi.torch.graph import trace
from qi.torch.tracer import Tracer, bind, made_in_graphs, named, placed, tensors_in


def targets(module, *args, **kwargs):
    nodes = Tracer(bind(module.forward, args or None, kwargs)).trace(module).nodes
    return [(node.op, str(node.target)) for node in nodes if node.op != "output"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2)])
        self.by_name = nn.ModuleDict({"a": nn.Sequential(nn.ReLU())})
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("shift", torch.zeros(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.by_name["a"](x) * (self.scale * 2) + self.shift


def test_users_modules_and_containers_are_entered():
    found = targets(nn.Sequential(Block()))
    assert [target for op, target in found if op == "call_module"] == ["0.layers.0", "0.by_name.a.0"]
    assert [target for op, target in found if op == "get_attr"] == ["0.scale", "0.shift"]


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def test_subclasses_are_entered_where_they_compute_something_else():
    assert [op for op, _ in targets(Doubled(2, 2))] == [
        "placeholder",
        "get_attr",
        "get_attr",
        "call_function",
        "call_function",
    ]
    patched = nn.Linear(2, 2)
    patched.forward = lambda x: x * 2
    assert targets(nn.Sequential(patched))[-1][0] == "call_function"


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_script_modules_stay_whole():
    scripted = torch.jit.trace(nn.ReLU(), torch.ones(1))
    assert ("call_module", "0") in targets(nn.Sequential(scripted))


class Many(nn.Module):
    def forward(self, a, b=None, *rest, scale=2.0, **named):
        y = a * scale
        for x in (b, *rest, *named.values()):
            if x is not None:
                y = y + x
        return y


def test_arguments_by_kind():
    one = torch.ones(1)
    assert [t for op, t in targets(Many()) if op == "placeholder"] == ["a"]
    found = targets(Many(), one, None, one, one, scale=3.0, extra=one)
    assert [t for op, t in found if op == "placeholder"] == ["a", "rest_0", "rest_1", "extra"]
    assert named(bind(Many().forward, (one, 1, 2), {"extra": 3})) == {
        "a": one,
        "b": 1,
        "rest_0": 2,
        "scale": 2.0,
        "extra": 3,
    }


class Made(nn.Module):
    def forward(self, x):
        n = x.shape[0]
        return x + torch.arange(n, device=x.device) * torch.ones(n, 1) + torch.full((n,), 2.0) + torch.zeros(1)


def test_tensors_of_the_inputs_size_are_made_in_the_graph():
    before = torch.arange
    module = Made()
    with made_in_graphs():
        graph = Tracer(bind(module.forward, None, None)).trace(module)
    assert torch.arange is before
    called = [node.target for node in graph.nodes if node.op == "call_function"]
    assert [target for target in called if target in (torch.arange, torch.ones, torch.full, torch.zeros)] == [
        torch.arange,
        torch.ones,
        torch.full,
    ]
    traced = torch.fx.GraphModule(module, graph)
    for n in (2, 3):
        assert torch.equal(traced(torch.zeros(n)), module(torch.zeros(n)))
    with pytest.raises(ZeroDivisionError), made_in_graphs():
        _ = 1 / 0
    assert torch.arange is before


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class Packed(nn.Module):
    def forward(self, batch):
        assert isinstance(batch, dict)
        pair, (first, number) = batch["pair"], batch["list"]
        assert isinstance(pair, Pair)
        return pair.left + pair.right * number + first


def test_structures_stay_what_they_are_and_hold_inputs():
    one = torch.ones(1)
    batch = {"pair": Pair(one, one), "list": [one, 3], "text": "unused"}
    module = Packed()
    tracer = Tracer(bind(module.forward, (batch,), None))
    marked = [node.meta["qi_input"] for node in tracer.trace(module).nodes if "qi_input" in node.meta]
    assert marked == ["batch.pair.0", "batch.pair.1", "batch.list.0"]


def test_tensors_in():
    one = torch.ones(1)
    assert all(map(tensors_in, (one, [one], {"a": (1, [one])}, Tracer.INPUT)))
    assert not any(map(tensors_in, (None, 1, [], {"a": [None]}, "text")))


def test_arguments_that_dont_fit():
    with pytest.raises(TypeError, match="missing"):
        bind(Packed().forward, (), {"other": 1})


def test_errors_are_one_line_with_the_place():
    def fails():
        raise ValueError("\n  the first line.\nthe second")

    try:
        fails()
    except ValueError as error:
        text = placed(error)
    assert text.startswith("the first line (test_tracer.py, line ")
    assert placed(KeyError()) == "KeyError"


class Asked(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(2, 1)

    def forward(self, x):
        y, weights = self.attn(x, x, x, need_weights=False)
        return y if weights is None else y + weights


def test_an_attention_that_gives_no_weights_gives_none():
    assert [target for op, target in targets(Asked()) if op == "call_module"] == ["attn"]
    assert not any("add" in target for _, target in targets(Asked()))


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.factor * gradient, None


class Reverses(nn.Module):
    def forward(self, x):
        return Reversed.apply(x, 2.0)


def test_functions_of_the_users_keep_their_gradients():
    before = torch.autograd.Function.apply
    graph, why = trace(Reverses(), (torch.ones(2),))
    assert torch.autograd.Function.apply == before
    assert graph is not None, why
    assert [(call.kind, call.builtin_kind) for call in graph.calls] == [("Reversed", "")]
    x = torch.ones(2, requires_grad=True)
    copy.deepcopy(graph.module)(x).sum().backward()
    assert x.grad.tolist() == [-2.0, -2.0]
    assert same_in_training(Reverses(), (torch.ones(2),))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return checkpoint(self.fc, x, use_reentrant=True)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpoints_are_looked_through():
    graph, why = trace(Checkpointed(), (torch.ones(1, 2),))
    assert graph is not None, why
    graph.module(torch.ones(1, 2)).sum().backward()
    assert graph.module.fc.weight.grad is not None


def test_functions_that_take_modules_are_refused():
    class Takes(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, run):
            return run(x)

    class Hands(nn.Module):
        def forward(self, x):
            return Takes.apply(x, torch.tanh)

    assert "Takes takes functions or modules" in trace(Hands(), (torch.ones(2),))[1]


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(12.0).reshape(6, 2))

    def forward(self, batch):
        x = batch["x"]
        return x + self.table[: x.size(1)] + torch.arange(x.size(1))[:, None]


def test_graphs_can_be_sent_to_other_processes():
    graph, why = trace(Positions(), ({"x": torch.ones(1, 3, 2)},))
    assert graph is not None, why
    sent = pickle.loads(pickle.dumps(graph.module))
    given = {"x": torch.randn(2, 5, 2)}
    assert torch.equal(sent(given), Positions()(given))
