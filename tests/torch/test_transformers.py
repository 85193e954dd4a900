"""The transformers of PyTorch, opened: what they compute is what PyTorch computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from qi.torch.attention import split_attention
from qi.torch.graph import trace
from qi.torch.transformers import EncoderLayer, open_transformers

CLOSE = {"rtol": 1e-4, "atol": 5e-6}


@pytest.fixture(autouse=True)
def plain_attention():
    """PyTorch's fast path sets padded keys to 0; what trains doesn't."""
    torch.manual_seed(0)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def followed(module, *args, **kwargs):
    module = module.eval()
    graph, why = trace(module, args, kwargs)
    assert graph is not None, why
    graph, kept = split_attention(graph)
    assert not kept
    torch.testing.assert_close(graph.module(*args, **kwargs), module(*args, **kwargs), **CLOSE)
    return graph


@pytest.mark.parametrize("activation", ["relu", "gelu", functional.silu, nn.ReLU()])
@pytest.mark.parametrize(("norm_first", "batch_first"), [(True, True), (False, False)])
def test_encoder_layers(activation, norm_first, batch_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=activation, norm_first=norm_first, batch_first=batch_first)
    graph = followed(layer, torch.randn(3, 4, 8))
    assert {"linear1", "linear2", "self_attn.q_proj", "norm1"} <= {call.path for call in graph.calls}


def test_an_encoder_with_masks():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    padded = torch.tensor([[False] * 4, [False] * 3 + [True]])
    numbers = torch.zeros(2, 4).masked_fill(padded, -torch.inf)
    graph = followed(encoder, torch.randn(2, 4, 8), mask, numbers)
    assert sum(call.kind == "matmul" for call in graph.calls) == 4
    followed(encoder, torch.randn(2, 4, 8), src_key_padding_mask=padded)


@pytest.mark.parametrize("norm_first", [True, False])
def test_decoders(norm_first):
    layer = nn.TransformerDecoderLayer(8, 2, 16, norm_first=norm_first, batch_first=True)
    decoder = nn.TransformerDecoder(layer, 2, norm=nn.LayerNorm(8))
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    graph = followed(decoder, torch.randn(2, 4, 8), torch.randn(2, 5, 8), tgt_mask=mask)
    assert "layers.1.multihead_attn.q_proj" in {call.path for call in graph.calls}
    followed(nn.TransformerDecoder(layer, 1), torch.randn(2, 4, 8), torch.randn(2, 5, 8), mask)


def test_a_whole_transformer():
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    followed(model, torch.randn(2, 5, 8), torch.randn(2, 4, 8), tgt_mask=mask)


def test_training_drops_out_at_the_same_places():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).train()
    x = torch.randn(2, 4, 8)
    assert torch.allclose(open_transformers(layer)(x), layer(x), **CLOSE)
    rates = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5)
    assert [m.p for m in open_transformers(rates).modules() if isinstance(m, nn.Dropout)] == [0.5] * 3


def test_parameters_are_the_given_ones_under_their_names():
    given = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16))
    before = dict(given.named_parameters())
    opened = open_transformers(given)
    assert isinstance(opened[0], EncoderLayer)
    after = dict(opened.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_layers_that_are_shared_stay_shared_and_hooked_ones_stay():
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    opened = open_transformers(nn.ModuleList([layer, layer]))
    assert opened[0] is opened[1]
    layer = nn.TransformerEncoderLayer(8, 2, 16)
    layer.register_forward_hook(lambda *_: None)
    assert open_transformers(layer) is layer
