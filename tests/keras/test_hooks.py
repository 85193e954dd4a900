"""Hooks in place of a layer's call."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi.keras.hooks import Hook, observed
from qi.keras.variables import to_numpy


def test_a_hook_gets_the_first_argument_by_its_place() -> None:
    layer = layers.Dense(2)
    seen: list[tuple[int, list[str]]] = []

    def around(*args: Any, **kwargs: Any) -> Any:
        seen.append((len(args), sorted(kwargs)))
        return hook.original(*args, **kwargs)

    hook = Hook(layer, around)
    layer.build((None, 3))
    hook(np.ones((1, 3), "float32"))
    hook(inputs=np.ones((1, 3), "float32"), training=True)
    assert seen == [(1, []), (1, ["training"])]


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_observed_is_let_go(fails: bool) -> None:
    layer = layers.Dense(2)
    seen: list[Any] = []

    def see(path: str, given: list[Any], made: list[Any]) -> None:
        seen.append((path, given, made))
        if fails:
            raise ZeroDivisionError

    x = keras.ops.ones((1, 3))
    if fails:
        with pytest.raises(ZeroDivisionError), observed({"a": layer}, see):
            layer(x)
    else:
        with observed({"a": layer}, see):
            y = layer(x)
        np.testing.assert_array_equal(to_numpy(seen[0][2][0]), to_numpy(y))
    assert [path for path, _, _ in seen] == ["a"]
    assert layer.call.__func__ is layers.Dense.call


def test_a_layer_under_two_paths_is_let_go_by_both() -> None:
    layer, seen = layers.Dense(2), []
    with observed({"a": layer, "b": layer}, lambda path, given, made: seen.append(path)):
        layer(keras.ops.ones((1, 3)))
    assert seen == ["a", "b"]
    layer(keras.ops.ones((1, 3)))
    assert seen == ["a", "b"], "a hook is left"
