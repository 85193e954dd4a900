from __future__ import annotations

from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi.errors import UnsupportedError
from qi.keras.assemble import copy_layers, insert_holders, wrap_layers
from qi.keras.fold import fold_batch_norms
from qi.keras.graph import Call, Graph, build_model, build_tensors, flatten_model
from qi.keras.holder import KerasActivationQuantizationHolder as Holder
from qi.keras.plan import plan_activations
from qi.keras.ptq import quantize_model
from qi.keras.traits import is_fusable_activation
from qi.keras.variables import to_numpy
from qi.keras.wrapper import KerasQuantizationWrapper as Wrapper
from qi.ledger import QuantizationReport
from qi.quantizers import ActivationUniformInferableQuantizer
from qi.recipes import FLOAT, Rule, get_recipe
from qi.recipes.plan import ActivationPlan
from tests.keras.models import MODELS, build, execute, given, samples, settle

pytestmark = pytest.mark.filterwarnings("ignore::qi.errors.QuantizationWarning")

# PReLU's slopes and the layers of `unknown` stay in float.
COMPLETE = [name for name in MODELS if name not in ("activations", "unknown")]


@cache
def quantized(name: str, recipe: str) -> tuple[keras.Model, keras.Model, QuantizationReport]:
    model = given(name)
    return model, *quantize_model(model, recipe, samples(model, 64), strict=name in COMPLETE, progress=False)


def arrays_of(model: keras.Model, x: Any) -> tuple[Graph, dict[int, np.ndarray]]:
    """All tensors of a model for inputs, by ``id(value)`` of its flat graph."""
    graph = flatten_model(model)
    graph.outputs = [*graph.flat_inputs(), *(value for call in graph.calls for value in call.outputs)]
    return graph, {id(value): array for value, array in zip(graph.outputs, execute(graph, x), strict=True)}


def channels_of(wrapper: Wrapper, path: str) -> np.ndarray:
    """A weight as the layer computes with it, [all else, output channels]."""
    layer, array = wrapper.layer, to_numpy(wrapper._inside.weights[path])
    axes = (-1,)
    if "depthwise" in path or type(layer).__name__.startswith("Depthwise"):
        axes = (-2, -1)
    elif type(layer).__name__.endswith("Transpose"):
        axes = (-2,)
    elif isinstance(layer, layers.Embedding):
        axes = (0,)
    elif isinstance(layer, layers.EinsumDense):
        labels, result = layer.equation.split(",")[1].split("->")
        axes = tuple(i for i, label in enumerate(labels) if label in result)
    moved = np.moveaxis(array, axes, range(-len(axes), 0))
    return moved.reshape(-1, int(np.prod([array.shape[axis] for axis in axes])))


def distinct(array: np.ndarray) -> int:
    return len(np.unique(array))


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_between_fused_operations_is_quantized(name: str) -> None:
    model, result, _ = quantized(name, "w8a8")
    x = samples(model, 128, seed=7)
    graph, arrays = arrays_of(result, x)
    raw = 0
    for call in graph.calls:
        for value in (value for value in call.inputs if value.is_float):
            clamped = is_fusable_activation(call) and value.producer and not isinstance(value.producer.op, Holder)
            if isinstance(call.op, Holder) or clamped:
                raw = max(raw, distinct(arrays[id(value)]))
            else:
                assert distinct(arrays[id(value)]) <= 256, call.site
    for tensor in keras.tree.flatten(result(x)):
        assert distinct(np.asarray(tensor)) <= 256
    assert raw > 256  # before the quantizers it is more


@pytest.mark.parametrize(
    ("name", "recipe"),
    [*((name, "w8a8") for name in MODELS), ("convolutions_2d", "w4a8"), ("tokens", "w3"), ("residual", "w2")],
)
def test_kernels_have_few_values_an_output_channel(name: str, recipe: str) -> None:
    _, result, report = quantized(name, recipe)
    bits = get_recipe(recipe).weights.bits
    wrappers = [layer for layer in result.layers if isinstance(layer, Wrapper)]
    paths = [(wrapper, path) for wrapper in wrappers for path in wrapper.quantizers]
    assert len(paths) == sum(row.kind == "weight" and row.quantized for row in report.rows) > 0
    for wrapper, path in paths:
        channels = channels_of(wrapper, path)
        assert max(distinct(channels[:, c]) for c in range(channels.shape[1])) <= 2**bits - 1, (wrapper.name, path)


@pytest.mark.parametrize("name", COMPLETE)
def test_every_kernel_is_quantized(name: str) -> None:
    _, result, report = quantized(name, "w8a8")
    stay = {row.path for row in report.unquantized if row.kind == "weight" and row.name != "bias"}
    assert all("batch normalization is kept" in row.reason for row in report.unquantized if row.path in stay)
    for layer in result.layers:
        if not isinstance(layer, Wrapper):
            assert all(len(w.shape) < 2 for w in layer.weights), layer.name


@pytest.mark.parametrize("name", MODELS)
def test_a_quantized_model_predicts_like_the_given_one(name: str) -> None:
    model, result, _ = quantized(name, "w8a8")
    x = samples(model, 64)
    expected, found = model(x, training=False), result(x, training=False)
    keras.tree.assert_same_structure(expected, found)
    for a, b in zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True):
        error = np.asarray(b) - np.asarray(a)
        assert np.square(error).mean() < 2e-3 * np.square(np.asarray(a)).mean()


@pytest.mark.parametrize("name", ["shared", "dict_io", "activations", "unfoldable", "unknown", "nested"])
def test_the_given_model_is_untouched(name: str) -> None:
    model, result, _ = quantized(name, "w8a8")
    twin = build(name)
    assert model.get_config() == twin.get_config()
    for old, new in zip(twin.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    own = {id(part) for part in [*model._flatten_layers(), *model.operations, *model.variables]}
    assert not own & {id(part) for part in [*result._flatten_layers(), *result.operations, *result.variables]}


@pytest.mark.parametrize("name", MODELS)
def test_layers_have_unique_names_and_outputs_keep_theirs(name: str) -> None:
    model, result, _ = quantized(name, "w8a8")
    names = [op.name for op in result.operations]
    assert len(set(names)) == len(names)
    given = model if hasattr(model, "output_names") else model._functional
    assert result.output_names == given.output_names
    assert result.name == model.name


@pytest.mark.parametrize("name", ["nested_io", "same_names", "shared", "dict_io", "list_io"])
def test_outputs_keep_their_names_without_quantizers_too(name: str) -> None:
    model = given(name)
    result, _ = quantize_model(model, "w8")
    assert result.output_names == model.output_names


def test_outputs_of_one_scale_have_quantizers_of_their_own_names() -> None:
    inputs = keras.Input((8, 3), name="x")
    conv = layers.Conv1D(2, 3, name="conv")(inputs)
    pool = layers.AveragePooling1D(2, name="pool")(conv)
    model = settle(keras.Model(inputs, [conv, pool, layers.Flatten(name="flat")(pool)]))
    result, _ = quantize_model(model, "w8a8", samples(model, 64), progress=False)
    assert result.output_names == ["conv", "pool", "flat"]
    found = [{v.name: to_numpy(v) for v in result.get_layer(name).variables} for name in ("conv", "pool")]
    assert found[0]["scale"] == found[1]["scale"]


def test_a_quantizer_takes_no_name_that_an_output_has() -> None:
    inputs = keras.Input((4,), name="x")
    model = settle(keras.Model(inputs, layers.Dense(2, name="x_quant")(inputs)))
    result, _ = quantize_model(model, "w8a8", samples(model, 64), progress=False)
    assert [op.name for op in result.operations] == ["x", "x_quant_2", "x_quant_raw", "x_quant"]


def test_names_that_clash_between_nested_models_tell_the_path() -> None:
    _, result, _ = quantized("same_names", "w8a8")
    wrapped = [layer.name for layer in result.layers if isinstance(layer, Wrapper)]
    assert wrapped == ["dense", "block2_dense", "dense_quant", "dense_2", "block1_dense_raw"]


def test_weights_of_layers_that_nothing_is_known_of_are_quantized_and_the_rest_has_its_reason() -> None:
    model, result, report = quantized("unknown", "w8a8")
    reasons = {row.path: row.reason for row in report.unquantized}
    assert "lstm/lstm_cell/kernel" not in reasons
    assert result.get_layer("lstm").quantizers.keys() == {"lstm_cell/kernel", "lstm_cell/recurrent_kernel"}
    assert reasons["layer_norm/gamma"] == "normalizations are computed in float; 8 bits would save 24 bytes"
    x = samples(model, 64)
    np.testing.assert_allclose(result(x), model(x), atol=0.05)


def sloped() -> keras.Model:
    """Two layers with slopes of each place's own, which stay in float; between them slopes of channels."""
    inputs = keras.Input((5, 8), name="x")
    x = layers.PReLU(shared_axes=[1], name="few")(layers.PReLU(name="many")(inputs))
    return settle(keras.Model(inputs, layers.Dense(2, name="head")(layers.PReLU(name="more")(x))))


def test_strict_refuses_matrices_that_stay_in_float_and_lists_all() -> None:
    with pytest.raises(UnsupportedError, match="received 2 that stay in float") as caught:
        quantize_model(sloped(), "w8", strict=True)
    text = str(caught.value)
    assert "many/alpha (5, 8): slopes of an activation" in text
    assert "more/alpha (5, 8)" in text
    assert not any(word in text for word in ("bias", "few", "head"))
    with pytest.raises(UnsupportedError, match="received 1 that stay in float"):
        quantize_model(sloped(), get_recipe("w8").with_rules(Rule("more", weights=FLOAT)), strict=True)


def test_strict_accepts_what_rules_leave_in_float() -> None:
    rules = [Rule(name, weights=FLOAT) for name in ("attention", "lstm")]
    _, report = quantize_model(given("unknown"), get_recipe("w8").with_rules(*rules), strict=True)
    reasons = {row.path: row.reason for row in report.unquantized}
    assert reasons["lstm/lstm_cell/kernel"] == "left in float by rule match='lstm'"
    assert [row.path for row in report.rows if row.quantized] == ["head/kernel"]
    assert report.unused_rules == ()
    quantize_model(
        sloped(), get_recipe("w8").with_rules(Rule("mo*", weights=FLOAT), Rule("many", weights=FLOAT)), strict=True
    )


class Sealed(layers.Dense):
    """Can't be made again from its configuration."""

    def __init__(self, secret: Any, **options: Any) -> None:
        super().__init__(3, **options)


def test_a_layer_that_can_t_be_copied_is_used_in_float_and_left_alone() -> None:
    inputs = keras.Input((4,), name="x")
    sealed = Sealed(object(), name="sealed")
    model = settle(keras.Model(inputs, layers.Dense(2, name="head")(sealed(inputs))))
    before = to_numpy(sealed.kernel)
    result, report = quantize_model(model, "w4")
    rows = {row.path: row for row in report.rows}
    assert rows["sealed/kernel"].reason.startswith("shared with the given model: expected a layer")
    assert rows["head/kernel"].quantized
    twin = result.get_layer("sealed")
    assert (twin.kernel is sealed.kernel, twin is sealed, len(sealed._inbound_nodes)) == (True, False, 1)
    np.testing.assert_array_equal(sealed.kernel, before)
    with pytest.raises(UnsupportedError, match=r"sealed/kernel \(4, 3\): shared with the given model"):
        quantize_model(model, "w4", strict=True)


def prepared(name: str, recipe: str = "w8a8") -> tuple[Graph, ActivationPlan, Any]:
    graph, book = flatten_model(given(name)), get_recipe(recipe).resolve()
    fold_batch_norms(graph)
    return graph, plan_activations(graph, book), book


def test_calls_of_one_operation_share_its_copy() -> None:
    graph, plan, _ = prepared("shared")
    originals = {call.site: call.op for call in graph.calls}
    assert copy_layers(graph, plan) == {}
    calls = {call.site: call for call in graph.calls}
    assert calls["project"].op is calls["project@2"].op
    assert not {id(op) for op in originals.values()} & {id(call.op) for call in graph.calls}


def test_wrapped_layers_are_frozen_and_those_without_weights_left() -> None:
    graph, plan, book = prepared("residual", "w4")
    copy_layers(graph, plan)
    types = {id(call): call.kind for call in graph.calls}
    found = wrap_layers(graph, book, {}, {"a_conv": "it is shared"}, types)
    wrapped = {call.path: call.op for call in graph.calls if isinstance(call.op, Wrapper)}
    assert sorted(wrapped) == ["b_conv", "c_conv", "logits", "stem_conv"]
    assert all(wrapper.frozen and wrapper.name == wrapper.layer.name for wrapper in wrapped.values())
    assert [(row.layer, row.reason) for row in found.refused] == [("a_conv", "it is shared")]
    assert {row.layer_type for row in found.rows} == {"Conv2D", "Dense"}


def test_one_quantizer_serves_a_group_wherever_its_values_are() -> None:
    graph, plan, _ = prepared("movers")
    copy_layers(graph, plan)
    quantizers = {id(group): ActivationUniformInferableQuantizer(8, min_range=-1, max_range=1) for group in plan.groups}
    values = {value.producer.path: value for group in plan.groups for value in group.observed if value.producer}
    held = insert_holders(graph, plan, quantizers)
    assert len(held) == sum(len(group.observed) for group in plan.groups)
    holder = held[id(values["conv"])].producer.op
    assert isinstance(holder, Holder)
    assert [held[id(values[path])].producer.op for path in ("average", "bilinear")] == [holder, holder]
    assert (held[id(values["conv"])].producer.op.name, held[id(values["dense"])].producer.op.name) == (
        "conv_quant",
        "dense_quant",
    )
    consumers: list[Call] = graph.consumers()[id(values["conv"])]
    assert [call.op for call in consumers] == [holder]
    assert build_model(graph, build_tensors(graph)).count_params() > 0
