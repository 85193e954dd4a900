from __future__ import annotations

import json

import pytest

from qi.dispatch import MAIN, NodeQuantizationDispatcher, Slot, policy_for, register_policy, resolve_path
from qi.errors import ConfigError, FileFormatError
from qi.quantizers import (
    ActivationUniformInferableQuantizer,
    WeightsPOTInferableQuantizer,
    WeightsSymmetricInferableQuantizer,
)

WEIGHTS = WeightsSymmetricInferableQuantizer(4, 1.0, per_channel=True)
OTHER = WeightsPOTInferableQuantizer(8, 2.0)
ACTIVATION = ActivationUniformInferableQuantizer(8, 0.0, 6.0)
ATTENTION = {"query/kernel": (8, 2, 4), "query/bias": (2, 4), "key/kernel": (8, 2, 4), "value/kernel": (8, 2, 4)}
DENSE = {"kernel": (8, 4), "bias": (4,)}


# --- paths ---


def test_a_path_or_its_unique_ending():
    names = ["kernel", "inner/kernel", "inner/bias"]
    assert resolve_path("kernel", names) == "kernel"
    assert resolve_path("inner/kernel", names) == "inner/kernel"
    assert resolve_path("bias", names) == "inner/bias"


def test_an_ambiguous_path_lists_the_candidates():
    with pytest.raises(
        ConfigError,
        match=r"received 'kernel', which is ambiguous; do choose one of \['query/kernel', 'key/kernel', 'value/kernel'\]",
    ):
        resolve_path("kernel", ATTENTION)


def test_an_unknown_path_lists_all_and_suggests():
    with pytest.raises(
        ConfigError, match=r"'kernal', which doesn't exist; .*\['kernel', 'bias'\].*Did you mean 'kernel'"
    ):
        resolve_path("kernal", DENSE)
    with pytest.raises(ConfigError, match="'el', which doesn't exist"):
        resolve_path("el", DENSE)  # the ending of a name is none of a path


# --- what it accepts ---


def test_a_bare_weight_quantizer_is_for_the_main_weight():
    dispatcher = NodeQuantizationDispatcher(WEIGHTS)
    assert dispatcher.weight_quantizers == {MAIN: WEIGHTS}
    assert dispatcher.is_weights_quantization
    assert not dispatcher.is_activation_quantization


def test_a_bare_activation_quantizer_is_for_the_output():
    dispatcher = NodeQuantizationDispatcher(ACTIVATION)
    assert (dispatcher.num_weight_quantizers, dispatcher.num_act_quantizers) == (0, 1)
    assert dispatcher.activation_quantizers == [ACTIVATION]
    assert NodeQuantizationDispatcher(activation_quantizers=ACTIVATION).activation_quantizers == [ACTIVATION]


def test_both():
    dispatcher = NodeQuantizationDispatcher({"kernel": WEIGHTS, "bias": OTHER}, [ACTIVATION, ACTIVATION])
    assert (dispatcher.num_weight_quantizers, dispatcher.num_act_quantizers) == (2, 2)
    assert dispatcher.is_weights_quantization
    assert dispatcher.is_activation_quantization


def test_nothing():
    dispatcher = NodeQuantizationDispatcher()
    assert not dispatcher.is_weights_quantization
    assert not dispatcher.is_activation_quantization
    assert dispatcher.bind(DENSE, None, "dense") == {}
    dispatcher.check_outputs(3, "dense")


def test_it_keeps_its_own_mapping():
    given = {"kernel": WEIGHTS}
    dispatcher = NodeQuantizationDispatcher(given)
    given["bias"] = OTHER
    assert list(dispatcher.weight_quantizers) == ["kernel"]


def test_setters_replace_and_add():
    dispatcher = NodeQuantizationDispatcher({"kernel": WEIGHTS})
    dispatcher.add_weight_quantizer("bias", OTHER)
    dispatcher.add_weight_quantizer("kernel", OTHER)
    assert dispatcher.weight_quantizers == {"kernel": OTHER, "bias": OTHER}
    dispatcher.set_weight_quantizers({"x": WEIGHTS})
    assert dispatcher.weight_quantizers == {"x": WEIGHTS}
    dispatcher.set_activation_quantizers((ACTIVATION,))
    assert dispatcher.activation_quantizers == [ACTIVATION]
    dispatcher.set_activation_quantizers([])
    assert not dispatcher.is_activation_quantization


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), "expected a mapping from attribute path to quantizer; received 3"),
        (([WEIGHTS],), "expected a mapping"),
        (({"kernel": 8},), "expected a quantizer for weight 'kernel'; received 8 of type int"),
        (({"kernel": None},), "received None of type NoneType"),
        (({"kernel": ACTIVATION},), "of weights for weight 'kernel'; received ActivationUniform.*for activation"),
        (([],), r"expected a mapping.*received \[\]"),
        (({"": WEIGHTS},), "expected an attribute path such as 'kernel'; received ''"),
        (({0: WEIGHTS},), "received 0"),
        ((None, [WEIGHTS]), "of activation for output 0; received WeightsSymmetric.*for weights"),
        ((None, [ACTIVATION, "relu"]), "expected a quantizer for output 1; received 'relu' of type str"),
        ((None, 3), "expected activation quantizers, one for each output; received 3"),
        ((ACTIVATION, [ACTIVATION]), "expected a quantizer of weights first; received ActivationUniform"),
    ],
)
def test_wrong_things_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        NodeQuantizationDispatcher(*arguments)


def test_a_refused_change_changes_nothing():
    dispatcher = NodeQuantizationDispatcher({"kernel": WEIGHTS}, ACTIVATION)
    for change in (
        lambda: dispatcher.add_weight_quantizer("bias", ACTIVATION),
        lambda: dispatcher.set_weight_quantizers({"a": OTHER, "b": None}),
        lambda: dispatcher.set_activation_quantizers([ACTIVATION, WEIGHTS]),
    ):
        with pytest.raises(ConfigError):
            change()
    assert dispatcher.weight_quantizers == {"kernel": WEIGHTS}
    assert dispatcher.activation_quantizers == [ACTIVATION]


# --- binding ---


def test_bare_quantizers_find_the_main_weight_of_the_policy():
    policy = policy_for(["SeparableConv2D"])
    shapes = {"depthwise_kernel": (3, 3, 4, 1), "pointwise_kernel": (1, 1, 4, 8), "bias": (8,)}
    assert list(NodeQuantizationDispatcher(WEIGHTS).bind(shapes, policy, "l")) == ["pointwise_kernel"]


def test_bare_quantizers_find_the_only_matrix_without_a_policy():
    assert list(NodeQuantizationDispatcher(WEIGHTS).bind({"gain": (4,), "w": (3, 4)}, None, "l")) == ["w"]
    with pytest.raises(ConfigError, match=r"'mha', which has no single main weight; .*name one of \['query/kernel'"):
        NodeQuantizationDispatcher(WEIGHTS).bind(ATTENTION, None, "mha")
    with pytest.raises(ConfigError, match="no single main weight"):
        NodeQuantizationDispatcher(WEIGHTS).bind({"gain": (4,)}, None, "scale")


@pytest.mark.parametrize(
    ("layer_type", "path", "shape", "axis", "group_axis"),
    [
        ("Dense", "kernel", (8, 4), -1, -2),
        ("DepthwiseConv2D", "kernel", (3, 3, 5, 2), -2, None),
        ("Conv2DTranspose", "kernel", (3, 3, 6, 4), -2, -1),
        ("Embedding", "embeddings", (10, 4), 0, 1),
    ],
)
def test_axes_come_from_the_policy(layer_type, path, shape, axis, group_axis):
    policy = policy_for([layer_type])
    (bound,) = NodeQuantizationDispatcher(WEIGHTS).bind({path: shape, "bias": (4,)}, policy, "l").values()
    assert bound.channel_axis == axis
    assert bound.qparams(shape).scale.size == shape[axis]
    grouped = WeightsSymmetricInferableQuantizer(4, 1.0, per_channel=True, group_size=2)
    (bound,) = NodeQuantizationDispatcher(grouped).bind({path: shape}, policy, "l").values()
    assert bound.group_axis == group_axis


def test_given_axes_win():
    given = WeightsSymmetricInferableQuantizer(4, 1.0, per_channel=True, channel_axis=0)
    bound = NodeQuantizationDispatcher({"kernel": given}).bind(DENSE, policy_for(["Dense"]), "l")
    assert bound == {"kernel": given}


def test_weights_beside_the_policy_have_their_channels_last():
    bound = NodeQuantizationDispatcher({"bias": WEIGHTS}).bind(DENSE, policy_for(["DepthwiseConv2D"]), "l")
    assert bound["bias"].channel_axis == -1


def test_a_users_policy_is_followed():
    register_policy("TestDispatcherLayer", [Slot("filters", channel_axis=1)], replace=True)
    policy = policy_for(["TestDispatcherLayer"])
    bound = NodeQuantizationDispatcher(WEIGHTS).bind({"filters": (3, 4, 5), "other": (3, 3)}, policy, "l")
    assert {path: q.channel_axis for path, q in bound.items()} == {"filters": 1}


def test_two_quantizers_for_one_weight_are_refused():
    dispatcher = NodeQuantizationDispatcher({"inner/kernel": WEIGHTS, "kernel": OTHER})
    with pytest.raises(ConfigError, match="expected one quantizer a weight; received two for 'inner/kernel' of 'l'"):
        dispatcher.bind({"inner/kernel": (3, 4)}, None, "l")


def test_parameters_that_dont_fit_name_weight_and_layer():
    three = WeightsSymmetricInferableQuantizer(4, [1.0, 2.0, 3.0], per_channel=True)
    with pytest.raises(ConfigError, match=r"weight 'kernel' of layer 'fc': expected 1 or 4 values .*received 3"):
        NodeQuantizationDispatcher(three).bind(DENSE, policy_for(["Dense"]), "fc")
    ranked = WeightsSymmetricInferableQuantizer(4, 1.0, input_rank=4)
    with pytest.raises(ConfigError, match=r"weight 'kernel' of layer 'fc': .*input_rank=4; received shape=\(8, 4\)"):
        NodeQuantizationDispatcher(ranked).bind(DENSE, None, "fc")


def test_one_quantizer_for_each_output():
    dispatcher = NodeQuantizationDispatcher(activation_quantizers=[ACTIVATION, ACTIVATION])
    dispatcher.check_outputs(2, "split")
    with pytest.raises(ConfigError, match="each of the 3 outputs of layer 'split'; received 2"):
        dispatcher.check_outputs(3, "split")


# --- records ---


def test_record_survives_json():
    dispatcher = NodeQuantizationDispatcher({"kernel": WEIGHTS, "inner/bias": OTHER}, [ACTIVATION])
    record = json.loads(json.dumps(dispatcher.get_config(), allow_nan=False))
    assert record["version"] == 1
    again = NodeQuantizationDispatcher.from_config(record)
    assert again.weight_quantizers == dispatcher.weight_quantizers
    assert again.activation_quantizers == dispatcher.activation_quantizers


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "expected dispatcher version 1; received version=None"),
        ({"version": 99}, "received version=99"),
        ([], "received version=None"),
        ({"version": 1}, r"'weight_quantizers' and 'activation_quantizers'; received \['version'\]"),
        ({"version": 1, "weight_quantizers": [], "activation_quantizers": []}, "expected a dispatcher record"),
        ({"version": 1, "weight_quantizers": {"a": 3}, "activation_quantizers": []}, "expected a quantizer record"),
    ],
)
def test_records_of_other_kinds_are_refused(record, message):
    with pytest.raises(FileFormatError, match=message):
        NodeQuantizationDispatcher.from_config(record)


def test_repr_names_the_classes():
    text = repr(NodeQuantizationDispatcher({"kernel": WEIGHTS}, [ACTIVATION]))
    assert "'kernel': 'WeightsSymmetricInferableQuantizer'" in text
    assert "ActivationUniformInferableQuantizer" in text


def test_quantizers_within_a_layer_are_checked_and_recorded() -> None:
    inner = {"cell": [ACTIVATION, None]}
    dispatcher = NodeQuantizationDispatcher(inner_quantizers=inner)
    assert dispatcher.is_inner_quantization
    again = NodeQuantizationDispatcher.from_config(dispatcher.get_config())
    assert repr(again) == repr(dispatcher)
    assert again.inner_quantizers["cell"][1] is None
    assert "inner_quantizers" not in NodeQuantizationDispatcher().get_config()
    with pytest.raises(ConfigError, match="mapping from the path of an inner layer"):
        NodeQuantizationDispatcher(inner_quantizers=[None])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="output 0 of 'cell'"):
        NodeQuantizationDispatcher(inner_quantizers={"cell": [WeightsPOTInferableQuantizer(4, 1)]})
