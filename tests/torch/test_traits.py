"""What operations of PyTorch do to grids, and the plan that comes of it."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from qi.recipes import RuleBook, get_recipe
from qi.recipes.plan import Role, plan_activations
from qi.torch.attention import split_attention
from qi.torch.graph import trace
from qi.torch.traits import (
    TRAITS,
    argument,
    clamp_of,
    fuses_activation,
    is_fusable_activation,
    is_softmax,
    known_range,
    multiplies,
    role_of,
)


class Run(nn.Module):
    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *given):
        return self.run(*given) if isinstance(self.run, nn.Module) else self.run(self, *given)


def read(run, *args, **parts):
    graph, why = trace(Run(run, **parts), args)
    assert graph is not None, why
    return graph


def last(run, *args, **parts):
    return read(run, *args, **parts).calls[-1]


X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
INDEX = torch.zeros(2, dtype=torch.int64)

KEEPS = [
    nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Unflatten(1, (2, 2)), nn.Identity(), nn.Dropout(), nn.Dropout2d(),
    nn.AlphaDropout(), nn.ZeroPad2d(1), nn.ConstantPad2d(1, 0.0), nn.ReflectionPad2d(1), nn.PixelShuffle(2),
    nn.PixelUnshuffle(2), nn.ChannelShuffle(2), nn.Upsample(scale_factor=2), nn.UpsamplingNearest2d(scale_factor=2), nn.Unfold(2),
    lambda m, x: functional.max_pool2d(x, 2), lambda m, x: functional.adaptive_max_pool2d(x, 1), lambda m, x: x.flatten(1),
    lambda m, x: torch.flatten(x, 1), lambda m, x: x.view(2, -1), lambda m, x: x.view(x.shape[0], -1),
    lambda m, x: x.reshape(-1), lambda m, x: torch.reshape(x, (-1,)), lambda m, x: x.permute(0, 2, 3, 1),
    lambda m, x: x.transpose(1, 2), lambda m, x: x.mT, lambda m, x: x.unsqueeze(1), lambda m, x: x.squeeze(1),
    lambda m, x: x[:, 0], lambda m, x: x[..., ::2, None], lambda m, x: x.select(1, 0), lambda m, x: x.narrow(1, 0, 2),
    lambda m, x: x.chunk(2, 1)[0], lambda m, x: torch.split(x, 2, 1)[1], lambda m, x: x.unbind(1)[0],
    lambda m, x: functional.dropout(x, 0.5, False), lambda m, x: x.contiguous(), lambda m, x: x.expand(3, 2, 4, 6, 6),
    lambda m, x: x.repeat(1, 2, 1, 1), lambda m, x: functional.pad(x, (1, 1)), lambda m, x: functional.pad(x, (1, 1), value=0.0),
    lambda m, x: functional.pad(x, (1, 1, 1, 1), "reflect"), lambda m, x: functional.pixel_shuffle(x, 2),
    lambda m, x: functional.channel_shuffle(x, 2), lambda m, x: x.amax(1), lambda m, x: x.max(), lambda m, x: x.max(1)[0],
    lambda m, x: functional.interpolate(x, scale_factor=2), lambda m, x: x.flip(1), lambda m, x: torch.roll(x, 1, 1),
    lambda m, x: x.detach(), lambda m, x: x.clone(), lambda m, x: x.movedim(1, 2), lambda m, x: x.float(), lambda m, x: x.tril(),
]  # fmt: skip
OWN = [
    nn.Conv2d(4, 2, 1), nn.ReLU(), nn.GELU(), nn.LayerNorm(6), nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d((1, 1)),
    nn.ConstantPad2d(1, 1.5), nn.Upsample(scale_factor=2, mode="bicubic"), nn.LogSoftmax(1), nn.Hardtanh(),
    lambda m, x: x.mean((2, 3)), lambda m, x: x + 1, lambda m, x: x + x, lambda m, x: functional.pad(x, (1, 1), value=1.5),
    lambda m, x: functional.adaptive_avg_pool2d(x, 1), lambda m, x: functional.gelu(x), lambda m, x: x.sum(1),
    lambda m, x: functional.interpolate(x, scale_factor=2, mode="bicubic"), lambda m, x: x.log_softmax(1),
]  # fmt: skip
SAME = [
    nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Upsample(scale_factor=2, mode="bilinear"),
    nn.UpsamplingBilinear2d(scale_factor=2),
    lambda m, x: functional.avg_pool2d(x, 2), lambda m, x: functional.adaptive_avg_pool2d(x, (2, 1)),
    lambda m, x: functional.interpolate(x, scale_factor=2, mode="bilinear"), lambda m, x: x[INDEX + 0 * x.shape[0]],
]  # fmt: skip
JOINS = [
    lambda m, x: torch.cat([x, -x], 1), lambda m, x: torch.concat((x, -x)), lambda m, x: torch.stack([x, -x]),
    lambda m, x: torch.maximum(x, -x), lambda m, x: x.minimum(-x), lambda m, x: torch.max(x, -x),
    lambda m, x: torch.hstack([x, -x]),
]  # fmt: skip
FIXED = [
    (nn.Softmax(1), 0), (nn.Softmax2d(), 0), (nn.Sigmoid(), 0), (nn.Tanh(), -1), (lambda m, x: functional.softmax(x, 1), 0),
    (lambda m, x: torch.softmax(x, 1), 0), (lambda m, x: x.softmax(1), 0), (lambda m, x: torch.sigmoid(x), 0),
    (lambda m, x: x.sigmoid(), 0), (lambda m, x: functional.sigmoid(x), 0), (lambda m, x: x.tanh(), -1),
    (lambda m, x: torch.tanh(x), -1), (lambda m, x: torch.special.expit(x), 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("run", "role"),
    [
        *((run, Role.KEEPS) for run in KEEPS),
        *((run, Role.OWN) for run in OWN),
        *((run, Role.SAME) for run in SAME),
        *((run, Role.JOINS) for run in JOINS),
    ],
)
def test_roles(run, role):
    call = last(run, X)
    assert role_of(call) is role
    assert known_range(call) is None


@pytest.mark.parametrize(("run", "low"), FIXED)
def test_fixed_ranges(run, low):
    call = last(run, X)
    assert role_of(call) is Role.FIXED
    assert known_range(call) == (low, 1)
    assert is_softmax(call) == ("softmax" in call.kind.lower())


def test_gathering_shares_the_scale_of_what_is_gathered():
    graph = read(lambda m, x, i: x[i], X, INDEX)
    assert role_of(graph.calls[-1]) is Role.SAME


@fx.wrap
def softmax(x, axis):
    return x * 3


def test_functions_of_users_are_their_own():
    call = last(lambda m, x: softmax(x, 1), X)
    assert (call.kind, role_of(call), is_softmax(call)) == ("softmax", Role.OWN, False)


CLAMPS = [
    (nn.ReLU(), (0, None)), (nn.ReLU6(), (0, 6)), (nn.Hardtanh(0.0, 6.0), (0, 6)), (nn.Hardtanh(), (-1, 1)),
    (lambda m, x: functional.relu(x), (0, None)), (lambda m, x: functional.relu(x, inplace=True), (0, None)),
    (lambda m, x: torch.relu(x), (0, None)), (lambda m, x: x.relu(), (0, None)), (lambda m, x: functional.relu6(x), (0, 6)),
    (lambda m, x: functional.hardtanh(x, 0.0, 6.0), (0, 6)), (lambda m, x: functional.hardtanh(x), (-1, 1)),
    (lambda m, x: x.clamp(min=0), (0, None)), (lambda m, x: x.clamp(0, 6), (0, 6)), (lambda m, x: torch.clamp(x, 0.0), (0, None)),
    (lambda m, x: x.clip(max=2), (None, 2)), (lambda m, x: x.clamp_min(0), (0, None)), (lambda m, x: x.clamp_max(6), (None, 6)),
    (lambda m, x: x.clamp(min=x.mean()), None), (nn.GELU(), None), (nn.LeakyReLU(), None), (lambda m, x: x + 1, None),
]  # fmt: skip


@pytest.mark.parametrize(("run", "ends"), CLAMPS)
def test_clamps(run, ends):
    call = last(run, X)
    assert clamp_of(call) == ends
    assert is_fusable_activation(call) == (ends in ((0, None), (0, 6)))


@pytest.mark.parametrize(
    ("run", "takes"),
    [
        (nn.Conv2d(4, 2, 1), True),
        (nn.ConvTranspose2d(4, 2, 1), True),
        (nn.Linear(6, 2), True),
        (nn.BatchNorm2d(4), True),
        (lambda m, x: x + x, True),
        (lambda m, x: x.sub(1), True),
        (lambda m, x: torch.mul(x, x), True),
        (lambda m, x: functional.conv2d(x, torch.ones(1, 4, 1, 1)), True),
        (nn.LayerNorm(6), False),
        (lambda m, x: x / 2, False),
        (lambda m, x: x @ x, False),
    ],
)
def test_kernels_that_take_a_clamp(run, takes):
    assert fuses_activation(last(run, X)) is takes


def test_products_of_activations():
    weight = nn.Parameter(torch.ones(6, 6))
    assert multiplies(last(lambda m, x: x @ x, X))
    assert multiplies(last(lambda m, x: torch.einsum("bchw,bcwk->bchk", x, x.mT), X))
    assert multiplies(last(lambda m, x: torch.bmm(x[0], x[1]), X))
    assert not multiplies(last(lambda m, x: x @ m.w, X, w=weight))
    assert not multiplies(last(lambda m, x: x * x, X))


def test_arguments_wherever_they_stand():
    call = last(lambda m, x: functional.max_pool2d(x, 2, stride=3), X)
    assert argument(call, "stride", 2) == 3
    assert argument(call, "kernel_size", 1) == 2
    assert argument(call, "padding", 3, 0) == 0


def plan(graph):
    found = plan_activations(graph, RuleBook(get_recipe("w8a8")), TRAITS)
    values = [*graph.inputs, *(value for call in graph.calls for value in call.outputs)]
    return found, {value.name: value for value in values}


def test_one_quantizer_after_a_fused_clamp_and_one_scale_where_runtimes_demand_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.pool = nn.MaxPool2d(2)

        def forward(self, x):
            a, b = self.pool(functional.relu(self.conv(x))).chunk(2, 1)
            return torch.cat([a, b], 1).flatten(1).softmax(-1)

    graph, _ = trace(Net(), (X,))
    found, values = plan(graph)
    assert id(values["conv"]) in found.fused
    assert [group.names for group in found.groups] == [["x"], ["relu"], ["softmax"]]
    assert found.groups[2].fixed == (0, 1)
    inherited = [name for name, value in values.items() if id(value) in found.inherited]
    assert inherited == ["pool", "chunk", "chunk#1", "cat", "flatten"]


def test_indices_and_biases_and_masks_stay_in_float():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 4)
            self.weight, self.bias = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))

        def forward(self, at, mask):
            y = functional.linear(self.table(at.long()), self.weight, self.bias)
            return (y @ y.mT).masked_fill(mask == 0, -1e9).softmax(-1)

    graph, why = trace(Net(), (torch.ones(2, 3), torch.ones(3, 3)))
    assert graph is not None, why
    found, values = plan(graph)
    reasons = {name: found.floats[id(value)] for name, value in values.items() if id(value) in found.floats}
    assert "indices" in reasons["at"]
    assert "bias" in reasons["bias"]
    assert "mask" in reasons["masked_fill"]
    assert "bool" in reasons["eq"]
    assert id(values["weight"]) in found.quantized


def test_masks_that_attention_adds_stay_in_float():
    class Net(nn.Module):
        def forward(self, x, mask):
            return functional.scaled_dot_product_attention(x, x, x, mask[:, None] + 0.0)

    graph, _ = trace(Net(), (torch.randn(2, 3, 4, 5), torch.zeros(2, 4, 4)))
    graph, kept = split_attention(graph)
    assert not kept
    found, values = plan(graph)
    assert "mask" in found.floats[id(values["add"])]
    assert id(values["scaled_dot_product_attention.softmax"]) in found.quantized


def test_attention_taken_apart_gets_grids_within():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    hidden = torch.ones(4, 4).triu(1).bool()
    graph, _ = trace(layer, (torch.randn(2, 4, 8), hidden))
    graph, _ = split_attention(graph)
    found, values = plan(graph)
    for name in (
        "self_attn.q_proj",
        "self_attn.matmul",
        "self_attn.softmax",
        "self_attn.matmul_1",
        "self_attn.out_proj",
    ):
        assert id(values[name]) in found.quantized
    softmax = values["self_attn.softmax"].producer
    assert (role_of(softmax), known_range(softmax)) == (Role.FIXED, (0, 1))
    assert TRAITS.place_of(values["self_attn.matmul"]) == ("self_attn", "MultiheadAttention")
    assert TRAITS.place_of(values["src"]) == ("src", "InputLayer")
    assert TRAITS.name_of(values["self_attn.matmul_1"]) == "self_attn.matmul_1"
    keys = found.group_of(values["self_attn.k_proj"])
    assert keys.spec.method == "symmetric"  # what a product takes second


def test_angles_stay_float_and_their_sines_get_grids():
    def rotary(m, x):
        at = torch.arange(x.shape[1]).type_as(m.speeds)
        angles = torch.einsum("i,j->ij", at, m.speeds)
        both = torch.cat((angles, angles), -1)
        return x * both.cos() + x.flip(-1) * both.sin()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("speeds", 0.1 ** torch.arange(2.0))

        def forward(self, x):
            return rotary(self, x)

    graph, why = trace(Net(), (torch.randn(2, 300, 4),))
    assert graph is not None, why
    found, values = plan(graph)
    for name in ("type_as", "speeds", "einsum", "cat"):
        assert "angle" in found.floats[id(values[name])]
    assert {id(values[name]) for name in ("x", "cos", "sin", "mul", "add")} <= set(found.quantized)


def test_what_is_only_compared_stays_float():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("tril", torch.ones(8, 8).tril())

        def forward(self, x, gate):
            hidden = self.tril[: x.shape[1], : x.shape[2]] == 0
            return torch.where(x > 0, x.masked_fill(hidden, 0), gate), gate > 0

    graph, why = trace(Net(), (torch.randn(2, 4, 4), torch.randn(2, 4, 4)))
    assert graph is not None, why
    found, values = plan(graph)
    assert "compared" in found.floats[id(values["tril"])]
    assert "compared" in found.floats[id(values["getitem"])]
    assert {id(values["x"]), id(values["gate"])} <= set(found.quantized)
