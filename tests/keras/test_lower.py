from __future__ import annotations

from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import qi
from qi.errors import InputError, UnsupportedError
from qi.ir import QGraph, run, validate
from qi.ir.linear import LINEAR
from qi.ir.routing import route
from qi.ir.twin import real_values
from qi.keras.graph import flatten_model
from qi.keras.lower import lower, lower_both
from qi.keras.lower_activations import CARRIED
from tests.keras.lowered import agrees, in_integers, kinds, refusal, weights_only
from tests.keras.models import build, samples, settle

# Their structure is what matters here; layers of all sorts are in the tests of the modules that lower them.
STRUCTURES = "residual nested shared dict_io list_io nested_io operations unfoldable same_names".split()


@cache
def lowered(name: str) -> tuple[keras.Model, QGraph]:
    """The model of that name with quantized weights, and its graph: for tests that only read them."""
    return weights_only(build(name))


def steps_apart(qmodel: keras.Model, graph: QGraph, x: Any) -> dict[str, tuple[float, float]]:
    """For each tensor of codes that a quantizer of the model makes: the most steps that graph and model are apart and the share
    that is. Every layer is given the graph's numbers, so that nothing piles up."""
    found = run(route(graph, "litert"), keras.tree.flatten(x), every=True)
    tensors = {t.name: t for t in graph.tensors() if t.quantized and t.name in found}
    flat = flatten_model(qmodel)
    arrays = {id(value): array for value, array in zip(flat.flat_inputs(), keras.tree.flatten(x), strict=True)}
    apart = {}
    for call in flat.calls:
        args, kwargs = call.arguments([arrays[id(value)] for value in call.inputs])
        for value, array in zip(call.outputs, keras.tree.flatten(call.op(*args, **kwargs)), strict=True):
            arrays[id(value)] = array
            tensor = tensors.get(call.site)
            if tensor is None:
                continue
            distance = np.abs(np.asarray(array) - real_values(tensor, found[tensor.name])) / tensor.scale
            apart[tensor.name] = (float(distance.max()), float((distance > 0.5).mean()))
            arrays[id(value)] = real_values(tensor, found[tensor.name])
    return apart


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_model_with_quantized_weights_computes_the_same_as_a_graph(name: str) -> None:
    qmodel, graph = lowered(name)
    validate(graph)
    agrees(qmodel, graph)
    assert not any(tensor.quantized for tensor in graph.outputs)


@pytest.mark.parametrize("name", ["residual", "mobile", "convolutions_1d", "convolutions_2d", "movers", "nested_io"])
def test_in_integers_each_layer_is_at_most_a_step_away(name: str) -> None:
    qmodel, graph, x = in_integers(build(name))
    assert all(op.quantized for op in graph.ops if op.kind != "quantize")
    assert kinds(graph).count("quantize") == len(graph.inputs)
    assert all(op.inputs[2].dtype == "int32" for op in graph.ops if op.kind in LINEAR and len(op.inputs) == 3)
    apart = steps_apart(qmodel, graph, x)
    assert len(apart) >= 3
    assert all(steps < 1.01 for steps, _ in apart.values()), apart
    rounds_halves_otherwise = {"avg_pool2d", "resize_bilinear"} & set(kinds(graph))
    assert all(share < (0.35 if rounds_halves_otherwise else 0.02) for _, share in apart.values()), apart


def test_inputs_and_outputs_keep_their_structure() -> None:
    _, graph = lowered("nested_io")
    assert graph.input_structure == {"first": ["u", "v"], "last": "last"}
    names = [tensor.name for tensor in graph.outputs]
    assert graph.output_structure == {"main": names[:2], "side": names[2]}
    assert graph.name == "nested_io"
    _, graph = lowered("dict_io")
    assert graph.input_structure == {"image": "image", "token": "token"}
    assert [tensor.dtype for tensor in graph.inputs] == ["float32", "int32"]
    _, graph = lowered("residual")
    assert (graph.input_structure, graph.output_structure) == ("image", graph.outputs[0].name)


@pytest.mark.parametrize("recipe", ["w8", "w8a8"])
def test_outputs_have_the_names_that_keras_gives_them(recipe: str) -> None:
    """What layers do inside has other names; where only weights are quantized, that is what gives the output."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8,), name="feat")
    inner = keras.Sequential([keras.Input((8,)), layers.Dense(2, activation="sigmoid", name="sub")], name="inner")
    outputs = {
        "a": layers.Dense(4, name="out")(x),
        "b": layers.Dense(3, activation="sigmoid", name="mask")(x),
        "c": layers.Activation("tanh", name="act")(layers.Dense(3, activation="relu", name="relu")(x)),
        "d": inner(x),
    }
    data = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    model, _ = qi.quantize_model(keras.Model(x, outputs), recipe, data, progress=False)
    for graph in (lower(model), *lower_both(model)):
        assert graph.output_structure == {"a": "out", "b": "mask", "c": "act", "d": "inner"}
        assert [tensor.name for tensor in graph.outputs] == flatten_model(model).output_names
        validate(graph)


def test_one_output_given_twice_is_one_tensor() -> None:
    _, graph = lowered("list_io")
    assert graph.outputs[1] is graph.outputs[2]
    assert graph.output_structure == [tensor.name for tensor in graph.outputs]


def test_a_shared_layer_is_lowered_at_each_call() -> None:
    x, dense = keras.Input((4,), name="x"), layers.Dense(4, name="dense")
    qmodel, graph = weights_only(keras.Model(x, dense(ops.relu(dense(x)))))
    agrees(qmodel, graph)
    first, second = (op for op in graph.ops if op.kind == "dense")
    assert first.inputs[1].name != second.inputs[1].name
    np.testing.assert_array_equal(first.inputs[1].data, second.inputs[1].data)


def test_the_model_is_only_read() -> None:
    qmodel, _ = lowered("residual")
    before = [np.array(weight) for weight in qmodel.get_weights()]
    config = qmodel.get_config()
    lower(qmodel)
    assert qmodel.get_config() == config
    for array, weight in zip(before, qmodel.get_weights(), strict=True):
        np.testing.assert_array_equal(array, weight)


def test_lowering_is_reproducible() -> None:
    qmodel, graph = lowered("residual")
    assert str(lower(qmodel)) == str(graph)


@pytest.mark.parametrize("name", ["nested_io", "list_io", "residual"])
def test_both_graphs_come_of_one_lowering(name: str) -> None:
    qmodel, graph = lowered(name)
    fused, unfused = lower_both(qmodel)
    for found, expected in ((fused, graph), (unfused, lower(qmodel, fused=False))):
        assert str(found) == str(expected)
        assert (found.input_structure, found.output_structure) == (expected.input_structure, expected.output_structure)


def test_without_fusing_quantizers_stand_by_themselves() -> None:
    qmodel, _, _ = in_integers(build("sequential"))
    graph = lower(qmodel, fused=False)
    assert not any(op.quantized for op in graph.ops if op.kind not in ("quantize", "reshape"))
    assert kinds(graph).count("quantize") > 3
    assert all(op.inputs[2].dtype == "float32" for op in graph.ops if op.kind in LINEAR)


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_integers_that_are_reckoned_with_become_real_numbers_first(dtype: str) -> None:
    x = keras.Input((5, 5, 2), dtype=dtype, name="pixels")
    y = layers.Conv2D(2, 3, name="conv")(layers.Rescaling(1 / 5, offset=-1)(x))
    z = layers.Conv2D(2, 3, name="other")(ops.cast(x, "float32") / 5.0)
    model = settle(keras.Model(x, [y, z]))
    data = np.random.default_rng(0).integers(0, 10, (64, 5, 5, 2)).astype(dtype)
    qmodel, _ = qi.quantize_model(model, "w8", progress=False)
    graph = lower(qmodel)
    agrees(qmodel, graph, data[:3])
    assert graph.inputs[0].dtype == dtype
    qmodel, _ = qi.quantize_model(model, "w8a8", data, progress=False)
    graph = lower(qmodel)
    assert [op.quantized for op in graph.ops if op.kind == "conv2d"] == [True, True]
    validate(route(graph, "litert"))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_real_numbers_are_float32_whatever_the_model_computes_in(policy: str) -> None:
    x = keras.Input((6,), name="x", dtype="float64" if policy == "float64" else "float32")
    y = layers.Dense(4, dtype=policy, name="a")(x)
    model = settle(keras.Model(x, layers.Dense(2, dtype=policy, name="b")(ops.relu(y) * 2.0)))
    qmodel, _ = qi.quantize_model(model, "w8", progress=False)
    graph = lower(qmodel)
    assert {tensor.dtype for tensor in graph.tensors()} == {"float32"}
    data = samples(model, 3)
    expected, found = np.asarray(qmodel(data), "float32"), run(graph, [data], "litert")[graph.outputs[0].name]
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.02 * np.abs(expected).max())


class Mine(layers.Layer):
    """Somebody's own layer."""

    def call(self, x: Any) -> Any:
        return x + 1


class Dense(layers.Dense):
    """Somebody's own layer under a name of Keras'."""


def test_a_model_that_is_not_quantized_is_refused() -> None:
    with pytest.raises(
        UnsupportedError, match="expected a quantized model; received 'residual', in which nothing is quantized"
    ):
        lower(build("residual"))
    with pytest.raises(InputError, match="expected a Keras model"):
        lower("model.keras")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected a built model"):
        lower(keras.Sequential([layers.Dense(2)]))


def test_a_model_that_still_trains_is_refused_and_a_converted_one_is_not() -> None:
    x = keras.Input((4,), name="x")
    model = settle(keras.Model(x, layers.Dense(2, name="dense")(layers.Dense(3, activation="relu", name="first")(x))))
    qat = qi.prepare_qat(model, "w8a8", samples(model, 64), progress=False)
    qat = qat[0] if isinstance(qat, tuple) else qat
    with pytest.raises(UnsupportedError, match=r"in which '.*' still trains; do call qi\.convert first"):
        lower(qat)
    assert kinds(lower(qi.convert(qat))) == ["quantize", "dense", "dense"]


def test_layers_that_nobody_knows_are_named() -> None:
    x = keras.Input((4,), name="x")
    dense = layers.Dense(4, name="dense")
    text = refusal(x, Mine(name="mine")(dense(x)))
    assert (
        "received 'mine' of class Mine, a layer of yours without layers inside, which isn't followed; do call its"
        in text
    )
    text = refusal(x, Dense(4, name="other")(dense(x)))
    assert "class Dense, which is no layer of Keras' own; do write what it computes with" in text
    assert "received 'cumsum' of class Cumsum, which has no lowering; do train with another layer" in refusal(
        x, ops.cumsum(dense(x), 1)
    )


@pytest.mark.filterwarnings("ignore:1 layers can't be copied")
def test_a_refusal_names_targets_and_what_serves_instead() -> None:
    x = keras.Input((4, 4, 2), name="x")
    dense = layers.Dense(4, name="dense")
    text = refusal(x, layers.Lambda(lambda y: y * 2)(dense(x)))
    assert "for litert, onnxruntime, reference" in text
    assert "do write its function with keras.ops" in text
    steps = keras.Input((3, 4, 2), name="steps")
    assert "do use LSTM or GRU on what convolutions give" in refusal(steps, layers.ConvLSTM1D(2, 2)(steps))
    found = refusal(x, layers.Dense(2)(layers.Discretization([0.5], output_mode="one_hot")(layers.Flatten()(x))))
    assert "do prepare the data so in front of the model" in found
    assert "do use one of elu, exponential, gelu," in refusal(x, ops.selu(dense(x)))


def test_what_a_refusal_names_is_carried() -> None:
    x = keras.Input((4, 4, 2), name="x")
    y = layers.Dense(4)(x)
    serve = [
        keras.ops.minimum(layers.LeakyReLU(0.1)(y), 2.0),
        *(layers.Activation(name)(y) for name in CARRIED),
    ]
    qmodel, graph = weights_only(keras.Model(x, serve))
    agrees(qmodel, graph)


def test_layers_that_train_unless_told_are_lowered_as_predict_runs_them() -> None:
    x = keras.Input((4, 4, 2), name="x")
    assert refusal(x, layers.Dense(4, name="dense")(layers.RandomFlip()(x))) == ""
    assert "which is called with training=True" in refusal(
        x, layers.Dropout(0.5)(layers.Dense(4, name="dense")(x), training=True)
    )


@pytest.mark.parametrize(
    "layer", [layers.Dropout(0.5), layers.BatchNormalization(), layers.GaussianNoise(1.0)], ids=repr
)
def test_a_layer_called_as_in_training_is_refused(layer: Any) -> None:
    x = keras.Input((4,), name="x")
    assert "which is called with training=True" in refusal(x, layer(layers.Dense(4, name="dense")(x), training=True))
    assert refusal(x, layer(layers.Dense(4, name="dense")(x), training=False)) == ""
