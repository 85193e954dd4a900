"""Run in processes of its own: one step of training of wrapped modules under DistributedDataParallel.

``python torch_distributed.py RANK FILE`` is one of two processes that find each other through the file, and prints one JSON
line; `test_torch_modules.py` reads it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from qi.quantizers import (
    LSQQuantizer,
    QuantizationMethod,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
)
from qi.torch import PytorchNodeQuantizationDispatcher, PytorchQuantizationWrapper

__all__: list[str] = []

SYMMETRIC = QuantizationMethod.SYMMETRIC


def model() -> torch.nn.Module:
    """Wrapped modules, the same each time."""
    torch.manual_seed(0)
    weights = LSQQuantizer(TrainableQuantizerWeightsConfig(SYMMETRIC, 4, weights_per_channel_threshold=True))
    outputs = LSQQuantizer(TrainableQuantizerActivationConfig(SYMMETRIC, 8, {"threshold": 2.0}))
    layers: list[torch.nn.Module] = [torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)]
    return torch.nn.Sequential(
        *(
            PytorchQuantizationWrapper(layer, PytorchNodeQuantizationDispatcher({"weight": weights}, outputs))
            for layer in layers
        )
    )


def batches() -> list[torch.Tensor]:
    """What each of the two processes gets."""
    return list(torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1)))


def gradients(module: torch.nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """By parameter, of a loss that isn't linear."""
    module.zero_grad()
    module(x).square().mean().backward()
    return {
        name.removeprefix("module."): p.grad.tolist() for name, p in module.named_parameters() if p.grad is not None
    }


if __name__ == "__main__":
    rank = int(sys.argv[1])
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
    spread = torch.nn.parallel.DistributedDataParallel(model())
    print(json.dumps(gradients(spread, batches()[rank])))
    torch.distributed.destroy_process_group()
