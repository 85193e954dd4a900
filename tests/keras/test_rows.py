"""The report's rows say what the models themselves show."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi import KerasQuantizationWrapper, QuantizationReport, Recipe, Rule, TensorSpec, quantize_model
from qi.keras.graph import Value, flatten_model
from qi.keras.rows import describe, errors_of, original_weights
from qi.ledger import Row
from qi.quantizers import ActivationUniformInferableQuantizer
from tests.keras.models import build, samples, settle


def quantized(model: keras.Model, recipe: Any, data: Any = None) -> tuple[keras.Model, QuantizationReport]:
    return quantize_model(model, recipe, data, progress=False)


def row(report: QuantizationReport, path: str) -> Row:
    (found,) = report.find(path)
    return found


def decibels(exact: np.ndarray, other: np.ndarray) -> float:
    exact, other = exact.astype(np.float64), other.astype(np.float64)
    return float(10 * np.log10(np.sum(exact**2) / np.sum((exact - other) ** 2)))


@pytest.fixture(scope="module")
def w4a8() -> tuple[keras.Model, keras.Model, QuantizationReport, np.ndarray]:
    model = build("residual")
    data = samples(model, 64)
    return model, *quantized(model, "w4a8", data), data


def test_weight_row(w4a8: Any) -> None:
    model, qmodel, report, _ = w4a8
    found = row(report, "logits/kernel")
    before, wrapper = model.get_layer("logits").kernel.numpy(), qmodel.get_layer("logits_raw")
    assert isinstance(wrapper, KerasQuantizationWrapper)
    after = wrapper.get_quantized_weights()["kernel"]
    scale = wrapper.get_quantized_tensors()["kernel"].qparams.scale
    assert (found.kind, found.layer, found.layer_type, found.name) == ("weight", "logits", "Dense", "kernel")
    assert (found.status, found.reason, found.bits, found.method) == ("quantized", "", 4, "symmetric")
    assert (found.granularity, found.grid, found.shape) == ("per channel (axis 1)", "int4 -7..7", (6, 5))
    assert (found.scale_min, found.scale_max) == (scale.min(), scale.max())
    assert found.range_hi == pytest.approx(7 * scale.max())
    assert (found.size_before, found.size_after, found.macs) == (6 * 5 * 4, 6 * 5 // 2 + 5 * 4, 30)
    assert found.sqnr_db == pytest.approx(decibels(before, after))


def test_folded_weight_is_compared_with_its_folded_value(w4a8: Any) -> None:
    _, _, report, _ = w4a8
    found = row(report, "stem_conv/kernel")
    assert found.layer_type == "Conv2D + BatchNormalization"
    assert found.macs == 8 * 8 * 3 * 3 * 3 * 4
    assert 18 < (found.sqnr_db or 0) < 25  # of 4 bits; against the kernel before folding it would be far lower
    assert row(report, "stem_conv/bias").reason.startswith("bias: float32 here, int32")
    assert not report.find("stem_bn")  # its numbers live on in the kernel and bias


def test_activation_row(w4a8: Any) -> None:
    model, qmodel, report, data = w4a8
    found = row(report, "logits/output")
    holder = qmodel.get_layer("logits").quantizer
    exact, total = model.predict(data, verbose=0), qmodel.predict(data, verbose=0)
    assert (found.kind, found.layer_type, found.bits, found.method) == ("activation", "Dense", 8, "uniform")
    assert (found.granularity, found.grid, found.shape) == ("per tensor", "uint8 0..255", (None, 5))
    assert found.scale_min == found.scale_max == holder.parameters((1,))["scale"].item()
    assert (found.range_lo, found.range_hi) == (np.min(holder.min_range), np.max(holder.max_range))
    assert found.sqnr_db == pytest.approx(decibels(exact, holder(exact)), abs=1e-3)
    assert found.total_sqnr_db == pytest.approx(decibels(exact, total), abs=1e-3)
    assert (found.size_before, found.size_after, found.macs) == (None, None, None)


def test_input_row(w4a8: Any) -> None:
    found = row(w4a8[2], "image/input")
    assert (found.layer_type, found.status, found.shape) == ("InputLayer", "quantized", (None, 8, 8, 3))


def test_every_value_has_one_row_but_for_what_is_fused(w4a8: Any) -> None:
    paths = [found.path for found in w4a8[2].activations]
    assert len(paths) == len(set(paths))
    inner = {"a_conv/output", "a_bn/output", "join/output"}  # what comes before a fused ReLU never exists
    assert {"a_act/output", "join_act/output", "pool/output", "b_conv/output"} <= set(paths)
    assert not inner & set(paths)


def test_rows_follow_the_data() -> None:
    model = build("shared")
    paths = [found.path for found in quantized(model, "w8a8_minmax", samples(model, 48))[1].rows]
    inputs = [path for path in paths if path.endswith("/input")]
    assert paths[: len(inputs)] == inputs
    layer = [path for path in paths if path.startswith("project")]
    assert layer == ["project/kernel", "project/bias", "project/output", "project@2/output"]
    assert paths[-3:] == ["head/kernel", "head/bias", "head/output"]
    assert paths.index("project/bias") + 1 == paths.index("project/output")


@pytest.mark.parametrize(
    "layer",
    [
        layers.LSTM(4, name="memory"),
        layers.Bidirectional(layers.GRU(4), name="memory"),
        layers.RNN([layers.LSTMCell(3), layers.GRUCell(2)], name="memory"),
        keras.layers.TimeDistributed(layers.SimpleRNN(4), name="memory"),
    ],
    ids=["lstm", "two_gru", "stacked", "at_each_step"],
)
def test_what_a_recurrent_layer_keeps_within_has_a_row_that_says_so(layer: Any) -> None:
    shape = (2, 5, 3) if isinstance(layer, layers.TimeDistributed) else (5, 3)
    model = settle(keras.Sequential([keras.Input(shape, name="steps"), layer]))
    _, report = quantized(model, "w8a8", samples(model, 64))
    found = row(report, "memory/states")
    assert (found.kind, found.status) == ("activation", "float")
    assert "stay in float" in found.reason
    assert [r.path for r in report.rows if r.kind == "activation"] == ["steps/input", "memory/output", "memory/states"]
    assert not quantized(model, "w8")[1].find("memory/states")


def test_inherited_grid_is_that_of_the_source(w4a8: Any) -> None:
    source, pooled = row(w4a8[2], "join_act/output"), row(w4a8[2], "pool/output")
    assert (source.scale_min, source.range_hi) == (pooled.scale_min, pooled.range_hi)


def test_clipped_share_is_what_the_range_cuts_off() -> None:
    model = keras.Sequential([keras.Input((4,), name="x"), layers.ReLU(name="relu")])
    data = np.linspace(-1, 1, 4000, dtype=np.float32).reshape(-1, 4)
    spec = TensorSpec(bits=8, method="uniform", range="percentile", range_options={"percentile": 99.0})
    recipe = Recipe("cut", activations=spec)
    found = row(quantized(model, recipe, data)[1], "x/input")
    beyond = np.mean((data < found.range_lo) | (data > found.range_hi))
    assert 0.005 < beyond < 0.03
    assert found.clipped_share == pytest.approx(beyond, abs=0.005)


def test_fixed_range_has_no_clipped_share() -> None:
    model = build("mobile")
    report = quantized(model, "w8a8", samples(model, 32))[1]
    found = row(report, "probabilities/softmax/output")
    assert (found.clipped_share, found.scale_min, found.range_lo) == (None, 1 / 256, 0.0)
    assert row(report, "stem_relu6/output").clipped_share is not None


def test_float_activation_says_why() -> None:
    model = build("dict_io")
    report = quantized(model, "w8a8", samples(model, 32))[1]
    assert row(report, "token/input").reason == "holds int32, not real numbers"
    recipe = Recipe("some", activations=TensorSpec(bits=8), rules=(Rule("conv", activations="float"),))
    report = quantized(model, recipe, samples(model, 32))[1]
    assert "left in float by rule match='conv'" in row(report, "conv/output").reason
    assert row(quantized(model, "w8")[1], "conv/output").reason == "the recipe w8 quantizes no activations"


def test_a_layer_called_twice_multiplies_twice() -> None:
    model = build("shared")
    report = quantized(model, "w8")[1]
    assert row(report, "project/kernel").macs == 2 * 8 * 4
    assert row(report, "head/kernel").macs == 4
    assert [found.layer for found in report.activations if found.layer.startswith("project")] == [
        "project",
        "project@2",
    ]


def test_a_layer_called_on_other_shapes_counts_each_of_them() -> None:
    inputs = keras.Input((8, 8, 3))
    conv = layers.Conv2D(3, 3, padding="same", name="conv")
    model = settle(keras.Model(inputs, conv(layers.MaxPooling2D(2)(conv(inputs)))))
    assert row(quantized(model, "w8")[1], "conv/kernel").macs == (8 * 8 + 4 * 4) * 9 * 3 * 3
    inputs = keras.Input((None, 3))
    dense = layers.Dense(3, name="dense")
    model = settle(keras.Model(inputs, [dense(inputs), dense(layers.GlobalMaxPooling1D()(inputs))]))
    assert row(quantized(model, "w8")[1], "dense/kernel").macs is None


def test_sizes_count_zero_points_and_groups() -> None:
    model = keras.Sequential([keras.Input((64,)), layers.Dense(10, name="fc")])
    settle(model)
    weights = TensorSpec(bits=8, method="uniform", granularity="per_channel")
    assert row(quantized(model, Recipe("u", weights=weights))[1], "fc/kernel").size_after == 640 + 10 * (4 + 4)
    assert row(quantized(model, "w4_g32")[1], "fc/kernel").size_after == 320 + 2 * 10 * 4
    assert row(quantized(model, "w3_pt")[1], "fc/kernel").size_after == 640 * 3 // 8 + 4


def test_einsum_bias_of_two_axes_is_no_multiplication() -> None:
    report = quantized(build("tokens"), "w8")[1]
    assert row(report, "heads/bias").macs is None
    assert row(report, "heads/kernel").macs == 6 * 8 * 2 * 4


def test_random_states_are_no_weights() -> None:
    layer = layers.Dropout(0.5)
    layer.build((None, 3))
    assert layer.variables
    assert original_weights(layer) == {}


def test_describe_names_what_was_folded() -> None:
    call = flatten_model(build("residual")).calls[0]
    assert describe(call) == "Conv2D"
    call.fused.append("BatchNormalization stem_bn")
    assert describe(call) == "Conv2D + BatchNormalization"


def test_errors_are_own_and_total() -> None:
    exact = np.array([0.1, 0.7, -0.3], np.float32)
    quantizer = ActivationUniformInferableQuantizer(4, min_range=-1.0, max_range=1.0)
    full, empty = Value((None, 3), "float32"), Value((None, 0), "float32")
    none = np.zeros((2, 0), np.float32)
    found = errors_of([full, empty], [exact, none], [exact + 0.5, none], {id(full): quantizer, id(empty): quantizer})
    assert list(found) == [id(full)]
    assert found[id(full)] == pytest.approx((decibels(exact, quantizer(exact)), decibels(exact, exact + 0.5)), abs=1e-4)
