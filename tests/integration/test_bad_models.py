"""Odd models and wrong ones: the right result or a clear error at once, and the given model as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from qi import (
    FileFormatError,
    InputError,
    Recipe,
    Rule,
    StrictError,
    TensorSpec,
    UnsupportedError,
    calibrate,
    convert,
    load_model,
    prepare_qat,
    quantize_model,
    save_model,
)
from qi.core import sqnr_db
from qi.keras.variables import to_numpy
from tests.keras.models import settle
from tests.keras.warned import warned

RECIPE = "w8a8_minmax"
WORKS: tuple[Callable[..., Any], ...] = (quantize_model, prepare_qat, calibrate)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def outputs(model: keras.Model, x: Any) -> list[np.ndarray]:
    return [to_numpy(y) for y in keras.tree.flatten(model(x, training=False))]


def state(model: keras.Model) -> list[Any]:
    """What is to stay as it is: values, flags, precisions, calls, what the model was compiled with."""
    parts = list(model._flatten_layers())
    return [
        [to_numpy(v) for v in model.variables if "seed" not in v.path],
        [(layer.name, layer.trainable, layer.dtype_policy.name, type(layer)) for layer in parts],
        [(len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in parts],
        ["call" in vars(layer) for layer in parts],
        [model.compiled, id(getattr(model, "optimizer", None)), id(model.train_function)],
    ]


# Structures ------------------------------------------------------------------------------------------------------------

Case = tuple[keras.Model, Any]
I = keras.Input  # noqa: E741


def nested_outputs() -> Case:
    a, b = I((6,), name="a"), I((4,), name="b")
    h = layers.Dense(5, activation="relu")(layers.Concatenate()([a, b]))
    outs = {"p": layers.Dense(2)(h), "q": (h, [layers.Dense(1)(h)])}
    return keras.Model({"a": a, "b": b}, outs), {"a": noise(40, 6), "b": noise(40, 4)}


def depth_four() -> Case:
    shared = layers.Dense(6, activation="tanh", name="d")
    model = keras.Sequential([I((6,)), shared], name="m0")
    for level in range(1, 5):
        x = I((6,))
        inner = layers.Dense(6, activation="relu", name="own")(model(x))
        model = keras.Model(x, layers.Add()([inner, shared(inner)]), name=f"m{level}")
    return model, noise(40, 6)


def shared_towers() -> Case:
    tower = keras.Sequential([I((6,)), layers.Dense(6, name="d"), layers.BatchNormalization(name="n"), layers.ReLU()])
    outer = keras.Sequential([I((6,)), tower, layers.Dense(6, name="e"), tower])
    x = I((6,))
    return keras.Model(x, layers.Add()([outer(x), tower(x), outer(tower(x))])), noise(40, 6)


def masks() -> Case:
    ids = I((7,), dtype="int32")
    x = layers.LSTM(5, return_sequences=True)(layers.Embedding(9, 6, mask_zero=True)(ids))
    x = layers.GlobalAveragePooling1D()(layers.Dense(4)(x))
    data = np.random.default_rng(0).integers(1, 9, (40, 7)).astype("int32")
    data[:, 4:] = 0
    return keras.Model(ids, layers.Dense(2)(x)), data


def operations() -> Case:
    x = i = I((4, 6))
    x = ops.matmul(ops.softmax(ops.einsum("bij,bkj->bik", x, x), axis=-1), x)
    first, second = ops.split(x, 2, axis=-1)
    x = ops.where(first > 0, first, second * 2)
    x = ops.max(ops.stack([x, ops.exp(x * 0.1)], axis=1), axis=1)
    return keras.Model(i, layers.Dense(3)(ops.reshape(x, (-1, 12))) / 3.0 + 1.0), noise(40, 4, 6)


def states() -> Case:
    steps = I((5, 3))
    x, h, c = layers.LSTM(4, return_state=True, return_sequences=True)(steps)
    return keras.Model(steps, [layers.LSTM(4)(x, initial_state=[h, c]), h]), noise(40, 5, 3)


def nothing_trains() -> Case:
    model = keras.Sequential([I((6,)), layers.Dense(3), layers.BatchNormalization()])
    model.trainable = False
    return model, noise(40, 6)


def input_is_output() -> Case:
    x = I((6,))
    return keras.Model(x, [x, layers.Dense(2)(x)]), noise(40, 6)


def unused_input() -> Case:
    a, b = I((6,), name="a"), I((3,), name="b")
    return keras.Model([a, b], layers.Dense(2)(a)), [noise(40, 6), noise(40, 3)]


def same_tensor_twice() -> Case:
    x = I((6,))
    y = layers.Dense(6)(x)
    joined = [layers.Add()([y, y]), layers.Concatenate()([y, y, x]), layers.Multiply()([x, x]), layers.Dot(1)([y, y])]
    return keras.Model(x, joined), noise(40, 6)


def one_layer() -> Case:
    return keras.Sequential([I((6,)), layers.Dense(3)]), noise(40, 6)


def pixels(dtype: str) -> Case:
    x = I((6,), dtype=dtype)
    data = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 200, (40, 6)).astype(dtype)
    return keras.Model(x, layers.Dense(2)(layers.Rescaling(1 / 255)(x))), data


def text() -> Case:
    words = I((1,), dtype="string")
    codes = layers.StringLookup(vocabulary=["a", "b"])(words)
    x = layers.Flatten()(layers.Embedding(4, 3)(codes))
    return keras.Model(words, layers.Dense(2)(x)), np.array([["a"], ["b"]] * 20, object)


STRUCTURES = (
    nested_outputs, depth_four, shared_towers, masks, operations, states, nothing_trains, input_is_output, unused_input,
    same_tensor_twice, one_layer, text,
)  # fmt: skip
CASES = {make.__name__: make for make in STRUCTURES} | {
    dtype: (lambda dtype=dtype: pixels(dtype)) for dtype in ("int64", "uint8", "bool")
}


@pytest.mark.filterwarnings("ignore::qi.errors.QuantizationWarning")
@pytest.mark.parametrize("name", CASES)
def test_structures(name: str, tmp_path: Path) -> None:
    model, x = CASES[name]()
    model = settle(model)
    before = state(model)
    exact = outputs(model, x)
    quantized, report = quantize_model(model, RECIPE, x, progress=False)
    found = outputs(quantized, x)
    assert min(map(sqnr_db, exact, found)) > 20
    assert keras.tree.map_structure(lambda y: 0, quantized(x)) == keras.tree.map_structure(lambda y: 0, model(x))
    assert all(row.reason for row in report.unquantized)
    loaded = load_model(save_model(quantized, tmp_path / "quantized.keras"))
    np.testing.assert_equal(outputs(loaded, x), found)
    qat = prepare_qat(model, RECIPE, x, progress=False)
    np.testing.assert_equal(outputs(convert(qat), x), outputs(qat, x))
    np.testing.assert_equal(state(model), before)


def test_tuples_of_inputs_are_given_as_the_first_of_a_tuple() -> None:
    a, b = I((6,), name="a"), I((4,), name="b")
    model = keras.Model((a, {"z": b}), layers.Dense(2)(layers.Concatenate()([a, b])))
    x = (noise(40, 6), {"z": noise(40, 4)})
    quantized, _ = quantize_model(model, RECIPE, (x, noise(40, 2)), progress=False)
    assert sqnr_db(outputs(model, x)[0], outputs(quantized, x)[0]) > 25
    with pytest.raises(InputError, match=r"expected 2 inputs .* received 1; do give several as a list or dict"):
        quantize_model(model, RECIPE, x, progress=False)


class Perhaps(layers.Layer):
    def call(self, x: Any, y: Any = None) -> Any:
        return x if y is None else x + y


def test_optional_inputs_may_still_be_left_out_and_need_samples() -> None:
    a, b = I((6,), name="a"), I((6,), name="b", optional=True)
    model = keras.Model([a, b], layers.Dense(2)(Perhaps()(a, b)))
    x = noise(40, 6)
    quantized, _ = quantize_model(model, RECIPE, [x, noise(40, 6)], progress=False)
    assert sqnr_db(outputs(model, [x, None])[0], outputs(quantized, [x, None])[0]) > 25
    with pytest.raises(InputError, match="received None for one of them; do give optional inputs values as well"):
        quantize_model(model, RECIPE, [x, None], progress=False)


def test_lambdas_say_what_files_make_of_them(tmp_path: Path) -> None:
    factor = keras.Variable(np.full(6, 2.0, np.float32), name="factor")
    x = I((6,))
    scaled = keras.Model(x, layers.Dense(3)(layers.Lambda(lambda t: t * factor, name="scale")(x)))
    with warned() as found:
        quantized, _ = quantize_model(scaled, RECIPE, noise(40, 6), progress=False)
    assert any(
        "Lambda layers read weights that no layer holds: 'scale' reads ['factor']" in str(w.message) for w in found
    )
    assert sqnr_db(outputs(scaled, noise(40, 6))[0], outputs(quantized, noise(40, 6))[0]) > 25
    plain = keras.Model(x, layers.Dense(3)(layers.Lambda(lambda t: t * 2, name="twice")(x)))
    with warned() as found:
        quantized, _ = quantize_model(plain, RECIPE, noise(40, 6), progress=False)
    assert len(found) == 1
    assert str(found[0].message).startswith("1 layers can't be copied: 'twice' is shared")
    path = save_model(quantized, tmp_path / "quantized.keras")
    with pytest.raises(FileFormatError, match="safe_mode=False"):
        load_model(path)
    again = load_model(path, safe_mode=False)
    np.testing.assert_equal(outputs(again, noise(9, 6)), outputs(quantized, noise(9, 6)))
    named = keras.Model(x, layers.Dense(3)(layers.Lambda(ops.tanh, name="bend")(x)))
    assert not quantize_model(named, RECIPE, noise(40, 6), progress=False)[1].all_warnings


# Wrong models ----------------------------------------------------------------------------------------------------------


class KeywordOnly(keras.Model):
    def __init__(self) -> None:
        super().__init__(name="needs")
        self.dense = layers.Dense(3)

    def call(self, x: Any, *, scale: float) -> Any:
        return self.dense(x) * scale


def needs_a_keyword() -> Case:
    model = KeywordOnly()
    model(noise(2, 4), scale=2.0)
    return model, noise(40, 4)


class Fails(layers.Layer):
    def call(self, x: Any) -> Any:
        if not isinstance(x, keras.KerasTensor):
            raise RuntimeError("no such table")
        return x

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)


def call_that_raises() -> Case:
    x = I((4,), name="x")
    return keras.Model(x, layers.Dense(2)(Fails(name="fails")(x)), name="broken"), noise(40, 4)


def no_features() -> Case:
    x = I((0,), name="x")
    return keras.Model(x, layers.Dense(2)(x)), noise(40, 0)


def no_channels_within() -> Case:
    x = I((4,), name="x")
    return keras.Model(x, [x, layers.Dense(2)(layers.Dense(3, name="d")(x)[:, 3:])]), noise(40, 4)


def complex_input() -> Case:
    x = I((6,), dtype="complex64", name="x")
    return keras.Model(x, layers.Dense(2)(ops.real(x))), noise(40, 6).astype("complex64")


def name_with_a_space() -> Case:
    x = I((4,), name="x")
    return keras.Model(x, layers.Dense(2, name="my layer")(x)), noise(40, 4)


WRONG: dict[str, tuple[Callable[[], Case], type[Exception], str]] = {
    "empty": (
        lambda: (keras.Sequential(name="none"), noise(4, 4)),
        InputError,
        "expected a built model; received 'none'",
    ),
    "unbuilt": (lambda: (keras.Sequential([layers.Dense(3)]), noise(4, 4)), InputError, "expected a built model"),
    "keyword": (needs_a_keyword, UnsupportedError, r"whose call needs \['x', 'scale'\]; do give it one list or dict"),
    "raises": (call_that_raises, InputError, "'broken' can run on.*it raised RuntimeError.*no such table"),
    "no features": (
        no_features,
        InputError,
        r"expected tensors with values in them; received one of shape \(None, 0\) from 'x'",
    ),
    "no channels": (
        no_channels_within,
        InputError,
        r"expected tensors with values in them; .*\(None, 0\) from 'get_item",
    ),
    "complex": (complex_input, InputError, "expected numbers for input 'x'; received dtype=complex64"),
    "name": (name_with_a_space, InputError, "expected names of letters, digits.*received 'my layer'; do set another"),
}


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_models(name: str, work: Callable[..., Any]) -> None:
    make, error, message = WRONG[name]
    model, x = make()
    before = state(model)
    with pytest.raises(error, match=message):
        work(model, data=x, progress=False)
    np.testing.assert_equal(state(model), before)


def test_weights_without_values_stay_in_float() -> None:
    class Hollow(layers.Layer):
        def build(self, shape: Any) -> None:
            self.hollow = self.add_weight(shape=(0, 4), name="hollow")

        def call(self, x: Any) -> Any:
            return x + ops.sum(self.hollow, axis=0)

    x = I((4,))
    model = keras.Model(x, layers.Dense(2)(Hollow(name="it")(x)))
    quantized, report = quantize_model(model, RECIPE, noise(40, 4), progress=False)
    assert {row.path: row.reason for row in report.unquantized}["it/hollow"] == "has no elements"
    assert sqnr_db(outputs(model, noise(40, 4))[0], outputs(quantized, noise(40, 4))[0]) > 25


class Locked(layers.Layer):
    """Holds what no configuration can."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lock = threading.Lock()
        self.table = self.add_weight(shape=(4,), initializer="ones", name="table")

    def call(self, x: Any) -> Any:
        return x * self.table

    def get_config(self) -> Any:
        raise NotImplementedError("it can't be written down")


@pytest.mark.filterwarnings("ignore::qi.errors.QuantizationWarning")
def test_what_cannot_be_copied_is_not_trained() -> None:
    x = I((4,))
    model = keras.Model(x, layers.Dense(2)(Locked(name="locked")(x)))
    before = state(model)
    _, report = quantize_model(model, RECIPE, noise(40, 4), progress=False)
    assert "1 layers can't be copied: 'locked' is shared with the given model" in report.all_warnings[0]
    with pytest.raises(
        InputError, match=r"expected layers that can be copied.*'locked' of class Locked is shared with"
    ):
        prepare_qat(model, RECIPE, noise(40, 4), progress=False)
    model.get_layer("locked").trainable = False
    qat = prepare_qat(model, RECIPE, noise(40, 4), progress=False)
    qat.compile("sgd", "mse", jit_compile=False)
    qat.train_on_batch(noise(40, 4), noise(40, 2))
    np.testing.assert_equal(state(model)[0], before[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_compiled_model_is_as_it_was_after_an_error(value: float) -> None:
    model, x = one_layer()
    model.compile("adam", "mse")
    model.layers[0].bias.assign([0.0, value, 0.0])
    before = state(model)
    for work in WORKS:
        with pytest.raises(InputError, match="expected finite weights"):
            work(model, data=x, progress=False)
    np.testing.assert_equal(state(model), before)


# Wrong data ------------------------------------------------------------------------------------------------------------


def ends_early() -> Iterator[np.ndarray]:
    yield noise(8, 6)
    raise OSError("the disk is gone")


def test_generators() -> None:
    model, _ = one_layer()
    before = state(model)
    with pytest.raises(OSError, match="the disk is gone"):  # theirs, as it is
        quantize_model(model, RECIPE, ends_early(), progress=False)
    with warned() as found:
        quantize_model(model, RECIPE, iter([noise(8, 6)]), progress=False)
    assert "only 8 calibration samples" in str(found[0].message)
    with pytest.raises(InputError, match="received no samples; do pass at least a few dozen"):
        quantize_model(model, RECIPE, iter([]), progress=False)
    quantize_model(model, RECIPE, iter([noise(40, 6), noise(0, 6)]), progress=False)
    np.testing.assert_equal(state(model), before)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: [[1.0, 2.0]] * 40, "expected arrays; received list of"),
        (lambda: {"other": noise(40, 6)}, "received .*'other'"),
        (lambda: lambda: None, "expected arrays, a tf.data.Dataset.*received function"),
        (lambda: iter([None]), "received None"),
        (
            lambda: np.full((40, 6), "2020-01-01", "datetime64[D]"),
            r"expected numbers .* received dtype=datetime64\[D\]",
        ),
        (lambda: np.full((40, 6), None), "expected numbers .* received dtype=object"),
        (lambda: noise(40, 6) + 1j, "expected numbers .* received dtype=complex64"),
        (lambda: noise(0, 6), "received no samples"),
    ],
    ids=["numbers", "key", "function", "none", "dates", "objects", "complex", "empty"],
)
def test_wrong_data(data: Callable[[], Any], message: str) -> None:
    model, _ = one_layer()
    before = state(model)
    for work in WORKS:
        with pytest.raises(InputError, match=message):
            work(model, data=data(), progress=False)
    np.testing.assert_equal(state(model), before)


# Recipes ---------------------------------------------------------------------------------------------------------------


def test_rules_that_match_nothing_are_told() -> None:
    model, _ = one_layer()
    spec = TensorSpec(bits=8, granularity="per_channel")
    recipe = Recipe(
        "mine", weights=spec, rules=(Rule("stem*", weights="float"), Rule(layer_type="GRU", weights="float"))
    )
    with warned() as found:
        _, report = quantize_model(model, recipe, progress=False)
    assert [text.partition(":")[0] for text in report.unused_rules] == ["match='stem*'", "layer_type='GRU'"]
    assert "unused rule match='stem*': matches no layer" in str(report)
    assert len(found) == 2


def test_strict_lists_all_that_stays_in_float() -> None:
    x = I((5, 6))
    y = layers.PReLU(name="second")(layers.Dense(4, name="d")(layers.PReLU(name="first")(x)))
    model = keras.Model(x, y)
    for work in (quantize_model, prepare_qat):
        with pytest.raises(
            StrictError, match=r"received 2 that stay in\s+float:\n  first/alpha \(5, 6\): .*\n  second/alpha"
        ):
            work(model, RECIPE, noise(40, 5, 6), strict=True, progress=False)
