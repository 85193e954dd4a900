"""What nodes are called."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from qi.torch.kinds import from_torch, kind_of, torch_class


class Renamed(nn.Conv2d):
    def __init__(self, channels):
        super().__init__(channels, channels, 1)

    def extra_repr(self):
        return "renamed"


class Changed(nn.Conv2d):
    def _conv_forward(self, *given):
        return 2 * super()._conv_forward(*given)


class Own(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Conv2d(1, 1, 1), "Conv2d"),
        (Renamed(2), "Conv2d"),
        (Changed(1, 1, 1), ""),
        (Own(), ""),
        (nn.Module(), ""),
        (nn.Sequential(), "Sequential"),
        (nn.MultiheadAttention(2, 1).out_proj, "Linear"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "Linear"),
    ],
)
def test_classes(module, name):
    assert torch_class(module) == name


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (lambda x: x + 1, "add"),
        (lambda x: torch.add(x, 1), "add"),
        (lambda x: x.add(1), "add"),
        (lambda x: x.add_(1), "add"),
        (lambda x: 1 - x, "sub"),
        (lambda x: x / 2, "div"),
        (lambda x: torch.true_divide(x, 2), "div"),
        (lambda x: x @ x, "matmul"),
        (lambda x: torch.bmm(x, x), "matmul"),
        (lambda x: torch.concat([x, x]), "cat"),
        (lambda x: x.swapaxes(0, 1), "transpose"),
        (lambda x: x.T, "transpose"),
        (lambda x: x.mT, "transpose"),
        (lambda x: x.shape, "shape"),
        (lambda x: x.clip(0), "clamp"),
        (lambda x: functional.relu(x), "relu"),
        (lambda x: functional.max_pool2d(x, 2), "max_pool2d"),
        (lambda x: -x, "neg"),
        (lambda x: x & x, "logical_and"),
    ],
)
def test_functions_and_methods(run, name):
    nodes = [n for n in fx.symbolic_trace(run).graph.nodes if n.op in ("call_function", "call_method")]
    assert [kind_of(node) for node in nodes] == [name]


def test_an_operator_in_place_has_the_name_of_the_operator():
    def run(x):
        x += 1
        x *= 2
        return x

    nodes = [n for n in fx.symbolic_trace(run).graph.nodes if n.op == "call_function"]
    assert [kind_of(node) for node in nodes] == ["add", "mul"]


def test_functions_of_users_are_told_apart():
    def relu(x):
        return x

    assert not from_torch(relu)
    assert all(map(from_torch, (torch.relu, functional.relu, torch.Tensor.relu, getattr, functional.conv2d)))
