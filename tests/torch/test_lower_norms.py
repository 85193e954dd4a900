"""Normalizations by what they are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from qi.errors import UnsupportedError
from qi.torch.lower import lower
from tests.torch.lowered import Held, compare, hold, images, kinds, proof

TOKENS = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(3))


def drawn(module: nn.Module) -> nn.Module:
    """With weights that tell channels apart."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.linspace(0.5 - i, 1.5, parameter.numel()).view(parameter.shape))
    return module


NORMS: dict[str, tuple[Any, Any]] = {
    "tokens": (drawn(nn.LayerNorm(8)), TOKENS),
    "without a shift": (drawn(nn.LayerNorm(8, bias=False)), TOKENS),
    "plain": (nn.LayerNorm(8, elementwise_affine=False, eps=1e-3), TOKENS),
    "whole images": (drawn(nn.LayerNorm((3, 7, 5))), images()),
    "by a function": (lambda m, x: nn.functional.layer_norm(x, (8,), eps=1e-3), TOKENS),
    "root of squares": (drawn(nn.RMSNorm(8)), TOKENS),
    "root of squares by eps": (nn.RMSNorm(8, eps=1e-2, elementwise_affine=False), TOKENS),
    "groups": (drawn(nn.GroupNorm(2, 6)), images(4, 6)),
    "groups of sequences": (drawn(nn.GroupNorm(5, 5)), TOKENS),
    "each channel": (drawn(nn.InstanceNorm2d(3, affine=True)), images()),
}


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_what_torch_computes(name: str) -> None:
    compare(*NORMS[name])


def test_channels_that_go_last_for_a_norm_stay_there() -> None:
    function = lambda m, x: m.b(m.norm(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
    graph = compare(function, images(), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1), norm=drawn(nn.LayerNorm(4)))
    assert kinds(graph) == ["transpose", "conv2d", "layer_norm", "conv2d", "transpose"]


def test_a_norm_of_tokens_in_front_of_the_batch() -> None:
    graph = compare(lambda m, x: m.norm(x.permute(1, 0, 2)).permute(1, 0, 2), TOKENS, norm=drawn(nn.LayerNorm(8)))
    assert kinds(graph) == ["layer_norm"]


@pytest.mark.parametrize("suffix", ["litert", "onnx"])
@pytest.mark.parametrize("name", ["tokens", "groups", "root of squares"])
def test_runtimes_give_the_codes_of_the_twin(name: str, suffix: str) -> None:
    function, x = NORMS[name]
    assert proof(nn.Sequential(Held(function), hold(3.7)).eval(), suffix, x).exact


def test_running_statistics_of_each_sample_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="with track_running_stats=True"):
        lower(Held(nn.InstanceNorm2d(3, track_running_stats=True)).eval(), images())
