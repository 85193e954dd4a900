"""What is sent to other processes: rebuilt here, it's the same graph."""

from __future__ import annotations

from dataclasses import replace

import keras
import numpy as np
import pytest

from qi.errors import UnsupportedError
from qi.keras.prepare import prepare
from qi.keras.searched import searched_weights
from qi.keras.sending import Source, not_rebuilt
from qi.recipes import decode_name, get_recipe
from tests.keras.models import build

SPECS = (decode_name("w4").weights, decode_name("w8").weights)


@pytest.mark.parametrize("name", ["residual", "mobile"])
def test_what_is_rebuilt_is_the_same(name: str) -> None:
    model = build(name)
    weights, _ = searched_weights(prepare(model, "w8a8"), SPECS)  # type: ignore[arg-type]
    packed = Source(model, get_recipe("w8a8"), SPECS).packed(weights, here=False)  # type: ignore[arg-type]
    assert packed.model is None
    assert packed.archive is not None
    _, found = packed.rebuilt()
    assert [weight.label for weight in found] == [weight.label for weight in weights]
    for one, other in zip(found, weights, strict=True):
        assert np.array_equal(one.array, other.array)
        assert np.array_equal(one.values(0), other.values(0))


def test_anything_else_is_refused() -> None:
    model = build("sequential")
    weights, _ = searched_weights(prepare(model, "w8a8"), SPECS)  # type: ignore[arg-type]
    packed = Source(model, get_recipe("w8a8"), SPECS).packed(weights, here=False)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="its weights are others"):
        replace(packed, digest="0").rebuilt()
    with pytest.raises(UnsupportedError, match="workers with Keras' backend 'other'"):
        replace(packed, backend="other").rebuilt()
    with pytest.raises(UnsupportedError, match="expected a model that other processes can rebuild"):
        replace(packed, archive=np.zeros(100, np.uint8)).rebuilt()
    assert "set jobs=1" in str(not_rebuilt("gone"))


def test_classes_of_users_go_along() -> None:
    class Own(keras.layers.Layer):
        def call(self, x: object) -> object:
            return x

    model = keras.Sequential([keras.Input((4,)), Own(), keras.layers.Dense(2)])
    packed = Source(model, get_recipe("w8"), ()).packed([], here=False)
    assert dict(packed.custom or {})["Own"] is Own
    assert not [name for name in packed.custom or {} if name.startswith("qi>")]
