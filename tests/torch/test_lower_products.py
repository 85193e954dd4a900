"""Products of activations, and attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qi.errors import UnsupportedError
from qi.ir import run
from qi.ir.lowered import in_real_numbers
from qi.ir.routing import route
from qi.torch.attention import BandSoftmax
from qi.torch.lower import lower
from tests.torch.lowered import Held, compare, hold, kinds, proof

TOKENS = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(3))
HEADS = TOKENS.reshape(4, 5, 2, 4).transpose(1, 2).contiguous()
attention = nn.functional.scaled_dot_product_attention
PRODUCTS: dict[str, tuple[Any, list[str]]] = {
    "with itself turned": (lambda m, x: x @ x.transpose(-2, -1), ["batch_matmul"]),
    "turned first": (lambda m, x: torch.matmul(x.mT, x), ["transpose", "batch_matmul"]),
    "with a matrix": (lambda m, x: x @ m.fc.weight.t(), ["dense"]),
    "attention": (lambda m, x: attention(x, x * 2, x), ["mul", "batch_matmul", "mul", "softmax", "batch_matmul"]),
    "attention by scale": (
        lambda m, x: attention(x, x, x, scale=0.7),
        ["batch_matmul", "mul", "softmax", "batch_matmul"],
    ),
}


@pytest.mark.parametrize("x", [TOKENS, HEADS], ids=["tokens", "heads"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_what_torch_computes(name: str, x: torch.Tensor) -> None:
    function, expected = PRODUCTS[name]
    assert kinds(compare(function, x, fc=nn.Linear(x.shape[-1], 3))) == expected


def test_batches_of_matrices() -> None:
    assert kinds(compare(lambda m, x: torch.bmm(x, x.transpose(1, 2)), TOKENS)) == ["batch_matmul"]


SEEN = torch.ones(5, 5, dtype=torch.bool).tril()
ADDED = torch.zeros(5, 5).masked_fill(~SEEN, float("-inf"))


@pytest.mark.parametrize("how", [{"is_causal": True}, {"attn_mask": SEEN}, {"attn_mask": ADDED}])
def test_masked_attention(how: dict[str, Any]) -> None:
    found = kinds(compare(lambda m, x: attention(x, x, x, **how), HEADS))
    assert found == ["batch_matmul", "mul", "add", "softmax", "batch_matmul"]


@pytest.mark.parametrize("causal", [True, False])
def test_a_softmax_that_sees_a_part(causal: bool) -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held, self.soft = hold(4.0), BandSoftmax(causal, ("hides", "shows", "adds"))
            hidden = torch.zeros(5, 5, dtype=torch.bool)
            hidden[1:, 0] = True
            self.register_buffer("hidden", hidden)
            self.register_buffer("seen", torch.ones(1, 1, 5, 5, dtype=torch.bool))
            self.register_buffer("added", torch.linspace(-1, 1, 5))

        def scores(self, x: torch.Tensor) -> torch.Tensor:
            return self.soft(x @ x.mT, self.hidden, self.seen, self.added)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scores(self.held(x))

    model = Scores().eval()
    graph = in_real_numbers(lower(model, HEADS, fused=False))
    found = run(route(graph, "litert"), [HEADS.numpy()])[graph.outputs[0].name]
    np.testing.assert_allclose(found, model.scores(HEADS).numpy(), atol=1e-6)


@pytest.mark.parametrize("suffix", ["litert", "onnx"])
@pytest.mark.parametrize("name", ["with itself turned", "turned first"])
def test_runtimes_give_the_codes_of_the_twin(name: str, suffix: str) -> None:
    model = nn.Sequential(Held(PRODUCTS[name][0]), hold(5.3)).eval()
    assert proof(model, suffix, HEADS).exact


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda m, x: m.fc.weight @ x, "of a constant with an activation"),
        (lambda m, x: attention(x, x, x, dropout_p=0.5), "dropout_p=0.5"),
        (lambda m, x: attention(x, x, x, attn_mask=x @ x.mT), "a mask that differs from sample to sample"),
        (lambda m, x: attention(x, x, x, attn_mask=torch.zeros(5, 5, dtype=torch.bool)), "sees no key"),
        (lambda m, x: torch.einsum("bij,bkj->bik", x, x), "which has no lowering; do use matmul"),
        (lambda m, x: x @ torch.ones(1, 8, 2), "with a constant of shape"),
    ],
)
def test_what_no_graph_holds_is_refused(function: Any, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        lower(Held(function, fc=nn.Linear(5, 5)).eval(), TOKENS)
