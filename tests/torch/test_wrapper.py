"""The wrapper on single modules, called eagerly; compiled, exported and spread ones are in tests/integration."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from qi.dispatch import NodeQuantizationDispatcher
from qi.errors import ConfigError, FileFormatError, InputError
from qi.quantizers import (
    ActivationUniformInferableQuantizer,
    DoReFaWeightsQuantizer,
    LSQQuantizer,
    QuantizationMethod,
    STEQuantizer,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
    WeightsLUTSymmetricInferableQuantizer,
    WeightsSymmetricInferableQuantizer,
    WeightsUniformInferableQuantizer,
)
from qi.torch import PytorchNodeQuantizationDispatcher as Dispatcher, PytorchQuantizationWrapper
from qi.torch.bound import BoundQuantizer
from qi.torch.variables import to_numpy

nn = torch.nn
W4 = WeightsSymmetricInferableQuantizer(4, 0.7, per_channel=True)
A8 = ActivationUniformInferableQuantizer(8, -1.0, 2.0)
SYMMETRIC = QuantizationMethod.SYMMETRIC
LSQ = LSQQuantizer(TrainableQuantizerWeightsConfig(SYMMETRIC, 4, weights_per_channel_threshold=True))
LSQ_OUT = LSQQuantizer(TrainableQuantizerActivationConfig(SYMMETRIC, 8, {"threshold": 2.0}))


class Tied(nn.Module):
    """One layer is called twice, and two share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)
        self.head.weight = self.table.weight

    def forward(self, x):
        return self.head(self.inner(self.inner(self.table(x))))


def attention(**kwargs):
    return nn.MultiheadAttention(4, 2, batch_first=True, **kwargs)


def encoder():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


SEQUENCE = (2, 5, 4)
INDICES = lambda: torch.randint(0, 7, (2, 5))
STATES = lambda: (torch.randn(2, 3), torch.randn(2, 3))
MODULES = {
    "Linear": (lambda: nn.Linear(4, 3), [SEQUENCE], ["weight"]),
    "Conv1d": (lambda: nn.Conv1d(5, 3, 2), [SEQUENCE], ["weight"]),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 2, groups=2), [(2, 4, 5, 5)], ["weight"]),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2), [(1, 2, 3, 3, 3)], ["weight"]),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 3, 2), [(2, 4, 5, 5)], ["weight"]),
    "Bilinear": (lambda: nn.Bilinear(4, 4, 3), [SEQUENCE, SEQUENCE], ["weight"]),
    "Embedding": (lambda: nn.Embedding(7, 4), [INDICES], ["weight"]),
    "LSTM": (lambda: nn.LSTM(4, 3, 2, bidirectional=True), [SEQUENCE], ["weight_ih_l0", "weight_hh_l1_reverse"]),
    "GRU": (lambda: nn.GRU(4, 3), [SEQUENCE], ["weight_ih_l0", "weight_hh_l0"]),
    "RNN": (lambda: nn.RNN(4, 3), [SEQUENCE], ["weight_ih_l0", "weight_hh_l0"]),
    "LSTMCell": (lambda: nn.LSTMCell(4, 3), [(2, 4), STATES], ["weight_ih", "weight_hh"]),
    "GRUCell": (lambda: nn.GRUCell(4, 3), [(2, 4), (2, 3)], ["weight_ih", "weight_hh"]),
    "RNNCell": (lambda: nn.RNNCell(4, 3), [(2, 4), (2, 3)], ["weight_ih", "weight_hh"]),
    "MultiheadAttention": (attention, [SEQUENCE] * 3, ["in_proj_weight", "out_proj.weight"]),
    "attention of other sizes": (
        lambda: attention(kdim=3, vdim=5),
        [SEQUENCE, (2, 6, 3), (2, 6, 5)],
        ["q_proj_weight", "v_proj_weight"],
    ),
    "TransformerEncoder": (encoder, [SEQUENCE], ["layers.0.self_attn.in_proj_weight", "layers.1.linear2.weight"]),
    "Tied": (Tied, [INDICES], ["table.weight", "inner.weight"]),
}
each_module = pytest.mark.parametrize("name", MODULES)


def built(name: str, quantizer=W4, outputs=None):
    """(module, its wrapper, inputs)."""
    torch.manual_seed(3)
    make, given, paths = MODULES[name]
    module = make()
    inputs = [one() if callable(one) else torch.randn(one) for one in given]
    return module, PytorchQuantizationWrapper(module, Dispatcher(dict.fromkeys(paths, quantizer), outputs)), inputs


def floats(outputs) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def assert_close(found, expected) -> None:
    for a, b in zip(floats(found), floats(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def by_hand(module, wrapper):
    """A copy of the module whose weights were quantized by numpy."""
    result = copy.deepcopy(module)
    with torch.no_grad():
        for path, quantizer in wrapper.dispatcher.bind_module(module).items():
            parameter = result.get_parameter(path)
            value = quantizer(to_numpy(parameter))
            assert not np.array_equal(value, to_numpy(parameter))
            parameter.copy_(torch.from_numpy(value))
    return result


@each_module
@pytest.mark.parametrize("training", [True, False])
def test_a_module_runs_with_quantized_weights(name, training):
    module, wrapper, inputs = built(name)
    wrapper.train(training)
    expected = by_hand(module, wrapper)
    assert_close(wrapper(*inputs), expected(*inputs))
    with torch.no_grad():  # where torch has fused forms of attention
        assert_close(wrapper(*inputs), expected(*inputs))
        different = zip(floats(module(*inputs)), floats(expected(*inputs)), strict=True)
        assert not all(torch.allclose(a, b) for a, b in different)


@each_module
def test_gradients_go_straight_through_to_parameters_that_stay(name):
    module, wrapper, inputs = built(name, LSQ)
    before = {path: (id(p), p.requires_grad, p.detach().clone()) for path, p in module.named_parameters()}
    sum(x.square().sum() for x in floats(wrapper(*inputs))).backward()
    for path in wrapper.paths:
        assert module.get_parameter(path).grad.abs().sum() > 0
        assert wrapper.bounds[path].step.grad.abs().sum() > 0
    for path, parameter in module.named_parameters():
        assert (id(parameter), parameter.requires_grad) == before[path][:2]
        assert torch.equal(parameter, before[path][2])


@each_module
def test_frozen_it_runs_a_copy_with_the_same_values(name):
    module, wrapper, inputs = built(name)
    before = wrapper(*inputs)
    codes = {path: tensor.codes for path, tensor in wrapper.get_quantized_tensors().items()}
    assert wrapper.freeze() is wrapper
    assert wrapper.frozen
    assert wrapper.module is not module
    assert_close(wrapper(*inputs), before)
    assert all(p.requires_grad for p in module.parameters())
    assert {path for path, p in wrapper.module.named_parameters() if not p.requires_grad} == set(wrapper.paths)
    for path, tensor in wrapper.get_quantized_tensors().items():
        np.testing.assert_array_equal(tensor.codes, codes[path])


@pytest.mark.parametrize(
    "quantizer",
    [
        W4,
        WeightsUniformInferableQuantizer(3, -0.3, 0.5),
        WeightsLUTSymmetricInferableQuantizer(2, [-64, 0, 32, 100], 0.7, per_channel=True),
        WeightsSymmetricInferableQuantizer(8, 0.7, per_channel=True, group_size=2),
    ],
    ids=lambda q: type(q).__name__,
)
def test_codes_are_numpys(quantizer):
    module, wrapper, _ = built("Linear", quantizer)
    source = to_numpy(module.weight)
    placed = quantizer.with_axes(0, 1)
    tensor = wrapper.get_quantized_tensors()["weight"]
    np.testing.assert_array_equal(tensor.codes, placed.qparams(source.shape).quantize(source).codes)
    np.testing.assert_array_equal(wrapper.get_quantized_weights()["weight"], placed(source))
    np.testing.assert_array_equal(to_numpy(wrapper.quantized_weight("weight")), placed(source))
    np.testing.assert_array_equal(wrapper.quantizers["weight"](source), placed(source))


def test_outputs_are_quantized_in_their_order_and_integers_pass():
    module, wrapper, inputs = built("LSTM", outputs=[A8, A8, LSQ_OUT])
    plain = PytorchQuantizationWrapper(module, Dispatcher(wrapper.dispatcher.weight_quantizers))
    y, (h, c) = wrapper(*inputs)
    expected_y, (expected_h, expected_c) = plain(*inputs)
    assert torch.equal(y, A8(expected_y))
    assert torch.equal(h, A8(expected_h))
    assert torch.equal(c, wrapper.output_quantizers[2](expected_c))
    pool = PytorchQuantizationWrapper(nn.MaxPool1d(2, return_indices=True), Dispatcher(activation_quantizers=A8))
    values, indices = pool(torch.randn(1, 1, 6))
    assert torch.equal(values, A8(values))
    assert indices.dtype == torch.int64


def test_the_number_of_activation_quantizers_is_checked():
    _, wrapper, inputs = built("LSTM", outputs=[A8])
    with pytest.raises(ConfigError, match="each of the 3 outputs of layer 'LSTM'; received 1"):
        wrapper(*inputs)


def test_modules_share_a_module_and_its_parameters():
    module = nn.Linear(4, 4)
    first = PytorchQuantizationWrapper(module, Dispatcher(W4))
    second = PytorchQuantizationWrapper(module, Dispatcher(WeightsSymmetricInferableQuantizer(2, 0.5)))
    x = torch.randn(3, 4)
    model = nn.Sequential(first, second, module)
    expected = module(second(first(x)))
    assert torch.equal(model(x), expected)
    assert len({id(p) for p in model.parameters()}) == 2


def test_a_module_around_it_reads_quantized_weights():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    x = torch.randn(SEQUENCE)
    layer.linear1 = PytorchQuantizationWrapper(layer.linear1, Dispatcher(W4))
    assert (layer.linear1.in_features, layer.linear1.layer) == (4, layer.linear1.module)
    assert torch.equal(layer.linear1.weight, layer.linear1.quantized_weight("weight"))
    expected = layer(x)
    with torch.no_grad():
        assert_close(layer.eval()(x), expected)  # torch's fused form
        layer.linear1.freeze()
        assert_close(layer(x), expected)
    with pytest.raises(AttributeError, match="'Linear' object has no attribute 'wight'"):
        _ = layer.linear1.wight


def test_quantized_outputs_within_a_module_with_a_fused_form_stay_quantized():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    coarse = ActivationUniformInferableQuantizer(2, -1.0, 1.0)
    layer.linear1 = PytorchQuantizationWrapper(layer.linear1, Dispatcher(None, coarse))
    x = torch.randn(SEQUENCE)
    expected = layer(x)
    with torch.no_grad():
        assert_close(layer.eval()(x), expected)


def test_copies_train_by_themselves():
    module, wrapper, inputs = built("LSTM", LSQ, [LSQ_OUT] * 3)
    again = copy.deepcopy(wrapper)
    assert_close(again(*inputs), wrapper(*inputs))
    before = {path: p.detach().clone() for path, p in wrapper.named_parameters()}
    optimizer = torch.optim.Adam(again.parameters(), 0.1)
    again(*inputs)[0].square().sum().backward()
    optimizer.step()
    assert all(torch.equal(p, before[path]) for path, p in wrapper.named_parameters())
    assert not torch.equal(again.module.weight_ih_l0, module.weight_ih_l0)
    assert again.bounds["weight_ih_l0"].quantizer.convert2inferable() == again.quantizers["weight_ih_l0"]
    assert again.quantizers != wrapper.quantizers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype):
    module, wrapper, inputs = built("Linear", outputs=A8)
    wrapper.to(dtype)
    assert module.weight.dtype == dtype
    assert {value.dtype for bound in wrapper.bounds.values() for value in bound.variables.values()} == {torch.float32}
    x = inputs[0].to(dtype)
    y = wrapper(x)
    assert y.dtype == dtype
    source = to_numpy(module.weight)
    np.testing.assert_array_equal(
        wrapper.get_quantized_weights()["weight"],
        to_numpy(torch.from_numpy(W4.with_axes(0)(source)).to(dtype)),
    )
    assert torch.equal(wrapper.freeze()(x), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_frozen_weights_come_back_from_other_dtypes_exactly(dtype):
    _, wrapper, _ = built("LSTM", WeightsSymmetricInferableQuantizer(8, 0.7, per_channel=True))
    before = copy.deepcopy(wrapper.freeze()).get_quantized_tensors()
    wrapper.to(dtype)
    assert wrapper.module.weight_ih_l0.dtype == wrapper.module._flat_weights[0].dtype == dtype
    wrapper.float()
    for path, tensor in wrapper.get_quantized_tensors().items():
        np.testing.assert_array_equal(tensor.codes, before[path].codes)
        np.testing.assert_array_equal(to_numpy(wrapper.module.get_parameter(path)), before[path].dequantize())


def test_frozen_in_place_the_module_itself_has_the_values():
    module, wrapper, _ = built("Linear")
    expected = wrapper.get_quantized_weights()["weight"]
    assert wrapper.freeze(in_place=True).module is module
    np.testing.assert_array_equal(to_numpy(module.weight), expected)
    assert not module.weight.requires_grad


def test_weights_changed_after_freezing_are_told_and_frozen_again():
    _, wrapper, _ = built("Linear")
    before = wrapper.freeze().get_quantized_weights()["weight"]
    with torch.no_grad():
        wrapper.module.weight.add_(0.001)
    with pytest.raises(InputError, match=r"changed after freeze\(\); do call freeze\(\) again"):
        wrapper.get_quantized_tensors()
    np.testing.assert_array_equal(wrapper.freeze().get_quantized_weights()["weight"], before)


def test_trained_wrappers_become_inferable():
    module, wrapper, inputs = built("Linear", LSQ, LSQ_OUT)
    wrapper(*inputs).square().sum().backward()
    torch.optim.SGD(wrapper.parameters(), 0.05).step()
    wrapper.eval()
    inferable = wrapper.convert2inferable()
    assert (wrapper.trains, inferable.trains, inferable.training) == (True, False, False)
    assert inferable.module is module
    assert torch.equal(inferable(*inputs), wrapper(*inputs))
    assert inferable.quantizers == wrapper.quantizers
    assert torch.equal(inferable.freeze()(*inputs), wrapper(*inputs))
    with pytest.raises(ConfigError, match="inferable already"):
        inferable.convert2inferable()
    with pytest.raises(ConfigError, match=r"\['weight'\] of Linear train; do call convert2inferable\(\)"):
        wrapper.freeze()


def test_what_a_quantizer_makes_of_the_weight_is_baked_into_a_copy():
    dorefa = DoReFaWeightsQuantizer(TrainableQuantizerWeightsConfig(SYMMETRIC, 4))
    module, wrapper, inputs = built("Tied", dorefa)
    before = to_numpy(module.inner.weight)
    inferable = wrapper.convert2inferable()
    assert inferable.module is not module
    assert inferable.module.head.weight is inferable.module.table.weight
    np.testing.assert_array_equal(to_numpy(module.inner.weight), before)
    assert torch.equal(inferable(*inputs), wrapper(*inputs))


def test_disabled_quantizers_leave_their_tensors_in_float():
    off = TrainableQuantizerWeightsConfig(SYMMETRIC, 4, enable_weights_quantization=False)
    out = TrainableQuantizerActivationConfig(SYMMETRIC, 8, enable_activation_quantization=False)
    module, wrapper, inputs = built("Linear", STEQuantizer(off), STEQuantizer(out))
    assert torch.equal(wrapper(*inputs), module(*inputs))
    assert (wrapper.paths, wrapper.output_quantizers, wrapper.trains) == ((), [], False)
    mixed = PytorchQuantizationWrapper(module, Dispatcher(LSQ, STEQuantizer(out)))
    assert torch.equal(mixed.convert2inferable()(*inputs), mixed(*inputs))


def test_the_mode_is_the_modules():
    wrapper = PytorchQuantizationWrapper(nn.Linear(2, 2).eval(), Dispatcher(LSQ, LSQ_OUT))
    assert not any(module.training for module in wrapper.modules())
    assert all(module.training for module in wrapper.train().modules())


def test_nan_is_refused():
    module, wrapper, _ = built("Linear")
    with torch.no_grad():
        module.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="received NaN in 'weight' of Linear"):
        wrapper.freeze()


def test_a_record_and_a_module_make_it_anew():
    module, wrapper, inputs = built("Tied", LSQ, LSQ_OUT)
    wrapper(*inputs).square().sum().backward()
    torch.optim.SGD(wrapper.parameters(), 0.05).step()
    for one in (wrapper, wrapper.convert2inferable(), wrapper.convert2inferable().freeze()):
        again = PytorchQuantizationWrapper.from_config(one.get_config(), Tied())
        again.load_state_dict(one.state_dict())
        assert (again.frozen, again.trains) == (one.frozen, one.trains)
        assert torch.equal(again(*inputs), one(*inputs))
    with pytest.raises(FileFormatError, match="expected a wrapper's record"):
        PytorchQuantizationWrapper.from_config({}, module)


def test_it_shows_what_it_holds():
    _, wrapper, _ = built("TransformerEncoder")
    assert "(layers/1/linear2/weight): BoundQuantizer(WeightsSymmetricInferableQuantizer(num_bits=4" in repr(wrapper)
    assert "frozen" in repr(wrapper.freeze())
    assert all(isinstance(bound, BoundQuantizer) for bound in wrapper.bounds.values())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PytorchQuantizationWrapper("Linear", Dispatcher(W4)), ConfigError, "expected a torch module"),
        (lambda: PytorchQuantizationWrapper(nn.Linear(2, 2), W4), ConfigError, "do wrap quantizers in"),
        (
            lambda: PytorchQuantizationWrapper(built("Linear")[1], Dispatcher(W4)),
            ConfigError,
            "a wrapper of Linear",
        ),
        (
            lambda: PytorchQuantizationWrapper(nn.Linear(2, 2), Dispatcher({"kernel": W4})),
            ConfigError,
            r"one of \['weight', 'bias'\]",
        ),
        (
            lambda: PytorchQuantizationWrapper(nn.Linear(2, 2), Dispatcher(inner_quantizers={"a": A8})),
            ConfigError,
            "do wrap the modules within",
        ),
        (lambda: PytorchQuantizationWrapper(nn.LazyLinear(2), Dispatcher(W4)), InputError, "do call it once"),
    ],
)
def test_what_cant_be_wrapped_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_plain_dispatcher_will_do():
    wrapper = PytorchQuantizationWrapper(encoder(), NodeQuantizationDispatcher({"layers/0/linear1/weight": W4}))
    assert wrapper.paths == ("layers.0.linear1.weight",)


def test_weights_that_a_parametrization_makes():
    module = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)).eval()
    wrapper = PytorchQuantizationWrapper(module, Dispatcher({"original": W4}))
    expected = copy.deepcopy(module)
    with torch.no_grad():
        expected.parametrizations.weight.original.copy_(wrapper.quantized_weight(wrapper.paths[0]))
    x = torch.randn(2, 4)
    assert_close(wrapper(x), expected(x))
