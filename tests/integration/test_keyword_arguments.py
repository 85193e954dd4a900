"""Calls with several tensors, some by name only, and plain values beside them: layers, models, and layers within models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import qi
from qi.errors import QuantizationWarning
from qi.keras.graph import flatten_model

X = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")


@keras.saving.register_keras_serializable("keywords")
class Crossing(layers.Layer):
    """Several tensors, one and a number by name only; no build of its own."""

    def __init__(self, units: int, backend: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.backend = units, backend
        self.mine, self.theirs = layers.Dense(units), layers.Dense(units)

    def call(self, x: Any, *, context: Any, gain: float, bias: Any = None) -> Any:
        y = self.mine(x) + gain * self.theirs(context)
        if self.backend:
            y = ops.where(ops.arange(1.0 * self.units) <= x[:, :1], y, 0.0)
        return y if bias is None else y + bias

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units, "backend": self.backend}


TENSORFLOW = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="elsewhere the operator is Keras' own")


def crossed(layer: Any) -> keras.Model:
    a, b = keras.Input((6,)), keras.Input((5,))
    return keras.Model([a, b], layers.Dense(2, name="head")(layer(a, context=b, gain=0.5, bias=ops.ones((4,)))))


def check_crossed(model: keras.Model, path: Path) -> Any:
    """Every kernel quantized, and reloaded bit-equal."""
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(32, n)).astype("float32") for n in (6, 5)]
    result, report = qi.quantize_model(model, "w8a8", x, progress=False)
    kernels = [row for row in report.rows if row.name.endswith("kernel")]
    assert len(kernels) == 3
    assert all(row.quantized for row in kernels)
    expected, found = model.predict(x, verbose=0), result.predict(x, verbose=0)
    assert 10 * np.log10(np.sum(expected**2) / np.sum((expected - found) ** 2)) > 20
    result.save(path)
    np.testing.assert_array_equal(keras.models.load_model(path).predict(x, verbose=0), result.predict(x, verbose=0))
    return report


def test_calls_with_required_keywords_are_followed(tmp_path: Path) -> None:
    model = crossed(Crossing(4, name="cross"))
    report = check_crossed(model, tmp_path / "m.keras")
    assert report.find("cross/mine/output")[0].quantized
    assert not flatten_model(model).whole


class CrossingModel(keras.Model):
    """The same, as a model."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mine, self.theirs = layers.Dense(4), layers.Dense(4)

    def call(self, x: Any, *, context: Any, gain: float, bias: Any = None) -> Any:
        return self.mine(x) + gain * self.theirs(context) + bias


def test_nested_models_with_required_keywords_are_followed(tmp_path: Path) -> None:
    report = check_crossed(crossed(CrossingModel(name="cross")), tmp_path / "m.keras")
    assert report.find("cross/theirs/output")[0].quantized


class Holder(keras.Model):
    """One argument, of which a layer within takes the parts by name."""

    def __init__(self) -> None:
        super().__init__()
        self.cross, self.head = Crossing(4), layers.Dense(2)

    def call(self, inputs: Any) -> Any:
        return self.head(self.cross(inputs[0], context=inputs[1], gain=2.0))


def test_required_keywords_within_a_subclassed_model(tmp_path: Path) -> None:
    model = Holder()
    model([np.ones((2, 6), "float32"), np.ones((2, 5), "float32")])
    report = check_crossed(model, tmp_path / "m.keras")
    assert report.find("cross/mine/output")[0].quantized


@TENSORFLOW
def test_operators_of_backend_tensors_leave_a_layer_whole(tmp_path: Path) -> None:
    model = crossed(Crossing(4, backend=True, name="cross"))
    why = flatten_model(model).whole["cross"]
    assert "received 'cross' of class Crossing" in why
    assert "ValueError on symbolic tensors at 'ops.arange(1.0 * self.units) <= x[:, :1]'" in why
    check_crossed(model, tmp_path / "m.keras")


@TENSORFLOW
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # TensorFlow tries numpy first
def test_operators_of_backend_tensors_quantize_a_model_in_place() -> None:
    class Compared(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = layers.Dense(4)

        def call(self, x: Any) -> Any:
            return ops.where(ops.arange(4.0) <= x[:, :1], self.dense(x), 0.0)

    model = Compared()
    model(X)
    with pytest.warns(QuantizationWarning, match=r"at 'ops.arange\(4.0\) <= x\[:, :1\]'"):
        result, _ = qi.quantize_model(model, "w8a8", X, progress=False)
    assert result.quantized_in_place
