"""Pools, means and maxima over axes, and images that grow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from qi.errors import UnsupportedError
from qi.torch.lower import lower
from tests.torch.lowered import Held, compare, hold, images, kinds, proof, wrap

CONV = nn.Conv2d(3, 4, 3, padding=1)
SEQUENCES = torch.randn(6, 3, 11, generator=torch.Generator().manual_seed(2))
POOLS: dict[str, tuple[Any, str]] = {
    "max": (nn.MaxPool2d(2), "max_pool2d"),
    "max with padding": (nn.MaxPool2d(3, 2, 1), "max_pool2d"),
    "max to the end": (nn.MaxPool2d(2, ceil_mode=True), "max_pool2d"),
    "functional max": (lambda m, x: nn.functional.max_pool2d(x, (3, 2), stride=1), "max_pool2d"),
    "mean": (nn.AvgPool2d(2), "avg_pool2d"),
    "mean with padding": (nn.AvgPool2d(3, 2, 1), "pad"),
    "functional mean": (lambda m, x: nn.functional.avg_pool2d(m.conv(x), 2, 2), "avg_pool2d"),
    "all": (nn.AdaptiveAvgPool2d(1), "mean"),
    "largest of all": (nn.AdaptiveMaxPool2d((1, 1)), "max"),
    "even windows": (nn.AdaptiveAvgPool2d((7, 1)), "avg_pool2d"),
    "mean of places": (lambda m, x: m.conv(x).mean((2, 3)), "mean"),
    "mean of places kept": (lambda m, x: m.conv(x).mean(dim=[-2, -1], keepdim=True), "mean"),
    "mean of rows": (lambda m, x: m.conv(x).mean(3), "mean"),
    "mean of channels": (lambda m, x: m.conv(x).mean(1), "mean"),
    "largest of rows": (lambda m, x: m.conv(x).amax((2,)), "max"),
}
GROWING: dict[str, tuple[Any, str]] = {
    "nearest": (nn.Upsample(scale_factor=2), "resize_nearest"),
    "functional": (lambda m, x: nn.functional.interpolate(m.conv(x), scale_factor=(2, 3)), "resize_nearest"),
    "bilinear": (nn.Upsample(size=(9, 12), mode="bilinear"), "resize_bilinear"),
    "zeros": (nn.ZeroPad2d((1, 2, 0, 3)), "pad"),
    "zeros by a function": (lambda m, x: nn.functional.pad(m.conv(x), (1, 0, 2, 1)), "pad"),
    "zero channels": (lambda m, x: nn.functional.pad(x, (0, 0, 0, 0, 1, 1)), "pad"),
    "blocks": (lambda m, x: nn.functional.pixel_shuffle(m.conv(x), 2), "transpose"),
}


@pytest.mark.parametrize("name", [*POOLS, *GROWING])
def test_images(name: str) -> None:
    function, kind = (POOLS | GROWING)[name]
    assert kind in kinds(compare(function, images(), conv=CONV))


@pytest.mark.parametrize(
    "module",
    [
        nn.MaxPool1d(3, 2, 1),
        nn.AvgPool1d(3, 2, 1),
        nn.AdaptiveAvgPool1d(1),
        nn.AdaptiveMaxPool1d(11),
        nn.ZeroPad1d((2, 1)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_sequences(module: nn.Module) -> None:
    compare(module, SEQUENCES)


def test_zeros_may_lie_behind_or_around_tokens() -> None:
    compare(lambda m, x: nn.functional.pad(x, (0, 0, 1, 2)), SEQUENCES)


@pytest.mark.parametrize("suffix", ["litert", "onnx"])
@pytest.mark.parametrize(
    "name", ["max with padding", "max to the end", "mean with padding", "all", "nearest", "zeros", "blocks"]
)
def test_runtimes_give_the_codes_of_the_twin(name: str, suffix: str) -> None:
    function = (POOLS | GROWING)[name][0]
    model = nn.Sequential(Held(function, conv=CONV), hold(3.7)).eval()
    assert proof(model, suffix, images() - 2).exact  # below zero, so that padding tells


def test_zeros_in_front_of_a_convolution_are_its_own() -> None:
    model = nn.Sequential(hold(4.0), nn.ZeroPad2d((0, 1, 0, 2)), wrap(nn.Conv2d(3, 4, 3)), hold(2.0))
    assert kinds(lower(model, images())) == ["quantize", "transpose", "conv2d", "transpose"]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (nn.MaxPool2d(2, dilation=2), "with dilation=2"),
        (lambda m, x: m.pool(x)[0], "with return_indices=True"),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), "count_include_pad=False"),
        (nn.AvgPool2d(2, ceil_mode=True), "with ceil_mode=True, which cuts the last windows"),
        (nn.AvgPool2d(2, divisor_override=3), "with divisor_override"),
        (nn.AdaptiveAvgPool2d(3), "differ in size, which no runtime's pools do"),
        (lambda m, x: x.mean(0), "axis of their own"),
        (lambda m, x: x + x.mean(), "axis of their own"),
        (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), "align_corners=True"),
        (nn.Upsample(scale_factor=2, mode="bicubic"), "mode='bicubic'; do use 'nearest' or 'bilinear'"),
        (nn.Upsample(size=(8, 9)), "by the nearest pixel; do resize by whole factors"),
        (nn.ConstantPad2d(1, 2.0), "do pad with zeros"),
        (lambda m, x: nn.functional.pad(x, (1, 1, 1, 1), mode="reflect"), "mode='reflect'"),
        (nn.ZeroPad2d((-1, 0, 0, 0)), "do cut by a slice"),
        (nn.MaxPool3d(1), "which has no lowering; do use two dimensions"),
    ],
)
def test_what_no_graph_holds_is_refused(function: Any, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        lower(Held(function, pool=nn.MaxPool2d(2, return_indices=True)).eval(), images())
