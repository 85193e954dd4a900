"""From fake quantization to a runtime's arithmetic and back, on the graph."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi.keras.exact import ExactDecode, ExactGrid, ExactSums
from qi.keras.exact_graph import make_exact
from qi.keras.exact_plain import exact_target, plain
from qi.keras.exact_steps import EXACT_TARGETS
from qi.keras.graph import flatten_model
from qi.keras.holder import KerasActivationQuantizationHolder
from qi.keras.wrapper import KerasQuantizationWrapper
from tests.keras.models import samples, settle

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")


def branched() -> keras.Model:
    """Two outputs, one of them inside; a layer called twice; a function that no runtime does in integers."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="x")
    shared = layers.Dense(6, activation="relu", name="shared")
    hidden = shared(shared(inputs))
    odd = keras.ops.softplus(hidden)
    total = layers.Add(name="total")([hidden, odd])
    return keras.Model(inputs, [layers.Dense(2, name="out")(total), hidden], name="branched")


def quantized(model: keras.Model) -> keras.Model:
    qmodel, _ = qi.quantize_model(model, "w8a8", X, progress=False)
    return qmodel


def test_the_way_back_gives_the_same_operations() -> None:
    qmodel = quantized(branched())
    exact = make_exact(qmodel, "litert")
    graph = flatten_model(exact)
    assert exact_target(graph) == "litert"
    assert exact_target(flatten_model(qmodel)) is None
    before, after = flatten_model(qmodel), plain(graph)
    assert [call.kind for call in after.calls] == [call.kind for call in before.calls]
    assert [call.path for call in after.calls] == [call.path for call in before.calls]
    assert not any(isinstance(call.op, (ExactDecode, ExactGrid, ExactSums)) for call in after.calls)


def test_layers_are_shared_where_they_were() -> None:
    exact = make_exact(quantized(branched()), "litert")
    sums = [layer for layer in exact.layers if isinstance(layer, ExactSums)]
    assert len(sums) == 2
    assert sorted(len(layer._inbound_nodes) for layer in sums) == [1, 2]


def test_what_is_no_integer_operation_takes_real_numbers() -> None:
    exact = make_exact(quantized(branched()), "litert")
    kinds = [call.kind for call in flatten_model(exact).calls]
    assert kinds.index("ExactDecode") < kinds.index("Softplus") < kinds.index("ExactGrid", kinds.index("Softplus"))
    found, expected = exact.predict(X, verbose=0), qi.emulate(exact, X, "litert", progress=False)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_outputs_keep_their_names_and_structure() -> None:
    model = branched()
    exact = make_exact(quantized(model), "litert")
    assert exact.output_names == quantized(model).output_names
    assert len(exact.predict(X, verbose=0)) == 2


def test_weights_alone_become_dynamic() -> None:
    qmodel, _ = qi.quantize_model(branched(), "w8", progress=False, exact="litert")
    kinds = {type(layer).__name__ for layer in qmodel.layers}
    assert "ExactRows" in kinds
    assert not kinds & {"ExactGrid", "ExactSums"}
    assert exact_target(flatten_model(qmodel)) == "litert"
    assert qmodel.output_names == quantized(branched()).output_names
    found, expected = qmodel.predict(X, verbose=0), qi.emulate(qmodel, X, "litert", progress=False)
    np.testing.assert_array_equal(found[1], expected[1])  # the other is behind softplus, in real numbers


def test_holders_and_wrappers_are_found_inside() -> None:
    """By callbacks and logs, which look for them among a model's layers."""
    exact = make_exact(quantized(branched()), "litert")
    found = list(exact._flatten_layers())
    assert sum(isinstance(layer, KerasQuantizationWrapper) for layer in found) == 2
    assert sum(isinstance(layer, KerasActivationQuantizationHolder) for layer in found) >= 5


@pytest.mark.parametrize("target", ["litert", "onnxruntime", "reference"])
@pytest.mark.parametrize("kind", ["separable", "convolutions"])
def test_sequences_are_convolved_twice(kind: str, target: str, tmp_path: Path) -> None:
    """Between images of height 1, whose reshapes cancel each other out and take the value between them away."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 12, 4)).astype("float32")
    inputs = keras.Input((12, 4))
    if kind == "separable":
        y = layers.SeparableConv1D(5, 3, depth_multiplier=2, activation="relu")(inputs)
    else:
        y = layers.Conv1D(3, 2, padding="same")(layers.Conv1D(5, 3, padding="causal", activation="relu")(inputs))
    qmodel, _ = qi.quantize_model(keras.Model(inputs, y), "w8a8", x, progress=False, exact=target)
    assert sum(isinstance(layer, ExactSums) for layer in qmodel.layers) == 2
    np.testing.assert_array_equal(qmodel.predict(x, verbose=0), qi.emulate(qmodel, x, target, progress=False))
    suffix = {"litert": "m.tflite", "onnxruntime": "m.onnx"}.get(target)
    if suffix is not None:
        assert qi.export(qmodel, tmp_path / suffix, samples=x, strict=True, latency=False).exact


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("target", EXACT_TARGETS)
def test_an_activation_comes_after_sums_in_two_parts(activation: str, target: str) -> None:
    x = np.random.default_rng(0).normal(size=(32, 4, 4, 80)).astype(np.float32) * 8
    keras.utils.set_random_seed(0)
    wide = keras.layers.Dense(5, activation=activation, kernel_initializer="random_normal")
    convolution = keras.layers.Conv2D(4, 3, padding="same", activation=activation, kernel_initializer="random_normal")
    model = keras.Sequential([keras.Input((4, 4, 80)), convolution, keras.layers.Flatten(), wide])
    qmodel, report = qi.quantize_model(model, "w8a8", x, exact=target, progress=False)
    found = qmodel.predict(x, verbose=0)
    assert np.unique(found).size > 5
    np.testing.assert_array_equal(found, qi.emulate(qmodel, x, target, progress=False))
    assert [row.layer for row in report.rows] == [
        row.layer for row in qi.quantize_model(model, "w8a8", x, progress=False)[1].rows
    ]
    qat = qi.prepare_qat(model, "w8a8", x, exact=target, progress=False)
    qat.compile("sgd", "mse")
    qat.fit(x, np.zeros((32, 5), np.float32), verbose=0)
    converted = qi.convert(qat).predict(x, verbose=0)
    np.testing.assert_array_equal(converted, qat.predict(x, verbose=0))


@pytest.mark.parametrize(("recipe", "target"), [("w8a8", "reference"), ("w4a8", "reference"), ("w4a8", "litert")])
def test_a_relu_after_sums_in_fixed_point_comes_after_their_bias(recipe: str, target: str) -> None:
    """A channel with a bias of many steps; in training as well."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 7)).astype(np.float32)
    dense = layers.Dense(2, activation="relu")
    model = keras.Sequential([keras.Input((7,)), dense])
    kernel, _ = dense.get_weights()
    dense.set_weights([kernel * np.float32([1, 1e-4]), np.float32([0, 1])])
    qmodel, _ = qi.quantize_model(model, recipe, x, exact=target, progress=False)
    np.testing.assert_array_equal(qmodel.predict(x, verbose=0), qi.emulate(qmodel, x, target, progress=False))
    qat = qi.prepare_qat(model, recipe, x, exact=target, progress=False)
    found = qi.convert(qat)
    np.testing.assert_array_equal(found.predict(x, verbose=0), qat.predict(x, verbose=0))


def volumes_pooled() -> keras.Model:
    """A pool of volumes, which the targets do as one of images."""
    x = keras.Input((4, 4, 4, 2))
    y = layers.MaxPooling3D(2, strides=1)(layers.AveragePooling3D(2)(layers.Dense(3)(x)))
    return settle(keras.Model(x, layers.Dense(2)(y)))


@pytest.mark.parametrize("target", EXACT_TARGETS)
def test_pools_of_volumes_are_exact_or_refused(target: str) -> None:
    model = volumes_pooled()
    x = samples(model, 32)
    if target == "onnxruntime":  # which adds real numbers, in the order of the image
        with pytest.raises(qi.UnsupportedError, match="'avg_pool2d' for which exact models have no formula"):
            qi.quantize_model(model, "w8a8", x, progress=False, exact=target)
        return
    exact, _ = qi.quantize_model(model, "w8a8", x, progress=False, exact=target)
    np.testing.assert_array_equal(exact(x, training=False), qi.emulate(exact, x, target, progress=False))


@pytest.mark.parametrize(
    "layer",
    [
        layers.GlobalAveragePooling3D(),
        layers.AdaptiveAveragePooling3D(2),
        layers.TimeDistributed(layers.AveragePooling2D(2)),
        layers.TimeDistributed(layers.GlobalAveragePooling2D()),
        layers.Conv3D(2, 2),
    ],
    ids=lambda layer: f"{type(layer).__name__}_{type(getattr(layer, 'layer', layer)).__name__}",
)
def test_layers_that_become_others_have_no_exact_form(layer: keras.Layer) -> None:
    model = settle(keras.Sequential([keras.Input((4, 4, 4, 2)), layers.Dense(2), layer, layers.Dense(2)]))
    with pytest.raises(qi.UnsupportedError, match="for which exact models have no formula"):
        qi.quantize_model(model, "w8a8", samples(model, 16), progress=False, exact="litert")
