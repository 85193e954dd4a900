"""Tests for qi.recipes.efforts: algorithms by one word, and recipes refused where they can't run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.errors import ConfigError, InputError, UnsupportedError
from qi.recipes import Recipe, Rule, TensorSpec, get_recipe
from qi.recipes.efforts import EFFORTS, check_no_algorithms, check_repeatable, with_effort


def asked(recipe: Any) -> list[str]:
    """The names of the algorithms for weights."""
    return [step.name for step in get_recipe(recipe).weights.algorithms]  # type: ignore[union-attr]


def test_efforts() -> None:
    assert with_effort("w4a8", "fast") == get_recipe("w4a8")
    assert asked(with_effort("w4a8", "balanced")) == ["output_range", "gptq", "bias_correction"]
    assert asked(with_effort("w4a8", "best")) == ["output_range", "gptq", "reconstruct", "bias_correction"]
    assert list(EFFORTS) == ["fast", "balanced", "best"]


@pytest.mark.parametrize("effort", EFFORTS)
def test_what_a_recipe_names_stays(effort: str) -> None:
    assert asked(with_effort("w4a8_equalize", effort)) == ["equalize"]


def test_eight_bits() -> None:
    assert asked(with_effort("w8a8", "balanced")) == []
    assert asked(with_effort("w8a8", "best")) == ["output_range", "gptq", "reconstruct", "bias_correction"]


def test_rules_get_theirs() -> None:
    rules = (
        Rule("a", weights=TensorSpec(bits=2)),
        Rule("b", weights="float"),
        Rule("c", activations="float"),
        Rule("d", weights=TensorSpec(bits=4, algorithms=("hqq",))),  # type: ignore[arg-type]
        Rule("e", weights=TensorSpec(bits=8)),
    )
    found = with_effort(Recipe("mine", weights=TensorSpec(bits=8), rules=rules), "balanced")
    names = [
        [s.name for s in rule.weights.algorithms] if isinstance(rule.weights, TensorSpec) else rule.weights
        for rule in found.rules
    ]
    assert names == [["output_range", "gptq", "bias_correction"], "float", None, ["hqq"], []]
    assert found.weights == TensorSpec(bits=8)
    assert found.name == "mine"


def test_recipes_of_activations_alone() -> None:
    recipe = Recipe("acts", activations=TensorSpec(bits=8))
    assert with_effort(recipe, "best") == recipe


@pytest.mark.parametrize("effort", ["bets", "", None, 3, ["best"]])
def test_unknown_efforts(effort: Any) -> None:
    with pytest.raises(ConfigError, match="fast, balanced, best"):
        with_effort("w4a8", effort)


def test_near_names() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'best'"):
        with_effort("w4a8", "bets")


def test_where_none_can_run() -> None:
    check_no_algorithms("w8a8", "a model of its own")
    with pytest.raises(UnsupportedError, match=r"a model of its own.*gptq"):
        check_no_algorithms("w4a8_gptq", "a model of its own")
    ruled = get_recipe("w8a8").with_rules(Rule("a", weights=get_recipe("w4_gptq_equalize").weights))
    with pytest.raises(UnsupportedError, match="equalize, gptq"):
        check_no_algorithms(ruled, "that")


def test_data_that_are_read_again() -> None:
    x = np.zeros((4, 3))
    for data in (x, [x, x], (x, x)):
        check_repeatable("w4a8_reconstruct", data)
    check_repeatable("w4a8_gptq", iter([x]))
    check_repeatable("w4a8_gptq", None)
    with pytest.raises(InputError, match="list_iterator, which can be read once"):
        check_repeatable("w4a8_reconstruct", iter([x]))
    with pytest.raises(InputError, match="generator"):
        check_repeatable("w4a8_reconstruct", (x for _ in range(2)))
    with pytest.raises(InputError, match="reconstruct; received none"):
        check_repeatable("w4a8_reconstruct", None)
