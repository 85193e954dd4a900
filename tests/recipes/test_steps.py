"""Tests for qi.recipes.steps: algorithms by name, checked where a recipe is written."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from qi.algorithms import ALGORITHMS
from qi.errors import ConfigError
from qi.recipes import Recipe, Rule, TensorSpec
from qi.recipes.steps import Step, as_steps, check_scales


def names(given: Any) -> list[str]:
    return [step.name for step in as_steps(given)]


def test_steps_come_in_the_order_in_which_they_run() -> None:
    assert names(["bias_correction", "gptq", "output_range", "equalize"]) == [
        "equalize", "output_range", "gptq", "bias_correction"
    ]  # fmt: skip
    assert names("gptq") == ["gptq"]
    assert names(Step("gptq")) == ["gptq"]
    assert names({"name": "gptq", "damping": 0.1}) == ["gptq"]
    assert names([]) == []
    assert names(["norm_correction", "bias_correction"]) == ["norm_correction", "bias_correction"]


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_every_algorithm_as_a_step(name: str) -> None:
    step = Step(name)
    assert (step.stage, step.needs) == (ALGORITHMS.get(name).stage, ALGORITHMS.get(name).needs)
    assert step.to_config() == name == str(step)
    given = dict(ALGORITHMS.get(name).options)
    full = Step(name, given)
    (again,) = as_steps(full.to_config())
    assert again == full
    assert hash(again) == hash(full)


def test_options_are_kept_sorted_and_read_only() -> None:
    given = {"damping": 0.1, "block": 32}
    step = Step("gptq", given)
    given["damping"] = 9.0
    assert str(step) == "gptq block=32 damping=0.1"
    assert step.to_config() == {"name": "gptq", "block": 32, "damping": 0.1}
    assert step == Step("gptq", {"block": 32, "damping": 0.1})
    assert step != Step("gptq")
    with pytest.raises(TypeError):
        step.options["damping"] = 1.0  # type: ignore[index]
    assert len(step.options) == 2
    assert repr(step.options) == "{'block': 32, 'damping': 0.1}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gptk", "Did you mean 'gptq'"),
        ([3], "received 3"),
        (5, "received algorithms=5"),
        (None, "received algorithms=None"),
        ({"damping": 0.1}, "a mapping with one"),
        ({"name": 3}, "a mapping with one"),
        ({"name": "gptq", "dampign": 0.1}, "Did you mean 'damping'"),
        ({"name": "gptq", "damping": "much"}, "a finite number above 0"),
        ({"name": "gptq", "damping": True}, "a finite number above 0"),
        ({"name": "gptq", "block": 1.5}, "an integer from 1 on"),
        ({"name": "gptq", "block": True}, "an integer from 1 on"),
        ({"name": "gptq", "act_order": 1}, "True or False"),
        ({"name": "bias_correction", "steps": 1}, "among none"),
        (["gptq", "gptq"], "leave out 'gptq'"),
        (["gptq", {"name": "gptq", "damping": 0.1}], "leave out 'gptq'"),
        (["gptq", "adaround"], "leave out"),
    ],
)
def test_bad_steps(given: Any, said: str) -> None:
    if given == ["gptq", "adaround"] and "adaround" not in ALGORITHMS:
        given = ["equalize", "equalize"]
    with pytest.raises(ConfigError) as caught:
        as_steps(given)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", [3, None, ["gptq"]])
def test_names_that_are_no_text(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"name of an? algorithm"):
        Step(name)


def test_options_that_are_no_mapping() -> None:
    with pytest.raises(ConfigError, match="by name"):
        Step("gptq", 0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["output_range", "hqq", "kmeans", "powers"])
def test_powers_of_two_stay_powers_of_two(name: str) -> None:
    """Scales that are fitted aren't any; said where the recipe is written."""
    with pytest.raises(ConfigError, match="powers of two") as caught:
        TensorSpec(bits=4, method="power_of_two", algorithms=[name])  # type: ignore[arg-type]
    assert name in str(caught.value)
    TensorSpec(bits=4, method="symmetric", algorithms=[name])  # type: ignore[arg-type]
    check_scales(as_steps(name), 4, "uniform", "per_channel")


def test_powers_of_two_with_what_keeps_them() -> None:
    algorithms = ["equalize", {"name": "powers", "power_of_two_scale": True}, "gptq", "bias_correction"]
    assert TensorSpec(bits=4, method="power_of_two", algorithms=algorithms).algorithms  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["hqq kmeans", "kmeans powers", "output_range powers gptq"])
def test_tables_are_their_own_ranges(given: str) -> None:
    with pytest.raises(ConfigError, match="expected no other algorithm for ranges beside"):
        as_steps(given.split())
    assert as_steps(["best_range", "hqq"])


@pytest.mark.parametrize("name", ["kmeans", "powers"])
def test_no_tables_for_groups(name: str) -> None:
    with pytest.raises(ConfigError, match="per_channel") as caught:
        TensorSpec(bits=4, granularity="per_group", group_size=8, algorithms=[name])  # type: ignore[arg-type]
    assert name in str(caught.value)
    TensorSpec(bits=4, granularity="per_group", group_size=8, algorithms=["gptq", "output_range"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bits", "step"),
    [
        (16, "kmeans"),
        (6, "powers"),
        (1, {"name": "powers", "bits": 2}),
        (4, {"name": "kmeans", "bits": 5}),
        (4, {"name": "powers", "bits": 5}),
    ],
)
def test_tables_of_too_many_bits(bits: int, step: Any) -> None:
    with pytest.raises(ConfigError, match="lower the bits"):
        TensorSpec(bits=bits, algorithms=[step])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bits", "step"),
    [(8, "kmeans"), (5, "powers"), (4, {"name": "kmeans", "bits": 3}), (16, {"name": "kmeans", "bits": 4})],
)
def test_tables_of_few_bits(bits: int, step: Any) -> None:
    assert TensorSpec(bits=bits, algorithms=[step]).algorithms  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bits", "step"),
    [(1, "powers"), (4, {"name": "kmeans", "lut_bits": 3}), (8, {"name": "kmeans", "bits": 4, "lut_bits": 2})],
)
def test_tables_of_too_few_bits(bits: int, step: Any) -> None:
    with pytest.raises(ConfigError, match=r"do raise (the bits|it)"):
        TensorSpec(bits=bits, algorithms=[step])  # type: ignore[arg-type]


def test_values_of_numpy_are_kept_as_plain_ones() -> None:
    step = Step("gptq", {"damping": np.float32(0.5), "block": np.int64(8), "act_order": np.bool_(False)})
    assert json.dumps(step.to_config()) == '{"name": "gptq", "act_order": false, "block": 8, "damping": 0.5}'


def test_activations_take_none() -> None:
    spec = TensorSpec(bits=8, algorithms=["gptq"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="algorithms"):
        Recipe("mine", activations=spec)
    with pytest.raises(ConfigError, match="algorithms"):
        Rule("a", activations=spec)


def test_specs_and_recipes_there_and_back() -> None:
    spec = TensorSpec(bits=4, algorithms=[{"name": "gptq", "damping": 0.1}, "equalize"])  # type: ignore[arg-type]
    assert TensorSpec.from_config(spec.to_config()) == spec
    assert spec.to_config()["algorithms"] == ["equalize", {"name": "gptq", "damping": 0.1}]
    recipe = Recipe("mine", weights=spec, rules=(Rule("head", weights=spec),))
    assert Recipe.from_config(recipe.to_config()) == recipe
    assert "algorithms" not in TensorSpec(bits=4).to_config()
