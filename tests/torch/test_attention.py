"""Attention taken apart gives what the attention of PyTorch gives: the numbers, the weights shown, and the gradients."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from qi.torch.attention import BandSoftmax, SplitAttention, split_attention
from qi.torch.graph import trace

CLOSE = {"rtol": 1e-4, "atol": 2e-6}


class Attend(nn.Module):
    """One attention, called with what a test asks for."""

    def __init__(self, attn, **how):
        super().__init__()
        self.attn, self.how = attn, how

    def forward(self, q, k, v, mask=None, padding=None):
        out, weights = self.attn(q, k, v, attn_mask=mask, key_padding_mask=padding, **self.how)
        return out if weights is None else (out, weights)


class Scaled(nn.Module):
    """`scaled_dot_product_attention` as users call it."""

    def __init__(self, **how):
        super().__init__()
        self.how = how

    def forward(self, q, k, v, mask=None):
        return functional.scaled_dot_product_attention(q, k, v, mask, **self.how)


def seeded(*shapes):
    made = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=made) for shape in shapes]


def split(module, args):
    graph, why = trace(module, args)
    assert graph is not None, why
    return split_attention(graph)


def agree(found, wanted):
    found, wanted = [x if isinstance(x, tuple) else (x,) for x in (found, wanted)]
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


def trained(module):
    """Biases of PyTorch's attention begin at 0."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return module.eval()


@pytest.mark.parametrize(
    ("batch_first", "bias", "dims"), list(itertools.product((True, False), (True, False), (None, (5, 7))))
)
def test_projections(batch_first, bias, dims):
    kdim, vdim = dims or (8, 8)
    attn = nn.MultiheadAttention(8, 2, bias=bias, kdim=kdim, vdim=vdim, batch_first=batch_first)
    shapes = [(3, 4, 8), (3, 6, kdim), (3, 6, vdim)]
    args = tuple(x if batch_first else x.transpose(0, 1) for x in seeded(*shapes))
    module = trained(Attend(attn, need_weights=False))
    graph, kept = split(module, args)
    assert not kept
    agree(graph.module(*args), module(*args))
    assert sum(call.kind == "matmul" for call in graph.calls) == 2
    assert {"attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj"} <= {call.path for call in graph.calls}


def masks(kind, heads):
    hidden = torch.ones(4, 6).triu(3).bool()
    padded = torch.tensor([[False] * 5 + [True], [False] * 6, [False, True] + [False] * 4])
    numbers = torch.zeros(4, 6).masked_fill(hidden, -torch.inf)
    return {
        "none": (None, None),
        "bool": (hidden, None),
        "float": (numbers, None),
        "heads": (hidden.expand(3 * heads, 4, 6), None),
        "padding": (None, padded),
        "float padding": (None, torch.zeros(3, 6).masked_fill(padded, -torch.inf)),
        "both": (hidden, padded),
    }[kind]


@pytest.mark.parametrize("kind", ["none", "bool", "float", "heads", "padding", "float padding", "both"])
@pytest.mark.parametrize("how", [(False, True), (True, True), (True, False)])
def test_masks_and_weights(kind, how):
    need, average = how
    attn = nn.MultiheadAttention(8, 2, batch_first=True)
    module = trained(Attend(attn, need_weights=need, average_attn_weights=average))
    args = (*seeded((3, 4, 8), (3, 6, 8), (3, 6, 8)), *masks(kind, 2))
    graph, kept = split(module, args)
    assert not kept
    given = [x for x in args if x is not None]
    agree(graph.module(*given), module(*args))


@pytest.mark.parametrize("batch_first", [True, False])
def test_one_sample_without_a_batch(batch_first):
    module = trained(Attend(nn.MultiheadAttention(8, 2, batch_first=batch_first)))
    args = tuple(seeded((4, 8), (6, 8), (6, 8)))
    hidden, padded = torch.ones(2, 4, 6).triu(4).bool(), torch.tensor([False] * 5 + [True])
    graph, _ = split(module, (*args, hidden, padded))
    agree(graph.module(*args, hidden, padded), module(*args, hidden, padded))


def test_gradients_are_those_of_the_attention():
    attn = nn.MultiheadAttention(8, 2, batch_first=True)
    module = trained(Attend(attn, need_weights=False))
    wanted = [x.requires_grad_() for x in seeded((3, 4, 8), (3, 6, 8), (3, 6, 8))]
    found = [x.detach().clone().requires_grad_() for x in wanted]
    graph, _ = split(module, tuple(wanted))
    module(*wanted).square().sum().backward()
    graph.module(*found).square().sum().backward()
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
    q, k, v = attn.in_proj_weight.grad.split(8)
    parts = graph.module.attn
    torch.testing.assert_close(parts.q_proj.weight.grad, q * 2.0, rtol=1e-4, atol=1e-5)  # it holds 1 / sqrt(4) of it
    torch.testing.assert_close(parts.k_proj.weight.grad, k, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.v_proj.weight.grad, v, rtol=1e-4, atol=1e-5)


def test_one_attention_for_queries_keys_and_values_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x, mask):
            x = self.attn(x, x, x, attn_mask=mask)[0]
            return self.attn(x, x, x)

    module = trained(Twice())
    (x,) = seeded((2, 4, 8))
    hidden = torch.ones(4, 4).triu(1).bool()
    graph, kept = split(module, (x, hidden))
    assert not kept
    agree(graph.module(x, hidden), module(x, hidden))
    assert [call.site for call in graph.calls if call.kind == "Linear"][-1] == "attn.out_proj:1"


def test_rules_speak_of_the_attention_and_dropout_trains():
    module = Attend(nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True), need_weights=False)
    args = tuple(seeded((3, 4, 8), (3, 6, 8), (3, 6, 8)))
    graph, _ = split(module, args)
    assert {call.place for call in graph.calls} == {("attn", "MultiheadAttention")}
    once = graph.module(*args)
    assert torch.equal(once, graph.module(*args))
    graph.module.train()
    assert not torch.equal(graph.module(*args), graph.module(*args))


def test_the_given_module_stays_as_it_is():
    module = Attend(nn.MultiheadAttention(8, 2, batch_first=True), need_weights=False)
    before = copy.deepcopy(module.state_dict())
    split(module, tuple(seeded((3, 4, 8), (3, 6, 8), (3, 6, 8))))
    assert all(torch.equal(held, before[name]) for name, held in module.state_dict().items())
    assert isinstance(module.attn, nn.MultiheadAttention)


@pytest.mark.parametrize(
    ("options", "reason"), [({"add_bias_kv": True}, "appends keys"), ({"add_zero_attn": True}, "appends keys")]
)
def test_attentions_that_stay_whole(options, reason):
    module = trained(Attend(nn.MultiheadAttention(8, 2, batch_first=True, **options), need_weights=False))
    args = tuple(seeded((3, 4, 8), (3, 6, 8), (3, 6, 8)))
    graph, kept = split(module, args)
    assert reason in kept["attn"]
    agree(graph.module(*args), module(*args))


def test_an_attention_with_hooks_or_of_unknown_rank_stays_whole():
    module = Attend(nn.MultiheadAttention(8, 2, batch_first=True), need_weights=False)
    graph, _ = trace(module)
    assert "sample inputs" in split_attention(graph)[1]["attn"]
    module.attn.register_forward_pre_hook(lambda *_: None)
    _, kept = split(module, tuple(seeded((3, 4, 8), (3, 6, 8), (3, 6, 8))))
    assert "hooks" in kept["attn"]


@pytest.mark.parametrize("how", [{}, {"is_causal": True}, {"scale": 0.3}, {"is_causal": True, "scale": 2.0}])
def test_scaled_products(how):
    args = tuple(seeded((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 5)))
    module = Scaled(**how)
    graph, kept = split(module, args)
    assert not kept
    agree(graph.module(*args), module(*args))
    paths = [call.path.removeprefix("scaled_dot_product_attention.") for call in graph.calls]
    assert paths == ["mul", "transpose", "matmul", "softmax", "matmul_1"]


@pytest.mark.parametrize("as_numbers", [True, False])
def test_scaled_products_with_masks(as_numbers):
    seen = torch.ones(4, 6).tril(2).bool()
    seen[0] = False  # a query that sees nothing gets 0
    mask = torch.zeros(4, 6).masked_fill(~seen, -torch.inf) if as_numbers else seen
    args = (*seeded((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 5)), mask)
    graph, kept = split(Scaled(), args)
    assert not kept
    agree(graph.module(*args), Scaled()(*args))
    assert graph.module(*args)[:, :, 0].abs().max() == 0


def test_scaled_products_that_stay_whole():
    args = tuple(seeded((2, 4, 4, 8), (2, 2, 6, 8), (2, 2, 6, 8)))
    assert "share keys" in split(Scaled(enable_gqa=True), args)[1]["scaled_dot_product_attention"]
    graph, _ = trace(Scaled(dropout_p=0.5))
    assert "drops out" in split_attention(graph)[1]["scaled_dot_product_attention"]


def test_a_scaled_product_without_sample_inputs_measures_the_keys_itself():
    graph, _ = trace(Scaled())
    graph, _ = split_attention(graph)
    args = tuple(seeded((2, 3, 4, 8), (2, 3, 6, 8), (2, 3, 6, 5)))
    agree(graph.module(*args), Scaled()(*args))


def test_shapes_of_the_parts_are_those_that_they_give():
    module = Attend(nn.MultiheadAttention(8, 2, dropout=0.1), need_weights=True)
    args = tuple(seeded((4, 3, 8), (6, 3, 8), (6, 3, 8)))
    graph, _ = split(module, args)
    seen = {}

    class Look(torch.fx.Interpreter):
        def run_node(self, n):
            found = super().run_node(n)
            seen[n] = found
            return found

    Look(graph.module).run(*args)
    for call in graph.calls:
        for value in call.outputs:
            assert value.shape == tuple(seen[value.node].shape)
            assert value.dtype == "float32"


def test_a_softmax_that_sees_nothing_gives_no_nan_and_no_gradient():
    scores = torch.zeros(2, 3, requires_grad=True)
    hidden = torch.tensor([[True, True, True], [False, True, False]])
    found = BandSoftmax(masks=("hides",))(scores, hidden)
    assert found.tolist() == [[0, 0, 0], [0.5, 0, 0.5]]
    found[:, 0].sum().backward()
    assert scores.grad.isfinite().all()
    assert scores.grad[0].tolist() == [0, 0, 0]
    assert "hides" in repr(BandSoftmax(masks=("hides",)))


def test_frozen_projections_stay_frozen():
    attn = nn.MultiheadAttention(8, 2).requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in SplitAttention(attn).parameters())
