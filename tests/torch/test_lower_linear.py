"""Convolutions, products with weights, look-ups, and normalizations that weren't folded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qi.errors import UnsupportedError
from qi.ir import run
from qi.ir.routing import route
from qi.torch.lower import lower
from tests.torch.lowered import Held, compare, equal_codes, hold, images, kinds, proof, wrap

FORMATS = pytest.mark.parametrize("suffix", ["litert", "onnx"])
SEQUENCES = torch.randn(6, 4, 11, generator=torch.Generator().manual_seed(2))
CONVOLUTIONS = {
    "plain": (nn.Conv2d(4, 6, 3), "conv2d"),
    "strided": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), "conv2d"),
    "same": (nn.Conv2d(4, 6, (3, 5), padding="same", dilation=(2, 1)), "conv2d"),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), "conv2d"),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1, bias=False), "depthwise_conv2d"),
    "multiplied": (nn.Conv2d(4, 12, 3, groups=4, stride=2), "depthwise_conv2d"),
    "transposed": (nn.ConvTranspose2d(4, 5, 3, stride=2, padding=1, output_padding=1), "conv2d_transpose"),
    "spread": (nn.ConvTranspose2d(4, 5, 2, stride=3), "conv2d_transpose"),
}
ROWS = {
    "plain": (nn.Conv1d(4, 6, 3, padding=1, stride=2), "conv2d"),
    "same": (nn.Conv1d(4, 6, 5, padding="same"), "conv2d"),
    "depthwise": (nn.Conv1d(4, 8, 3, groups=4, dilation=2), "depthwise_conv2d"),
    "transposed": (nn.ConvTranspose1d(4, 3, 3, stride=2, output_padding=1), "conv2d_transpose"),
}


class Quantized(nn.Module):
    """A module between two quantizers."""

    def __init__(self, module: nn.Module, limit: float = 3.0) -> None:
        super().__init__()
        self.first, self.inner, self.last = hold(4.0), wrap(module), hold(limit)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Codes to codes."""
        return self.last(self.inner(self.first(x)))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_of_images(name: str) -> None:
    module, kind = CONVOLUTIONS[name]
    assert kinds(compare(module, images(3, 4))) == ["transpose", kind, "transpose"]


@pytest.mark.parametrize("name", ROWS)
def test_a_convolution_of_sequences(name: str) -> None:
    module, kind = ROWS[name]
    assert kind in kinds(compare(module, SEQUENCES))


@FORMATS
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_runtimes_give_the_codes_of_a_convolution(name: str, suffix: str) -> None:
    assert proof(Quantized(CONVOLUTIONS[name][0]), suffix, images(8, 4)).exact


@FORMATS
@pytest.mark.parametrize("name", ROWS)
def test_runtimes_give_the_codes_of_a_convolution_of_sequences(name: str, suffix: str) -> None:
    assert proof(Quantized(ROWS[name][0]), suffix, SEQUENCES).exact


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_model_has_nearly_all_codes_of_the_twin(name: str) -> None:
    share, most = equal_codes(Quantized(CONVOLUTIONS[name][0]), images(32, 4))
    assert share > 0.99
    assert most < 1.5


def test_scales_go_with_their_channels() -> None:
    module = nn.Conv2d(4, 6, 3)
    with torch.no_grad():
        module.weight *= torch.arange(1.0, 7.0).view(6, 1, 1, 1)
    wrapper = wrap(module)
    graph = lower(nn.Sequential(hold(1.0), wrapper, hold(1.0)), images(1, 4))
    weights = next(op for op in graph.ops if op.kind == "conv2d").inputs[1]
    given = wrapper.get_quantized_tensors()["weight"]
    np.testing.assert_array_equal(weights.data, given.codes.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(weights.scales(), given.qparams.scale.reshape(-1))


# Products ---------------------------------------------------------------------------------------------------------------------


class Flattened(nn.Module):
    """A convolution, then a product with all of the image."""

    def __init__(self, pool: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.x, self.a, self.b = hold(4.0), hold(2.0, signed=False), hold(2.0)
        self.conv = wrap(nn.Conv2d(3, 5, 3))
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.fc = wrap(nn.Linear(5 * 2 * 1 if pool else 5 * 5 * 3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Codes to codes."""
        x = self.pool(self.a(torch.relu(self.conv(self.x(x)))))
        return self.b(self.fc(x.reshape(x.size(0), -1)))


@pytest.mark.parametrize("pool", [True, False])
def test_weights_behind_an_image_are_put_in_its_order(pool: bool) -> None:
    model = Flattened(pool)
    graph = lower(model, images(1))
    assert kinds(graph).count("transpose") == 1  # of what goes in
    share, most = equal_codes(model, images(64))
    assert share > 0.97
    assert most < 1.5
    assert proof(model, "onnx", images(8)).exact


def test_groups_of_weights_keep_their_order() -> None:
    """Columns that share a scale can't be parted: the image is turned round in their place."""
    linear = nn.Linear(4 * 35, 3)
    scaled = wrap(linear, per_channel=True)
    graph = compare(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), linear), images())
    assert kinds(graph) == ["transpose", "conv2d", "reshape", "dense"]
    assert scaled.get_quantized_tensors()["weight"].qparams.scale.shape == (3, 1)


def test_a_product_takes_any_axes_in_front() -> None:
    compare(nn.Linear(5, 4), images())
    graph = compare(lambda m, x: m.fc(x.permute(1, 0, 2)).permute(1, 0, 2), SEQUENCES, fc=nn.Linear(11, 3))
    assert kinds(graph) == ["dense"]


def test_a_product_with_a_parameter() -> None:
    graph = compare(
        lambda m, x: nn.functional.linear(x, m.e.weight, m.b.bias), SEQUENCES, e=nn.Embedding(7, 11), b=nn.Linear(2, 7)
    )
    assert kinds(graph) == ["dense"]


@FORMATS
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_look_up(dtype: torch.dtype, suffix: str) -> None:
    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.held = wrap(nn.Embedding(9, 4)), hold(3.0)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.held(self.table(ids))

    ids = torch.arange(6, dtype=dtype).reshape(2, 3)
    assert lower(Looked(), ids).inputs[0].dtype == str(dtype).removeprefix("torch.")
    assert proof(Looked(), suffix, ids).exact


def test_a_normalization_that_is_left_is_a_product_and_a_sum() -> None:
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            tensor.uniform_(0.5, 2.0)
    assert kinds(compare(norm, images())) == ["mul", "add"]
    graph = compare(lambda m, x: m.norm(m.conv(x)), images(), conv=nn.Conv2d(3, 3, 1), norm=norm)
    assert kinds(graph) == ["transpose", "conv2d", "mul", "add", "transpose"]


# Refusals ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), "padding_mode='reflect'; do pad with zeros"),
        (nn.ConvTranspose2d(3, 3, 3, groups=3), "with groups=3; do use groups=1"),
        (nn.BatchNorm2d(3, track_running_stats=False), "with track_running_stats=False; do use GroupNorm"),
    ],
)
def test_what_no_graph_holds_is_refused(module: nn.Module, said: str) -> None:
    with pytest.raises(UnsupportedError, match=said) as caught:
        lower(Held(module), images())
    assert f"'function' of class {type(module).__name__}" in str(caught.value)


def test_an_embedding_that_changes_its_table_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(9, 4, max_norm=1.0), hold(1.0))
    with pytest.raises(UnsupportedError, match="with max_norm"):
        lower(model, torch.zeros(1, 2, dtype=torch.int64))


def test_the_twin_has_the_shape_of_the_model() -> None:
    model = Quantized(nn.Conv2d(4, 6, 3))
    graph = lower(model, images(1, 4))
    (y,) = graph.outputs
    assert y.shape == (None, 6, 5, 3)
    assert run(route(graph, "litert"), [images(5, 4).numpy()])[y.name].shape == (5, 6, 5, 3)
