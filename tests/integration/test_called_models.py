"""Models whose call does one thing or another by a value: Keras keeps no input shapes of them, so their data tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import qi
from qi.errors import InputError
from qi.keras.data import tell_shapes
from qi.keras.trace import input_shapes

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")

pytestmark = pytest.mark.filterwarnings("ignore:quantized in place", "ignore:.* in place")


@keras.saving.register_keras_serializable("called_models")
class Branches(keras.Model):
    """A layer more for some batches."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.first, self.more, self.head = (layers.Dense(6, name=name) for name in ("first", "more", "head"))

    def call(self, x: Any) -> Any:
        x = self.first(x)
        return self.head(x) if ops.mean(x) > 0 else self.head(self.more(x))


class Batches(keras.utils.PyDataset):
    """Two batches with labels."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return X[32 * index : 32 * index + 32], np.zeros(32)


def called() -> keras.Model:
    model = Branches(name="branches")
    model(X), model(-X)
    assert model.built
    assert model._build_shapes_dict is None
    return model


def outputs(model: keras.Model) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(X, training=False))


@pytest.mark.parametrize(
    "data", [X, [X], (X, np.zeros(64)), Batches(workers=1)], ids=["array", "list", "labels", "set"]
)
def test_the_data_tell_what_a_called_model_takes(data: Any) -> None:
    model = called()
    result, report = qi.quantize_model(model, "w8a8", data, progress=False)
    assert isinstance(result, Branches)
    assert {row.path for row in report.rows if row.quantized} >= {"first/kernel", "head/kernel", "head/output"}
    assert 0 < np.abs(outputs(result) - outputs(model)).max() < 0.3
    assert model._build_shapes_dict is None


@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # of what a batch leaves out
def test_it_is_saved_calibrated_and_trained(tmp_path: Any) -> None:
    model = called()
    statistics = qi.calibrate(model, X, progress=False)
    result, _ = qi.quantize_model(model, "w8a8", statistics=statistics, progress=False)
    result.save(tmp_path / "model.keras")
    assert np.array_equal(outputs(keras.models.load_model(tmp_path / "model.keras")), outputs(result))
    trained = qi.prepare_qat(called(), "w8a8", X, progress=False)
    trained.compile("sgd", "mse", run_eagerly=True)
    trained.fit(X, np.zeros((64, 6)), verbose=0)
    assert np.array_equal(outputs(qi.convert(trained)), outputs(trained))


@pytest.mark.parametrize("data", [lambda: None, lambda: iter([X])], ids=["none", "iterator"])
def test_without_data_to_look_at_it_is_refused(data: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match=r"isn't known; do give arrays or a data set, or give its class a build\("):
        qi.quantize_model(called(), "w8a8", data(), progress=False)


def test_shapes_have_the_structure_of_the_data() -> None:
    model = called()
    tell_shapes(model, {"a": X, "b": [X[:, :2], X[:, 0]]})
    assert input_shapes(model) == {"a": (None, 6), "b": [(None, 2), (None,)]}
    unbuilt = Branches()
    tell_shapes(unbuilt, X)
    with pytest.raises(InputError, match="isn't known; do call it once on a batch"):
        input_shapes(unbuilt)
