from __future__ import annotations

import pytest

from qi.dispatch import LayerPolicy, Slot, policy_for, policy_names, register_policy
from qi.errors import ConfigError


@pytest.mark.parametrize(
    ("layer_type", "path", "channel_axis", "input_axis"),
    [
        ("Dense", "kernel", -1, -2),
        ("Conv1D", "kernel", -1, -2),
        ("Conv2D", "kernel", -1, -2),
        ("Conv3D", "kernel", -1, -2),
        ("DepthwiseConv1D", "kernel", -2, None),
        ("DepthwiseConv2D", "kernel", -2, None),
        ("Conv1DTranspose", "kernel", -2, -1),
        ("Conv2DTranspose", "kernel", -2, -1),
        ("Conv3DTranspose", "kernel", -2, -1),
        ("SeparableConv1D", "pointwise_kernel", -1, -2),
        ("SeparableConv2D", "pointwise_kernel", -1, -2),
        ("EinsumDense", "kernel", -1, 0),
        ("Embedding", "embeddings", 0, 1),
        ("ReversibleEmbedding", "embeddings", 0, 1),
    ],
)
def test_main_weight_and_its_axes(layer_type, path, channel_axis, input_axis):
    assert policy_for([layer_type]).slots[0] == Slot(path, channel_axis, input_axis)
    assert layer_type in policy_names()


def test_separable_layers_have_a_second_weight():
    policy = policy_for(["SeparableConv2D"])
    assert policy.slot("depthwise_kernel") == Slot("depthwise_kernel", -2, None)
    assert policy.slot("bias") is None


def test_a_star_stands_for_the_name_of_a_sub_layer():
    policy = LayerPolicy("Both", (Slot("*/lstm_cell/kernel"),))
    for path in ("forward_a/lstm_cell/kernel", "backward_7/lstm_cell/kernel"):
        assert policy.slot(path).channel_axis == -1
    assert policy.slot("lstm_cell/kernel") is None
    assert policy.slot("forward_a/lstm_cell/bias") is None


@pytest.mark.parametrize("cell", ["LSTMCell", "GRUCell", "SimpleRNNCell", "ConvLSTMCell"])
def test_cells_have_two_kernels(cell):
    assert policy_for([cell]).slots == (Slot("kernel"), Slot("recurrent_kernel"))


def test_a_policy_may_say_why_weights_stay_in_float():
    policy = policy_for(["LayerNormalization"])
    assert (policy.slots, policy.slot("gamma")) == ((), None)
    assert policy.why_float("gamma") == policy.why_float("beta") == "normalizations are computed in float"
    assert policy.why_float("kernel") == ""
    own = register_policy("TestPolicyNorm", [Slot("matrix")], floats={"group_*": "it is tiny"}, replace=True)
    assert (own.slot("matrix"), own.why_float("group_1"), own.why_float("matrix")) == (Slot("matrix"), "it is tiny", "")
    assert register_policy("TestPolicyNorm", floats={"a": "why"}, replace=True).slots == ()


def test_subclasses_follow_their_nearest_ancestor():
    assert policy_for(["MyConv", "Conv2D", "BaseConv", "Layer"]).layer_type == "Conv2D"
    assert policy_for(["Layer", "object"]) is None


def test_users_register_and_replace():
    slots = [Slot("filters", 0), Slot("gate")]
    policy = register_policy("TestPolicyLayer", slots)
    assert policy == LayerPolicy("TestPolicyLayer", tuple(slots))
    assert policy_for(["TestPolicyLayer", "Dense"]) is policy
    with pytest.raises(ConfigError, match="received 'TestPolicyLayer'; do pass replace=True"):
        register_policy("TestPolicyLayer", slots)
    assert register_policy("TestPolicyLayer", [Slot("other")], replace=True).slots[0].path == "other"
    with pytest.raises(ConfigError, match="at least one slot for Empty, or a reason in floats; received none"):
        register_policy("Empty", [])
    assert "Empty" not in policy_names()
