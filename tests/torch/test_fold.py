"""Folded batch normalizations: the model computes what it did, and says which of them stayed and why."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from qi.errors import InputError
from qi.torch.fold import fold_batch_norms
from qi.torch.graph import trace


def used(module):
    """A module whose normalizations have seen something, in eval mode."""
    made = torch.Generator().manual_seed(3)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            part.running_mean.normal_(generator=made)
            part.running_var.uniform_(0.2, 3.0, generator=made)
            if part.affine:
                with torch.no_grad():
                    part.weight.uniform_(-2.0, 2.0, generator=made)
                    part.bias.normal_(generator=made)
    return module.eval()


def folded(module, *args):
    graph, why = trace(module, args)
    assert graph is not None, why
    graph, kept = fold_batch_norms(graph)
    found, wanted = graph.module(*args), module(*args)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    return graph, kept


def kinds(graph):
    return [call.kind for call in graph.calls]


LAYERS = {
    "linear": (nn.Linear(6, 8), nn.BatchNorm1d(8), (5, 6)),
    "conv1d": (nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8), (2, 6, 9)),
    "conv2d": (nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), (2, 6, 9, 9)),
    "conv3d": (nn.Conv3d(6, 8, 2), nn.BatchNorm3d(8), (2, 6, 4, 4, 4)),
    "grouped": (nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8), (2, 6, 9, 9)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), nn.BatchNorm2d(12), (2, 6, 9, 9)),
    "reflected": (nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8), (2, 6, 9, 9)),
    "transposed1d": (nn.ConvTranspose1d(6, 8, 3), nn.BatchNorm1d(8), (2, 6, 9)),
    "transposed2d": (nn.ConvTranspose2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), (2, 6, 5, 5)),
    "transposed3d": (nn.ConvTranspose3d(6, 8, 2), nn.BatchNorm3d(8), (2, 6, 4, 4, 4)),
    "grouped transposed": (nn.ConvTranspose2d(6, 8, 3, groups=2), nn.BatchNorm2d(8), (2, 6, 5, 5)),
    "depthwise transposed": (nn.ConvTranspose2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), (2, 6, 5, 5)),
    "no bias": (nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), (2, 6, 9, 9)),
    "not affine": (nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8, affine=False), (2, 6, 9, 9)),
    "large epsilon": (nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8, eps=0.7), (2, 6, 9, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    layer, norm, shape = LAYERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    module = used(copy.deepcopy(nn.Sequential(layer, norm, nn.ReLU())))
    before = copy.deepcopy(module.state_dict())
    graph, kept = folded(module, x)
    assert not kept
    assert kinds(graph) == [type(layer).__name__, "ReLU"]
    assert graph.calls[0].fused == [f"{type(norm).__name__} 1"]
    assert graph.calls[0].outputs[0].shape == tuple(module(x).shape)
    assert "1" not in dict(graph.module.named_modules())
    after = module.state_dict()
    assert all(torch.equal(after[name], held) for name, held in before.items())


def test_numbers_are_those_of_float64():
    module = used(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    graph, _ = folded(module, torch.ones(4, 3))
    layer, norm = copy.deepcopy(module).double()
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    assert torch.equal(graph.module.get_submodule("0").weight, (layer.weight * gain[:, None]).float())
    bias = norm.bias + (layer.bias - norm.running_mean) * gain
    assert torch.equal(graph.module.get_submodule("0").bias, bias.float())


class Net(nn.Module):
    """A forward of a test's own, over the parts that it names."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


def conv():
    return nn.Conv2d(3, 3, 1)


@pytest.mark.parametrize(
    ("run", "parts", "reason"),
    [
        (lambda m, x: m.bn(x), {}, "the model's input"),
        (lambda m, x: m.bn(m.conv(x).relu()), {"conv": conv()}, "follows relu 'relu'"),
        (lambda m, x: m.bn(y := m.conv(x)) + y, {"conv": conv()}, "used elsewhere too"),
        (lambda m, x: (m.bn(y := m.conv(x)), y), {"conv": conv()}, "used elsewhere too"),
        (lambda m, x: m.bn(m.conv(x)) + m.conv(-x), {"conv": conv()}, "without the other elsewhere"),
        (lambda m, x: m.bn(m.bn(m.conv(x))), {"conv": conv()}, "without the other elsewhere"),
        (lambda m, x: m.bn(m.conv(x)) * m.conv.weight.sum(), {"conv": conv()}, "uses 'conv.weight' itself"),
        (lambda m, x: m.bn(functional.conv2d(x, m.w)), {"w": nn.Parameter(torch.ones(3, 3, 1, 1))}, "follows conv2d"),
    ],
)
def test_those_that_stay(run, parts, reason):
    module = used(Net(run, bn=nn.BatchNorm2d(3), **parts))
    _, kept = folded(module, torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert reason in kept["bn"]


def test_without_statistics_it_stays():
    _, kept = folded(
        nn.Sequential(conv(), nn.BatchNorm2d(3, track_running_stats=False)).eval(), torch.randn(2, 3, 4, 4)
    )
    assert "each batch" in kept["1"]


def test_tied_weights_stay():
    first, second = conv(), conv()
    second.weight = first.weight
    _, kept = folded(used(nn.Sequential(first, nn.BatchNorm2d(3), second)), torch.ones(1, 3, 2, 2))
    assert "shares its weights" in kept["1"]


def test_parametrized_and_hooked_layers_stay():
    layer = nn.utils.parametrizations.weight_norm(conv())
    _, kept = folded(used(nn.Sequential(layer, nn.BatchNorm2d(3))), torch.ones(1, 3, 2, 2))
    assert "parametrized" in kept["1"]
    norm = nn.BatchNorm2d(3)
    norm.register_forward_hook(lambda *given: given[-1] * 2)
    _, kept = folded(used(nn.Sequential(conv(), norm)), torch.ones(1, 3, 2, 2))
    assert "hooks" in kept["1"]


def test_a_linear_layer_of_sequences_normalizes_another_axis():
    module = used(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)))
    _, kept = folded(module, torch.randn(2, 5, 4))
    assert "axis 1" in kept["1"]
    graph, _ = trace(module)  # without a shape nobody knows
    assert "axis 1" in fold_batch_norms(graph)[1]["1"]


def test_a_pair_that_is_called_twice_is_folded_once():
    pair = nn.Sequential(conv(), nn.BatchNorm2d(3))
    graph, kept = folded(used(Net(lambda m, x: m.pair(m.pair(x).relu()), pair=pair)), torch.randn(2, 3, 4, 4))
    assert not kept
    assert kinds(graph) == ["Conv2d", "relu", "Conv2d"]
    assert [call.site for call in graph.calls if call.kind == "Conv2d"] == ["pair.0", "pair.0:1"]


def test_chains_fold_one_after_the_other():
    module = used(nn.Sequential(conv(), nn.BatchNorm2d(3), nn.BatchNorm2d(3)))
    graph, kept = folded(module, torch.randn(2, 3, 4, 4))
    assert not kept
    assert graph.calls[0].fused == ["BatchNorm2d 1", "BatchNorm2d 2"]


def test_numbers_that_are_none_are_refused():
    module = used(nn.Sequential(conv(), nn.BatchNorm2d(3)))
    module[1].running_var[0] = float("nan")
    graph, _ = trace(module)
    with pytest.raises(InputError, match="NaN or infinity in '0' or '1'"):
        fold_batch_norms(graph)


def test_what_trained_trains_on_and_what_was_frozen_stays_frozen():
    module = used(nn.Sequential(conv().requires_grad_(False), nn.BatchNorm2d(3), conv()))
    graph, _ = folded(module, torch.ones(1, 3, 2, 2))
    trains = {name: p.requires_grad for name, p in graph.module.named_parameters()}
    assert trains == {"0.weight": False, "0.bias": False, "2.weight": True, "2.bias": True}
