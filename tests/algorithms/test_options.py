"""Tests for qi.algorithms.options, and that every algorithm refuses bad values, in recipes and called itself."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest

from qi.algorithms import ALGORITHMS
from qi.algorithms.options import Choice, Count, Flag, Number, Option, Options
from qi.errors import ConfigError
from qi.recipes import TensorSpec
from qi.recipes.steps import Step

EVERY = [(name, option) for name, found in ALGORITHMS.items() for option in found.options]


class Untouched:
    """In place of data: fails as soon as anything is done with it."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"data were read: {name}")

    def __iter__(self) -> Any:
        raise AssertionError("data were read")


def bad(option: Option) -> list[Any]:
    """Values of wrong types, and just outside of the range."""
    values: list[Any] = [None, [1], {}, np.ones(2)]
    if isinstance(option, Count):
        values += [True, 1.0, "1", math.nan, math.inf, -1 if option.or_zero else option.least - 1]
        values += [] if option.most is None else [option.most + 1]
        values += [1] if option.or_zero and option.least > 1 else []
    elif isinstance(option, Number):
        values += [True, "0.5", math.nan, math.inf, -math.inf, 10**400, 1j, np.bool_(1)]
        values += [end for end in (option.above, option.below) if end is not None]
        values += [] if option.least is None else [np.nextafter(option.least, -math.inf)]
        values += [] if option.most is None else [np.nextafter(option.most, math.inf)]
    elif isinstance(option, Flag):
        values += [0, 1, "True", math.nan]
    else:
        values += [0, True, "x", "", math.nan]
    return values


def call(name: str, **options: Any) -> Any:
    function = ALGORITHMS.get(name).function
    needed = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty
    ]
    return function(*[Untouched() for _ in needed], **options)


@pytest.mark.parametrize(("name", "option"), EVERY)
def test_bad_values_are_refused_before_anything_is_read(name: str, option: str) -> None:
    legal = ALGORITHMS.get(name).legal[option]
    for value in bad(legal):
        with pytest.raises(ConfigError, match=f"expected {option} to be .*received {option}=.*do ") as direct:
            call(name, **{option: value})
        with pytest.raises(ConfigError, match=f"expected {option} of '{name}' to be ") as step:
            Step(name, {option: value})
        assert str(step.value).replace(f" of '{name}'", "") == str(direct.value)
        with pytest.raises(ConfigError, match=option):
            TensorSpec(bits=4, algorithms=[{"name": name, option: value}])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_defaults_are_accepted(name: str) -> None:
    found = ALGORITHMS.get(name)
    assert found.checked(found.options) == dict(found.options)
    assert set(found.legal) == set(found.options)
    if found.stage != "training" and found.options:
        with pytest.raises(AssertionError, match="data were read"):
            call(name)
    given = {"name": name, **found.options}
    (step,) = TensorSpec(bits=4, algorithms=[given]).algorithms  # type: ignore[arg-type]
    assert step.options == found.options


def test_what_is_expected_in_words() -> None:
    words = {
        Count(1): "an integer from 1 on",
        Count(2, 5, or_zero=True): "an integer from 2 to 5, or 0",
        Number(above=0): "a finite number above 0",
        Number(above=0, most=2): "a finite number above 0 and of at most 2",
        Number(least=0, below=1): "a finite number of at least 0 and below 1",
        Flag(): "True or False",
        Choice(("a", "b")): "one of 'a', 'b'",
    }
    assert [option.expected for option in words] == list(words.values())


def test_near_names_are_suggested() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'gptq'"):
        Choice(("nearest", "gptq"))("rounding", "gptk")
    with pytest.raises(ConfigError, match=r"among damping; received dampign=1.* Did you mean 'damping'"):
        Options(damping=Number()).check(dampign=1)
    with pytest.raises(ConfigError, match="among none"):
        Options().check(x=1)


def test_values_become_plain() -> None:
    found = Options(a=Count(0), b=Number(), c=Flag(), d=Choice(("x",))).check(
        a=np.int16(3), b=np.float32(0.5), c=np.bool_(True), d=np.str_("x")
    )
    assert found == {"a": 3, "b": 0.5, "c": True, "d": "x"}
    assert [type(value) for value in found.values()] == [int, float, bool, str]
