"""Tests for qi.algorithms.reconstruction: the options by which recipes name training."""

from __future__ import annotations

from typing import Any

import pytest

from qi.algorithms import ALGORITHMS
from qi.algorithms.reconstruction import brecq, reconstruct
from qi.errors import ConfigError


def test_nothing_given_is_left_to_the_training() -> None:
    found = reconstruct()
    assert found["steps"] is None
    assert found["learning_rate"] is None
    assert (found["scope"], found["rounding"]) == ("network", "lsq")


def test_brecq_is_adaround_block_after_block() -> None:
    assert brecq(steps=7, seed=3) == reconstruct(scope="block", rounding="adaround", steps=7, seed=3)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"scope": "blok"}, "Did you mean 'block'"), ({"rounding": "nearest"}, "lsq"), ({"scope": ""}, "scope=''")],
)
def test_unknown_words(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match="expected") as caught:
        reconstruct(**options)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["reconstruct", "brecq"])
def test_as_recipes_name_them(name: str) -> None:
    found = ALGORITHMS.get(name)
    assert (found.stage, found.needs) == ("training", "data")
    assert set(found.options) <= set(reconstruct())
