"""State dicts of wrappers: floats while they train, packed codes once frozen."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from qi.core import packed_nbytes
from qi.quantizers import (
    ActivationUniformInferableQuantizer,
    LSQQuantizer,
    QuantizationMethod,
    TrainableQuantizerWeightsConfig,
    WeightsLUTSymmetricInferableQuantizer,
    WeightsSymmetricInferableQuantizer,
    WeightsUniformInferableQuantizer,
)
from qi.torch import PytorchNodeQuantizationDispatcher, PytorchQuantizationWrapper

nn = torch.nn
RANGES = {"min_range": [-0.5, -0.4, -0.3, -0.2, -0.1], "max_range": [0.5, 0.1, 0.3, 0.4, 0.2]}
QUANTIZERS = {
    "4 bits": WeightsSymmetricInferableQuantizer(4, 0.5, per_channel=True),
    "groups": WeightsSymmetricInferableQuantizer(4, 0.5, per_channel=True, group_size=4),
    "3 bits, uniform": WeightsUniformInferableQuantizer(3, **RANGES, per_channel=True),
    "table": WeightsLUTSymmetricInferableQuantizer(2, [-64, 0, 32, 100], 0.5),
    "16 bits": WeightsSymmetricInferableQuantizer(16, 0.5, signed=True),
}
W4 = QUANTIZERS["4 bits"]
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def wrapped(quantizer=W4, seed: int = 0) -> PytorchQuantizationWrapper:
    torch.manual_seed(seed)
    out = ActivationUniformInferableQuantizer(8, -2 - seed, 2)
    return PytorchQuantizationWrapper(nn.Linear(8, 5), PytorchNodeQuantizationDispatcher({"weight": quantizer}, out))


def stored(state_dict):
    """What a file gives back."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_frozen_wrappers_come_back_from_codes_bit_for_bit(name):
    quantizer = QUANTIZERS[name]
    wrapper = wrapped(quantizer).freeze()
    state = stored(wrapper.state_dict())
    codes = state["weight_quantizers.weight.codes"]
    assert codes.dtype == torch.uint8
    assert codes.numel() == packed_nbytes(40, quantizer.num_bits)
    assert "module.weight" not in state
    assert ("weight_quantizers.weight.zero_point" in state) == ("uniform" in name)
    again = wrapped(quantizer.placeholder(), seed=1).freeze()
    assert not torch.equal(again(X), wrapper(X))
    again.load_state_dict(state)
    assert torch.equal(again.module.weight, wrapper.module.weight)
    assert not again.module.weight.requires_grad
    assert torch.equal(again(X), wrapper(X))
    assert again.quantizers == wrapper.quantizers


@pytest.mark.parametrize("assign", [False, True])
def test_wrappers_within_a_model_come_back_too(assign):
    def model(seed):
        return nn.Sequential(nn.Linear(8, 8), nn.ModuleDict({"a": wrapped(seed=seed).freeze()})["a"])

    first, second = model(0), model(1)
    second.load_state_dict(stored(first.state_dict()), assign=assign)
    assert torch.equal(second(X), first(X))
    assert not second[1].module.weight.requires_grad


def test_trainable_wrappers_come_back_with_their_floats():
    lsq = LSQQuantizer(TrainableQuantizerWeightsConfig(QuantizationMethod.SYMMETRIC, 4))
    wrapper = wrapped(lsq)
    wrapper(X).square().sum().backward()
    torch.optim.SGD(wrapper.parameters(), 0.1).step()
    state = stored(wrapper.state_dict())
    assert set(state) == {
        "module.weight",
        "module.bias",
        "weight_quantizers.weight.step",
        "activation_quantizers.0.scale",
        "activation_quantizers.0.zero_point",
    }
    again = wrapped(lsq, seed=1)
    again.load_state_dict(state)
    assert torch.equal(again(X), wrapper(X))


def test_all_paths_of_a_shared_parameter_are_in_the_codes():
    def model(seed):
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5, bias=False))
        layers[1].weight = layers[0].weight
        return PytorchQuantizationWrapper(layers, PytorchNodeQuantizationDispatcher({"1.weight": W4})).freeze()

    first, second = model(0), model(1)
    state = first.state_dict()
    assert set(state) == {"weight_quantizers.0/weight.codes", "weight_quantizers.0/weight.scale"}
    second.load_state_dict(state)
    assert second.module[0].weight is second.module[1].weight
    assert torch.equal(second(torch.arange(5)), first(torch.arange(5)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_codes_are_the_same_in_other_dtypes(dtype):
    wrapper = wrapped().freeze()
    before = wrapper.state_dict()["weight_quantizers.weight.codes"]
    state = wrapper.to(dtype).state_dict()
    assert torch.equal(state["weight_quantizers.weight.codes"], before)
    again = wrapped(seed=1).freeze().to(dtype)
    again.load_state_dict(state)
    assert torch.equal(again.module.weight, wrapper.module.weight)
    assert again.module.weight.dtype == dtype


def change(**values):
    return lambda state: state | {f"weight_quantizers.weight.{name}": value for name, value in values.items()}


@pytest.mark.parametrize(
    ("make", "edit", "message"),
    [
        (lambda: wrapped(), dict, r"received codes of a frozen wrapper; do call freeze\(\) before"),
        (lambda: wrapped(QUANTIZERS["table"]).freeze(), dict, "expected 10 bytes with 2-bit codes .*; received 20"),
        (lambda: wrapped().freeze(), change(codes=torch.zeros(20)), "received 20 of torch.float32"),
        (lambda: wrapped().freeze(), change(scale=torch.zeros(5, 1)), "weight 'weight' of Linear: .*scale=0.0"),
        (lambda: wrapped().freeze(), change(scale=torch.ones(3, 1)), "expected scales of shape"),
        (lambda: wrapped().freeze(), change(zero_point=torch.full((5, 1), 99.0)), "zero points from -8 to 7"),
        (
            lambda: wrapped().freeze(),
            lambda state: {k: v for k, v in state.items() if "codes" not in k},
            r'Missing key\(s\) in state_dict: "weight_quantizers.weight.codes"\. $',
        ),
        (lambda: wrapped().freeze(), lambda state: wrapped().state_dict(), "do load them before freeze"),
        (lambda: wrapped().freeze(), change(codez=torch.zeros(1)), 'Unexpected key.*"weight_quantizers.weight.codez"'),
    ],
)
def test_what_cant_be_loaded_is_named(make, edit, message):
    with pytest.raises(RuntimeError, match=message):
        make().load_state_dict(edit(dict(wrapped().freeze().state_dict())))


def test_what_a_state_dict_lacks_may_stay():
    wrapper = wrapped().freeze()
    before = wrapper(X)
    missing = wrapper.load_state_dict({}, strict=False).missing_keys
    assert "weight_quantizers.weight.codes" in missing
    assert "module.weight" not in missing
    assert torch.equal(wrapper(X), before)
    assert np.array_equal(
        wrapper.get_quantized_tensors()["weight"].codes, wrapped().get_quantized_tensors()["weight"].codes
    )
