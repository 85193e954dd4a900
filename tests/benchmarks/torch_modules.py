"""Torch modules that train with quantizers: a step's time over float's, and torch's own fake quantization beside ours.

Run: python -m tests.benchmarks.torch_modules [step] [torch] [digits] [--threads 1] [--rounds 15] [--seeds 5]

`step`: training steps of both networks over the float network's. `torch`: the same of the convolutional one beside it with
torch.ao.quantization's quantizers (FX, moving averages; and its learnable ones, which are LSQ); into a transformer's layers FX
doesn't go. `digits`: accuracy of both on scikit-learn's digits, w8a8 and w4a4, with
the same data, epochs and seeds, and the seconds that training took.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from statistics import mean, stdev

import numpy as np
import torch
from torch import nn
from torch.ao import quantization as ao
from torch.ao.quantization import quantize_fx
from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize

import qi
from qi.torch import convert, prepare_qat, quantize_model
from tests.benchmarks.common import paired_ratio, timed_rounds

BITS = {"w8a8": 8, "w4a4": 4}
Images = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(given, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.c2, self.b2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.around = nn.Conv2d(given, width, 1, stride) if stride > 1 else nn.Identity()
        self.r1, self.r2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.r2(self.b2(self.c2(self.r1(self.b1(self.c1(x))))) + self.around(x))


class ResNet8(nn.Module):
    """As in MLPerf Tiny: 16, 32 and 64 channels, for images of 32 x 32."""

    def __init__(self, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Transformer(nn.Module):
    """Two layers of width 128 over 64 steps."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, activation="gelu")
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-8, 32 x 32, batch 64": (ResNet8, (64, 3, 32, 32)),
    "transformer, 2 x 128, T 64, batch 16": (Transformer, (16, 64, 128)),
}


# Ways to train ----------------------------------------------------------------------------------------------------------


def of_torch(module: nn.Module, recipe: str, example: torch.Tensor, learnable: bool = False) -> nn.Module:
    """What torch.ao.quantization makes of a module: per-channel symmetric weights, uniform activations, as our recipes have."""
    bits, fake = BITS[recipe], ao.FusedMovingAvgObsFakeQuantize
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    weights = fake.with_args(
        observer=ao.MovingAveragePerChannelMinMaxObserver,
        quant_min=low,
        quant_max=high,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
    )
    values = fake.with_args(
        observer=ao.MovingAverageMinMaxObserver, quant_min=0, quant_max=high - low, dtype=torch.quint8
    )
    mapping = ao.QConfigMapping().set_global(ao.QConfig(values, weights))
    made = quantize_fx.prepare_qat_fx(copy.deepcopy(module).train(), mapping, (example,))
    with torch.no_grad():
        made.eval()(example)  # the observers see what our quantizers start from
    return (_learnable(made) if learnable else made).train()


def _learnable(module: nn.Module) -> nn.Module:
    """Torch's learnable quantizers in place of those that observe, from where they are."""
    for owner in list(module.modules()):
        for name, fake in list(owner.named_children()):
            if not isinstance(fake, ao.FusedMovingAvgObsFakeQuantize):
                continue
            scale, zero_point = fake.calculate_qparams()
            options = {"dtype": fake.dtype, "qscheme": fake.qscheme, "use_grad_scaling": True}
            if fake.is_per_channel:
                options |= {"ch_axis": fake.ch_axis, "channel_len": len(scale)}
            made = _LearnableFakeQuantize(
                type(fake.activation_post_process), fake.activation_post_process.quant_min, fake.quant_max, **options
            )
            made.scale.data.copy_(scale)
            made.zero_point.data.copy_(zero_point)
            setattr(owner, name, made.enable_param_learning())
    return module


def ways(module: nn.Module, samples: torch.Tensor, theirs: bool) -> dict[str, nn.Module]:
    """The module in float and prepared in each way, in training mode."""
    made: dict[str, nn.Module] = {"float": copy.deepcopy(module).train()}
    for recipe in BITS:
        made[f"{recipe} lsq"] = prepare_qat(module, recipe, samples, progress=False)
    made["w8a8 ste"] = prepare_qat(module, "w8a8", samples, method="ste", progress=False)
    if theirs:
        made["torch w8a8"] = of_torch(module, "w8a8", samples)
        made["torch w8a8 learnable"] = of_torch(module, "w8a8", samples, learnable=True)
    return made


# Time -------------------------------------------------------------------------------------------------------------------


def step_ratios(rounds: int, theirs: bool = False) -> None:
    """Median time of a training step over float's, of both networks; with torch's own quantizers, of the first."""
    for name, (make, shape) in list(NETWORKS.items())[: 1 if theirs else None]:
        torch.manual_seed(0)
        module, x, y = make().eval(), torch.randn(shape), torch.randint(0, 10, shape[:1])
        prepared = ways(module, x, theirs)
        actions = {key: partial(step, way, _sgd(way), x, y) for key, way in prepared.items()}
        seconds = timed_rounds(actions, rounds)
        found = ", ".join(f"{key} {paired_ratio(seconds, key, 'float'):.2f}x" for key in prepared if key != "float")
        print(f"{name}: step {1e3 * np.median(seconds['float']):.0f} ms in float; {found}", flush=True)


def _sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), 1e-4, momentum=0.9)


def step(module: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> None:
    """One training step."""
    optimizer.zero_grad()
    nn.functional.cross_entropy(module(x), y).backward()
    optimizer.step()


# Accuracy ---------------------------------------------------------------------------------------------------------------


def load_digits() -> Images:
    """1,000 training images and their classes, and 797 of each to test."""
    from sklearn import datasets

    found = datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    x = torch.tensor(found.images[order, None] / 16, dtype=torch.float32)
    y = torch.tensor(found.target[order])
    return x[:1000], y[:1000], x[1000:], y[1000:]


def fit(module: nn.Module, images: Images, epochs: int, rate: float) -> float:
    """Trains with Adam, 40 images a step, and gives the seconds that it took."""
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), rate)
    start = time.perf_counter()
    for _ in range(epochs):
        for batch in torch.randperm(len(images[0])).split(40):
            step(module, optimizer, images[0][batch], images[1][batch])
    return time.perf_counter() - start


@torch.no_grad()
def top1(module: nn.Module, images: Images) -> float:
    """In percent, of the test images; torch's quantizers keep their ranges meanwhile."""
    module.eval()
    for inner in module.modules():
        if isinstance(inner, ao.FakeQuantizeBase):
            inner.disable_observer()
    return 100 * float((module(images[2]).argmax(1) == images[3]).double().mean())


def digits(seeds: int, epochs: int = 5) -> None:
    """Top-1 after as many epochs of each way to train, from the same float networks of 4 to 16 channels."""
    images, found, spent = load_digits(), defaultdict(list), defaultdict(list)
    for seed in range(seeds):
        torch.manual_seed(seed)
        module = ResNet8(1, 4)
        fit(module, images, 12, 5e-3)
        found["float"].append(top1(module, images))
        example = images[0][:256]
        made: dict[str, Callable[[], nn.Module]] = {"float, trained on": partial(copy.deepcopy, module)}
        for recipe in BITS:
            rounded, _ = quantize_model(module, recipe, example, progress=False)
            found[f"{recipe} rounded"].append(top1(rounded, images))
            prepared = partial(prepare_qat, module, recipe, example, progress=False)
            made |= {f"{recipe} {method}": partial(prepared, method=method) for method in ("lsq", "ste")}
            made[f"{recipe} torch"] = partial(of_torch, module, recipe, example)
            made[f"{recipe} torch learnable"] = partial(of_torch, module, recipe, example, learnable=True)
        for key, make in made.items():
            torch.manual_seed(seed)
            way = make()
            spent[key].append(fit(way, images, epochs, 2e-3))
            found[key].append(top1(convert(way) if key.endswith(("lsq", "ste")) else way, images))
    titles = (f"digits, {seeds} seeds, {epochs} epochs", "top-1, mean", "deviation", "seconds over float's")
    print(f"\n| {' | '.join(titles)} |\n" + "| --- " * len(titles) + "|")
    for key, values in found.items():
        ratio = f"{np.median(np.divide(spent[key], spent['float, trained on'])):.2f}" if key in spent else ""
        print(f"| {key} | {mean(values):.2f} | {stdev(values):.2f} | {ratio} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="*", default=["step", "torch", "digits"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore", qi.errors.QuantizationWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    for table in given.table:
        {
            "step": partial(step_ratios, given.rounds),
            "torch": partial(step_ratios, given.rounds, theirs=True),
            "digits": partial(digits, given.seeds),
        }[table]()


if __name__ == "__main__":
    main()
