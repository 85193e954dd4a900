"""Tables: rows are rounded for the layers behind, products with a table turned round like others, and what is left is told."""

from __future__ import annotations

from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi.keras.graph import build_model, build_tensors
from qi.keras.linear import linear_views
from qi.keras.prepare import Prepared, prepare
from qi.keras.rounding import WeightSite, weight_sites
from qi.keras.running import predict
from qi.keras.tables import consumers_of, is_table, table_moments, with_tables
from tests.keras.models import settle
from tests.keras.warned import warned

TOKENS, WIDTH, LENGTH = 17, 8, 16
IDS = np.random.default_rng(0).integers(0, TOKENS, (32, LENGTH)).astype("int32")


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Real digits as texts: the 17 shades of their middle pixels are words, row by row."""
    found = pytest.importorskip("sklearn.datasets").load_digits()
    return found.images[:, 2:6, 2:6].reshape(-1, LENGTH).astype("int32"), found.target


def trained(model: keras.Model, x: np.ndarray, y: np.ndarray) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
    model.fit(x[:1200], y[:1200], batch_size=128, epochs=3, shuffle=False, verbose=0)
    return model


@cache
def classifier() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((LENGTH,), dtype="int32")
    h = layers.Dropout(0.1)(layers.Embedding(TOKENS, WIDTH, name="words")(inputs))
    h = layers.Dense(4, activation="relu", name="mix")(h)
    h = layers.Dense(32, activation="relu", name="hidden")(layers.Flatten()(h))
    return trained(keras.Model(inputs, layers.Dense(10, name="head")(h)), *digits())


@cache
def writer() -> keras.Model:
    """Tells each word from those before it, with scores of the table that it looks words up in."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((LENGTH - 1,), dtype="int32")
    words = layers.ReversibleEmbedding(TOKENS, WIDTH, name="words")
    h = layers.Conv1D(WIDTH, 4, padding="causal", activation="tanh", name="mix")(words(inputs))
    x = digits()[0]
    return trained(keras.Model(inputs, words(h, reverse=True)), x[:, :-1], x[:, 1:])


def taken_by(*built: Any) -> tuple[Prepared, WeightSite, dict[str, Any]]:
    """The site of the table whose rows go through layers."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    h = layers.Embedding(TOKENS, WIDTH, name="words")(inputs)
    for make in built:
        h = make(h)
    ready = prepare(settle(keras.Model(inputs, h)), "w3")
    sites, found = with_tables(ready.graph, weight_sites(ready))
    return ready, next(site for site in sites if site.layer == "words"), found


PATHS = {
    "dense": (layers.Dense(5),),
    "flattened": (layers.Dropout(0.5), layers.Flatten(), layers.Dense(5)),
    "reshaped": (layers.Reshape((4, 4 * WIDTH)), layers.Dense(5)),
    "window": (layers.Conv1D(5, 3),),
    "depthwise": (layers.DepthwiseConv1D(3),),
    "averaged": (layers.GlobalAveragePooling1D(), layers.Dense(5)),
    "einsum": (layers.EinsumDense("abc,cde->abde", (None, 2, 3)),),
    "recurrent": (layers.LSTM(3),),
    "added": (lambda h: layers.Add()([h, h]), layers.Dense(5)),
}
BLOCKED = {
    "normalized": (layers.LayerNormalization(), layers.Dense(5)),
    "rectified": (layers.ReLU(), layers.Dense(5)),
    "given": (layers.Dropout(0.5),),
    "both": (lambda h: [layers.Dense(5)(h), layers.Activation("tanh")(h)],),
    "turned": (layers.Permute((2, 1)), layers.Dense(5)),
    "grouped": (layers.Conv1D(4, 3, groups=2),),
}


@pytest.mark.parametrize("path", PATHS)
def test_rows_are_followed_to_linear_layers(path: str) -> None:
    _, site, found = taken_by(*(rebuilt(layer) for layer in PATHS[path]))
    assert [site.key] == list(found) == ["words/embeddings"]
    assert site.linear is not None
    assert site.linear.view.sizes == (1, WIDTH, TOKENS)
    assert len(found[site.key]) == 1


@pytest.mark.parametrize("path", BLOCKED)
def test_rows_that_go_elsewhere_are_left_alone(path: str) -> None:
    ready, site, found = taken_by(*(rebuilt(layer) for layer in BLOCKED[path]))
    assert site.linear is None
    assert not found
    (op,) = {id(call.op): call.op for call in ready.graph.calls if is_table(call, site.weight)}.values()
    assert consumers_of(ready.graph, op) == []


def rebuilt(layer: Any) -> Any:
    """A layer of its own for each test."""
    return type(layer).from_config(layer.get_config()) if isinstance(layer, keras.layers.Layer) else layer


@pytest.mark.parametrize("path", [path for path in PATHS if path != "recurrent"])
def test_the_error_of_a_row_is_what_it_makes_behind(path: str) -> None:
    """A row that stands at one place after the other, and is moved: all that changes behind is what the moments tell."""
    ready, site, found = taken_by(*(rebuilt(layer) for layer in PATHS[path]))
    second = table_moments(site, found[site.key]).second[0]
    run = build_model(ready.graph, build_tensors(ready.graph))
    table = next(call.op for call in ready.graph.calls if is_table(call, site.weight))
    rng, factors = np.random.default_rng(0), []
    for row in range(3):
        x = np.where(np.eye(LENGTH, dtype=bool), row, TOKENS - 1).astype("int32")
        table.embeddings.assign(site.array)
        before, change, moved = predict(run, x), rng.normal(size=WIDTH), site.array.copy()
        moved[row] += change
        table.embeddings.assign(moved)
        factors.append(np.sum((predict(run, x) - before) ** 2) / (change @ second @ change))
    np.testing.assert_allclose(factors, factors[0], rtol=1e-3)
    assert factors[0] > 0


def scores(model: keras.Model, recipe: str, x: Any = None) -> tuple[float, qi.QuantizationReport]:
    """How far the outputs of a model with a quantized table alone are off, and the report."""
    rules = [{"match": name, "weights": "float"} for name in ("hidden", "head", "mix")]
    with warned():
        quantized, report = qi.quantize_model(model, {"base": recipe, "rules": rules}, x, progress=False)
    seen = digits()[0][1200:, : model.input_shape[1]]
    return float(np.mean((predict(quantized, seen) - predict(model, seen)) ** 2)), report


@pytest.mark.parametrize("bits", [2, 3])
def test_looked_up_rows_are_better_for_the_layer_behind_without_data(bits: int) -> None:
    plain, _ = scores(classifier(), f"w{bits}")
    found, report = scores(classifier(), f"w{bits}_gptq")
    (row,) = [row for row in report.rows if row.path == "words/embeddings"]
    assert row.output_error < 0.7
    assert found < 0.8 * plain


def test_products_with_a_table_turned_round_are_better_with_moments() -> None:
    x = digits()[0][:256, :-1]
    found, report = scores(writer(), "w3_gptq", x)
    plain, _ = scores(writer(), "w3")
    (row,) = [row for row in report.rows if row.path == "words/embeddings"]
    assert row.output_error < 0.7
    assert found < plain


def test_a_table_turned_round_is_a_view_of_that_call_alone() -> None:
    ready = prepare(writer(), "w3")
    first, *_, last = ready.graph.calls
    assert linear_views(first) == []
    (view,) = linear_views(last)
    assert view.view.sizes == (1, WIDTH, TOKENS)
    apart = layers.ReversibleEmbedding(TOKENS, WIDTH, tie_weights=False)
    inputs = keras.Input((LENGTH,), dtype="int32")
    model = keras.Model(inputs, apart(apart(inputs), reverse=True))
    (view,) = linear_views(prepare(model, "w3").graph.calls[-1])
    assert (view.weight, view.view.sizes) == ("reverse_embeddings", (1, WIDTH, TOKENS))


def test_what_is_left_to_nearest_is_told() -> None:
    inputs = keras.Input((LENGTH,), dtype="int32")
    h = layers.LayerNormalization()(layers.Embedding(TOKENS, WIDTH, name="words")(inputs))
    model = settle(keras.Model(inputs, layers.Dense(3)(h)))
    with warned():
        _, report = qi.quantize_model(model, "w3_gptq", IDS, progress=False)
    (line,) = [line for line in report.warnings if "words/embeddings" in line]
    assert "nearest codes are best" in line
