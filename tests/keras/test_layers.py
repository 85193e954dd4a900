from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi.errors import InputError
from qi.keras.graph import flatten_model
from qi.keras.layers import NotRebuildableError, copy_operation, rebuild_layer, weight_values
from qi.keras.variables import weights_of
from tests.keras.models import given, settle

X = np.linspace(-1, 1, 24, dtype="float32").reshape(2, 3, 4)


def called(layer: Any, *args: Any) -> Any:
    """A layer, built by a call, with settled weights."""
    layer(*args or (X,))
    return settle(layer)


class Composite(layers.Layer):
    """Makes a sub-layer, but leaves it to Keras to build it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.inner = layers.Dense(4)

    def call(self, x: Any) -> Any:
        return self.inner(x)


class Forgetful(layers.Layer):
    """Takes an argument that its configuration doesn't mention."""

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.inner = layers.Dense(units)

    def call(self, x: Any) -> Any:
        return self.inner(x)

    def get_config(self) -> dict[str, Any]:
        return layers.Layer.get_config(self)


class Late(layers.Layer):
    """Doesn't tell how it was built."""

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight(shape=(), name="gain")

    def call(self, x: Any) -> Any:
        return x * self.gain

    def get_build_config(self) -> None:
        return None


LAYERS = [
    lambda: layers.Dense(5, activation="gelu"),
    lambda: layers.Dense(5, use_bias=False, kernel_regularizer="l2"),
    lambda: layers.Conv1D(4, 2, groups=2, padding="causal"),
    lambda: layers.SeparableConv1D(4, 2),
    lambda: layers.EinsumDense("abc,cde->abde", (3, 2, 4), bias_axes="de"),
    lambda: layers.BatchNormalization(),
    lambda: layers.Bidirectional(layers.LSTM(3)),
    lambda: layers.TimeDistributed(layers.Dense(2)),
    lambda: layers.PReLU(),
    lambda: layers.LayerNormalization(),
    lambda: Composite(),
    lambda: layers.Dropout(0.5, seed=3),
]


@pytest.mark.parametrize("make", LAYERS, ids=lambda make: type(make()).__name__)
def test_a_copy_computes_the_same_with_weights_of_its_own(make: Any) -> None:
    layer = called(make())
    before = weight_values(layer)
    copy = rebuild_layer(layer)
    assert type(copy) is type(layer)
    assert copy.get_config() == layer.get_config()
    np.testing.assert_array_equal(copy(X), layer(X))
    assert not {id(v) for v in copy.variables} & {id(v) for v in layer.variables}
    for variable in copy.variables:
        variable.assign(variable * 0)
    for path, value in weight_values(layer).items():
        np.testing.assert_array_equal(value, before[path])


def test_an_attention_layer_built_from_several_shapes_is_copied() -> None:
    layer = called(layers.MultiHeadAttention(2, 3), X, X)
    np.testing.assert_array_equal(rebuild_layer(layer)(X, X), layer(X, X))


def test_a_layer_that_is_not_built_yet_is_copied_unbuilt() -> None:
    assert not rebuild_layer(layers.Dense(3)).built


def test_changes_and_values_replace_those_of_the_layer() -> None:
    layer = called(layers.Dense(5, use_bias=False))
    copy = rebuild_layer(layer, {"use_bias": True, "name": "other"}, {"bias": np.arange(5.0)})
    assert (copy.name, layer.name == "other") == ("other", False)
    np.testing.assert_array_equal(copy.bias, np.arange(5.0))
    np.testing.assert_array_equal(copy.kernel, layer.kernel)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_must_be_finite(bad: float) -> None:
    layer = called(layers.Dense(5, name="head"))
    layer.kernel.assign(np.where(np.arange(20).reshape(4, 5) == 7, bad, layer.kernel))
    for function in (weight_values, rebuild_layer, lambda op: copy_operation(op, "copy")):
        with pytest.raises(InputError, match="weight 'kernel' of layer 'head' holds NaN or infinity"):
            function(layer)


def test_weights_of_half_precision_are_read() -> None:
    values = weight_values(called(layers.Dense(5, dtype="bfloat16")))
    assert values["kernel"].dtype.name == "bfloat16"


def double(x: Any) -> Any:
    return 2 * x


@pytest.mark.parametrize("function", [double, keras.ops.erf])
def test_functions_needn_t_be_registered(function: Any) -> None:
    layer = called(layers.Dense(5, activation=function))
    copy = rebuild_layer(layer)
    assert copy.activation is function
    np.testing.assert_array_equal(copy(X), layer(X))


def relu(x: Any) -> Any:
    return 2 * x


class Rectified(layers.Layer):
    """Hands its function to another layer, or wraps it."""

    def __init__(self, activation: Any = None, **options: Any) -> None:
        super().__init__(**options)
        function = keras.activations.get(activation)
        self.activation = lambda x: 3 * function(x)
        self.name_of_it = keras.activations.serialize(function)

    def call(self, x: Any) -> Any:
        return self.activation(x)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"activation": self.name_of_it}


def test_a_function_named_like_one_of_keras_stays_what_it_is() -> None:
    layer = called(layers.Dense(5, activation=relu, name="head"))
    copy, why = copy_operation(layer, "copy")
    assert (copy.activation, why) == (relu, "")
    np.testing.assert_array_equal(copy(X), layer(X))
    assert rebuild_layer(layer, {"activation": "relu"}).activation is keras.activations.relu


def test_a_function_made_of_the_one_given_is_made_once() -> None:
    layer = called(Rectified("tanh"))
    np.testing.assert_array_equal(rebuild_layer(layer)(X), layer(X))


def test_what_its_configuration_can_t_rebuild_is_refused() -> None:
    layer = called(Forgetful(3, name="mine"))
    with pytest.raises(
        NotRebuildableError, match=r"received 'mine' of class Forgetful \(.*\); do implement get_config"
    ):
        rebuild_layer(layer)


def test_a_copy_without_all_weights_is_refused() -> None:
    layer = called(Late(name="late"))
    with pytest.raises(NotRebuildableError, match=r"class Late has the weights \{'gain': \(\)\}, rebuilt it has \{\}"):
        rebuild_layer(layer)


def test_copies_have_the_name_they_are_given() -> None:
    layer = called(layers.Dense(5, name="head"))
    copy, why = copy_operation(layer, "tail")
    assert (copy.name, why, layer.name) == ("tail", "", "head")
    assert list(weights_of(copy)) == ["kernel", "bias"]


def test_operations_are_copied_with_their_arguments() -> None:
    for call in flatten_model(given("operations")).calls:
        copy, why = copy_operation(call.op, f"{call.op.name}_copy")
        assert why == ""
        assert (type(copy), copy.name) == (type(call.op), f"{call.op.name}_copy")
        assert copy is not call.op


@pytest.mark.parametrize("make", [lambda: Forgetful(3), lambda: Late(), lambda: layers.Lambda(lambda x: x + 1)])
def test_what_can_t_be_copied_is_used_as_it_is_and_says_why(make: Any) -> None:
    layer = called(make())
    name, nodes = layer.name, len(layer._inbound_nodes)
    twin, why = copy_operation(layer, "copy")
    assert why.startswith("shared with the given model: expected a layer that its configuration can rebuild")
    assert [id(v) for v in twin.variables] == [id(v) for v in layer.variables]
    np.testing.assert_array_equal(twin(X), layer(X))
    outputs = twin(keras.Input((3, 4)))
    assert outputs._keras_history.operation is twin
    assert (twin.name, layer.name, len(layer._inbound_nodes)) == ("copy", name, nodes)


class Broken(layers.Dense):
    """A configuration whose author made a mistake of some kind."""

    error: Exception = RuntimeError("no way")

    def get_config(self) -> dict[str, Any]:
        raise self.error


class BrokenOperation(keras.Operation):
    """The same, of an operation that is no layer."""

    def call(self, x: Any) -> Any:
        return x + 1

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> BrokenOperation:
        raise ZeroDivisionError("no way")


@pytest.mark.parametrize("error", [RuntimeError, ZeroDivisionError, KeyError, OSError, StopIteration])
def test_whatever_a_configuration_raises_it_is_no_copy(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "error", error("no way"))
    layer = called(Broken(5, name="mine"))
    with pytest.raises(NotRebuildableError, match=rf"received 'mine' of class Broken \({error.__name__}: .*no way"):
        rebuild_layer(layer)
    assert "shared with the given model" in copy_operation(layer, "copy")[1]


def test_operations_that_are_no_layers_may_refuse_too() -> None:
    op = BrokenOperation(name="mine")
    twin, why = copy_operation(op, "copy")
    assert (twin is op, twin.name, why) == (False, "copy", "shared with the given model: ZeroDivisionError: no way")


def test_an_adapted_layer_computes_alike_in_its_copy() -> None:
    layer = keras.layers.Normalization()
    layer.adapt(np.linspace(3, 9, 32, dtype="float32").reshape(8, 4))
    x = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(rebuild_layer(layer)(x), layer(x))


def test_an_adapted_layer_within_another_computes_alike_in_its_copy() -> None:
    inner = keras.layers.Normalization()
    inner.adapt(np.linspace(3, 9, 32, dtype="float32").reshape(8, 4))
    layer = keras.layers.TimeDistributed(inner)
    expected = layer(X)
    assert np.abs(expected - X).max() > 1
    np.testing.assert_array_equal(rebuild_layer(layer)(X), expected)


def test_a_layer_that_keeps_tables_is_no_copy() -> None:
    layer = keras.layers.IntegerLookup()
    layer.adapt(np.array([3, 5, 7]))
    with pytest.raises(NotRebuildableError, match="keeps tables"):
        rebuild_layer(layer)
