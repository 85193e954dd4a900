from __future__ import annotations

from functools import cache
from typing import Any

import keras
import pytest
from keras import layers

from qi.keras.fold import fold_batch_norms, split_activations
from qi.keras.graph import Graph, Value, flatten_model
from qi.keras.plan import plan_activations, value_name
from qi.keras.weights import has_policy
from qi.recipes import FLOAT, Rule, TensorSpec, get_recipe
from qi.recipes.plan import ActivationPlan, Group
from tests.keras.models import MODELS, given


class Planned:
    """A model's plan, by the names of values."""

    def __init__(self, model: keras.Model, *rules: Rule, recipe: str = "w8a8") -> None:
        self.graph: Graph = flatten_model(model)
        fold_batch_norms(self.graph)
        split_activations(self.graph, has_policy)
        self.book = get_recipe(recipe).with_rules(*rules).resolve()
        self.plan: ActivationPlan = plan_activations(self.graph, self.book)
        given = [*self.graph.flat_inputs(), *(v for call in self.graph.calls for v in call.outputs)]
        self.values: dict[str, Value] = {value_name(value): value for value in given}

    def status(self, name: str) -> str:
        key = id(self.values[name])
        tables = {"fused": self.plan.fused, "quantized": self.plan.quantized, "inherited": self.plan.inherited}
        found = [status for status, table in tables.items() if key in table]
        found += ["float"] if key in self.plan.floats else []
        assert len(found) == 1, f"{name}: {found}"
        return found[0]

    def statuses(self) -> dict[str, str]:
        return {name: self.status(name) for name in self.values}

    def group(self, name: str) -> Group | None:
        return self.plan.group_of(self.values[name])

    def share(self, *names: str) -> bool:
        groups = {id(self.group(name)) for name in names}
        return len(groups) == 1 and self.group(names[0]) is not None


@cache
def planned(name: str) -> Planned:
    return Planned(given(name))


def stacked(*stack: Any, shape: tuple[int, ...] = (6, 6, 4), rules: tuple[Rule, ...] = ()) -> Planned:
    """The plan of a chain of layers."""
    x = inputs = keras.Input(shape, name="x")
    for layer in stack:
        x = layer(x)
    return Planned(keras.Model(inputs, x), *rules)


@pytest.mark.parametrize("name", MODELS)
def test_every_value_has_one_fate_and_every_group_an_observed_value(name: str) -> None:
    found = planned(name)
    assert set(found.statuses().values()) <= {"fused", "quantized", "inherited", "float"}
    for group in found.plan.groups:
        assert group.observed
        assert group.names == [value_name(value) for value in group.observed]
        assert group.key == group.names[0]
    keys = [group.key for group in found.plan.groups]
    assert len(set(keys)) == len(keys)
    assert all(found.plan.group_of(value) is not None for value in found.graph.flat_outputs())


def test_input_and_output_are_quantized() -> None:
    found = planned("residual")
    assert found.status("image") == "quantized"
    assert found.status("logits") == "quantized"


def test_one_quantizer_sits_after_a_fused_activation_and_none_before() -> None:
    found = planned("residual")
    for before, after in [("stem_conv", "stem_act"), ("join", "join_act"), ("c_conv", "c_act")]:
        assert (found.status(before), found.status(after)) == ("fused", "quantized")
    assert found.status("b_conv") == "quantized"  # no activation follows
    assert planned("sequential").status("first") == "quantized"  # with its activation as an argument


@pytest.mark.parametrize(
    "clamp",
    [layers.ReLU(), layers.ReLU(6.0), layers.Activation("relu6"), keras.ops.relu],
    ids=["relu", "relu6", "activation", "operation"],
)
@pytest.mark.parametrize(
    "kernel",
    [layers.Conv2D(2, 1, name="kernel"), layers.BatchNormalization(name="kernel")],
    ids=["convolution", "normalization"],
)
def test_every_clamp_fuses_with_every_kernel(clamp: Any, kernel: Any) -> None:
    assert stacked(kernel, clamp).status("kernel") == "fused"


@pytest.mark.parametrize(
    "after",
    [layers.Activation("gelu"), layers.LeakyReLU(), layers.ReLU(4.0), layers.MaxPooling2D(2)],
    ids=["gelu", "leaky", "relu4", "pool"],
)
def test_nothing_else_fuses(after: Any) -> None:
    assert stacked(layers.Conv2D(2, 1, name="kernel"), after).status("kernel") == "quantized"


def test_a_value_that_is_used_twice_is_not_fused() -> None:
    inputs = keras.Input((4,), name="x")
    x = layers.Dense(4, name="dense")(inputs)
    clamped = layers.ReLU(name="relu")(x)
    assert Planned(keras.Model(inputs, layers.Add()([x, clamped]))).status("dense") == "quantized"
    assert Planned(keras.Model(inputs, [x, clamped])).status("dense") == "quantized"
    assert Planned(keras.Model(inputs, clamped)).status("dense") == "fused"


def test_an_activation_that_no_kernel_fuses_has_a_quantizer_on_both_sides() -> None:
    found = stacked(layers.Dense(4, activation="gelu", name="dense"))
    assert found.statuses() == {"x": "quantized", "dense": "quantized", "dense/gelu": "quantized"}
    assert not found.share("dense", "dense/gelu")


def test_concatenation_pooling_padding_and_reshaping_share_one_scale() -> None:
    found = planned("movers")
    names = "conv crop pad max nearest average bilinear joined fold turn drop flat".split()
    assert found.share(*names)
    statuses = found.statuses()
    assert [name for name in names if statuses[name] == "quantized"] == ["conv", "average", "bilinear"]
    assert found.group("conv").names == ["conv", "average", "bilinear"]
    assert found.share("dense", "row", "twice")
    assert not found.share("conv", "dense")


def test_a_concatenation_ties_the_layers_before_it_through_what_moves_values() -> None:
    inputs = keras.Input((6, 6, 4), name="x")
    a = layers.MaxPooling2D(2)(layers.Conv2D(2, 1, activation="relu", name="a")(inputs))
    b = layers.Conv2D(2, 1, strides=2, name="b")(inputs)
    found = Planned(keras.Model(inputs, layers.Concatenate(name="joined")([a, b])))
    assert found.share("a", "b", "joined")
    assert found.status("joined") == "inherited"
    assert found.group("joined").names == ["a", "b"]
    assert not found.share("x", "a")


def test_an_input_that_is_joined_shares_the_scale() -> None:
    inputs = keras.Input((4,), name="x")
    found = Planned(keras.Model(inputs, layers.Concatenate(name="joined")([inputs, layers.Dense(4, name="a")(inputs)])))
    assert found.share("x", "a", "joined")


def test_parts_of_a_split_stay_on_the_grid() -> None:
    inputs = keras.Input((4,), name="x")
    left, right = keras.ops.split(layers.Dense(4, name="dense")(inputs), 2, axis=-1)
    found = Planned(keras.Model(inputs, layers.Multiply(name="product")([left, right])))
    parts = [name for name in found.values if name.startswith("split")]
    assert len(parts) == 2
    assert parts[1] == f"{parts[0]}:1"
    assert found.share("dense", *parts)
    assert {found.status(name) for name in parts} == {"inherited"}


def test_sums_products_and_global_averages_have_scales_of_their_own() -> None:
    inputs = keras.Input((6, 6, 4), name="x")
    a, b = (layers.Conv2D(4, 1, name=name)(inputs) for name in "ab")
    total = layers.Add(name="sum")([a, b])
    product = layers.Multiply(name="product")([total, b])
    outputs = layers.GlobalAveragePooling2D(name="gap")(product)
    found = Planned(keras.Model(inputs, outputs))
    assert len(found.plan.groups) == len(found.values)
    assert set(found.statuses().values()) == {"quantized"}


def test_softmax_sigmoid_and_tanh_have_fixed_grids() -> None:
    found = planned("activations")
    assert found.group("tanh/tanh").fixed == (-1.0, 1.0)
    assert found.group("gate").fixed == (0.0, 1.0)
    assert found.group("softmax").fixed == (0.0, 1.0)
    assert found.status("tanh") == "quantized"
    assert found.group("tanh").fixed is None
    assert found.group("logits").fixed is None


def test_a_fixed_grid_is_kept_by_what_moves_values() -> None:
    found = stacked(layers.Activation("sigmoid", name="gate"), layers.Flatten(name="flat"))
    assert found.share("gate", "flat")
    assert found.status("flat") == "inherited"
    assert found.group("flat").fixed == (0.0, 1.0)
    pooled = stacked(layers.Activation("tanh", name="tanh"), layers.AveragePooling2D(2, name="pool"))
    assert pooled.share("tanh", "pool")
    assert pooled.status("pool") == "quantized"


def test_a_fixed_grid_that_meets_a_concatenation_stays_alone() -> None:
    found = planned("activations")
    assert found.status("joined") == "quantized"
    assert not found.share("gate", "joined")
    assert found.group("joined").fixed is None
    assert found.share("joined", "gated", "swish/silu")  # the others are tied to it
    assert found.group("gate").names == ["gate"]


def joined(*branches: Any, rules: tuple[Rule, ...] = ()) -> Planned:
    """The plan of branches from one input that a concatenation joins."""
    inputs = keras.Input((6, 6, 4), name="x")
    outputs = layers.Concatenate(name="joined")([branch(inputs) for branch in branches])
    return Planned(keras.Model(inputs, layers.Flatten(name="flat")(outputs)), *rules)


def gate(name: str, activation: str = "sigmoid") -> Any:
    return layers.Activation(activation, name=name)


@pytest.mark.parametrize("others", [[gate("b")], [gate("b", "softmax"), gate("c")]])
def test_a_concatenation_of_one_fixed_grid_inherits_it(others: list[Any]) -> None:
    found = joined(gate("a"), *others)
    assert found.share(*(name for name in found.values if name != "x"))
    assert found.group("joined").fixed == (0.0, 1.0)
    assert [found.status(name) for name in ("a", "b", "joined", "flat")] == ["quantized"] * 2 + ["inherited"] * 2


def test_a_concatenation_inherits_a_fixed_grid_through_what_keeps_it() -> None:
    pooled = keras.Sequential(
        [keras.Input((6, 6, 4)), gate("b"), layers.AveragePooling2D(3, 1, "same", name="pool")], name="in"
    )
    found = joined(gate("a"), pooled)
    assert found.share("a", "in/b", "in/pool", "joined", "flat")
    assert found.group("joined").names == ["a", "in/b", "in/pool"]


@pytest.mark.parametrize("other", [gate("b", "tanh"), gate("b", "relu")])
def test_a_concatenation_of_different_grids_has_one_of_its_own(other: Any) -> None:
    found = joined(gate("a"), gate("c"), other)
    assert found.status("joined") == "quantized"
    assert found.group("joined").fixed is None
    assert found.group("a").names == ["a"]
    assert found.share("b", "joined") == (other.activation is keras.activations.relu)


def test_a_concatenation_of_fixed_grids_of_different_bits_has_one_of_its_own() -> None:
    four = TensorSpec(bits=4, method="uniform")
    for name in ("b", "joined"):
        found = joined(gate("a"), gate("b"), rules=(Rule(name, activations=four),))
        assert found.status("joined") == "quantized"
        assert found.group("joined").fixed is None
        assert len({id(found.group(each)) for each in ("a", "b", "joined")}) == 3
    left = joined(gate("a"), gate("b"), rules=(Rule("b", activations=FLOAT),))
    assert not left.share("a", "joined")


def test_integers_are_left_alone_and_say_so() -> None:
    found = planned("dict_io")
    assert found.status("token") == "float"
    assert found.plan.floats[id(found.values["token"])] == "holds int32, not real numbers"
    assert found.status("rows") == "quantized"
    assert found.share("conv", "flat", "rows", "flat_rows", "both")


def test_each_call_of_a_shared_layer_has_a_scale_of_its_own() -> None:
    found = planned("shared")
    assert found.status("project") == found.status("project@2") == "quantized"
    assert not found.share("project", "project@2")
    assert found.status("tower/dense@2") == "fused"


def test_a_rule_leaves_a_layers_activations_in_float() -> None:
    found = stacked(
        layers.Conv2D(2, 1, name="a"),
        layers.Conv2D(2, 1, name="b"),
        layers.MaxPooling2D(2, name="pool"),
        rules=(Rule("b", activations=FLOAT),),
    )
    assert found.statuses() == {"x": "quantized", "a": "quantized", "b": "float", "pool": "quantized"}
    assert found.plan.floats[id(found.values["b"])] == "left in float by rule match='b'"
    assert found.group("b") is None
    assert found.book.unused_rules() == ()


def test_a_rule_reaches_the_activation_that_was_split_off_its_layer() -> None:
    for rule in (Rule("dense", activations=FLOAT), Rule(layer_type="Dense", activations=FLOAT)):
        found = stacked(layers.Dense(4, activation="gelu", name="dense"), rules=(rule,))
        assert found.statuses() == {"x": "quantized", "dense": "float", "dense/gelu": "float"}


def test_a_rule_for_inputs_speaks_of_input_layers() -> None:
    found = stacked(layers.Dense(4, name="dense"), rules=(Rule(layer_type="InputLayer", activations=FLOAT),))
    assert found.statuses() == {"x": "float", "dense": "quantized"}


def test_a_rule_about_a_value_that_fusing_removes_is_reported() -> None:
    rule = Rule("dense", activations=TensorSpec(bits=4, method="uniform"))
    found = stacked(layers.Dense(4, name="dense"), layers.ReLU(name="relu"), rules=(rule,))
    assert found.status("dense") == "fused"
    assert found.group("relu").spec.bits == 8
    assert "match='dense'" in found.book.unused_rules()[0]


def test_values_of_different_bits_share_no_scale() -> None:
    inputs = keras.Input((4,), name="x")
    joined = layers.Concatenate(name="joined")([layers.Dense(4, name=name)(inputs) for name in "ab"])
    outputs = layers.Flatten(name="flat")(joined)
    found = Planned(keras.Model(inputs, outputs), Rule("a", activations=TensorSpec(bits=4, method="uniform")))
    assert [found.group(name).spec.bits for name in ("a", "b", "joined")] == [4, 8, 8]
    assert not found.share("a", "joined")
    assert found.share("b", "joined", "flat")
    assert found.status("joined") == "quantized"


def test_a_recipe_for_weights_alone_plans_nothing() -> None:
    found = Planned(given("residual"), recipe="w8")
    assert found.plan.groups == []
    reasons = {found.plan.floats[id(found.values[name])] for name in ("image", "logits", "gap")}
    assert reasons == {"the recipe w8 quantizes no activations"}


def test_a_key_is_the_name_of_the_first_value() -> None:
    spec = TensorSpec(bits=8, method="uniform")
    assert Group(spec, names=["a", "b"]).key == "a"


# Products of activations --------------------------------------------------------------------------------------------------


def product_of(second: Any, *rules: Rule, recipe: str = "w8a8") -> Planned:
    """A product of what `second` makes of an input with another one: x @ turned(second(y))."""
    x, y = keras.Input((5, 4), name="x"), keras.Input((6, 4), name="y")
    z = layers.Permute((2, 1), name="turned")(second(y))
    return Planned(keras.Model([x, y], keras.ops.matmul(x, z)), *rules, recipe=recipe)


def method(plan: Planned, name: str) -> str:
    group = plan.group(name)
    assert group is not None
    return group.spec.method


def test_what_a_product_takes_second_lies_about_zero_where_it_comes_from_a_linear_operation() -> None:
    plan = product_of(layers.Dense(4, name="dense"))
    assert plan.share("dense", "turned")
    assert [method(plan, name) for name in ("dense", "x", "y")] == ["symmetric", "uniform", "uniform"]


@pytest.mark.parametrize(
    "second",
    [
        layers.Dense(4, activation="relu", name="last"),
        layers.Activation("gelu", name="last"),
        layers.Softmax(name="last"),
    ],
    ids=["relu", "gelu", "softmax"],
)
def test_other_grids_of_second_operands_stay(second: Any) -> None:
    assert method(product_of(second), "last") == "uniform"


def test_a_method_that_is_symmetric_already_stays() -> None:
    two = TensorSpec(bits=8, method="power_of_two")
    assert method(product_of(layers.Dense(4, name="dense"), Rule("dense", activations=two)), "dense") == "power_of_two"


def test_indices_get_no_codes_even_as_real_numbers() -> None:
    x = keras.Input((6,), name="x")
    rows = layers.Embedding(10, 6, name="rows")(layers.Reshape((2, 3), name="moved")(x))
    found = Planned(keras.Model(x, [rows, layers.Dense(2, name="dense")(rows)]))
    assert [found.status(name) for name in ("x", "moved", "rows")] == ["float", "float", "quantized"]
    assert found.plan.floats[id(found.values["x"])] == "holds indices into a table"


def test_scores_of_a_tied_table_are_no_indices() -> None:
    x = keras.Input((3,), dtype="int32", name="x")
    table = layers.ReversibleEmbedding(10, 4, name="table")
    found = Planned(keras.Model(x, table(layers.Dense(4, name="dense")(table(x)), reverse=True)))
    assert found.status("dense") == "quantized"
