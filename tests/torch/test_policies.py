from __future__ import annotations

import pytest
import torch

from qi.dispatch import Slot, register_policy
from qi.torch.policies import module_policy, slots_of

nn = torch.nn
AXES = {
    "Linear": (lambda: nn.Linear(3, 2), {"weight": (0, 1)}),
    "Conv1d": (lambda: nn.Conv1d(3, 2, 2), {"weight": (0, 1)}),
    "Conv2d": (lambda: nn.Conv2d(3, 2, 2), {"weight": (0, 1)}),
    "Conv3d": (lambda: nn.Conv3d(3, 2, 2), {"weight": (0, 1)}),
    "depthwise": (lambda: nn.Conv2d(4, 8, 2, groups=4), {"weight": (0, None)}),
    "grouped": (lambda: nn.Conv2d(4, 8, 2, groups=2), {"weight": (0, 1)}),
    "one channel": (lambda: nn.Conv2d(1, 8, 2), {"weight": (0, 1)}),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(3, 2, 2), {"weight": (1, 0)}),
    "depthwise transpose": (lambda: nn.ConvTranspose2d(4, 4, 2, groups=4), {"weight": (0, None)}),
    "Bilinear": (lambda: nn.Bilinear(3, 4, 2), {"weight": (0, 1)}),
    "Embedding": (lambda: nn.Embedding(5, 3), {"weight": (0, 1)}),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(5, 3), {"weight": (0, 1)}),
    "LSTM": (
        lambda: nn.LSTM(3, 4, proj_size=2),
        {"weight_ih_l0": (0, 1), "weight_hh_l0": (0, 1), "weight_hr_l0": (0, 1)},
    ),
    "GRUCell": (lambda: nn.GRUCell(3, 4), {"weight_ih": (0, 1), "weight_hh": (0, 1)}),
    "MultiheadAttention": (
        lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
        {"in_proj_weight": (0, 1), "out_proj.weight": (0, 1)},
    ),
    "attention of other sizes": (
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
        {
            "q_proj_weight": (0, 1),
            "k_proj_weight": (0, 1),
            "v_proj_weight": (0, 1),
            "out_proj.weight": (0, 1),
        },
    ),
    "LayerNorm": (lambda: nn.LayerNorm((3, 4)), {}),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(3), {}),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), {}),
    "PReLU": (lambda: nn.PReLU(3), {}),
}


@pytest.mark.parametrize("name", AXES)
def test_channels_and_inputs_lie_where_torch_has_them(name):
    make, expected = AXES[name]
    choices = slots_of(make())
    found = {path: (c.slot.channel_axis, c.slot.input_axis) for path, c in choices.items() if c.slot is not None}
    assert found == expected
    assert all(c.slot.path == path for path, c in choices.items() if c.slot is not None)
    assert all(c.why for c in choices.values() if c.slot is None)


@pytest.mark.parametrize(
    ("make", "path", "why"),
    [
        (lambda: nn.Linear(2, 2), "bias", "int32 at input scale"),
        (lambda: nn.LSTM(2, 2), "bias_hh_l0", "recurrent modules"),
        (lambda: nn.BatchNorm1d(2), "weight", "normalizations"),
        (lambda: nn.Sequential(nn.PReLU()), "0.weight", "slopes"),
        (lambda: nn.MultiheadAttention(2, 1, add_bias_kv=True), "bias_v", "appended to the values"),
        (
            lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)),
            "parametrizations.weight.original",
            "parametrization",
        ),
    ],
)
def test_floats_have_reasons(make, path, why):
    choice = slots_of(make())[path]
    assert choice.slot is None
    assert why in choice.why


class Own(nn.Module):
    """Parameters that no policy names."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(3, 4))
        self.token = nn.Parameter(torch.ones(1, 1, 4))
        self.gain = nn.Parameter(torch.ones(()))
        self.some_bias = nn.Parameter(torch.ones(3, 4))
        self.indices = nn.Parameter(torch.ones(3, 4, dtype=torch.int32), requires_grad=False)


def test_parameters_of_own_modules_go_by_their_shape():
    choices = slots_of(Own())
    assert choices["matrix"].slot == Slot("matrix", channel_axis=0, input_axis=1)
    assert {path: choice.why.split(",")[0] for path, choice in choices.items() if choice.slot is None} == {
        "token": "one number for each channel",
        "gain": "one number",
        "some_bias": "a bias",
        "indices": "int32: no real numbers",
    }


class Outer(nn.Module):
    """A module with a policy of its own for what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(3, 2)
        self.gate = nn.Linear(3, 2)


class Subclass(nn.Linear):
    """A class of a user."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.extra = nn.Parameter(torch.ones(2, 2))


def test_the_policy_of_an_outer_module_comes_first_and_subclasses_follow_their_ancestors():
    axes = {"channel_axis": 1, "input_axis": 0}
    register_policy("torch.Outer", [Slot("proj.weight", **axes)], floats={"gate.weight": "it gates"}, replace=True)
    choices = slots_of(Outer())
    assert choices["proj.weight"].slot == Slot("proj.weight", **axes)
    assert choices["gate.weight"].why == "it gates"
    assert module_policy(Subclass()) is module_policy(nn.Linear(2, 2))
    assert {path for path, choice in slots_of(Subclass()).items() if choice.slot} == {"weight", "extra"}


def test_keras_rows_of_the_same_name_are_others():
    assert module_policy(nn.LSTM(2, 2)).slots[0].path == "weight_ih*"
    assert module_policy(nn.Sequential()) is None
