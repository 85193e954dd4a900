from __future__ import annotations

import sys
from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi.errors import InputError
from qi.keras.graph import (
    Call,
    Graph,
    Value,
    _RecursionLimit,
    build_model,
    build_tensors,
    flatten_model,
    follow_model,
    is_graph_model,
)
from qi.keras.ptq import quantize_model
from tests.keras.models import MODELS, execute, given, samples, settle


@cache
def flattened(name: str) -> tuple[keras.Model, Graph]:
    return given(name), flatten_model(given(name))


def sites(model: keras.Model) -> list[str]:
    return [call.site for call in flatten_model(model).calls]


def assert_same_outputs(model: keras.Model, graph: Graph) -> None:
    x = samples(model, 4)
    expected, found = model(x, training=False), execute(graph, x)
    keras.tree.assert_same_structure(expected, found)
    for a, b in zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True):
        np.testing.assert_array_equal(np.asarray(a), b)


@keras.saving.register_keras_serializable(package="tests")
class Wide(keras.Model):
    """A functional model of a class of its own, as model zoos write them."""

    def __init__(self, units: int = 3, **options: Any) -> None:
        inputs = keras.Input((3,))
        super().__init__(inputs, layers.Dense(units, name="dense")(inputs), **options)
        self.units = units

    def get_config(self) -> dict[str, Any]:
        return {"units": self.units, "name": self.name}


class OwnCall(keras.Model):
    def call(self, x: Any) -> Any:
        return x * 2


@pytest.mark.parametrize("name", MODELS)
def test_the_flat_graph_computes_the_very_same(name: str) -> None:
    assert_same_outputs(*flattened(name))


@pytest.mark.parametrize("name", MODELS)
def test_calls_come_after_those_that_they_need_and_have_sites_of_their_own(name: str) -> None:
    _, graph = flattened(name)
    known = {id(value) for value in graph.flat_inputs()}
    for call in graph.calls:
        assert {id(value) for value in call.inputs} <= known
        assert all(value.producer is call for value in call.outputs)
        known |= {id(value) for value in call.outputs}
    assert {id(value) for value in graph.flat_outputs()} <= known
    assert len({call.site for call in graph.calls}) == len(graph.calls)
    assert not any(is_graph_model(call.op) for call in graph.calls)


def test_calls_keep_the_order_of_the_model() -> None:
    model = given("sequential")
    assert sites(model) == ["first", "second", "norm", "clamp", "flat", "head"]


def test_paths_lead_through_nested_models() -> None:
    assert sites(given("nested")) == [
        "multiply",
        "backbone/conv",
        "backbone/bn",
        "backbone/relu",
        "backbone/deep/conv",
        "backbone/relu2",
        "conv",
        "relu",
        "head",
    ]


def test_each_call_of_a_shared_part_is_a_call_of_the_same_operation() -> None:
    graph = flatten_model(given("shared"))
    calls = {call.site: call for call in graph.calls}
    assert {"tower/dense", "tower/dense@2", "tower/bn@2", "project", "project@2"} <= set(calls)
    assert calls["project"].op is calls["project@2"].op
    assert calls["project@2"].path == "project"
    assert [len(group) for group in graph.calls_of().values()] == [2, 2, 2, 2, 1, 1]


def test_values_carry_shape_dtype_and_the_names_of_inputs_and_outputs() -> None:
    graph = flatten_model(given("dict_io"))
    assert set(graph.inputs) == {"image", "token"}
    assert set(graph.outputs) == {"kind", "size"}
    image, token = graph.inputs["image"], graph.inputs["token"]
    assert (image.name, image.shape, image.dtype, image.is_float) == ("image", (None, 8, 8, 3), "float32", True)
    assert (token.name, token.dtype, token.is_float) == ("token", "int32", False)
    assert Value((1,), "bfloat16").is_float
    assert graph.outputs["kind"].name == "kind"
    assert graph.outputs["kind"].producer is graph.calls[-2]
    assert Value((1,), "bool").is_float is False


@pytest.mark.parametrize("name", ["dict_io", "list_io", "residual"])
def test_a_rebuilt_model_has_the_inputs_and_outputs_of_the_given_one(name: str) -> None:
    model, graph = flattened(name)
    again = build_model(graph, build_tensors(graph))
    assert again.output_names == model.output_names
    assert [t.name for t in again.inputs] == [t.name for t in model.inputs]
    assert [t.shape for t in again.inputs] == [t.shape for t in model.inputs]
    assert again.name == model.name
    keras.tree.assert_same_structure(again.output, model.output)
    keras.tree.assert_same_structure(again.input, model.input)


def test_a_sequential_model_takes_and_gives_a_tensor_not_a_list() -> None:
    graph = flatten_model(given("sequential"))
    assert isinstance(graph.inputs, Value)
    assert isinstance(graph.outputs, Value)
    assert build_model(graph, build_tensors(graph)).output_names == ["head"]


def test_a_model_may_give_other_values_of_the_graph() -> None:
    _, graph = flattened("residual")
    inner = [call.outputs[0] for call in graph.calls if call.path in ("pool", "join")]
    tapped = build_model(graph, build_tensors(graph), {"taps": inner})
    assert [tuple(t.shape) for t in tapped.output["taps"]] == [(None, 8, 8, 4), (None, 4, 4, 4)]


def test_a_value_given_twice_is_one_value() -> None:
    graph = flatten_model(given("list_io"))
    assert graph.outputs[1] is graph.outputs[2]
    assert [value.name for value in graph.flat_outputs()] == ["mixed", "bent", "bent"]


def test_an_output_of_a_nested_model_is_named_after_that_model() -> None:
    graph = flatten_model(given("nested_io"))
    assert graph.outputs["main"][1].name == "pair"


def test_outputs_of_a_split_are_values_of_one_call() -> None:
    inputs = keras.Input((4,))
    left, right = keras.ops.split(inputs, 2, axis=-1)
    model = keras.Model(inputs, [right, left])
    graph = flatten_model(model)
    assert [id(value) for value in graph.flat_outputs()] == [id(value) for value in reversed(graph.calls[0].outputs)]
    assert_same_outputs(model, flatten_model(model))


def test_what_leads_to_no_output_is_left_out() -> None:
    inner_inputs = keras.Input((3,))
    trunk = layers.Dense(3, name="trunk")(inner_inputs)
    heads = [layers.ReLU(name=f"{name}_act")(layers.Dense(2, name=name)(trunk)) for name in ("used", "unused")]
    inner = keras.Model(inner_inputs, heads, name="inner")
    inputs = keras.Input((3,))
    model = settle(keras.Model(inputs, inner(inputs)[0]))
    assert sites(model) == ["inner/trunk", "inner/used", "inner/used_act"]
    assert_same_outputs(model, flatten_model(model))


class Maybe(layers.Layer):
    def call(self, x: Any, y: Any = None) -> Any:
        return x if y is None else x + y


def test_optional_inputs_stay_optional() -> None:
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b", optional=True)
    model = settle(keras.Model([a, b], layers.Dense(2, name="head")(Maybe(name="maybe")(a, b))))
    x = samples(model, 48)
    for recipe, seen in (("w8", None), ("w8a8_minmax", x)):
        result, _ = quantize_model(model, recipe, seen, progress=False)
        assert [layer.optional for layer in result.layers if isinstance(layer, layers.InputLayer)] == [False, True]
        for data in (x, [x[0], None]):
            np.testing.assert_allclose(result(data), model(data), atol=0.1)


def test_a_subclass_that_leaves_the_call_alone_is_flattened() -> None:
    inputs = keras.Input((3,))
    outer = keras.Model(inputs, layers.Dense(2, name="head")(Wide(name="wide")(inputs)))
    assert sites(Wide(name="wide")) == ["dense"]
    assert sites(outer) == ["wide/dense", "head"]
    assert_same_outputs(outer, flatten_model(outer))


def test_a_nested_model_takes_its_inputs_by_name() -> None:
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    inner = keras.Model([a, b], layers.Subtract(name="gap")([a, b]), name="inner")
    u, v = keras.Input((3,), name="u"), keras.Input((3,), name="v")
    model = keras.Model([u, v], inner({"b": u, "a": v}))
    assert sites(model) == ["inner/gap"]
    assert [value.name for value in flatten_model(model).calls[0].inputs] == ["v", "u"]
    assert_same_outputs(model, flatten_model(model))


def nested_call(
    inner_shape: tuple[int, ...], outer_shape: tuple[int, ...], dtype: str, **arguments: Any
) -> keras.Model:
    inner = keras.Sequential([keras.Input(inner_shape), layers.Dense(2, name="dense")], name="inner")
    inputs = keras.Input(outer_shape, dtype=dtype)
    given = {"inputs": inputs, **arguments} if arguments.pop("by_name", False) else arguments
    return keras.Model(inputs, inner(**given) if "inputs" in given else inner(inputs, **given))


@pytest.mark.parametrize(
    ("model", "site"),
    [
        (lambda: nested_call((3,), (3,), "float32"), "inner/dense"),
        (lambda: nested_call((3,), (3,), "float32", training=False), "inner/dense"),
        (lambda: nested_call((3,), (3,), "float32", by_name=True), "inner/dense"),
        (lambda: nested_call((3,), (3,), "int32"), "inner"),  # it would cast
        (lambda: nested_call((3, 1), (3,), "float32"), "inner"),  # it would add an axis
        (lambda: nested_call((3,), (3,), "float32", training=True), "inner"),
    ],
    ids=["plain", "training=False", "by name", "cast", "rank", "training=True"],
)
def test_a_nested_model_that_does_more_than_its_layers_is_called_as_a_whole(model: Any, site: str) -> None:
    model = model()
    assert sites(model) == [site]
    assert_same_outputs(model, flatten_model(model))


def test_a_sequential_model_without_a_graph_is_called_as_a_whole() -> None:
    class Gap(layers.Layer):
        def call(self, pair: Any, training: bool | None = None) -> Any:
            return pair[0] - pair[1]

    inputs = [keras.Input((3,), name=name) for name in "ab"]
    model = keras.Model(inputs, keras.Sequential([Gap(), layers.Dense(2)], name="inner")(inputs))
    assert sites(model) == ["inner"]
    assert_same_outputs(model, flatten_model(model))


def test_a_nested_model_of_mixed_precision_is_inlined() -> None:
    half = {"dtype": "mixed_float16"}
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="dense", **half)], name="inner")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, inner(layers.Dense(4, name="first", **half)(inputs)))
    assert sites(model) == ["first", "inner/dense"]
    assert_same_outputs(model, flatten_model(model))


@pytest.mark.filterwarnings("ignore:Layer 'inner':UserWarning")  # Keras: no mask leaves a nested model
def test_masks_reach_the_layers_of_a_nested_model() -> None:
    inner = keras.Sequential([keras.Input((6, 4)), layers.LSTM(3, name="lstm")], name="inner")
    inputs = keras.Input((6,), dtype="int32", name="ids")
    model = settle(keras.Model(inputs, inner(layers.Embedding(10, 4, mask_zero=True, name="rows")(inputs))))
    graph = flatten_model(model)
    assert graph.calls[-1].site == "inner/lstm"
    short, full = (np.array([[3, 4, *rest]], "int32") for rest in ([0] * 4, [1] * 4))
    np.testing.assert_array_equal(model(short), execute(graph, short))
    assert not np.array_equal(execute(graph, short), execute(graph, full))


def test_open_shapes_within_a_nested_model_become_known() -> None:
    inner = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 3, name="conv")], name="open")
    inputs = keras.Input((8, 8, 3))
    graph = flatten_model(keras.Model(inputs, inner(inputs)))
    assert graph.calls[0].outputs[0].shape == (None, None, None, 2)
    build_tensors(graph)
    assert graph.calls[0].outputs[0].shape == (None, 6, 6, 2)


def test_a_graph_of_3000_calls_is_followed_without_recursion() -> None:
    inputs = x = keras.Input((2,))
    for i in range(3000):
        x = layers.Activation("relu", name=f"a{i}")(x)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # Keras needs it to make the model
    try:
        model = keras.Model(inputs, x)
    finally:
        sys.setrecursionlimit(limit)
    graph = flatten_model(model)
    assert [call.path for call in graph.calls] == [f"a{i}" for i in range(3000)]
    assert len(build_model(graph, build_tensors(graph)).layers) == 3001
    assert sys.getrecursionlimit() == limit


def test_the_recursion_limit_serves_all_who_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, base = _RecursionLimit(), sys.getrecursionlimit()
    first, second = limits.raised(500), limits.raised(200)
    first.__enter__()
    second.__enter__()
    assert sys.getrecursionlimit() == base + 500
    first.__exit__(None, None, None)
    assert sys.getrecursionlimit() == base + 200  # the second is still at work
    second.__exit__(None, None, None)
    assert sys.getrecursionlimit() == base
    try:
        with limits.raised(100):
            sys.setrecursionlimit(base + 77)
            with limits.raised(10):
                assert sys.getrecursionlimit() == base + 177
        assert sys.getrecursionlimit() == base + 77
    finally:
        sys.setrecursionlimit(base)


@pytest.mark.parametrize("thing", [None, 3, layers.Dense(2), keras.Input((2,))], ids=str)
def test_refuses_what_is_no_model(thing: Any) -> None:
    with pytest.raises(InputError, match="expected a Keras model; received"):
        flatten_model(thing)


def test_refuses_a_model_without_shapes() -> None:
    with pytest.raises(InputError, match="expected a built model; received 'empty'; do give it an Input"):
        flatten_model(keras.Sequential([layers.Dense(2)], name="empty"))


def test_refuses_an_unbuilt_model_with_a_call_of_its_own() -> None:
    model = OwnCall(name="mine")
    with pytest.raises(InputError, match="received 'mine', whose input shape isn't known"):
        flatten_model(model)
    assert not is_graph_model(model)


def chain() -> Graph:
    """x -> first -> second"""
    values = [Value((None, 2), "float32", name=name) for name in ("x", "", "out")]
    calls = [
        Call(layers.ReLU(), name, name, [values[i]], [values[i + 1]]) for i, name in enumerate(("first", "second"))
    ]
    for call in calls:
        call.outputs[0].producer = call
    return Graph("chain", [values[0]], {"y": values[2]}, calls)


def test_an_inserted_call_serves_all_who_took_the_value() -> None:
    graph = chain()
    before = graph.calls[0].outputs[0]
    between = graph.insert_after(before, layers.ReLU(), "between")
    assert [call.path for call in graph.calls] == ["first", "between", "second"]
    assert graph.calls[1].inputs == [before]
    assert graph.calls[2].inputs == [between]
    assert graph.consumers()[id(between)] == [graph.calls[2]]


def test_an_inserted_call_can_give_an_output_or_take_an_input() -> None:
    graph = chain()
    last = graph.insert_after(graph.outputs["y"], layers.ReLU(), "last")
    assert graph.outputs == {"y": last}
    assert last.name == "out"
    graph.insert_after(graph.inputs[0], layers.ReLU(), "zeroth")
    assert [call.path for call in graph.calls] == ["zeroth", "first", "second", "last"]
    assert graph.inputs[0].name == "x"
    assert graph.calls[1].inputs[0].producer is graph.calls[0]


def test_a_class_of_the_users_own_has_no_builtin_kind() -> None:
    class Dense(layers.Dense):
        pass

    for op, builtin in ((Dense(2), ""), (layers.Dense(2), "Dense")):
        call = Call(op, "a", "a", [], [])
        assert (call.kind, call.builtin_kind) == ("Dense", builtin)


def test_integers_for_real_numbers_are_inlined_where_they_are_looked_up() -> None:
    inputs = keras.Input((3,))
    looked_up = keras.Model(inputs, layers.Embedding(5, 2)(inputs), name="inner")
    other = keras.Model(inputs, layers.Embedding(5, 2)(inputs * 2), name="inner")
    ids = keras.Input((3,), dtype="int32")
    kinds = [[call.kind for call in flatten_model(keras.Model(ids, inner(ids))).calls] for inner in (looked_up, other)]
    assert kinds == [["Embedding"], ["Functional"]]


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_is_equal_and_apart(name: str) -> None:
    graph = flatten_model(given(name))
    before = [(call.site, list(call.inputs), list(call.outputs)) for call in graph.calls]
    copy = graph.copy()
    assert [(call.site, call.op) for call in copy.calls] == [(call.site, call.op) for call in graph.calls]
    assert copy.output_names == graph.output_names
    mine, theirs = (
        {id(v) for v in [*g.flat_inputs(), *g.flat_outputs(), *(v for c in g.calls for v in [*c.inputs, *c.outputs])]}
        for g in (graph, copy)
    )
    assert len(mine) == len(theirs)
    assert not mine & theirs
    assert all(value.producer is call for call in copy.calls for value in call.outputs)
    copy.insert_after(copy.flat_inputs()[0], keras.layers.ReLU(), "more")
    assert before == [(call.site, list(call.inputs), list(call.outputs)) for call in graph.calls]


def test_a_model_that_can_t_be_followed_says_why() -> None:
    class Branching(keras.Model):
        def call(self, x: Any) -> Any:
            return x if float(keras.ops.sum(x)) > 0 else -x

    model = Branching()
    model(np.ones((2, 3), "float32"))
    assert follow_model(model)[0] is None
    assert "of class Branching, whose call raised" in follow_model(model)[1]
    graph, why = follow_model(given("operations"))
    assert graph is not None
    assert why == ""


def test_names_that_a_class_makes_up_are_counted_within_its_models() -> None:
    class Holder(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            x = keras.Input((3,))
            y = keras.ops.relu(layers.Dense(3)(keras.ops.relu(layers.Dense(3)(x))))
            self.body = keras.Model(x, layers.Dense(2, name="own")(y), name="body")

        def call(self, x: Any) -> Any:
            return self.body(x)

    for _ in range(2):  # the second one's layers have other names
        model = Holder()
        model(np.ones((2, 3), "float32"))
        paths = [call.path for call in flatten_model(model).calls]
        assert paths == ["body/dense", "body/relu", "body/dense_2", "body/relu_2", "body/own"]
