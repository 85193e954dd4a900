"""Calls and values of traced modules: names, shapes, what counts as a call, and modules put in between."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from qi.torch.graph import Graph, trace


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(3, 1, 1))
        self.add = nn.ReLU()  # the name of a function as well

    def forward(self, x):
        return self.add(torch.relu(self.conv(x) + x) * self.scale + 1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.features(self.block(self.block(x)))
        batch, channels = x.shape[:2]
        return self.head(x.mean((2, 3)).view(batch, channels))


def read(module, *args, **kwargs):
    graph, why = trace(module, args or None, kwargs or None)
    assert graph is not None, why
    return graph


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_paths_sites_and_kinds():
    graph = read(Net(), images(2, 3, 8, 8))
    assert [(call.site, call.kind) for call in graph.calls] == [
        ("block.conv", "Conv2d"), ("block.add_1", "add"), ("block.relu", "relu"), ("block.scale", "Parameter"),
        ("block.mul", "mul"), ("block.add_2", "add"), ("block.add", "ReLU"), ("block.conv:1", "Conv2d"), ("block.add_3", "add"),
        ("block.relu_1", "relu"), ("block.mul_1", "mul"), ("block.add_4", "add"), ("block.add:1", "ReLU"),
        ("features.0", "Conv2d"), ("features.1", "ReLU"), ("mean", "mean"), ("view", "view"), ("head", "Linear"),
    ]  # fmt: skip
    assert [value.name for value in graph.flat_inputs()] == ["x"]
    assert [value.name for value in graph.flat_outputs()] == ["head"]
    assert graph.calls[0].op is graph.module.block.conv is graph.op_of(graph.calls[7])
    assert [len(calls) for calls in graph.calls_of().values()] == [2, 2, 1, 1, 1]


def test_shapes_and_types():
    module, x = Net().eval(), images(2, 3, 8, 8)
    graph = read(module, x)
    assert torch.equal(graph.module(x), module(x))
    by_name = {value.name: value for call in graph.calls for value in call.outputs}
    assert by_name["features.1"].shape == (2, 4, 8, 8)
    assert by_name["block.scale"].shape == (3, 1, 1)
    assert by_name["head"].dtype == "float32"
    assert all(value.is_float for value in by_name.values())
    unknown = read(module)
    assert all(value.shape is None and value.is_float for call in unknown.calls for value in call.outputs)
    assert [call.site for call in unknown.calls] == [call.site for call in graph.calls]


def test_consumers_count_every_use():
    graph = read(Block(), images(1, 3, 4, 4))
    consumers = graph.consumers()
    assert [call.path for call in consumers[id(graph.inputs[0])]] == ["conv", "add_1"]

    class Squared(nn.Module):
        def forward(self, x):
            return x * x

    graph = read(Squared(), torch.ones(1))
    assert len(graph.consumers()[id(graph.inputs[0])]) == 2
    assert len(graph.calls[0].inputs) == 2


class Several(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x):
        y, (h, c) = self.lstm(x)
        a, b = y.chunk(2, -1)
        values, at = b.max(-1)
        return {"a": a, "state": (h, c), "values": values, "at": at, "kept": torch.cat(h.split(1))}


@pytest.mark.parametrize("known", [True, False])
def test_calls_that_give_several_tensors(known):
    graph = read(Several(), *([images(2, 3, 4)] if known else []))
    lstm, chunk = graph.calls[:2]
    assert [value.name for value in lstm.outputs] == ["lstm", "lstm#1", "lstm#2"]
    assert [value.name for value in chunk.outputs] == ["chunk", "chunk#1"]
    assert [call.kind for call in graph.calls[:2]] == ["LSTM", "chunk"]
    split = next(call for call in graph.calls if call.kind == "split")
    assert [value.is_float for value in split.outputs] == [False]  # a tuple that is taken whole
    if known:
        at = next(value for value in graph.outputs if value.dtype == "int64")
        assert not at.is_float
        assert [value.shape for value in lstm.outputs] == [(2, 3, 5), (1, 2, 5), (1, 2, 5)]
        assert len(graph.outputs) == 6


class Shaped(nn.Module):
    def forward(self, x):
        n, size = x.size(0), x.shape[-1] // 2
        ones = torch.ones(n, size)
        return x[:, :size] + ones * torch.arange(size).float()


@pytest.mark.parametrize("known", [True, False])
def test_arithmetic_on_shapes_is_no_call(known):
    graph = read(Shaped(), *([images(2, 6)] if known else []))
    assert [call.kind for call in graph.calls] == ["ones", "getitem", "arange", "float", "mul", "add"]


class Nested(nn.Module):
    def forward(self, batch, *, pair=None, flag=True):
        y = batch["ids"].float() + batch["more"][0]
        return y if pair is None else (y + pair[1], {"flag": y * 2 if flag else y})


def test_inputs_within_dicts_and_tuples():
    batch = {"ids": torch.ones(3, dtype=torch.int64), "more": [images(3)]}
    pair = (None, images(3))
    graph = read(Nested(), batch, pair=pair)
    assert [value.name for value in graph.inputs] == ["batch.ids", "batch.more.0", "pair.1"]
    assert [value.is_float for value in graph.inputs] == [False, True, True]
    found, wanted = graph.module(batch, pair=pair), Nested()(batch, pair=pair)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1]["flag"], wanted[1]["flag"])
    assert [call.path for call in graph.calls] == ["float", "add", "add_1", "mul"]


class Marks(nn.Module):
    def forward(self, x):
        return x * 10


def test_a_module_behind_a_value():
    module, x = Net().eval(), images(2, 3, 8, 8)
    graph = read(module, x)
    value = graph.calls[0].outputs[0]
    new = graph.insert_after(value, Marks(), "marks.one")
    first = graph.calls[0]
    assert graph.calls[1].outputs == [new]
    assert graph.calls[1].inputs == [value]
    assert graph.calls[2].inputs[0] is new
    assert (new.name, new.shape) == ("marks.one", value.shape)
    assert first.outputs == [value]
    y = module.block.conv(x) * 10
    y = torch.relu(y + x) * module.block.scale + 1
    wanted = module.head(module.features(module.block(y.relu())).mean((2, 3)))
    torch.testing.assert_close(graph.module(x), wanted)
    again = Graph.of(graph.module)
    assert [call.site for call in again.calls] == [call.site for call in graph.calls]
    graph.module.graph.lint()


def test_a_module_behind_inputs_and_outputs():
    class Sum(nn.Module):
        def forward(self, a, b):
            return a + b

    graph = read(Sum(), torch.ones(2), torch.ones(2))
    graph.insert_after(graph.inputs[0], Marks(), "first", recompile=False)
    graph.insert_after(graph.outputs[0], Marks(), "last", recompile=False)
    graph.module.recompile()
    graph.module.graph.lint()
    assert graph.outputs[0].name == "last"
    assert graph.module(torch.ones(2), b=torch.ones(2)).tolist() == [110, 110]
    assert [value.name for value in Graph.of(graph.module).outputs] == ["last"]


def test_a_module_behind_one_of_several_tensors():
    class Halves(nn.Module):
        def forward(self, x):
            a, b = x.chunk(2)
            return a - b

    graph = read(Halves(), torch.ones(4))
    graph.insert_after(graph.calls[0].outputs[1], Marks(), "mark")
    assert graph.module(torch.ones(4)).tolist() == [-9, -9]


def test_copies_and_changed_graphs_read_the_same():
    graph = read(Net(), images(2, 3, 8, 8))
    again = Graph.of(copy.deepcopy(graph.module))
    assert [(call.site, call.outputs[0].shape) for call in again.calls] == [
        (call.site, call.outputs[0].shape) for call in graph.calls
    ]


def test_places_are_those_of_an_attention_that_was_taken_apart():
    graph = read(Block(), images(1, 3, 4, 4))
    assert graph.calls[0].place == ("conv", "Conv2d")
    graph.calls[0].node.meta["qi_split"] = ("attn", "MultiheadAttention")
    assert graph.calls[0].place == ("attn", "MultiheadAttention")


@fx.wrap
def relu(x):
    return x - 1


def test_what_users_wrote_isnt_taken_for_what_pytorch_brings():
    class Mine(nn.Module):
        def forward(self, x):
            return relu(x) + functional.relu(x)

    graph = read(Mine(), torch.ones(2))
    assert [(call.kind, call.builtin_kind) for call in graph.calls] == [("relu", ""), ("relu", "relu"), ("add", "add")]


def test_why_a_forward_cant_be_followed():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    graph, why = trace(Branch(), (torch.ones(2),))
    assert graph is None
    assert "control flow (test_graph.py, line " in why
