from __future__ import annotations

import pytest

from qi.errors import ConfigError
from qi.recipes import Recipe, Rule, TensorSpec

INT8 = TensorSpec(bits=8)
HEAD, TAIL = Rule("head", weights="float"), Rule("tail", weights="float")


def test_new_rules_come_before_the_old_ones():
    recipe = Recipe("r", INT8, None, (TAIL,))
    more = recipe.with_rules(HEAD, Rule("neck", weights="float"))
    assert [rule.match for rule in more.rules] == ["head", "neck", "tail"]
    assert more.name == "r"
    assert recipe.rules == (TAIL,)
    assert recipe.with_rules(HEAD, name="mine").name == "mine"


def test_rules_may_be_any_sequence_and_float_means_none():
    recipe = Recipe("r", INT8, "float", [HEAD])
    assert recipe.rules == (HEAD,)
    assert recipe.activations is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": ""}, "expected a name"),
        ({"name": None}, "name=None"),
        ({"name": "r", "weights": 8}, "weights=8"),
        ({"name": "r", "weights": "w8"}, "weights='w8'"),
        ({"name": "r", "activations": TensorSpec(bits=8, granularity="per_channel")}, "one scale per tensor"),
        ({"name": "r", "weights": TensorSpec(bits=1)}, "at least 2 bits"),
        ({"name": "r", "rules": HEAD}, "sequence of Rule"),
        ({"name": "r", "rules": ["head"]}, r"rules=\['head'\]"),
    ],
)
def test_illegal_recipes_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(**values)


def test_config_round_trip():
    recipe = Recipe("r", INT8, TensorSpec(bits=16, range="ema", range_options={"momentum": 0.9}), (HEAD, TAIL))
    assert Recipe.from_config(recipe.to_config()) == recipe


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "with name"),
        ({"name": "r", "weigths": {}}, "Did you mean 'weights'"),
        ({"name": "r", "rules": {"match": "a"}}, "to be a list"),
        ({"name": "r", "rules": ["a"]}, "mapping for a Rule"),
        ({"name": "r", "weights": {"bits": 99}}, "bits=99"),
    ],
)
def test_configs_are_checked(config, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.from_config(config)


def test_text():
    assert str(Recipe("r", INT8, None, (HEAD, TAIL))) == (
        "r: weights 8 bits, symmetric, per tensor, range minmax; activations float; 2 rules"
    )
