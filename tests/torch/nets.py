"""Small networks and samples for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Residual(nn.Module):
    """Convolutions with normalizations, a depthwise one, a sum, a pool and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.dw, self.b2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.pw = nn.Conv2d(8, 8, 1)
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(8 * 4 * 3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.b1(self.c1(x)))
        x = x + torch.relu(self.pw(self.b2(self.dw(x))))
        return self.fc(self.pool(x).flatten(1))


class Branching(nn.Module):
    """Branches on a value: it can't be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 3)
        self.drop, self.extra = nn.Dropout(0.5), nn.Parameter(torch.ones(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.rnn(x)
        if y.mean() > 100:
            y = -y
        return self.head(self.drop(y[:, -1])) @ self.extra


class Transformer(nn.Module):
    """Indices, an embedding, positions that the module holds itself, an encoder and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.emb, self.pos = nn.Embedding(20, 16), nn.Parameter(torch.randn(6, 16) * 0.1)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        self.enc, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(16, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.enc(self.emb(ids) + self.pos).mean(1))


def settled(module: nn.Module, *args: Any) -> nn.Module:
    """In eval mode, with statistics of batch normalizations that a few batches gave."""
    module.train()
    with torch.no_grad():
        for _ in range(20):
            module(*args)
    return module.eval()


def residual() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(64, 1, 8, 6)
    return settled(Residual(), x), x


def branching() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Branching().eval(), torch.randn(48, 5, 6)


def transformer() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return Transformer().eval(), torch.randint(0, 20, (48, 6))


def sqnr(exact: torch.Tensor, found: torch.Tensor) -> float:
    """In dB."""
    exact, found = exact.detach(), found.detach()
    return float(10 * torch.log10((exact**2).sum() / ((exact - found) ** 2).sum()))
