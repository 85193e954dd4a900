from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from qi.errors import ConfigError, InputError
from qi.quantizers import (
    ActivationLutPOTInferableQuantizer,
    ActivationPOTInferableQuantizer,
    ActivationSymmetricInferableQuantizer,
    ActivationUniformInferableQuantizer,
    LSQQuantizer,
    QuantizationMethod,
    TrainableQuantizerActivationConfig,
    WeightsPOTInferableQuantizer,
)
from qi.torch import PytorchActivationQuantizationHolder

QUANTIZERS = [
    ActivationSymmetricInferableQuantizer(8, 1.9, signed=False),
    ActivationPOTInferableQuantizer(4, 2.0),
    ActivationUniformInferableQuantizer(8, -1.1, 2.3),
    ActivationLutPOTInferableQuantizer(2, [-90, 0, 64], 2.0),
]
X = np.random.default_rng(0).normal(0, 1.5, (64, 5)).astype(np.float32)
LSQ = LSQQuantizer(TrainableQuantizerActivationConfig(QuantizationMethod.SYMMETRIC, 8, {"threshold": 2.0}))


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda q: type(q).__name__)
def test_a_module_gives_what_the_quantizer_gives(quantizer):
    holder = PytorchActivationQuantizationHolder(quantizer)
    np.testing.assert_array_equal(holder(torch.from_numpy(X)).numpy(), quantizer(X))
    assert holder.quantizer is quantizer
    assert {key: tuple(value.shape) for key, value in holder.state_dict().items()} == {
        "bound.scale": (),
        "bound.zero_point": (),
    }


def test_it_trains_and_becomes_inferable():
    holder = PytorchActivationQuantizationHolder(LSQ)
    holder(torch.from_numpy(X)).square().sum().backward()
    torch.optim.SGD(holder.parameters(), 1e-3).step()
    inferable = holder.eval().convert2inferable()
    assert not inferable.training
    assert not list(inferable.parameters())
    assert torch.equal(inferable(torch.from_numpy(X)), holder(torch.from_numpy(X)))
    assert not torch.equal(
        copy.deepcopy(holder)(torch.from_numpy(X)),
        PytorchActivationQuantizationHolder(LSQ)(torch.from_numpy(X)),
    )
    with pytest.raises(ConfigError, match="expected a trainable quantizer"):
        inferable.convert2inferable()


def test_a_state_dict_comes_back():
    holder = PytorchActivationQuantizationHolder(QUANTIZERS[2])
    other = PytorchActivationQuantizationHolder(ActivationUniformInferableQuantizer(8, -5, 5))
    other.load_state_dict(holder.state_dict())
    assert torch.equal(other(torch.from_numpy(X)), holder(torch.from_numpy(X)))


@pytest.mark.parametrize("given", ["int8", WeightsPOTInferableQuantizer(8, 1)])
def test_only_activation_quantizers_are_held(given):
    with pytest.raises(ConfigError, match="expected an activation quantizer"):
        PytorchActivationQuantizationHolder(given)


def test_one_tensor_is_quantized():
    holder = PytorchActivationQuantizationHolder(QUANTIZERS[0])
    assert holder(None) is None
    with pytest.raises(InputError, match="received tuple of 2; do use one holder for each"):
        holder((torch.ones(1), torch.ones(1)))
    with pytest.raises(InputError, match="real numbers; received dtype=complex64"):
        holder(torch.ones(1, dtype=torch.complex64))
