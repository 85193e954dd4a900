"""Tests for qi.algorithms.registry: names, stages, needs and options."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from qi.algorithms import ALGORITHMS
from qi.algorithms.options import Count, Options
from qi.algorithms.registry import NEEDS, STAGES, algorithm, check_algorithm
from qi.errors import ConfigError


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_every_algorithm(name: str) -> None:
    found = ALGORITHMS.get(name)
    assert found.name == name
    assert found.stage in STAGES
    assert found.needs in NEEDS
    assert found.summary.strip()
    parameters = inspect.signature(found.function).parameters.values()
    assert dict(found.options) == {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert all(type(value) in (int, float, bool, str) for value in found.options.values()), found.options
    assert check_algorithm(name, found.options) is found
    if found.stage in ("range", "rounding"):
        positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert positional == ["problem"]


def test_stages_of_the_known_ones() -> None:
    stages = {name: found.stage for name, found in ALGORITHMS.items()}
    assert stages["equalize"] == stages["smooth"] == stages["awq"] == "scaling"
    assert stages["output_range"] == stages["hqq"] == stages["kmeans"] == "range"
    assert stages["gptq"] == "rounding"
    assert stages["reconstruct"] == stages["brecq"] == "training"
    assert stages["bias_correction"] == stages["norm_correction"] == "correction"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("gtpq", {}, "Did you mean 'gptq'"),
        ("gptq", {"damp": 1.0}, "damping, act_order, block"),
        ("gptq", {"dampin": 1.0}, "Did you mean 'damping'"),
        ("bias_correction", {"x": 1}, "among none"),
        ("gptq", {"damping": "0.1"}, "a finite number above 0"),
        ("gptq", {"damping": None}, "a finite number above 0"),
        ("gptq", {"damping": False}, "a finite number above 0"),
        ("gptq", {"block": 2.0}, "an integer from 1 on"),
        ("gptq", {"act_order": 0}, "True or False"),
        ("output_range", {"rounding": 4}, "one of 'nearest', 'gptq'"),
    ],
)
def test_bad_names_and_options(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_algorithm(name, options)
    assert said in str(caught.value)


def test_integers_are_numbers() -> None:
    assert check_algorithm("gptq", {"damping": 1}).checked({"damping": 1}) == {"damping": 1.0}


def test_registering() -> None:
    with pytest.raises(ConfigError, match="stage='never'"):
        algorithm("mine", stage="never", needs="weights")
    with pytest.raises(ConfigError, match="needs='money'"):
        algorithm("mine", stage="range", needs="money")

    def other(problem: Any) -> Any:
        return problem

    with pytest.raises(ConfigError, match="taken"):
        algorithm("gptq", stage="rounding", needs="moments")(other)

    def lazy(problem: Any, *, steps: int = 0) -> Any:
        return problem, steps

    with pytest.raises(ConfigError, match="steps"):  # says nothing of its option
        algorithm("mine", stage="rounding", needs="moments")(lazy)
    with pytest.raises(ConfigError, match="received steps=0"):  # doesn't allow its default
        algorithm("mine", stage="rounding", needs="moments", options=Options(steps=Count(1)))(lazy)
    assert "mine" not in ALGORITHMS


def test_a_module_that_is_run_again() -> None:
    """Under another name, as test collectors do: the first registration stays."""
    known = ALGORITHMS.get("gptq")
    assert algorithm("gptq", stage="rounding", needs="moments")(known.function) is known.function
    assert ALGORITHMS.get("gptq") is known
