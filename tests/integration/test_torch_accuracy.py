"""What quantized torch modules are worth on real data: scikit-learn's 8 x 8 digits, of two networks from two starts each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from qi.torch import convert, prepare_qat, quantize_model

SEEDS = (0, 1)
lossy = pytest.mark.filterwarnings("ignore::qi.errors.QuantizationWarning")  # SQNR below 10 dB, as is meant


class Depthwise(nn.Module):
    """A convolution, a depthwise and a pointwise one with a way around, a strided one, and a head; all but it normalized."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        norm = nn.BatchNorm2d
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), norm(width), nn.ReLU())
        self.depthwise = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), norm(width), nn.ReLU6()
        )
        self.pointwise = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), norm(width))
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), norm(2 * width), nn.ReLU())
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images[:, None])
        x = torch.relu(x + self.pointwise(self.depthwise(x)))
        return self.head(self.down(x).mean((2, 3)))


class Rows(nn.Module):
    """A transformer over the eight rows of an image."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, width), nn.Parameter(torch.randn(8, width) * 0.1)
        self.block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True, activation="gelu")
        self.head = nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.embed(images) + self.place).mean(1))


class Digits(NamedTuple):
    """1,000 images, 8 x 8 in [0, 1], to train on; 797 to test; their classes."""

    x: torch.Tensor
    y: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {"convolutions": (Depthwise, 12), "transformer": (Rows, 26)}


@pytest.fixture(scope="module")
def digits() -> Digits:
    found = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    x, y = torch.tensor(found.images[order] / 16, dtype=torch.float32), torch.tensor(found.target[order])
    return Digits(x[:1000], y[:1000], x[1000:], y[1000:])


def fit(module: nn.Module, digits: Digits, epochs: int, rate: float) -> nn.Module:
    optimizer = torch.optim.Adam(module.parameters(), rate)
    module.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(digits.x)).split(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(digits.x[batch]), digits.y[batch]).backward()
            optimizer.step()
    return module.eval()


@torch.no_grad()
def top1(module: nn.Module, digits: Digits) -> float:
    """In percent, of the images held out."""
    return 100 * float((module(digits.x_test).argmax(1) == digits.y_test).double().mean())


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request, digits: Digits) -> list[nn.Module]:
    """A network, from each seed."""
    make, epochs = NETWORKS[request.param]
    modules = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        modules.append(fit(make(), digits, epochs, 5e-3))
    return modules


def test_eight_bits_lose_at_most_half_a_point(trained: list[nn.Module], digits: Digits) -> None:
    for module in trained:
        exact = top1(module, digits)
        quantized, report = quantize_model(module, "w8a8", digits.x[:256], strict=True, progress=False)
        assert all(row.quantized for row in report.activations)
        assert exact > 85
        assert top1(quantized, digits) >= exact - 0.5


@lossy
def test_training_wins_back_what_four_bits_lose(trained: list[nn.Module], digits: Digits) -> None:
    exact, rounded, learned = [], [], []
    for seed, module in zip(SEEDS, trained, strict=True):
        exact.append(top1(module, digits))
        quantized, _ = quantize_model(module, "w4a4", digits.x[:256], progress=False)
        rounded.append(top1(quantized, digits))
        torch.manual_seed(seed)
        qat = prepare_qat(module, "w4a4", digits.x[:256], progress=False)
        assert top1(qat.eval(), digits) == rounded[-1]  # where training starts
        converted = convert(fit(qat, digits, 4, 2e-3))
        learned.append(top1(converted, digits))
        assert torch.equal(converted(digits.x_test), qat(digits.x_test))
    assert np.mean(rounded) < np.mean(exact) - 1  # there is something to win
    assert np.mean(learned) > np.mean(rounded) + 1
