from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi.errors import InputError
from qi.keras.fold import activation_name, fold_batch_norms, split_activations
from qi.keras.graph import Graph, flatten_model
from qi.keras.layers import weight_values
from qi.keras.weights import has_policy
from tests.keras.models import MODELS, execute, given, samples, settle

LINEAR = {
    "Dense": ((5,), lambda **o: layers.Dense(4, **o)),
    "Dense without bias": ((5,), lambda **o: layers.Dense(4, use_bias=False, **o)),
    "Dense on steps": ((3, 5), lambda **o: layers.Dense(4, **o)),
    "Conv1D causal": ((7, 3), lambda **o: layers.Conv1D(4, 3, padding="causal", dilation_rate=2, **o)),
    "Conv2D": ((6, 6, 4), lambda **o: layers.Conv2D(6, 3, strides=2, **o)),
    "Conv2D grouped": ((6, 6, 4), lambda **o: layers.Conv2D(6, 3, groups=2, use_bias=False, **o)),
    "Conv3D": ((4, 4, 4, 2), lambda **o: layers.Conv3D(3, 2, **o)),
    "DepthwiseConv1D": ((7, 3), lambda **o: layers.DepthwiseConv1D(3, depth_multiplier=2, **o)),
    "DepthwiseConv2D": ((6, 6, 3), lambda **o: layers.DepthwiseConv2D(3, depth_multiplier=2, **o)),
    "SeparableConv1D": ((7, 3), lambda **o: layers.SeparableConv1D(4, 3, depth_multiplier=2, **o)),
    "SeparableConv2D": ((6, 6, 3), lambda **o: layers.SeparableConv2D(4, 3, use_bias=False, **o)),
    "Conv1DTranspose": ((5, 3), lambda **o: layers.Conv1DTranspose(4, 3, strides=2, **o)),
    "Conv2DTranspose": ((4, 4, 3), lambda **o: layers.Conv2DTranspose(5, 3, strides=2, use_bias=False, **o)),
    "Conv3DTranspose": ((3, 3, 3, 2), lambda **o: layers.Conv3DTranspose(3, 2, **o)),
    "EinsumDense": ((3, 5), lambda **o: layers.EinsumDense("abc,cd->abd", (3, 4), **o)),
    "EinsumDense ellipsis": ((3, 5), lambda **o: layers.EinsumDense("...x,xy->...y", 4, bias_axes="y", **o)),
    "EinsumDense transposed": ((3, 5), lambda **o: layers.EinsumDense("abc,dc->abd", (3, 4), bias_axes="d", **o)),
    "EinsumDense heads": ((3, 5), lambda **o: layers.EinsumDense("abc,cde->abde", (3, 2, 4), bias_axes="de", **o)),
}


def normalized(layer: Any, shape: tuple[int, ...], dtype: str = "float32", **options: Any) -> keras.Model:
    """input -> layer -> normalization"""
    inputs = keras.Input(shape, dtype=dtype)
    outputs = layers.BatchNormalization(dtype=dtype, name="norm", **options)(layer(inputs))
    return settle(keras.Model(inputs, outputs))


def folded(model: keras.Model) -> tuple[Graph, dict[str, str]]:
    graph = flatten_model(model)
    return graph, fold_batch_norms(graph)


def kinds(graph: Graph) -> list[str]:
    return [call.kind for call in graph.calls]


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("options", [{}, {"center": False, "scale": False}], ids=["full", "bare"])
def test_a_fold_is_exact(name: str, options: dict[str, bool]) -> None:
    shape, make = LINEAR[name]
    model = normalized(make(dtype="float64", name="layer"), shape, "float64", **options)
    graph, kept = folded(model)
    assert kept == {}
    assert [(call.path, call.fused) for call in graph.calls] == [("layer", ["BatchNormalization norm"])]
    assert weight_values(graph.calls[0].op)["bias"].dtype == np.float64
    x = samples(model, 4)
    expected, found = np.asarray(model(x)), execute(graph, x)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("scale", "center"), [(True, False), (False, True)])
def test_a_normalization_may_lack_scale_or_center(scale: bool, center: bool) -> None:
    model = normalized(layers.Conv2D(3, 2, dtype="float64"), (4, 4, 2), "float64", scale=scale, center=center)
    graph, _ = folded(model)
    x = samples(model, 4)
    np.testing.assert_allclose(execute(graph, x), np.asarray(model(x)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        # Five filters on four places: with as many of both, Keras adds an eager layer's bias along the last axis.
        lambda **o: layers.Conv2D(5, 3, **o),
        lambda **o: layers.DepthwiseConv2D(3, depth_multiplier=2, **o),
        lambda **o: layers.SeparableConv2D(5, 3, **o),
        lambda **o: layers.Conv2DTranspose(5, 3, **o),
    ],
    ids=["Conv2D", "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose"],
)
def test_channels_may_come_first(make: Any) -> None:
    model = normalized(make(data_format="channels_first"), (3, 6, 6), axis=1)
    graph, kept = folded(model)
    assert kept == {}
    x = samples(model, 4)
    np.testing.assert_allclose(execute(graph, x), np.asarray(model(x)), rtol=2e-5, atol=2e-5)
    wrong, kept = folded(normalized(make(data_format="channels_first"), (3, 6, 6), axis=-1))
    assert len(wrong.calls) == 2
    assert "it normalizes axis" in kept["norm"]


@pytest.mark.parametrize("name", MODELS)
def test_passes_leave_the_function_of_every_model(name: str) -> None:
    model = given(name)
    x = samples(model, 4)
    graph = flatten_model(model)
    fold_batch_norms(graph)
    split_activations(graph, has_policy)
    expected, found = model(x, training=False), execute(graph, x)
    for a, b in zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True):
        np.testing.assert_allclose(b, np.asarray(a), rtol=1e-5, atol=1e-5 * float(np.abs(a).max()))


@pytest.mark.parametrize("name", ["shared", "unfoldable", "activations", "dict_io"])
def test_the_given_model_is_untouched(name: str) -> None:
    model = given(name)
    config, weights = model.get_config(), [np.array(w) for w in model.get_weights()]
    operations = {id(op) for op in model.operations}
    graph = flatten_model(model)
    fold_batch_norms(graph)
    split_activations(graph, has_policy)
    assert model.get_config() == config
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    for call in graph.calls:
        assert not call.fused or id(call.op) not in operations


def test_the_output_keeps_its_name() -> None:
    graph, _ = folded(normalized(layers.Dense(3, name="layer"), (2,)))
    assert graph.outputs.name == "norm"
    assert graph.outputs.producer.path == "layer"


def test_a_pair_that_is_always_called_together_is_folded_once() -> None:
    graph, kept = folded(given("shared"))
    assert kept == {}
    calls = [call for call in graph.calls if call.path == "tower/dense"]
    assert len(calls) == 2
    assert calls[0].op is calls[1].op
    assert "BatchNormalization" not in kinds(graph)


def test_one_normalization_after_the_other_folds_too() -> None:
    inputs = keras.Input((3,))
    x = layers.BatchNormalization(name="a")(layers.Dense(4, name="layer")(inputs))
    model = settle(keras.Model(inputs, layers.BatchNormalization(name="b")(x)))
    graph, _ = folded(model)
    assert graph.calls[0].fused == ["BatchNormalization a", "BatchNormalization b"]
    x = samples(model)
    np.testing.assert_allclose(execute(graph, x), np.asarray(model(x)), rtol=1e-5, atol=1e-5)


def test_a_normalization_before_a_clamp_folds_with_it_behind() -> None:
    graph, _ = folded(given("mobile"))
    assert kinds(graph)[:3] == ["Conv2D", "ReLU", "Conv2D"]


def test_each_normalization_that_stays_says_why() -> None:
    graph, kept = folded(given("unfoldable"))
    assert kept == {
        "on_input": "it follows the model's input, into which it can't be folded",
        "after_relu": "it follows the activation 'relu' of 'conv'",
        "beside": "the output of 'twice_used' is used elsewhere too",
        "after_add": "it follows Add 'join', into which it can't be folded",
        "other_axis": "it normalizes axis 1, not the channels of 'last'",
    }
    assert kinds(graph).count("BatchNormalization") == 5


def test_a_layer_that_is_also_an_output_takes_no_fold() -> None:
    inputs = keras.Input((3,))
    x = layers.Dense(3, name="layer")(inputs)
    _, kept = folded(keras.Model(inputs, [x, layers.BatchNormalization(name="norm")(x)]))
    assert kept == {"norm": "the output of 'layer' is used elsewhere too"}


def test_a_layer_that_is_called_without_the_normalization_takes_no_fold() -> None:
    a, b = keras.Input((3,)), keras.Input((3,))
    dense, norm = layers.Dense(3, name="layer"), layers.BatchNormalization(name="norm")
    _, kept = folded(keras.Model([a, b], [norm(dense(a)), dense(b)]))
    assert kept == {"norm": "it or 'layer' is called without the other elsewhere"}
    _, kept = folded(keras.Model([a, b], [norm(dense(a)), norm(b)]))
    assert kept == {"norm": "it or 'layer' is called without the other elsewhere"}


def test_an_equation_without_output_channels_takes_no_fold() -> None:
    layer = layers.EinsumDense("abc,bd->adc", (4, 5), name="layer")
    _, kept = folded(normalized(layer, (3, 5)))
    assert kept == {"norm": "it follows EinsumDense 'layer', into which it can't be folded"}


def test_a_class_of_the_users_own_takes_no_fold() -> None:
    class Conv2D(layers.Conv2D):
        def call(self, x: Any) -> Any:
            return super().call(x) * 2

    model = normalized(Conv2D(3, 2, name="layer"), (4, 4, 2))
    graph, kept = folded(model)
    assert "it follows Conv2D 'layer'" in kept["norm"]
    assert len(graph.calls) == 2


def test_a_layer_that_can_t_be_rebuilt_takes_no_fold() -> None:
    class Twos(keras.initializers.Initializer):
        def __call__(self, shape: Any, dtype: Any = None) -> Any:
            return keras.ops.full(shape, 2.0, dtype)

    graph, kept = folded(normalized(layers.Dense(3, kernel_initializer=Twos(), name="layer"), (2,)))
    assert kept["norm"].startswith("'layer' can't be copied: expected a layer that its configuration can rebuild")
    assert kinds(graph) == ["Dense", "BatchNormalization"]


def test_a_kernel_with_additions_of_low_rank_takes_no_fold() -> None:
    layer = layers.Dense(3, name="layer")
    model = normalized(layer, (4,))
    layer.enable_lora(2)
    _, kept = folded(model)
    assert "it follows Dense 'layer'" in kept["norm"]


@pytest.mark.parametrize(("where", "weight"), [("layer", "kernel"), ("norm", "moving_variance")])
def test_weights_that_are_not_finite_are_refused(where: str, weight: str) -> None:
    model = normalized(layers.Dense(3, name="layer"), (2,))
    variable = getattr(model.get_layer(where), weight)
    variable.assign(variable * np.nan)
    with pytest.raises(InputError, match=f"weight '{weight}' of layer '{where}' holds NaN or infinity"):
        folded(model)


def custom(x: Any) -> Any:
    return keras.ops.tanh(x) * 3


def relu(x: Any) -> Any:
    return x * 2


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (None, "linear"),
        ("relu6", "relu6"),
        (keras.ops.silu, "silu"),
        (custom, "custom_custom"),
        (relu, "custom_relu"),
        (lambda x: x, "custom_lambda"),
        (layers.LeakyReLU(), "LeakyReLU"),
    ],
)
def test_activations_have_names(activation: Any, name: str) -> None:
    assert activation_name(layers.Dense(2, activation=activation)) == name


def test_a_framework_s_own_functions_keep_their_names() -> None:
    tensorflow = pytest.importorskip("tensorflow")
    assert activation_name(layers.Dense(2, activation=tensorflow.nn.relu)) == "relu"
    assert activation_name(layers.Flatten()) == "linear"


def test_an_activation_that_no_kernel_fuses_becomes_a_call_of_its_own() -> None:
    graph = flatten_model(given("list_io"))
    split_activations(graph, has_policy)
    assert [call.site for call in graph.calls] == ["sum", "mixed", "bent", "bent/tanh"]
    dense, tanh = graph.calls[2:]
    assert (activation_name(dense.op), activation_name(tanh.op)) == ("linear", "tanh")
    assert activation_name(graph.calls[1].op) == "relu"
    assert dense.outputs == tanh.inputs
    assert tanh.split_from is dense
    assert graph.flat_outputs()[1] is tanh.outputs[0]
    assert (tanh.outputs[0].producer, dense.outputs[0].producer) == (tanh, dense)


def test_every_call_of_a_shared_layer_is_split() -> None:
    a, b = keras.Input((3,)), keras.Input((3,))
    dense = layers.Dense(3, activation="gelu", name="dense")
    model = settle(keras.Model([a, b], [dense(a), dense(b)]))
    graph = flatten_model(model)
    split_activations(graph, has_policy)
    assert [call.site for call in graph.calls] == ["dense", "dense/gelu", "dense@2", "dense/gelu@2"]
    assert graph.calls[0].op is graph.calls[2].op
    assert graph.calls[1].op is graph.calls[3].op
    x = samples(model)
    for expected, found in zip(model(x), execute(graph, x), strict=True):
        np.testing.assert_array_equal(np.asarray(expected), found)


@pytest.mark.parametrize("activation", [custom, layers.LeakyReLU(negative_slope=0.3)], ids=["function", "layer"])
def test_activations_of_users_are_split_as_they_are(activation: Any) -> None:
    inputs = keras.Input((3,))
    model = settle(keras.Model(inputs, layers.Dense(3, activation=activation, name="dense")(inputs)))
    graph = flatten_model(model)
    split_activations(graph, has_policy)
    assert len(graph.calls) == 2
    np.testing.assert_array_equal(execute(graph, samples(model)), np.asarray(model(samples(model))))


def test_an_activation_stays_where_taking_the_layer_apart_would_change_it() -> None:
    class Loud(layers.Dense):
        def call(self, x: Any) -> Any:
            return 2 * super().call(x)

    for layer in (Loud(3, activation="gelu"), layers.Dense(3, activation=layers.PReLU()), layers.LSTM(3)):
        inputs = keras.Input((4, 3))
        model = keras.Model(inputs, layer(inputs))
        model(samples(model))  # activations that are layers are built by the first real call
        graph = flatten_model(model)
        split_activations(graph, has_policy)
        assert [call.op for call in graph.calls] == [layer]


def test_a_normalization_in_training_mode_or_of_another_dtype_stays() -> None:
    inputs = keras.Input((4,))
    trained = layers.BatchNormalization()(layers.Dense(4)(inputs), training=True)
    assert "training=True" in next(iter(fold_batch_norms(flatten_model(keras.Model(inputs, trained))).values()))
    half = layers.Dense(4, dtype="mixed_float16")(inputs)
    wider = layers.BatchNormalization(dtype="float32")(half)
    assert "float16 into float32" in next(iter(fold_batch_norms(flatten_model(keras.Model(inputs, wider))).values()))
