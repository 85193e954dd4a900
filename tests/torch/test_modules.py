"""Functions with parameters as weights, and the modules that take their place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from qi.torch.graph import trace
from qi.torch.modules import as_modules

CASES = {
    "linear": (lambda x, w, b: functional.linear(x, w, b), (3, 8), (5, 8), 5, nn.Linear),
    "linear by name": (lambda x, w, b: functional.linear(x, weight=w, bias=b), (3, 2, 8), (5, 8), 5, nn.Linear),
    "conv1d": (lambda x, w, b: functional.conv1d(x, w, b, 2, padding=1), (3, 4, 9), (6, 4, 3), 6, nn.Conv1d),
    "conv2d": (
        lambda x, w, b: functional.conv2d(x, w, b, stride=(2, 1), padding="valid", dilation=2, groups=2),
        (3, 4, 9, 8),
        (6, 2, 3, 2),
        6,
        nn.Conv2d,
    ),
    "conv_transpose2d": (
        lambda x, w, b: functional.conv_transpose2d(x, w, b, stride=2, output_padding=1, groups=2),
        (3, 4, 5, 6),
        (4, 3, 3, 3),
        6,
        nn.ConvTranspose2d,
    ),
}


class Own(nn.Module):
    def __init__(self, function: Any, weight: tuple[int, ...], bias: int) -> None:
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(torch.randn(weight)), nn.Parameter(torch.randn(bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.weight, self.bias)


@pytest.mark.parametrize("name", CASES)
def test_a_function_becomes_the_module_that_does_the_same(name: str) -> None:
    function, shape, weight, bias, kind = CASES[name]
    torch.manual_seed(0)
    model = nn.Sequential(Own(function, weight, bias), nn.ReLU())
    x = torch.randn(shape)
    graph, why = trace(model, (x,))
    assert graph is not None, why
    found = as_modules(graph)
    (call, _) = found.calls
    assert isinstance(call.op, kind)
    assert call.path.startswith("0.")
    assert torch.equal(found.module(x), model(x))
    assert call.outputs[0].shape == tuple(model(x).shape)
    assert set(dict(call.op.named_parameters())) == {"weight", "bias"}


def test_tables_become_embeddings() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(7, 3))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return functional.embedding(ids, self.table)

    ids = torch.tensor([[0, 6], [3, 3]])
    graph, _ = trace(Table(), (ids,))
    found = as_modules(graph)
    assert [call.kind for call in found.calls] == ["Embedding"]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(functional.linear(x, self.weight), self.weight)


class Computed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, torch.tanh(self.weight))


@pytest.mark.parametrize("cls", [Shared, Computed])
def test_what_isnt_one_functions_own_parameter_stays(cls: Any) -> None:
    graph, _ = trace(cls(), (torch.ones(2, 4),))
    assert as_modules(graph) is graph
