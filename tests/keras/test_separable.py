from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi import QuantizationReport, Recipe, Rule, TensorSpec, quantize_model
from qi.keras.fold import fold_batch_norms, split_activations
from qi.keras.graph import Graph, flatten_model
from qi.keras.layers import weight_values
from qi.keras.separable import split_separable, weight_in_rules
from qi.keras.weights import has_policy
from qi.recipes import FLOAT
from tests.keras.models import build, execute, samples, settle

IMAGE, SIGNAL = (9, 8, 3), (11, 3)


def of(layer: Any, shape: tuple[int | None, ...] = IMAGE, after: Any = None) -> keras.Model:
    """input -> layer (-> another one)"""
    inputs = keras.Input(shape, name="x")
    x = layer(inputs)
    return settle(keras.Model(inputs, x if after is None else after(x)))


def split(model: keras.Model) -> Graph:
    graph = flatten_model(model)
    fold_batch_norms(graph)
    split_activations(graph, has_policy)
    split_separable(graph)
    return graph


def custom(x: Any) -> Any:
    return keras.ops.tanh(x) * 3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2, "padding": "same"},
        {"dilation_rate": 2},
        {"dilation_rate": 2, "strides": 2, "padding": "same"},
        {"dilation_rate": 2, "padding": "same", "depth_multiplier": 3},
        {"use_bias": False, "activation": "relu"},
        {"data_format": "channels_first"},
    ],
    ids=str,
)
@pytest.mark.parametrize("rank", [1, 2])
def test_the_function_stays(rank: int, options: dict[str, Any]) -> None:
    make = layers.SeparableConv1D if rank == 1 else layers.SeparableConv2D
    model = of(make(5, 3, name="sep", **options), SIGNAL if rank == 1 else IMAGE)
    graph = split(model)
    assert [call.kind for call in graph.calls] == [f"DepthwiseConv{rank}D", f"Conv{rank}D"]
    x = samples(model, 4)
    np.testing.assert_allclose(execute(graph, x), np.asarray(model(x)), rtol=1e-5, atol=1e-5)
    middle = graph.calls[0].outputs[0]
    assert middle.shape == tuple(graph.calls[0].op.compute_output_shape(model.input.shape))
    assert middle.producer is graph.calls[0]
    assert graph.outputs.producer is graph.calls[1]


def test_an_argument_given_by_name_and_open_sizes_are_fine() -> None:
    inputs = keras.Input((None, None, 3))
    model = settle(keras.Model(inputs, layers.SeparableConv2D(5, 3, name="sep")(inputs=inputs)))
    graph = split(model)
    assert graph.calls[0].outputs[0].shape == (None, None, None, 3)
    x = samples(model, 2)
    np.testing.assert_allclose(execute(graph, x), np.asarray(model(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["mixed_float16", "float64"])
def test_types_stay(dtype: str) -> None:
    model = of(layers.SeparableConv2D(5, 3, dtype=dtype, name="sep"))
    graph = split(model)
    width = dtype.removeprefix("mixed_")
    assert [call.outputs[0].dtype for call in graph.calls] == [width, width]
    x = samples(model, 2)
    found, expected = execute(graph, x), np.asarray(model(x))
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-2)


def test_losses_constraints_and_trainability_stay() -> None:
    options: dict[str, Any] = {
        "depthwise_regularizer": keras.regularizers.L2(0.1),
        "pointwise_regularizer": keras.regularizers.L1(0.2),
        "bias_regularizer": keras.regularizers.L2(0.3),
        "activity_regularizer": keras.regularizers.L2(0.4),
        "depthwise_constraint": "non_neg",
        "pointwise_constraint": "unit_norm",
        "bias_constraint": "non_neg",
    }
    model = of(layers.SeparableConv2D(5, 3, trainable=False, name="sep", **options))
    x = samples(model, 4)
    model(x)
    given = model.get_layer("sep")
    assert given.losses
    graph = split(model)
    execute(graph, x)
    depthwise, pointwise = (call.op for call in graph.calls)
    np.testing.assert_allclose(sum(depthwise.losses) + sum(pointwise.losses), sum(given.losses), rtol=1e-5)
    assert (depthwise.trainable, pointwise.trainable) == (False, False)
    constraints = (depthwise.depthwise_constraint, pointwise.kernel_constraint, pointwise.bias_constraint)
    assert [type(constraint).__name__ for constraint in constraints] == ["NonNeg", "UnitNorm", "NonNeg"]


@pytest.mark.parametrize(
    "activation",
    ["gelu", "softmax", custom, layers.LeakyReLU(negative_slope=0.3)],
    ids=["gelu", "softmax", "custom", "leaky"],
)
def test_an_activation_comes_last(activation: Any) -> None:
    model = of(layers.SeparableConv2D(5, 3, activation=activation, name="sep"))
    graph = split(model)
    sites = [call.site for call in graph.calls]
    assert sites[:2] == ["sep/depthwise", "sep/pointwise"]
    assert len(sites) == 3
    assert len({id(call.split_from) for call in graph.calls}) == 1
    x = samples(model, 4)
    np.testing.assert_allclose(execute(graph, x), np.asarray(model(x)), rtol=1e-5, atol=1e-5)


def test_a_normalization_behind_folds_into_the_pointwise_part() -> None:
    model = of(layers.SeparableConv2D(5, 3, use_bias=False, name="sep"), after=layers.BatchNormalization(name="bn"))
    graph = split(model)
    assert [(call.kind, call.fused) for call in graph.calls] == [
        ("DepthwiseConv2D", []),
        ("Conv2D", ["BatchNormalization bn"]),
    ]
    assert set(weight_values(graph.calls[1].op)) == {"kernel", "bias"}
    assert graph.outputs.name == "bn"
    x = samples(model, 4)
    np.testing.assert_allclose(execute(graph, x), np.asarray(model(x)), rtol=1e-5, atol=1e-5)


def test_a_shared_layer_is_split_once_for_all_its_calls() -> None:
    inputs = keras.Input(IMAGE)
    sep = layers.SeparableConv2D(3, 3, padding="same", name="sep")
    model = settle(keras.Model(inputs, sep(layers.MaxPooling2D(2)(sep(inputs)))))
    graph = split(model)
    sites = [call.site for call in graph.calls]
    assert sites[:2] + sites[3:] == ["sep/depthwise", "sep/pointwise", "sep/depthwise@2", "sep/pointwise@2"]
    assert graph.calls[0].op is graph.calls[3].op
    assert graph.calls[1].op is graph.calls[4].op
    x = samples(model, 4)
    np.testing.assert_allclose(execute(graph, x), np.asarray(model(x)), rtol=1e-5, atol=1e-5)


def test_the_given_model_is_untouched() -> None:
    model = build("convolutions_2d")
    config, weights, operations = model.get_config(), model.get_weights(), {id(op) for op in model.operations}
    graph = split(model)
    assert model.get_config() == config
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    parts = [call.op for call in graph.calls if call.path.startswith("separable/")]
    assert len(parts) == 2
    assert not {id(part) for part in parts} & operations


def test_classes_of_users_and_what_can_t_be_rebuilt_stay() -> None:
    class Loud(layers.SeparableConv2D):
        def call(self, x: Any) -> Any:
            return 2 * super().call(x)

    class Twos(keras.initializers.Initializer):
        def __call__(self, shape: Any, dtype: Any = None) -> Any:
            return keras.ops.full(shape, 2.0, dtype)

    for layer in (Loud(5, 3), layers.SeparableConv2D(5, 3, depthwise_initializer=Twos())):
        graph = split(of(layer))
        assert [call.op for call in graph.calls] == [layer]


def test_rules_know_the_weights_by_their_given_names() -> None:
    first, second = split(of(layers.SeparableConv2D(5, 3, name="sep"))).calls
    assert weight_in_rules(first, "kernel") == ("sep", "SeparableConv2D", "depthwise_kernel")
    assert weight_in_rules(second, "kernel") == ("sep", "SeparableConv2D", "pointwise_kernel")
    assert weight_in_rules(second, "bias") == ("sep", "SeparableConv2D", "bias")
    dense, gelu = split(of(layers.Dense(5, activation="gelu", name="dense"))).calls
    assert weight_in_rules(dense, "kernel") == ("dense", "Dense", "kernel")
    assert weight_in_rules(gelu, "x") == ("dense/gelu", "Activation", "x")


# Quantized models -----------------------------------------------------------------------------------------------------


def nested() -> keras.Model:
    """A separable convolution with a normalization and a clamp within a nested model."""
    inner = [
        keras.Input(IMAGE),
        layers.SeparableConv2D(5, 3, use_bias=False, name="sep"),
        layers.BatchNormalization(name="bn"),
        layers.ReLU(name="relu"),
    ]
    inputs = keras.Input(IMAGE, name="image")
    x = layers.GlobalAveragePooling2D(name="gap")(keras.Sequential(inner, name="block")(inputs))
    return settle(keras.Model(inputs, layers.Dense(2, name="head")(x)))


def quantized(model: keras.Model, recipe: Any, *rules: Rule) -> tuple[keras.Model, QuantizationReport]:
    base = Recipe("r", weights=TensorSpec(bits=8, granularity="per_channel"), activations=recipe, rules=rules)
    return quantize_model(model, base, samples(model, 64) if recipe else None, progress=False)


W8A8 = TensorSpec(bits=8, method="uniform")


def test_the_tensor_in_between_has_a_quantizer_and_a_row() -> None:
    model = nested()
    qmodel, report = quantized(model, W8A8)
    rows = [row for row in report.rows if row.layer.startswith("block/sep")]
    assert sorted((row.path, row.layer_type, row.status) for row in rows) == [
        ("block/sep/depthwise/kernel", "DepthwiseConv2D", "quantized"),
        ("block/sep/depthwise/output", "DepthwiseConv2D", "quantized"),
        ("block/sep/pointwise/bias", "Conv2D + BatchNormalization", "float"),
        ("block/sep/pointwise/kernel", "Conv2D + BatchNormalization", "quantized"),
    ]
    assert [row.macs for row in report.find("block/sep/*/kernel")] == [7 * 6 * 9 * 3, 7 * 6 * 3 * 5]
    assert [row.granularity for row in report.find("block/sep/*/kernel")] == [
        "per channel (axis 2)",
        "per channel (axis 3)",
    ]
    middle = report.find("block/sep/depthwise/output")[0]
    x = samples(model, 64)
    values = keras.Model(qmodel.inputs, qmodel.get_layer("sep_depthwise_quant").output).predict(x, verbose=0)
    codes = values / np.float32(middle.scale_min)
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)
    assert 100 < len(np.unique(values)) <= 256
    assert float(np.abs(qmodel.predict(x, verbose=0) - model.predict(x, verbose=0)).max()) < 0.05


@pytest.mark.parametrize("names", [{"match": "block/sep"}, {"match": "*", "layer_type": "SeparableConv2D"}])
def test_a_rule_about_the_given_layer_decides_both_parts(names: dict[str, str]) -> None:
    report = quantized(nested(), W8A8, Rule(**names, weights=FLOAT, activations=FLOAT))[1]
    rows = report.find("block/sep/*")
    assert len(rows) == 4
    assert {row.status for row in rows} == {"float"}
    assert sum("by rule" in row.reason for row in rows) == 3  # all but the bias
    assert report.unused_rules == ()


def test_a_rule_about_activations_reaches_the_middle_and_the_end() -> None:
    model = of(layers.SeparableConv1D(5, 3, activation="gelu", name="sep"), SIGNAL)
    report = quantized(model, W8A8, Rule("sep", activations=TensorSpec(bits=7, method="uniform")))[1]
    assert {row.path: row.bits for row in report.activations} == {
        "x/input": 8,
        "sep/depthwise/output": 7,
        "sep/pointwise/output": 7,
        "sep/gelu/output": 7,
    }


@pytest.mark.parametrize("activations", [W8A8, None], ids=["split", "whole"])
def test_a_rule_names_one_kernel_whether_the_layer_is_split_or_not(activations: Any) -> None:
    four = TensorSpec(bits=4, granularity="per_channel")
    report = quantized(nested(), activations, Rule("block/sep", weight="depthwise_kernel", weights=four))[1]
    kernels = [row for row in report.weights if row.layer.startswith("block/sep") and row.name.endswith("kernel")]
    assert {row.shape: row.bits for row in kernels} == {(3, 3, 3, 1): 4, (1, 1, 3, 5): 8}
    assert report.unused_rules == ()
    split_up = {row.layer for row in kernels} == {"block/sep/depthwise", "block/sep/pointwise"}
    assert split_up == (activations is not None)


def test_an_output_keeps_its_name_and_the_model_reloads(tmp_path: Any) -> None:
    model = of(layers.SeparableConv2D(5, 3, activation="relu", name="sep"))
    qmodel = quantized(model, W8A8)[0]
    assert qmodel.output_names == model.output_names == ["sep"]
    qmodel.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    x = samples(model, 4)
    np.testing.assert_array_equal(again.predict(x, verbose=0), qmodel.predict(x, verbose=0))
