"""What moves values and cuts them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from qi.errors import UnsupportedError
from qi.torch.lower import lower
from tests.torch.lowered import Held, compare, hold, images, kinds, proof

CONV = nn.Conv2d(3, 6, 3, padding=1)
TOKENS = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(3))
MOVED: dict[str, tuple[Any, list[str]]] = {
    "to channels last": (lambda m, x: m.conv(x).permute(0, 2, 3, 1), ["transpose", "conv2d"]),
    "patches": (lambda m, x: m.conv(x).flatten(2).transpose(1, 2), ["transpose", "conv2d", "reshape"]),
    "axes exchanged": (lambda m, x: x.transpose(1, 3), ["transpose"]),
    "axes moved": (lambda m, x: torch.movedim(x, 1, 3), ["transpose"]),
    "flat": (lambda m, x: m.conv(x).flatten(1), ["transpose", "conv2d", "transpose", "reshape"]),
    "flat and counted": (lambda m, x: m.conv(x).view(x.size(0), -1) * 2, None),
    "sizes of one": (lambda m, x: m.conv(x).mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1), None),
    "an axis more": (lambda m, x: m.conv(x).unsqueeze(-1), None),
    "an axis more in front": (lambda m, x: m.conv(x).unsqueeze(1), None),
    "shuffled channels": (
        lambda m, x: m.conv(x).view(x.shape[0], 2, 3, 7, 5).transpose(1, 2).reshape(x.shape[0], 6, 7, 5),
        None,
    ),
    "parts of channels": (lambda m, x: m.conv(x)[:, 1:5:2, :, 2], None),
    "one channel": (lambda m, x: m.conv(x)[:, 0], ["transpose", "conv2d", "slice", "reshape"]),
    "the last place and an axis": (lambda m, x: x[..., None, -1:], None),
    "chunks": (lambda m, x: m.conv(x).chunk(2, 1)[1], ["transpose", "conv2d", "slice", "transpose"]),
    "uneven parts": (lambda m, x: m.conv(x).split([1, 5], dim=1)[1], ["transpose", "conv2d", "slice", "transpose"]),
    "backwards": (lambda m, x: m.conv(x).flip(2), ["transpose", "conv2d", "reverse", "transpose"]),
    "several times": (lambda m, x: x.repeat(1, 2, 1, 3), ["tile"]),
    "all of it": (lambda m, x: x[:, :], []),
}
ROWS: dict[str, tuple[Any, list[str]]] = {
    "unbound": (lambda m, x: x.unbind(1)[2], ["slice", "reshape"]),
    "narrow": (lambda m, x: x.narrow(1, -3, 2), ["slice"]),
    "select": (lambda m, x: x.select(1, -1), ["slice", "reshape"]),
    "the last token": (lambda m, x: x[:, -1], ["slice", "reshape"]),
    "expanded": (lambda m, x: x[:, :, :1].expand(-1, -1, 4), ["slice", "tile"]),
    "heads": (lambda m, x: x.unflatten(2, (2, 4)), ["reshape"]),
    "turned": (lambda m, x: x.mT, ["transpose"]),
    "turned and back": (lambda m, x: x.transpose(1, 2).relu().transpose(1, 2), ["relu"]),
    "tokens in front": (lambda m, x: x.permute(1, 0, 2)[-1], ["slice", "reshape"]),
    "heads in front": (
        lambda m, x: x.reshape(x.shape[0], 5, 2, 4).permute(2, 0, 1, 3).unbind(0)[1],
        ["reshape", "slice", "reshape"],
    ),
}


@pytest.mark.parametrize("name", MOVED)
def test_images(name: str) -> None:
    function, expected = MOVED[name]
    found = kinds(compare(function, images(4), conv=CONV))
    assert expected in (None, found)


@pytest.mark.parametrize("name", ROWS)
def test_tokens(name: str) -> None:
    function, expected = ROWS[name]
    assert kinds(compare(function, TOKENS)) == expected


def test_images_with_channels_last_need_no_turning() -> None:
    graph = compare(lambda m, x: m.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), torch.randn(4, 7, 5, 3), conv=CONV)
    assert kinds(graph) == ["conv2d"]


def test_one_turn_serves_all() -> None:
    graph = compare(lambda m, x: m.a(x) + m.b(x), images(), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1))
    assert kinds(graph) == ["transpose", "conv2d", "conv2d", "add", "transpose"]


@pytest.mark.parametrize("suffix", ["litert", "onnx"])
@pytest.mark.parametrize("name", ["patches", "flat", "shuffled channels", "parts of channels", "chunks", "backwards"])
def test_runtimes_give_the_codes_of_the_twin(name: str, suffix: str) -> None:
    model = nn.Sequential(Held(MOVED[name][0], conv=CONV), hold(3.7)).eval()
    assert proof(model, suffix, images()).exact


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda m, x: x.flatten(), "axis of their own"),
        (lambda m, x: x.reshape(-1, 8), "axis of their own"),
        (lambda m, x: x.permute(1, 0, 2), "takes samples along another axis"),
        (lambda m, x: torch.softmax(x.permute(1, 0, 2), 1).permute(1, 0, 2), "over the batch"),
        (lambda m, x: x.permute(1, 0, 2).reshape(5, -1, 2, 4), "takes samples along another axis"),
        (lambda m, x: x[:1], "axis of their own"),
        (lambda m, x: x[1:] * 1, "axis of their own"),
        (lambda m, x: x.flip(0), "along the batch"),
        (lambda m, x: x[:, torch.tensor([0, 2])], "with key"),
        (lambda m, x: x.repeat(1, 1, 1, 1), "axis of their own|leave the batch in front"),
    ],
)
def test_the_batch_stays_apart(function: Any, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        lower(Held(function).eval(), TOKENS)
