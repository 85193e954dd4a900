from __future__ import annotations

import pytest

from qi.errors import ConfigError
from qi.recipes import Rule, TensorSpec

INT8 = TensorSpec(bits=8)


@pytest.mark.parametrize(
    ("rule", "path", "layer_type", "expected"),
    [
        (Rule("head", weights="float"), "head", "Dense", True),
        (Rule("head", weights="float"), "backbone/head", "Dense", False),
        (Rule("head*", weights="float"), "head/fc", "Dense", True),
        (Rule("backbone/conv*", weights="float"), "backbone/conv1", "Conv2D", True),
        (Rule("*/conv?", weights="float"), "a/b/conv1", "Conv2D", True),
        (Rule("Head", weights="float"), "head", "Dense", False),
        (Rule(layer_type="Dense", weights="float"), "anything", "Dense", True),
        (Rule(layer_type="Dense", weights="float"), "anything", "EinsumDense", False),
        (Rule(layer_type="*Conv2D", weights="float"), "x", "DepthwiseConv2D", True),
        (Rule("head", layer_type="Dense", weights="float"), "head", "Conv2D", False),
        (Rule("head", layer_type="Dense", weights="float"), "head", "Dense", True),
    ],
)
def test_patterns(rule, path, layer_type, expected):
    assert rule.matches(path, layer_type, "kernel") is expected
    assert rule.matches(path, layer_type) is expected


def test_a_rule_for_a_weight_speaks_of_that_weight_alone():
    rule = Rule("mha", weight="query/*", weights="float")
    assert rule.matches("mha", "MultiHeadAttention", "query/kernel")
    assert not rule.matches("mha", "MultiHeadAttention", "key/kernel")
    assert not rule.matches("mha", "MultiHeadAttention")
    assert rule.covers("mha", "MultiHeadAttention")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": "float"}, "expected match or layer_type; received neither"),
        ({"match": ""}, "expected match to be a pattern.*match=''"),
        ({"match": 3}, "match=3"),
        ({"layer_type": int}, "layer_type=<class 'int'>"),
        ({"match": "a"}, "rule match='a' to set weights or activations"),
        (
            {"match": "a", "weights": "int8"},
            "weights to be a TensorSpec, 'float' or None; received weights='int8'",
        ),
        ({"match": "a", "activations": 8}, "received activations=8"),
        ({"match": "a", "weight": "kernel", "activations": "float"}, "a second rule without weight="),
        (
            {"match": "a", "activations": TensorSpec(bits=8, granularity="per_channel")},
            "one scale per tensor",
        ),
        ({"match": "a", "weights": TensorSpec(bits=8, range="ema")}, r"among entropy, minmax.*; received range='ema'"),
        ({"match": "a", "weights": TensorSpec(bits=1)}, "at least 2 bits"),
        ({"match": "a", "weights": TensorSpec(bits=1, method="power_of_two")}, "at least 2 bits"),
    ],
)
def test_illegal_rules_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Rule(**values)


def test_one_bit_has_two_values_when_it_is_uniform():
    assert Rule("a", weights=TensorSpec(bits=1, method="uniform")).weights.bits == 1


@pytest.mark.parametrize(
    "rule",
    [
        Rule("head*", weights="float", activations="float"),
        Rule(layer_type="Dense", weight="kernel", weights=TensorSpec(bits=4, range="mse")),
        Rule("a", layer_type="Dense", activations=INT8),
    ],
)
def test_config_round_trip(rule):
    config = rule.to_config()
    assert None not in config.values()
    assert Rule.from_config(config) == rule


def test_configs_are_checked():
    with pytest.raises(ConfigError, match=r"received 'layer'\. Did you mean 'layer_type'"):
        Rule.from_config({"layer": "Dense", "weights": "float"})
    with pytest.raises(ConfigError, match="received 'bit'"):
        Rule.from_config({"match": "a", "weights": {"bit": 8}})


def test_text_is_the_patterns():
    rule = Rule("head*", layer_type="Dense", weight="kernel", weights="float")
    assert str(rule) == "match='head*', layer_type='Dense', weight='kernel'"
