"""Hooks on the layers of a model: which layers, what passes through, what files hold."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi.errors import QuantizationWarning
from qi.keras.hooks import observed
from qi.keras.in_place import InPlaceModel, copy_model, unregistered, wrappers_of
from qi.keras.parts import parts_of
from qi.keras.variables import to_numpy
from tests.keras.loops import Branches, Tied, built, x


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return built(Branches(), x())


@pytest.fixture(scope="module")
def quantized(model: keras.Model) -> keras.Model:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", QuantizationWarning)
        return qi.quantize_model(model, "w8a8", x(), progress=False)[0]


def test_parts_are_found_by_path(model: keras.Model) -> None:
    expected = ["first", "blocks/0", "blocks/1", "mix", "mix/inner", "drop", "rare", "head", "odds"]
    assert sorted(parts_of(model)) == sorted(expected)
    assert parts_of(model)["blocks/1"] is model.blocks[1]


def test_layers_of_keras_are_parts_as_a_whole() -> None:
    model = built(Tied(), np.zeros((2, 6), "int32"))
    assert sorted(parts_of(model)) == ["attention", "memory", "norm", "table"]


def test_nested_models_are_entered() -> None:
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="deep")], name="inner")

    class Outer(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def call(self, x: Any) -> Any:
            return self.inner(x)

    assert list(parts_of(Outer())) == ["inner/deep"]


def test_every_call_is_seen_and_nothing_stays_hooked(model: keras.Model) -> None:
    seen: dict[str, list[Any]] = {}
    data = x(4)
    with observed(parts_of(model), lambda path, given, made: seen.setdefault(path, []).append((given, made))):
        result = model(data)
    assert {path: len(calls) for path, calls in seen.items()} == {
        "first": 1, "blocks/0": 2, "blocks/1": 1, "mix": 1, "mix/inner": 1, "head": 1, "odds": 1,
    }  # fmt: skip
    np.testing.assert_array_equal(to_numpy(seen["odds"][0][1][0]), to_numpy(result))
    np.testing.assert_array_equal(to_numpy(seen["first"][0][0][0]), data)
    assert all(layer.call.__func__ is type(layer).call for layer in parts_of(model).values())


def test_hooks_go_when_the_model_fails(model: keras.Model) -> None:
    def refuse(path: str, given: list[Any], made: list[Any]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), observed(parts_of(model), refuse):
        model(x(4))
    assert model.first.call.__func__ is layers.Dense.call


def test_a_copy_shares_nothing(model: keras.Model) -> None:
    copy, record, how = copy_model(model)
    assert type(copy) is Branches
    assert record["class_name"] == "Branches"
    assert how
    np.testing.assert_array_equal(to_numpy(copy(x(8))), to_numpy(model(x(8))))
    assert not {id(v) for v in copy.variables} & {id(v) for v in model.variables}


def test_the_class_and_its_methods_stay(model: keras.Model, quantized: keras.Model) -> None:
    assert isinstance(quantized, Branches)
    assert isinstance(quantized, InPlaceModel)
    data = x(16)
    codes = (
        to_numpy(quantized.encode(data))
        / wrappers_of(quantized)["first"].output_quantizers[0].parameters((1,))["scale"]
    )
    np.testing.assert_allclose(codes, np.rint(codes), atol=1e-3)  # what a method gives is on the layer's grid
    np.testing.assert_allclose(to_numpy(quantized.encode(data)), to_numpy(model.encode(data)), atol=0.05)


def test_weights_are_on_their_grid_in_the_layers_themselves(quantized: keras.Model) -> None:
    wrapper = wrappers_of(quantized)["mix"]
    assert wrapper.frozen
    np.testing.assert_array_equal(to_numpy(quantized.mix.extra), wrapper.get_quantized_weights()["extra"])
    assert list(wrapper.quantizers) == ["extra"]
    assert list(wrappers_of(quantized)["mix/inner"].quantizers) == ["kernel"]


def test_files_hold_codes_and_no_float_copies(quantized: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "model.keras"
    quantized.save(path)
    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        sizes: dict[str, tuple[int, ...]] = {}
        file.visititems(lambda name, item: sizes.update({name: item.shape} if isinstance(item, h5py.Dataset) else {}))
    kernels = [name for name in sizes if name.endswith(("vars/kernel", "vars/extra"))]
    assert not kernels, "a kernel as floats"
    assert sum(name.endswith(":codes") for name in sizes) == 7
    read = keras.models.load_model(path)
    np.testing.assert_array_equal(read.predict(x(), verbose=0), quantized.predict(x(), verbose=0))
    assert isinstance(read, Branches)
    read.save(tmp_path / "again.keras")
    assert keras.models.load_model(tmp_path / "again.keras").steps == 3


def test_a_file_needs_the_class(quantized: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantized.save(tmp_path / "model.keras")
    for name in [name for name in keras.saving.get_custom_objects() if name.startswith("tests.loops>")]:
        monkeypatch.delitem(keras.saving.get_custom_objects(), name)
    with pytest.raises(TypeError, match="Could not locate class 'Branches'"):
        keras.models.load_model(tmp_path / "model.keras")
    read = keras.models.load_model(tmp_path / "model.keras", custom_objects={"tests.loops>Branches": Branches})
    np.testing.assert_array_equal(read.predict(x(), verbose=0), quantized.predict(x(), verbose=0))


def scaled(values: Any) -> Any:
    return values * 0.5


class Part(layers.Dense):
    """A layer that Keras doesn't know by name."""


class Unknown(keras.Model):
    """A model that Keras doesn't know by name, made of what it doesn't know either."""

    def __init__(self, function: Any = scaled, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.part, self.function = Part(5), keras.activations.get(function)
        self.mix = self.add_weight(shape=(5, 5), name="mix")

    def call(self, x: Any) -> Any:
        return self.function(self.part(x) @ self.mix)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "function": keras.saving.serialize_keras_object(self.function)}


NEEDED = "(Unknown, scaled)"
READING = "load_model(path, custom_objects={'Unknown': Unknown, 'scaled': scaled})"


def told(verb: Any, model: keras.Model) -> tuple[Any, list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", QuantizationWarning)
        result = verb(model, "w8a8", x(), progress=False)
    return result, [warning for warning in found if "registered" in str(warning.message)]


def test_classes_that_are_not_registered_are_told_and_convert(tmp_path: Path) -> None:
    training, (warning,) = told(qi.prepare_qat, built(Unknown(), x()))
    assert NEEDED in str(warning.message)
    assert READING in str(warning.message)
    assert warning.filename == __file__
    result = qi.convert(training)
    np.testing.assert_array_equal(to_numpy(result(x())), to_numpy(training(x())))
    assert isinstance(result, Unknown)
    path = qi.save_model(result, tmp_path / "model.keras")
    known = {"Unknown": Unknown, "scaled": scaled}
    np.testing.assert_array_equal(to_numpy(qi.load_model(path, custom_objects=known)(x())), to_numpy(result(x())))


def test_reports_tell_what_a_file_will_need() -> None:
    (_, report), (warning,) = told(qi.quantize_model, built(Unknown(), x()))
    assert str(warning.message) in report.warnings
    assert warning.filename == __file__  # though it is given deeper down than for other models
    with keras.saving.custom_object_scope({"Unknown": Unknown, "scaled": scaled}):
        assert told(qi.quantize_model, built(Unknown(), x()))[1] == []


def test_registered_classes_need_nothing(model: keras.Model, quantized: keras.Model) -> None:
    assert unregistered(quantized) == ""
    assert told(qi.prepare_qat, model)[1] == []
