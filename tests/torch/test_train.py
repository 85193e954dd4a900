"""Quantization-aware training of torch modules."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qi.errors import ConfigError, StrictError, UnsupportedError
from qi.quantizers import BaseInferableQuantizer
from qi.recipes import Recipe, TensorSpec
from qi.torch import (
    PytorchActivationQuantizationHolder,
    PytorchQuantizationWrapper,
    convert,
    prepare_qat,
    quantize_model,
)
from tests.torch.nets import branching, residual, transformer

pytestmark = pytest.mark.filterwarnings("ignore:1 weight matrices stay in float")

POWERS = Recipe(
    "powers",
    weights=TensorSpec(bits=4, method="power_of_two"),
    activations=TensorSpec(bits=4, method="power_of_two"),
)
METHODS = ("lsq", "lsq_plus", "ste", "ste_learned", "pact", "tqt", "dorefa", "noise", "stochastic")


def prepared(model: nn.Module, recipe: Any = "w4a4", data: Any = None, **options: Any) -> nn.Module:
    return prepare_qat(model, recipe, data, progress=False, **options)


def train(model: nn.Module, x: torch.Tensor, steps: int = 3, lr: float = 1e-2) -> list[float]:
    """Losses of a few steps towards classes that the samples' sums decide."""
    torch.manual_seed(0)
    optimizer, losses = torch.optim.Adam(model.parameters(), lr), []
    y = (x.reshape(len(x), -1).float().sum(1) > 0).long()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model.train()(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_it_starts_as_post_training_quantization_ends() -> None:
    model, x = residual()
    qat, (ptq, _) = prepared(model, data=x), quantize_model(model, "w4a4", x, progress=False)
    assert qat.training
    torch.testing.assert_close(qat.eval()(x), ptq(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_converts_bit_for_bit(method: str) -> None:
    model, x = residual()
    qat = prepared(model, POWERS if method == "tqt" else "w4a4", x, method=method)
    before = copy.deepcopy(qat.state_dict())
    losses = train(qat, x, steps=8)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    changed = [name for name, value in qat.state_dict().items() if not torch.equal(value, before[name])]
    assert any("module.weight" in name for name in changed)
    result = convert(qat)
    assert torch.equal(result(x), qat.eval()(x))
    ours = [inner for inner in result.modules() if isinstance(inner, PytorchQuantizationWrapper)]
    assert ours
    assert all(wrapper.frozen for wrapper in ours)
    assert not result.training


@pytest.mark.parametrize("make", [branching, transformer], ids=["in place", "transformer"])
def test_other_networks_train_and_convert_too(make: Any) -> None:
    model, x = make()
    qat = prepared(model, data=x)
    assert np.isfinite(train(qat, x)).all()
    result = convert(qat)
    assert torch.equal(result(x), qat.eval()(x))


def test_scales_train() -> None:
    model, x = residual()
    qat = prepared(model, data=x)
    trained = {name for name, parameter in qat.named_parameters() if "quant" in name and parameter.requires_grad}
    before = {name: parameter.clone() for name, parameter in qat.named_parameters() if name in trained}
    train(qat, x)
    moved = {
        name
        for name, parameter in qat.named_parameters()
        if name in trained and not torch.equal(parameter, before[name])
    }
    assert len(moved) > 0.8 * len(trained) > 6


def test_what_is_frozen_stays_and_its_scales_rest() -> None:
    model, x = residual()
    for parameter in model.dw.parameters():
        parameter.requires_grad_(False)
    qat = prepared(model, data=x)
    wrapper = qat.get_submodule("dw")
    before = {name: value.clone() for name, value in wrapper.state_dict().items()}
    train(qat, x)
    assert all(torch.equal(value, before[name]) for name, value in wrapper.state_dict().items())
    assert not any(parameter.requires_grad for parameter in wrapper.parameters())


def test_the_given_module_never_trains() -> None:
    for make in (residual, branching):
        model, x = make()
        before = copy.deepcopy(model.state_dict())
        train(prepared(model, data=x), x)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())


def test_a_softmax_at_the_end_rests_while_it_trains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Softmax(-1))
    qat = prepared(model, data=torch.randn(64, 6))
    x = torch.randn(20, 6) * 20
    assert len(qat.train()(x).unique()) > 16 + 1
    assert len(qat.eval()(x).unique()) <= 16


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 300)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        return y + torch.rand_like(y) if self.training else y


def test_what_does_otherwise_in_training_still_does() -> None:
    torch.manual_seed(0)
    qat = prepared(Noisy(), data=torch.randn(64, 6))
    assert isinstance(qat, Noisy), "a graph of the eval mode would have no noise"
    x = torch.randn(4, 6)
    assert not torch.equal(qat.train()(x), qat.eval()(x))


def test_dropping_of_a_function_is_followed() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 300)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(self.fc(x), 0.5, self.training)

    torch.manual_seed(0)
    qat = prepared(Dropping(), data=torch.randn(64, 6))
    x = torch.randn(4, 6)
    assert 0.3 < float((qat.train()(x) == 0).float().mean()) < 0.8
    assert torch.equal(qat.eval()(x), qat(x))


def test_converted_quantizers_are_inferable() -> None:
    model, x = residual()
    result = convert(prepared(model, data=x))
    for inner in result.modules():
        if isinstance(inner, PytorchActivationQuantizationHolder):
            assert isinstance(inner.quantizer, BaseInferableQuantizer)
    assert not any(
        parameter.requires_grad for name, parameter in result.named_parameters() if name.endswith("module.weight")
    )


def test_conversion_only_reads() -> None:
    model, x = residual()
    qat = prepared(model, data=x)
    convert(qat)
    before = train(copy.deepcopy(qat), x)
    assert train(qat, x) == before


def test_bad_input() -> None:
    model, x = residual()
    with pytest.raises(ConfigError, match="Did you mean 'lsq'"):
        prepared(model, data=x, method="lsk")
    with pytest.raises(ConfigError, match="expected a torch module"):
        convert(3)
    with pytest.raises(ConfigError, match="expected a module with trainable quantizers; received a Residual"):
        convert(model)
    qat = prepared(model, data=x)
    with pytest.raises(UnsupportedError, match="expected a float module"):
        prepared(qat, data=x)
    with pytest.raises(ConfigError, match="has none or is converted already"):
        convert(convert(qat))
    with torch.no_grad():
        next(p for n, p in qat.named_parameters() if n.endswith("module.weight")).fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        convert(qat)


def test_strictness() -> None:
    model, x = branching()
    with pytest.raises(StrictError, match=r"/extra \(3, 3\)"):
        prepared(model, data=x, strict=True)


class Tied(nn.Module):
    """An embedding whose table is the head's too."""

    def __init__(self, follows: bool) -> None:
        super().__init__()
        self.emb, self.head, self.follows = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False), follows
        self.head.weight = self.emb.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        y = self.head(self.emb(ids))
        return y if self.follows or y.sum() < 1e9 else -y


@pytest.mark.parametrize("method", ["lsq", "dorefa"])
@pytest.mark.parametrize("follows", [True, False])
def test_tied_parameters_train_with_one_quantizer_and_stay_tied(follows: bool, method: str) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 9, (40, 5))
    qat = prepared(Tied(follows), data=ids, method=method)
    emb, head = qat.get_submodule("emb"), qat.get_submodule("head")
    assert emb.module.weight is head.module.weight
    assert list(emb.weight_quantizers.values()) == list(head.weight_quantizers.values())
    optimizer = torch.optim.Adam(qat.parameters(), 1e-2)
    nn.functional.cross_entropy(qat(ids).flatten(0, 1), ids.flatten()).backward()
    optimizer.step()
    result = convert(qat)
    assert torch.equal(result(ids), qat.eval()(ids))
    if method == "lsq":  # DoReFa quantizes what it makes of a weight
        assert result.get_submodule("emb").module.weight is result.get_submodule("head").module.weight


class Halves(nn.Module):
    """A trunk that doesn't train, and a weight that is read besides being called."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = self.trunk(x).relu()
        return self.head(y) + (self.head.weight**2).sum()


def test_quantizers_that_no_gradient_reaches_rest() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    qat = prepared(Halves(), "w8a8", x)
    qat(x).sum().backward()
    assert all(p.grad is not None for p in qat.parameters() if p.requires_grad)
    resting = {n for n, p in qat.named_parameters() if not p.requires_grad and "bound" in n}
    assert resting == {"x_quant.bound.step", "relu_quant.bound.step"}


def test_weights_that_are_read_besides_being_called() -> None:
    x = torch.randn(64, 6)
    qat = prepared(Halves(), "w8a8", x)
    result = convert(qat)
    assert torch.equal(result(x), qat.eval()(x))
