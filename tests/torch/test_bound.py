from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from qi.errors import ConfigError, NotCalibratedError
from qi.quantizers import (
    ActivationUniformInferableQuantizer,
    AdditiveNoiseQuantizer,
    LSQQuantizer,
    QuantizationMethod,
    STEQuantizer,
    StochasticQuantizer,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
    WeightsLUTSymmetricInferableQuantizer,
    WeightsPOTInferableQuantizer,
    WeightsSymmetricInferableQuantizer,
    WeightsUniformInferableQuantizer,
)
from qi.torch.bound import BoundQuantizer

RNG = np.random.default_rng(5)
W = RNG.normal(0, 0.5, (6, 8)).astype(np.float32)
CONFIG = TrainableQuantizerWeightsConfig(
    QuantizationMethod.SYMMETRIC, 4, weights_per_channel_threshold=True, weights_channels_axis=0
)
INFERABLE = [
    WeightsSymmetricInferableQuantizer(8, [0.5, 0.7, 0.9, 1.1, 1.3, 0.3], per_channel=True, channel_axis=0),
    WeightsSymmetricInferableQuantizer(4, 0.9, per_channel=True, channel_axis=0, group_size=4, group_axis=1),
    WeightsPOTInferableQuantizer(4, 1.0),
    WeightsUniformInferableQuantizer(3, -0.7, 1.1),
    WeightsUniformInferableQuantizer(16, -0.7, 1.1, per_channel=True, channel_axis=0),
    WeightsLUTSymmetricInferableQuantizer(2, [-64, 0, 32, 100], 1.28),
]


def lsq(**kwargs) -> BoundQuantizer:
    return BoundQuantizer(LSQQuantizer(CONFIG, **kwargs), W.shape, W)


@pytest.mark.parametrize("quantizer", INFERABLE, ids=lambda q: f"{type(q).__name__}{q.num_bits}")
def test_values_and_codes_are_numpys_bit_for_bit(quantizer):
    bound = BoundQuantizer(quantizer, W.shape, W)
    assert sorted(bound.state_dict()) == ["scale", "zero_point"]
    assert not list(bound.parameters())
    np.testing.assert_array_equal(bound(torch.from_numpy(W)).numpy(), quantizer(W))
    codes = quantizer.qparams(W.shape).quantize(W).codes
    np.testing.assert_array_equal(bound.qparams().quantize(W).codes, codes)
    assert bound.current() == quantizer.with_qparams(*(bound.variables[n].numpy() for n in ("scale", "zero_point")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_the_inputs_and_the_variables_stay_float32(dtype):
    bound = BoundQuantizer(ActivationUniformInferableQuantizer(8, -1.1, 2.3), reshape=())
    before = {name: value.clone() for name, value in bound.variables.items()}
    bound.to(dtype)
    assert all(torch.equal(value, before[name]) for name, value in bound.variables.items())
    assert all(value.dtype == torch.float32 and value.shape == () for value in bound.variables.values())
    x = torch.from_numpy(W).to(dtype)
    y = bound(x)
    assert y.dtype == dtype
    assert torch.equal(y, bound(x.float()).to(dtype))
    assert bound(torch.tensor([1, 2])).dtype == torch.float32


def test_trainable_variables_train_and_stay_float32_with_their_gradients():
    bound = lsq()
    assert [name for name, _ in bound.named_parameters()] == ["step"]
    x = torch.from_numpy(W).requires_grad_()
    bound(x).square().sum().backward()
    assert x.grad is not None
    bound.half()
    assert bound.step.dtype == bound.step.grad.dtype == torch.float32
    assert bound.trains


def test_what_trained_and_what_it_becomes_agree():
    bound = lsq()
    optimizer = torch.optim.SGD(bound.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (bound(torch.from_numpy(W)) - 0.3).square().sum().backward()
        optimizer.step()
    assert not np.array_equal(bound.step.detach().numpy(), lsq().step.detach().numpy())
    np.testing.assert_array_equal(bound(torch.from_numpy(W)).detach().numpy(), bound.current()(W))
    assert bound.quantizer.convert2inferable() == bound.current()


def test_a_copy_has_variables_of_its_own():
    bound = lsq()
    again = copy.deepcopy(bound)
    with torch.no_grad():
        again.step.mul_(2)
    np.testing.assert_array_equal(again.quantizer.convert2inferable().threshold, 2 * bound.current().threshold)
    assert bound.quantizer.convert2inferable() == bound.current() != again.current()


@pytest.mark.parametrize("make", [StochasticQuantizer, AdditiveNoiseQuantizer])
def test_noise_comes_from_torchs_generator_and_only_in_training(make):
    bound, x = BoundQuantizer(make(CONFIG), W.shape, W), torch.from_numpy(W)
    torch.manual_seed(1)
    first, second = bound(x), bound(x)
    torch.manual_seed(1)
    assert torch.equal(bound(x), first)
    assert not torch.equal(first, second)
    bound.eval()
    assert torch.equal(bound(x), bound(x))
    np.testing.assert_array_equal(bound(x).detach().numpy(), bound.current()(W))


def test_disabled_it_passes_tensors_through_and_fixed_it_gets_no_gradient():
    bound, x = lsq(), torch.from_numpy(W)
    bound(x).sum().backward()
    assert bound.configure(fixed=True)
    assert not bound.configure(fixed=True)
    assert bound.step.grad is None
    assert not bound(x).requires_grad
    assert bound.configure(fixed=False, enabled=False)
    assert torch.equal(bound(x), x)
    assert bound(torch.tensor([1])).dtype == torch.float32
    assert "disabled" in repr(bound)
    bound.configure(enabled=True)
    assert not torch.equal(bound(x), x)


def test_a_quantizer_that_its_configuration_disables_needs_no_range():
    config = TrainableQuantizerActivationConfig(QuantizationMethod.SYMMETRIC, 8, enable_activation_quantization=False)
    bound = BoundQuantizer(STEQuantizer(config))
    assert not bound.state_dict()
    assert torch.equal(bound(torch.tensor([1.5])), torch.tensor([1.5]))
    with pytest.raises(NotCalibratedError, match="expected a first range"):
        BoundQuantizer(STEQuantizer(TrainableQuantizerActivationConfig(QuantizationMethod.SYMMETRIC, 8)))


def test_the_probe_sees_what_comes_in():
    bound, seen = lsq(), []
    bound.probe = seen.append
    bound(torch.from_numpy(W))
    assert seen[0].shape == W.shape


def test_other_bits_keep_the_range():
    bound = lsq()
    scale, zero_point = bound.parameters_now()
    assert zero_point.shape == scale.shape
    before = bound.current()
    bound.replace(bound.with_bits(2))
    assert bound.current().num_bits == 2
    np.testing.assert_allclose(bound.current().min_range, before.min_range, rtol=1e-6)
    assert bound.quantizer.convert2inferable() == bound.current()
    assert bound.record().num_bits == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BoundQuantizer("lsq"), "expected a quantizer; received 'lsq'"),
        (lambda: lsq().replace(INFERABLE[0]), r"variables of sizes \{'step': 6\}"),
        (lambda: BoundQuantizer(INFERABLE[2], W.shape).with_bits(3), "expected a trainable quantizer"),
    ],
)
def test_what_doesnt_fit_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
