"""What joins two tensors or more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qi.errors import UnsupportedError
from qi.ir.graph import QGraph
from qi.torch.lower import lower
from tests.torch.lowered import Held, compare, equal_codes, hold, images, kinds, proof


def convolution() -> nn.Conv2d:
    """With the same weights whatever drew random numbers before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Conv2d(3, 3, 3, padding=1)


CONV = convolution()
TOKENS = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(3))
MERGES: dict[str, tuple[Any, list[str]]] = {
    "sum": (lambda m, x: m.conv(x) + x, ["transpose", "conv2d", "add", "transpose"]),
    "difference": (lambda m, x: m.conv(x) - 1.5, ["transpose", "conv2d", "sub", "transpose"]),
    "from a number": (lambda m, x: 1 - x, ["sub"]),
    "rsub": (lambda m, x: torch.rsub(x, 2.0), ["sub"]),
    "product": (lambda m, x: x.mul(torch.sigmoid(x)), ["unary", "mul"]),
    "quotient by a number": (lambda m, x: x / 3, ["mul"]),
    "quotient": (lambda m, x: x / (x.abs() + 1), ["unary", "add", "div"]),
    "reciprocal": (lambda m, x: (x.abs() + 1).reciprocal(), ["unary", "add", "div"]),
    "channels": (lambda m, x: m.conv(x) * torch.arange(3.0).view(3, 1, 1), ["transpose", "conv2d", "mul", "transpose"]),
    "maximum": (lambda m, x: torch.maximum(x, -x), ["unary", "maximum"]),
    "minimum": (lambda m, x: torch.minimum(m.conv(x), x), ["transpose", "conv2d", "minimum", "transpose"]),
    "joined": (lambda m, x: torch.cat([x, m.conv(x)], 1), ["transpose", "conv2d", "concat", "transpose"]),
    "joined along places": (
        lambda m, x: torch.cat([m.conv(x), x], dim=-1),
        ["transpose", "conv2d", "concat", "transpose"],
    ),
    "stacked": (lambda m, x: torch.stack([x, x * 2], 2), ["mul", "reshape", "reshape", "concat"]),
}


@pytest.mark.parametrize("name", MERGES)
def test_a_merge_is_what_torch_computes(name: str) -> None:
    function, expected = MERGES[name]
    found = kinds(compare(function, images(), conv=CONV))
    assert sorted(found) == sorted(expected)  # which operand is turned round first is all the same


@pytest.mark.parametrize("suffix", ["litert", "onnx"])
@pytest.mark.parametrize("name", ["sum", "product", "channels", "joined", "maximum"])
def test_runtimes_give_the_codes_of_the_twin(name: str, suffix: str) -> None:
    model = nn.Sequential(Held(MERGES[name][0], conv=CONV), hold(2.0)).eval()
    found = proof(model, suffix, images())
    if name in ("channels", "joined"):  # the convolution is in float, and its last bit the processor's
        assert all(output.max_lsb <= 1.001 and output.differing <= output.elements / 200 for output in found.outputs)
    else:
        assert found.exact


class Tokens(nn.Module):
    """A token of its own in front of those of the input, and places."""

    def __init__(self, first: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.held, self.own, self.at, self.last = hold(3.9), hold(3.9), hold(3.1), hold(7.1)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 6, 8))
        self.first = first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, 6, 8]."""
        token = self.own(self.token.expand(x.shape[0], -1, -1))
        parts = [token, self.held(x)] if self.first else [self.held(x), token]
        return self.last(torch.cat(parts, 1) + self.at(self.places))


@pytest.mark.parametrize("suffix", ["litert", "onnx"])
@pytest.mark.parametrize("first", [True, False])
def test_a_constant_token_for_each_sample(first: bool, suffix: str) -> None:
    model = Tokens(first)
    assert equal_codes(model, TOKENS)[0] > 0.95
    assert proof(model, suffix, TOKENS).exact
    kinds_of = kinds(lower(model, TOKENS))
    assert kinds_of == ["quantize", "slice", "minimum", "maximum", "concat", "add"]


def test_a_constant_that_is_quantized_has_the_codes_of_its_quantizer() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = hold(3.9), hold(1.0), hold(4.3)
            self.places = nn.Parameter(torch.linspace(-1, 0.9, 40).view(1, 5, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.c(self.a(x) + self.b(self.places))

    model = Placed()
    graph = lower(model, TOKENS)
    constant = next(op for op in graph.ops if op.kind == "add").inputs[1]
    assert constant.scale == np.float32(model.b.bound.scale)
    assert equal_codes(model, TOKENS) == (1.0, 0.0)


def masked(fill: float) -> QGraph:
    """Scores of which each query sees a part."""
    hidden = torch.triu(torch.ones(5, 5, dtype=torch.bool), 1)
    return compare(lambda m, x: torch.softmax((x @ x.mT).masked_fill(hidden, fill), -1), TOKENS)


@pytest.mark.parametrize("fill", [float("-inf"), -1e9])
def test_a_mask_is_a_sum(fill: float) -> None:
    assert kinds(masked(fill)) == ["batch_matmul", "add", "softmax"]


def test_a_mask_that_is_added() -> None:
    mask = torch.triu(torch.full((5, 5), float("-inf")), 1)
    assert kinds(compare(lambda m, x: torch.softmax(x @ x.mT + mask, -1), TOKENS)) == ["batch_matmul", "add", "softmax"]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda m, x: torch.cat([x, x], 0), "axis of their own; received 'cat'"),
        (lambda m, x: torch.add(x, x, alpha=2), "with alpha=2; do multiply before it"),
        (lambda m, x: torch.div(x, 2, rounding_mode="floor"), "with rounding_mode='floor'"),
        (lambda m, x: x.masked_fill(torch.ones(8, dtype=torch.bool), 1.0), "isn't a mask that is known beforehand"),
        (
            lambda m, x: torch.cat([x, m.e.weight.unsqueeze(0).expand(x.shape[0], -1, -1)], 1),
            "larger than what it is joined",
        ),
    ],
)
def test_what_no_graph_holds_is_refused(function: Any, said: str) -> None:
    tokens = torch.randn(8, 8, 8)
    with pytest.raises(UnsupportedError, match=said):
        lower(Held(function, e=nn.Embedding(9, 8)).eval(), tokens)
