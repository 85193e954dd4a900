"""Torch models that were quantized after training, as files: the runtime, the twin and the model beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import qi
from qi.errors import ConfigError, InputError, QuantizationWarning, UnsupportedError
from qi.exporters.deploy import export
from qi.exporters.verify import verify
from qi.torch.emulate import emulate
from qi.torch.lower import lower
from qi.torch.quantize import quantize_model
from tests.torch.lowered import equal_codes

SUFFIXES = pytest.mark.parametrize("suffix", [".tflite", ".onnx"])


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    """Depthwise and pointwise, with a shortcut."""

    def __init__(self, given: int, made: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(given, given, 3, stride, 1, groups=given, bias=False)
        self.pointwise = nn.Conv2d(given, made, 1, bias=False)
        self.norm_a, self.norm_b, self.act = nn.BatchNorm2d(given), nn.BatchNorm2d(made), nn.ReLU6()
        self.shortcut = stride == 1 and given == made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images."""
        y = self.norm_b(self.pointwise(self.act(self.norm_a(self.depthwise(x)))))
        return x + y if self.shortcut else y


class Images(nn.Module):
    """A small network as for phones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 24, 2), Block(24, 24, 1))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(24, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores."""
        x = self.blocks(torch.relu(self.norm(self.stem(x))))
        return self.head(self.pool(x).flatten(1))


class Tokens(nn.Module):
    """A transformer's block."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(50, 16), nn.Parameter(0.1 * drawn(1, 12, 16, seed=4))
        self.block = nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 7)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Scores."""
        return self.head(self.norm(self.block(self.table(ids) + self.places)).mean(1))


class Patches(nn.Module):
    """A transformer on patches of images, with a token of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(drawn(1, 1, 16, seed=5))
        self.places = nn.Parameter(0.1 * drawn(1, 16, 16, seed=6))
        self.qkv, self.out, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        batch, count, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(batch, count, width))
        return self.head(x[:, 0])


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.SiLU(), nn.Dropout(0.1), nn.Linear(32, 6))


def sequences() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 8, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 8, 3, padding=2, dilation=2), nn.GELU(),
        nn.Flatten(), nn.Linear(96, 3),
    )  # fmt: skip


# Model, data, the least share of equal codes of model and twin: sums of many codes lie near ties more often.
CASES: dict[str, tuple[Any, torch.Tensor, float]] = {
    "images": (Images, drawn(64, 3, 20, 14, seed=1), 0.85),
    "perceptron": (perceptron, drawn(64, 12, seed=1), 0.97),
    "sequences": (sequences, drawn(64, 4, 24, seed=1), 0.95),
    "tokens": (Tokens, torch.randint(0, 50, (64, 12), generator=torch.Generator().manual_seed(1)), 0.97),
    "patches": (Patches, drawn(64, 3, 20, 12, seed=1), 0.95),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor, float]:
    make, x, least = CASES[request.param]
    torch.manual_seed(0)
    model = make().train()
    with torch.no_grad():
        for _ in range(5):
            model(x)  # statistics of batch normalizations
    return quantize_model(model.eval(), "w8a8", x, progress=False)[0], x, least


@SUFFIXES
def test_the_runtime_gives_what_the_twin_gives(
    case: tuple[nn.Module, torch.Tensor, float], suffix: str, tmp_path: Path
) -> None:
    model, x, _ = case
    path = tmp_path / f"m{suffix}"
    report = export(model, path, samples=x, latency=False)
    assert report.exact
    assert report.proof.samples == 64
    assert {name.partition(" ")[0] for name in report.float_operations} <= {
        "unary", "mul", "layer_norm_of_codes", "minimum", "maximum", "add",
    }  # fmt: skip
    found = verify(path, model, x)
    assert (found.exact, found.identical) == (True, True)
    assert export(model, path, latency=False).exact  # samples made of the sizes that it was traced with


def test_the_model_has_nearly_all_codes_of_the_twin(case: tuple[nn.Module, torch.Tensor, float]) -> None:
    model, x, least = case
    for target in ("litert", "onnxruntime"):
        share, most = equal_codes(model, x, target)
        assert share > least, share
        assert most < 3.5


@SUFFIXES
def test_integers_alone_at_the_borders(suffix: str, tmp_path: Path) -> None:
    make, x, _ = CASES["images"]
    model, _ = quantize_model(make().eval(), "w8a8", x, progress=False)
    report = export(
        model, tmp_path / f"m{suffix}", samples=x, latency=False, integer_io=True, integer_only=True, strict=True
    )
    assert (report.exact, report.float_operations) == (True, ())
    codes = emulate(model, x, "litert", raw=True)
    assert codes.dtype == np.int8


def test_an_onnx_file_of_images_has_no_turning_in_it(tmp_path: Path) -> None:
    """ONNX has channels first as torch does."""
    import onnx

    make, x, _ = CASES["images"]
    model, _ = quantize_model(make().eval(), "w8a8", x, progress=False)
    export(model, tmp_path / "m.onnx", samples=x, latency=False)
    kinds = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert "Conv" in kinds
    assert "Transpose" not in kinds


def test_plain_integers(tmp_path: Path) -> None:
    make, x, _ = CASES["perceptron"]
    model, _ = quantize_model(make().eval(), "w8a8", x, progress=False)
    qi.export(model, tmp_path / "kernels", format="integers", samples=x[:4])
    assert (tmp_path / "kernels" / "check.npz").is_file()


def test_few_bits_and_weights_alone(tmp_path: Path) -> None:
    make, x, _ = CASES["perceptron"]
    for recipe in ("w4a8", "w8"):
        data = None if recipe == "w8" else x
        model, _ = quantize_model(make().eval(), recipe, data, progress=False)
        for suffix in (".tflite", ".onnx"):
            assert export(model, tmp_path / f"m{suffix}", samples=x, latency=False).equal


def test_nothing_is_written_of_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    with pytest.raises(UnsupportedError, match="in which nothing is quantized"):
        export(nn.Linear(2, 2), path)
    with pytest.warns(QuantizationWarning, match="in place"):
        model, _ = quantize_model(nn.LSTM(4, 3, batch_first=True), "w8", progress=False)
    with pytest.raises(UnsupportedError, match="of class LSTM, which has no lowering; do use convolutions"):
        export(model, path, samples=drawn(2, 5, 4))
    with pytest.raises(InputError, match="do give samples"):
        export(quantize_model(nn.Sequential(nn.Linear(2, 2)), "w8", progress=False)[0], path)
    with pytest.raises(ConfigError):
        export(model, tmp_path / "m.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_has_the_paths_of_the_model() -> None:
    make, x, _ = CASES["images"]
    model, _ = quantize_model(make().eval(), "w8a8", x, progress=False)
    sources = [op.source for op in lower(model).ops if op.kind.endswith("conv2d")]
    assert sources[:3] == ["stem", "blocks.0.depthwise", "blocks.0.pointwise"]
