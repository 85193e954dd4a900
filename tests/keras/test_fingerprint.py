"""Two models have one fingerprint exactly where statistics of one serve the other."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from qi.errors import InputError
from qi.keras.fingerprint import fingerprint
from tests.keras.models import build, settle


@pytest.mark.parametrize("name", ["mobile", "nested", "shared", "unknown"])
def test_it_outlives_saving_and_loading(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save(tmp_path / "model.keras")
    found = fingerprint(model)
    assert len(found) == 64
    assert fingerprint(keras.models.load_model(tmp_path / "model.keras", compile=False)) == found


def test_every_weight_enters_it() -> None:
    model = build("nested")
    seen = {fingerprint(model)}
    floats = [variable for variable in model.weights if "float" in variable.dtype]
    for variable in floats:
        variable.assign(variable.numpy() * 1.0001 + 1e-6)
        seen.add(fingerprint(model))
    assert len(seen) == len(floats) + 1


def test_using_a_model_changes_nothing() -> None:
    model = settle(keras.Sequential([keras.Input((6,)), layers.Dropout(0.5), layers.Dense(3)]))
    before = fingerprint(model)
    data = np.ones((4, 6), np.float32)
    first, second = model(data, training=True), model(data, training=True)
    assert not np.array_equal(first, second)  # the random generator has moved on
    assert fingerprint(model) == before


def test_names_and_operations_enter_it() -> None:
    def made(operation: type[layers.Layer], name: str) -> str:
        return fingerprint(keras.Sequential([keras.Input((4,)), operation(name=name)]))

    assert len({made(layers.ReLU, "act"), made(layers.Softmax, "act"), made(layers.ReLU, "other")}) == 3


def test_types_of_many_kinds_are_hashed() -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, dtype=keras.DTypePolicy("bfloat16"), name="d")])
    model.get_layer("d").kernel.assign(np.ones((4, 2)))
    before = fingerprint(model)
    model.get_layer("d").kernel.assign(np.full((4, 2), 2.0))
    assert fingerprint(model) != before


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(InputError, match="expected a Keras model"):
        fingerprint("model.keras")  # type: ignore[arg-type]
