"""Attention on inputs that carry Keras' hidden masks: taken apart, it gives what Keras gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import qi
from qi import quantize_model
from qi.keras.attention import split_attention
from qi.keras.graph import Graph, build_model, build_tensors, flatten_model
from qi.keras.hidden_masks import HiddenMask, MaskedAs, Unmasked, masked_values, running_order
from qi.keras.layers import copy_operations
from qi.keras.traits import role_of
from qi.keras.variables import to_numpy
from qi.recipes.plan import Role
from tests.keras.models import settle

STEPS, WIDTH = 6, 8
GROUPED = pytest.mark.filterwarnings("ignore:.*destroy the mask")  # within Keras' own GroupedQueryAttention
Made = tuple[Any, Any]


def attend(name: str = "mha", **options: Any) -> Any:
    return layers.MultiHeadAttention(2, 3, name=name, **options)


def ids(name: str = "ids") -> Any:
    return keras.Input((STEPS,), dtype="int32", name=name)


def embedded(inputs: Any, **options: Any) -> Any:
    return layers.Embedding(12, WIDTH, mask_zero=True, name=f"of_{inputs.name}", **options)(inputs)


def block(x: Any, name: str = "mha", **options: Any) -> Any:
    """Attention, a residual, a normalization."""
    return layers.LayerNormalization()(layers.Add()([x, attend(name)(x, x, **options)]))


def pooled(x: Any) -> Any:
    return layers.GlobalAveragePooling1D()(x)


def of_ids(make: Callable[[Any], Any]) -> Callable[[], Made]:
    """A model of one embedded sequence."""

    def made() -> Made:
        inputs = ids()
        return inputs, make(embedded(inputs))

    return made


def of_two(make: Callable[[Any, Any], Any]) -> Callable[[], Made]:
    """A model of two embedded sequences."""

    def made() -> Made:
        first, second = ids("ids"), ids("others")
        return [first, second], make(embedded(first), embedded(second))

    return made


def masked_floats() -> Made:
    inputs = keras.Input((STEPS, WIDTH), name="x")
    return inputs, pooled(block(layers.Masking()(inputs)))


def under_a_mask(which: str) -> Callable[[], Made]:
    """With a mask that is an input, beside the hidden one."""

    def made() -> Made:
        inputs, mask = ids(), keras.Input((STEPS,) if which == "value_mask" else (STEPS, STEPS), dtype="bool", name="m")
        x = embedded(inputs)
        return [inputs, mask], attend()(x, x, **{which: mask})

    return made


def twice(x: Any) -> Any:
    layer = attend()
    y = layer(x, x)
    return pooled(layer(y, y))


def grouped(heads: int, **options: Any) -> Callable[[], Made]:
    def make(x: Any) -> Any:
        y = layers.GroupQueryAttention(4, 4, heads, name="mha", **options)(x, x)
        return layers.Concatenate()([pooled(y), pooled(layers.Dense(3)(x)), pooled(layers.Add()([x, y]))])

    return of_ids(make)


MAKES: dict[str, Callable[[], Made]] = {
    "itself": of_ids(lambda x: attend()(x, x)),
    "dropout": of_ids(lambda x: attend(dropout=0.3)(x, x)),
    "causal": of_ids(lambda x: attend()(x, x, use_causal_mask=True)),
    "causal dropout": of_ids(lambda x: attend(dropout=0.3)(x, x, use_causal_mask=True)),
    "window": of_ids(lambda x: attend(sliding_window=2)(x, x)),
    "sizes": of_ids(lambda x: pooled(attend(value_dim=5, output_shape=7, use_gate=True)(x, x))),
    "parts": of_ids(lambda x: attend(output_shape=(2, 4))(x, x)),
    "block": of_ids(lambda x: pooled(block(x))),
    "blocks": of_ids(lambda x: pooled(block(block(x, "a"), "b"))),
    "chain": of_ids(lambda x: pooled(block(layers.LayerNormalization()(attend("a")(x, x)), "b"))),
    "same": of_ids(lambda x: layers.Add()([attend("a")(x, x), attend("b")(x, x)])),
    "same turned": of_ids(
        lambda x: layers.Add()([attend("a")(x, x), layers.Dense(8)(layers.Dense(8)(attend("b")(x, x)))])
    ),
    "beside": of_ids(lambda x: layers.Add()([layers.Dense(8)(attend("a")(x, x)), attend("b")(layers.Dense(8)(x), x)])),
    "given too": of_ids(lambda x: [attend()(x, x), x]),
    "twice": of_ids(twice),
    "cross": of_two(lambda x, y: pooled(attend()(x, y))),
    "value alone": of_two(lambda x, y: attend()(keras.ops.negative(x), y)),
    "query alone": of_two(lambda x, y: pooled(attend()(x, keras.ops.negative(y)))),
    "key": of_two(lambda x, y: attend()(x, y, layers.Masking(0.1)(layers.Dense(8)(y)))),
    "same key": of_two(lambda x, y: attend()(x, y, y)),
    "groups": grouped(2),
    "one head each": grouped(4, use_gate=True),
    "groups dropout": grouped(2, dropout=0.2),
    "masking": masked_floats,
    "value mask": under_a_mask("value_mask"),
    "attention mask": under_a_mask("attention_mask"),
}


def model_of(made: Made) -> keras.Model:
    return settle(keras.Model(*made, name="padded"))


def padded(model: keras.Model, count: int = 8) -> Any:
    """Sequences of all lengths, the last of none at all."""
    rng = np.random.default_rng(0)

    def make(tensor: Any) -> np.ndarray:
        shape = (count, *tensor.shape[1:])
        if tensor.dtype == "bool":
            return rng.random(shape) < 0.6
        array = rng.integers(1, 12, shape) if "int" in tensor.dtype else rng.normal(size=shape)
        lengths = rng.integers(1, STEPS + 1, count)
        lengths[-1] = 0
        array[np.arange(STEPS) >= lengths[:, None]] = 0
        return array.astype(tensor.dtype)

    return keras.tree.map_structure(make, model.input)


def rebuilt(model: keras.Model) -> tuple[keras.Model, Graph]:
    """The model with its attention taken apart, of copies, as quantization makes it."""
    graph = flatten_model(model)
    assert split_attention(graph) == {}
    several = list(graph.calls_of().values())
    named = [(calls[0].op, f"{calls[0].path.replace('/', '_')}_{place}") for place, calls in enumerate(several)]
    for calls, (copy, _) in zip(several, copy_operations(named), strict=True):
        for call in calls:
            call.op = copy
    return build_model(graph, build_tensors(graph)), graph


def arrays(outputs: Any) -> list[np.ndarray]:
    return [to_numpy(x).astype("float64") for x in keras.tree.flatten(outputs)]


def masks(outputs: Any) -> list[Any]:
    found = [getattr(x, "_keras_mask", None) for x in keras.tree.flatten(outputs)]
    return [None if mask is None else to_numpy(mask).tolist() for mask in found]


def check_same(made: Made, rtol: float = 1e-5, atol: float = 3e-6) -> Graph:
    """Checks the values and the hidden masks of all outputs; the mean of no steps is NaN in both."""
    model = model_of(made)
    other, graph = rebuilt(model)
    x = padded(model)
    expected, found = model(x), other(x)
    assert masks(found) == masks(expected)
    for a, b in ((found, expected), (other.predict(x, verbose=0), model.predict(x, verbose=0))):
        for one, same in zip(arrays(a), arrays(b), strict=True):
            np.testing.assert_allclose(one, same, rtol, atol)
    return graph


@pytest.mark.parametrize("name", MAKES)
@GROUPED
def test_the_function_stays(name: str) -> None:
    graph = check_same(MAKES[name]())
    assert any(call.kind == "HiddenMask" for call in graph.calls)
    for call in graph.calls:
        if call.kind == "Reshape":
            assert id(call.inputs[0]) not in masked_values(graph)


class Followed(keras.Model):
    """A subclassed model, whose layers find the masks as it runs: behind the sum there are none any more."""

    def __init__(self) -> None:
        super().__init__(name="followed")
        self.embedding = layers.Embedding(12, WIDTH, mask_zero=True)
        self.attention = attend()
        self.add = layers.Add()
        self.pool = layers.GlobalAveragePooling1D()
        self.head = layers.Dense(3)

    def call(self, inputs: Any) -> Any:
        x = self.embedding(inputs)
        y = self.attention(query=x, value=x)
        return self.head(self.pool(self.add([x, y]))) + self.head(self.pool(y))


def test_a_followed_call_erases_masks_as_it_does_on_numbers() -> None:
    model = Followed()
    x = padded(model_of(MAKES["block"]()))[:-1]  # the mean of no steps is NaN
    model(x)
    settle(model)
    other, graph = rebuilt(model)
    np.testing.assert_allclose(to_numpy(other(x)), to_numpy(model(x)), rtol=1e-5, atol=3e-6)
    assert "mha/query_mask" in {call.path.replace("attention", "mha") for call in graph.calls}
    assert "compute_output_spec" not in vars(model.attention)


@pytest.mark.backend
@pytest.mark.parametrize("name", ["itself", "dropout", "blocks", "same", "cross", "masking"])
def test_the_function_stays_on(name: str) -> None:
    check_same(MAKES[name]())


@pytest.mark.parametrize(("dtype", "limit"), [("mixed_float16", 1e-2), ("mixed_bfloat16", 6e-2), ("float64", 1e-5)])
def test_types_stay(dtype: str, limit: float) -> None:
    make = of_ids(lambda x: layers.Add()([attend("a", dtype=dtype)(x, x), attend("b")(x, x)]))
    paths = {call.path: call for call in check_same(make(), limit, limit).calls}
    bare = paths["a/query_unmasked"]
    assert (bare.inputs[0].dtype, bare.outputs[0].dtype) == ("float32", "float32")
    assert "b/query_mask" in paths, "Keras took the mask off a copy"
    inputs = ids()
    x = embedded(inputs, dtype=dtype)
    check_same((inputs, layers.Add()([x, attend(dtype=dtype)(x, x)])), limit, limit)


def test_open_lengths_are_fine() -> None:
    inputs = keras.Input((None,), dtype="int32", name="ids")
    model = model_of((inputs, pooled(block(embedded(inputs)))))
    other, _ = rebuilt(model)
    for array in ([[1, 2, 0]], [[3, 0, 0, 0, 0], [1, 2, 3, 4, 5]]):
        np.testing.assert_allclose(
            to_numpy(other(np.array(array))), to_numpy(model(np.array(array))), rtol=1e-5, atol=3e-6
        )


def test_a_step_of_training_sees_the_same_masks() -> None:
    """The loss is masked by the output's mask."""
    model = model_of(MAKES["chain"]()), model_of(of_ids(lambda x: layers.Dense(2)(attend()(x, x)))())
    for given in model:
        other, _ = rebuilt(given)
        x = padded(given)[:-1]  # the mean of no steps is NaN
        y = np.ones_like(given.predict(x, verbose=0))
        found = []
        for each in (given, other):
            each.compile(keras.optimizers.SGD(0.1), "mse")
            loss = each.fit(x, y, epochs=1, batch_size=len(x), verbose=0).history["loss"]
            table = next(w for w in each.weights if w.path.endswith("embeddings"))
            found.append([loss, to_numpy(table)])
        np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-5)
        np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-4, atol=1e-6)


@GROUPED
def test_shared_layers_and_erased_masks_take_their_own_parts() -> None:
    graph = check_same(MAKES["same"]())
    assert [call.path for call in graph.calls if "mask" in call.path] == [
        "a/query_unmasked",
        "a/query_mask",
        "a/output_mask",
    ]
    graph = check_same(MAKES["groups"]())
    (tiled,) = (call for call in graph.calls if call.path == "mha/query_mask")
    assert (tiled.op.repeats, tiled.outputs[0].shape) == (2, (None, 2 * STEPS))


# The layers and the walk ------------------------------------------------------------------------------------------------


@pytest.mark.backend
def test_hidden_masks_as_tensors() -> None:
    rows = layers.Embedding(5, 2, mask_zero=True)(np.array([[3, 0, 1]]))
    bare = Unmasked()(rows)
    again = MaskedAs()([bare, rows])
    np.testing.assert_array_equal(to_numpy(HiddenMask()(rows)), [[True, False, True]])
    np.testing.assert_array_equal(to_numpy(HiddenMask(2)(rows)), [[True, False, True] * 2])
    np.testing.assert_array_equal(to_numpy(HiddenMask()(bare)), [[True] * 3])
    np.testing.assert_array_equal(to_numpy(HiddenMask()(again)), [[True, False, True]])
    np.testing.assert_array_equal(to_numpy(HiddenMask()(MaskedAs()([rows, bare]))), [[True] * 3])
    np.testing.assert_array_equal(to_numpy(again), to_numpy(rows))
    assert HiddenMask.from_config(HiddenMask(3).get_config()).repeats == 3


def test_a_graph_keeps_no_part_of_what_makes_a_mask() -> None:
    inputs = ids()
    model = keras.Model(inputs, HiddenMask()(embedded(inputs)))
    assert [call.kind for call in flatten_model(model).calls] == ["Embedding", "HiddenMask"]


def test_which_values_may_have_masks() -> None:
    inputs = ids()
    x = embedded(inputs)
    y = layers.Dense(3)(x)
    with pytest.warns(UserWarning, match="destroy the mask"):
        larger = layers.UpSampling1D()(y)
    cases = {
        "dense": (layers.Dropout(0.1)(y), True),
        "sum": (layers.Add()([y, y]), True),
        "half": (layers.Add()([y, layers.Dense(3)(inputs[..., None] * 1.0)]), False),
        "function": (ops.add(y, 1.0), False),
        "larger": (larger, False),
        "bare": (Unmasked()(y), False),
        "tensor": (HiddenMask()(y), False),
        "back": (MaskedAs()([Unmasked()(y), y]), True),
        "other": (MaskedAs()([y, Unmasked()(y)]), False),
    }
    graph = flatten_model(keras.Model(inputs, {name: case for name, (case, _) in cases.items()}))
    found = masked_values(graph)
    assert {name: id(value) in found for name, value in graph.outputs.items()} == {
        name: masked for name, (_, masked) in cases.items()
    }


def test_calls_run_by_depth() -> None:
    inputs = keras.Input((4,))
    shared = layers.Dense(4, name="shared")
    a = layers.Dense(4, name="a")(inputs)
    b = layers.Dense(4, name="c")(layers.Dense(4, name="b")(shared(a)))
    model = keras.Model(inputs, layers.Concatenate(name="all")([shared(inputs), layers.Dense(2, name="d")(a), b]))
    graph = flatten_model(model)
    expected = [
        node.operation.name
        for depth in sorted(model._nodes_by_depth, reverse=True)
        for node in model._nodes_by_depth[depth]
        if not node.is_input
    ]
    assert [call.path for call in running_order(graph)] == expected
    assert [call.path for call in graph.calls] != expected


def test_moves_keep_grids() -> None:
    graph = flatten_model(model_of(MAKES["itself"]()))
    split_attention(graph)
    roles = {call.kind: role_of(call) for call in graph.calls}
    assert roles["Unmasked"] is roles["MaskedAs"] is Role.KEEPS
    assert roles["HiddenMask"] is Role.OWN


# Quantized --------------------------------------------------------------------------------------------------------------


def padded_model(name: str = "blocks") -> keras.Model:
    return model_of(of_ids(lambda x: layers.Dense(3, name="out")(block(block(x, "a"), "b")))())


def test_it_is_quantized_within_saved_and_reloaded(tmp_path: Path) -> None:
    model = padded_model()
    x = padded(model, 64)
    qmodel, report = quantize_model(model, "w8a8", x, progress=False)
    rows = {row.layer: row for row in report.activations}
    for part in ("scores", "softmax", "context", "attention_output"):
        assert {rows[f"{name}/{part}"].status for name in "ab"} == {"quantized"}
    assert rows["a/query_mask"].reason == "holds bool, not real numbers"
    assert not any("mask" in layer.name for layer in qmodel.layers if "quant" in layer.name)
    expected, found = model.predict(x, verbose=0), qmodel.predict(x, verbose=0)
    assert 10 * np.log10(np.sum(expected**2) / np.sum((expected - found) ** 2)) > 25
    qmodel.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "m.keras").predict(x, verbose=0), found)
    with pytest.raises(
        qi.UnsupportedError, match=r"under a hidden mask, which differs .*; do give Embedding mask_zero=False"
    ):
        qi.emulate(qmodel, x, progress=False)


def test_it_trains_and_converts_bit_equal() -> None:
    model = padded_model()
    x = padded(model, 32)
    qat = qi.prepare_qat(model, "w4a8", x, progress=False)
    qat.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
    before = [to_numpy(w).copy() for w in qat.weights]
    qat.fit(x, np.zeros((32, STEPS, 3), "float32"), epochs=1, verbose=0)
    assert sum(not np.array_equal(a, to_numpy(b)) for a, b in zip(before, qat.weights, strict=True)) > 8
    np.testing.assert_array_equal(qi.convert(qat).predict(x, verbose=0), qat.predict(x, verbose=0))
