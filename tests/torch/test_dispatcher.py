from __future__ import annotations

import pytest
import torch

from qi.dispatch import NodeQuantizationDispatcher
from qi.errors import ConfigError
from qi.quantizers import ActivationPOTInferableQuantizer, WeightsSymmetricInferableQuantizer
from qi.torch import PytorchNodeQuantizationDispatcher

W8 = WeightsSymmetricInferableQuantizer(num_bits=8, threshold=2, signed=True, per_channel=True)
nn = torch.nn


def test_a_bare_quantizer_is_for_the_main_weight():
    dispatcher = PytorchNodeQuantizationDispatcher(W8)
    for module, path in (
        (nn.Linear(3, 2), "weight"),
        (nn.LSTM(3, 2), "weight_ih_l0"),
        (nn.GRUCell(3, 2), "weight_ih"),
        (nn.MultiheadAttention(4, 2), "in_proj_weight"),
        (nn.MultiheadAttention(4, 2, kdim=3), "q_proj_weight"),
        (nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)), "0.weight"),
    ):
        bound = dispatcher.bind_module(module)
        assert list(bound) == [path]
        assert bound[path].channel_axis == 0


def test_axes_come_from_the_policy_and_given_ones_stay():
    given = WeightsSymmetricInferableQuantizer(8, 1, per_channel=True, channel_axis=-1)
    bound = PytorchNodeQuantizationDispatcher({"0.weight": W8, "1.weight": given}).bind_module(
        nn.Sequential(nn.ConvTranspose1d(3, 2, 1), nn.Linear(3, 2))
    )
    assert bound["0.weight"].channel_axis == 1
    assert bound["1.weight"].channel_axis == -1


def test_paths_have_dots_and_slashes_mean_the_same():
    module = nn.TransformerEncoderLayer(4, 2, 8)
    dispatcher = PytorchNodeQuantizationDispatcher({"self_attn/out_proj/weight": W8, "in_proj_weight": W8})
    assert list(dispatcher.weight_quantizers) == ["self_attn.out_proj.weight", "in_proj_weight"]
    assert set(dispatcher.bind_module(module)) == {"self_attn.out_proj.weight", "self_attn.in_proj_weight"}


def test_paths_of_a_shared_parameter_mean_the_first():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    assert list(PytorchNodeQuantizationDispatcher({"1.weight": W8}).bind_module(module)) == ["0.weight"]
    with pytest.raises(ConfigError, match=r"received two for '0\.weight'"):
        PytorchNodeQuantizationDispatcher({"1.weight": W8, "0.weight": W8}).bind_module(module)


@pytest.mark.parametrize(
    ("given", "module", "message"),
    [
        ({"wight": W8}, nn.Linear(3, 2), r"'wight', which doesn't exist; do choose one of \['weight', 'bias'\]"),
        (
            {"weight": W8},
            nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)),
            r"is ambiguous; do choose one of \['0.weight', '1.weight'\]",
        ),
        (W8, nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), "no single main weight"),
        ({"weight": WeightsSymmetricInferableQuantizer(8, [1, 2, 3], per_channel=True)}, nn.Linear(3, 2), "received 3"),
    ],
)
def test_what_cant_be_bound_is_named(given, module, message):
    with pytest.raises(ConfigError, match=message):
        PytorchNodeQuantizationDispatcher(given).bind_module(module)


def test_a_record_comes_back():
    dispatcher = PytorchNodeQuantizationDispatcher({"a.weight": W8}, [ActivationPOTInferableQuantizer(8, 2.0)])
    again = PytorchNodeQuantizationDispatcher.from_config(dispatcher.get_config())
    assert type(again) is PytorchNodeQuantizationDispatcher
    assert again.weight_quantizers == dispatcher.weight_quantizers
    assert again.activation_quantizers == dispatcher.activation_quantizers


def test_dots_separate_nothing_on_other_dispatchers():
    with pytest.raises(ConfigError, match="doesn't exist"):
        NodeQuantizationDispatcher({"weight": W8}).bind({"a.weight": (3, 2)}, None, "layer")
