from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import qi
from qi.errors import InputError
from qi.keras.inspect import Inspection, LayerInfo, inspect_model


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """A nested model, a shared layer, dropout, a normalization."""
    keras.utils.set_random_seed(0)
    inner = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.Flatten(name="flat"),
        ],
        name="backbone",
    )
    image = keras.Input((6, 6, 2), name="image")
    shared = keras.layers.Dense(64, name="shared")
    x = shared(keras.layers.Dropout(0.5, name="drop")(inner(image)))
    return keras.Model(image, keras.layers.Dense(3, name="head")(shared(x)), name="whole")


@pytest.fixture(scope="module")
def quantized(model: keras.Model) -> tuple[keras.Model, qi.QuantizationReport]:
    x = np.random.default_rng(0).normal(size=(64, 6, 6, 2)).astype("float32")
    return qi.quantize_model(model, "w4a8", x, progress=False)


def layer(found: Inspection, path: str) -> LayerInfo:
    (info,) = [layer for layer in found.layers if layer.path == path]
    return info


def test_a_float_model_is_listed_whole(model: keras.Model) -> None:
    found = inspect_model(model)
    paths = [layer.path for layer in found.layers]
    assert paths == ["image", *(f"backbone/{name}" for name in ("conv", "bn", "flat")), "drop", "shared", "head"]
    assert found.parameters == model.count_params()
    assert found.float_bytes == found.stored_bytes == 4 * model.count_params()
    assert layer(found, "backbone/conv").outputs == ((None, 4, 4, 4),)
    assert [tensor.shape for tensor in layer(found, "shared").tensors] == [(64, 64), (64,)]
    assert layer(found, "drop").tensors == ()  # the state of a random generator is no weight
    assert not found.is_quantized
    assert len(found.unquantized) == len(found.weights) == 10
    assert "nothing is quantized" in str(found)


def test_a_quantized_model_agrees_with_its_report(quantized: tuple[keras.Model, qi.QuantizationReport]) -> None:
    model, report = quantized
    found = inspect_model(model)
    totals = report.totals
    assert (found.float_bytes, found.stored_bytes) == (totals.bytes_before, totals.bytes_after)
    codes = [weight for weight in found.weights if weight.quantized]
    rows = [row for row in report.weights if row.quantized]
    assert len(codes) == len(rows) == 3
    for weight, row in zip(codes, rows, strict=True):
        assert (weight.bits, weight.shape, weight.method) == (4, row.shape, row.method)
        assert weight.granularity == row.granularity
        assert (weight.scale_min, weight.scale_max) == (row.scale_min, row.scale_max)
        assert weight.stored_bytes == row.size_after
    assert found.quantized_activations > 3
    assert {name.rpartition("/")[2] for name in found.unquantized} == {"bias"}


def test_a_reloaded_model_looks_the_same(quantized: tuple[keras.Model, qi.QuantizationReport], tmp_path: Path) -> None:
    path = qi.save_model(quantized[0], tmp_path / "q.keras")
    assert inspect_model(qi.load_model(path)) == inspect_model(quantized[0])


def test_a_wrapper_tells_its_outputs_and_whether_it_is_frozen() -> None:
    quantizers = {"kernel": qi.WeightsSymmetricInferableQuantizer(2, threshold=1.0)}
    outputs = [qi.ActivationUniformInferableQuantizer(8, min_range=0.0, max_range=6.0)]
    dispatcher = qi.KerasNodeQuantizationDispatcher(quantizers, outputs)
    wrapper = qi.KerasQuantizationWrapper(keras.layers.Dense(4, name="fc"), dispatcher)
    model = keras.Sequential([keras.Input((8,)), wrapper])

    info = inspect_model(model).layers[-1]
    assert (info.path, info.type, info.frozen, info.parameters) == ("quant_fc", "Dense", False, 36)
    kernel, bias, output = info.tensors
    assert (kernel.bits, kernel.float_bytes, kernel.stored_bytes) == (2, 128, 132)  # floats and a scale
    assert (bias.bits, bias.stored_bytes) == (None, 16)
    assert (output.name, output.kind, output.bits, output.shape) == ("output", "activation", 8, None)

    wrapper.freeze()
    info = inspect_model(model).layers[-1]
    assert info.frozen
    assert info.tensors[0].stored_bytes == 12  # 32 codes of 2 bits and a scale


def test_quantizers_inside_other_layers_are_found() -> None:
    class Twice(keras.layers.Layer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            quantizer = qi.WeightsPOTInferableQuantizer(8, threshold=1.0)
            dispatcher = qi.KerasNodeQuantizationDispatcher(quantizer)
            self.inner = qi.KerasQuantizationWrapper(keras.layers.Dense(4, name="fc"), dispatcher)

        def build(self, input_shape: Any) -> None:
            self.gain = self.add_weight(name="gain", shape=(4,))
            self.inner.build(input_shape)

        def call(self, inputs: Any) -> Any:
            return self.gain * self.inner(self.inner(inputs))

    found = inspect_model(keras.Sequential([keras.Input((4,)), Twice(name="twice")]))
    tensors = {f"{layer.path}/{tensor.name}": tensor.bits for layer in found.layers for tensor in layer.tensors}
    assert tensors == {"twice/gain": None, "twice/quant_fc/kernel": 8, "twice/quant_fc/bias": None}
    assert found.parameters == 4 + 20


def test_a_model_with_a_call_of_its_own_is_listed_layer_by_layer() -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__(name="own")
            self.first = keras.layers.Dense(3, name="first")
            self.second = qi.KerasQuantizationWrapper(
                keras.layers.Dense(2, name="second"),
                qi.KerasNodeQuantizationDispatcher(qi.WeightsSymmetricInferableQuantizer(8, threshold=1.0)),
            )

        def call(self, inputs: Any) -> Any:
            return self.second(self.first(inputs))

    model = Own()
    model(np.ones((1, 4), "float32"))
    found = inspect_model(model)
    shapes = [("input", ((None, 4),)), ("first", ((None, 3),)), ("quant_second", ((None, 2),))]
    assert [(layer.path, layer.outputs) for layer in found.layers] == shapes
    assert found.parameters == 15 + 8
    assert [weight.bits for weight in found.weights] == [None, None, 8, None]


def test_sizes_follow_the_dtype() -> None:
    found = inspect_model(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, dtype="bfloat16")]))
    assert [(weight.dtype, weight.float_bytes) for weight in found.weights] == [("bfloat16", 16), ("bfloat16", 4)]


def test_it_prints_as_a_table_and_goes_to_json(quantized: tuple[keras.Model, qi.QuantizationReport]) -> None:
    found = inspect_model(quantized[0])
    assert {len(row) for row in found.rows()} == {len(found.header())}
    text = str(found)
    assert text.startswith(found.summary())
    assert "4 bits symmetric, per channel (axis 3)" in text
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["quantized_weights"] == 3
    assert read["layers"][0] == {
        "path": "image", "type": "InputLayer", "outputs": [[None, 6, 6, 2]], "parameters": 0, "frozen": None, "tensors": [],
    }  # fmt: skip


def test_what_is_no_built_model_is_refused() -> None:
    with pytest.raises(InputError, match="expected a Keras model; received 3"):
        inspect_model(3)
    with pytest.raises(InputError, match="expected a built model"):
        inspect_model(keras.Sequential([keras.layers.Dense(2)]))
