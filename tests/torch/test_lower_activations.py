"""Functions of one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from qi.errors import UnsupportedError
from qi.torch.lower import lower
from tests.torch.lowered import Held, compare, hold, images, kinds, proof

FUNCTIONS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "relu": (lambda m, x: x.relu(), ["relu"]),
    "relu6": (lambda m, x: nn.functional.relu6(x), ["relu"]),
    "clamp": (lambda m, x: torch.clamp(x, min=0, max=2), ["relu"]),
    "clamp between": (lambda m, x: x.clamp(-0.5, 1), ["maximum", "minimum"]),
    "clamp above": (lambda m, x: x.clamp_max(0.5), ["minimum"]),
    "hardtanh": (nn.Hardtanh(), ["maximum", "minimum"]),
    "leaky_relu": (nn.LeakyReLU(0.2), ["unary"]),
    "functional leaky_relu": (lambda m, x: nn.functional.leaky_relu(x, 0.3), ["unary"]),
    "elu": (nn.ELU(0.7), ["unary"]),
    "gelu": (nn.GELU(), ["unary"]),
    "gelu by tanh": (nn.GELU("tanh"), ["unary"]),
    "functional gelu by tanh": (lambda m, x: nn.functional.gelu(x, approximate="tanh"), ["unary"]),
    "silu": (nn.SiLU(), ["unary"]),
    "hardswish": (nn.Hardswish(), ["unary"]),
    "hardsigmoid": (nn.Hardsigmoid(), ["unary"]),
    "softplus": (nn.Softplus(), ["unary"]),
    "sigmoid": (lambda m, x: torch.sigmoid(x), ["unary"]),
    "tanh": (lambda m, x: x.tanh(), ["unary"]),
    "square": (lambda m, x: x**2, ["unary"]),
    "root": (lambda m, x: torch.sqrt(x.abs()), ["unary", "unary"]),
    "negative": (lambda m, x: -x, ["unary"]),
    "softmax": (nn.Softmax(1), ["softmax"]),
    "functional softmax": (lambda m, x: nn.functional.softmax(x, dim=-1), ["softmax"]),
    "prelu of one slope": (nn.PReLU(), ["unary"]),
    "dropout": (nn.Dropout(0.5), []),
    "functional dropout": (lambda m, x: nn.functional.dropout(x, 0.5, training=m.training), []),
    "identity": (lambda m, x: x.contiguous().to(torch.float32), []),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_what_torch_computes(name: str) -> None:
    function, expected = FUNCTIONS[name]
    assert kinds(compare(function, images())) == expected


def test_slopes_of_channels_lie_where_the_channels_do() -> None:
    prelu = nn.PReLU(3)
    with torch.no_grad():
        prelu.weight.copy_(torch.tensor([0.1, 0.2, 0.9]))
    assert kinds(compare(prelu, images())) == ["prelu"]
    graph = compare(lambda m, x: m.prelu(m.conv(x)), images(), prelu=prelu, conv=nn.Conv2d(3, 3, 1))
    assert kinds(graph) == ["transpose", "conv2d", "prelu", "transpose"]


def test_a_softmax_of_channels_behind_a_convolution() -> None:
    graph = compare(lambda m, x: torch.softmax(m.conv(x), 1), images(), conv=nn.Conv2d(3, 4, 1))
    assert kinds(graph) == ["transpose", "conv2d", "softmax", "transpose"]
    assert graph.ops[2].attrs["axis"] == 3


@pytest.mark.parametrize("suffix", ["litert", "onnx"])
@pytest.mark.parametrize("name", ["relu6", "hardswish", "gelu", "sigmoid", "leaky_relu", "clamp between", "softmax"])
def test_runtimes_give_the_codes_of_the_twin(name: str, suffix: str) -> None:
    model = nn.Sequential(Held(FUNCTIONS[name][0]), hold(1.0)).eval()
    assert proof(model, suffix, images()).exact


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (nn.Softplus(beta=2), "with beta=2; do use beta=1"),
        (lambda m, x: x**3, "with exponent=3; do use squares and roots"),
        (nn.Softmax(0), "over the batch"),
        (lambda m, x: nn.functional.dropout(x, 0.5), "which drops values in inference too"),
        (nn.SELU(), "which has no lowering; do use ReLU, GELU, SiLU or Hardswish"),
        (nn.LogSoftmax(1), "which has no lowering; do leave it to who takes the model's output"),
        (lambda m, x: torch.clamp(x, min=x.mean((1, 2, 3), keepdim=True)), "with bounds that are tensors"),
    ],
)
def test_what_no_graph_holds_is_refused(function: Any, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said.replace("(", r"\(")):
        lower(Held(function).eval(), images())
