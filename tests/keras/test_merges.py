"""Merges of many tensors as chains of two."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

import qi
from qi.keras.graph import flatten_model
from qi.keras.merges import split_merges
from qi.recipes import Rule, get_recipe
from tests.keras.models import execute, samples, settle


def merged(layer: keras.layers.Layer, count: int = 4) -> keras.Model:
    keras.backend.clear_session()
    x = keras.Input((5, 6), name="x")
    parts = [layers.Dense(4, name=f"part_{i}")(x) for i in range(count - 1)]
    row = layers.Reshape((1, 4), name="row")(layers.Dense(4, name="last")(x[:, 0]))  # broadcast
    return settle(keras.Model(x, layers.ReLU(name="relu")(layer([*parts, row]))))


@pytest.mark.parametrize("kind", ["Add", "Multiply", "Average"])
def test_chains_give_what_the_layer_gives(kind: str) -> None:
    model = merged(getattr(layers, kind)(name="many"))
    graph = flatten_model(model)
    split_merges(graph)
    paths = [call.path for call in graph.calls if call.path.startswith("many/")]
    assert paths == ["many/1", "many/2", "many/3", *(["many/factor"] if kind == "Average" else [])]
    assert all(
        call.split_from is not None and call.split_from.path == "many" for call in graph.calls if call.path in paths
    )
    x = samples(model)
    np.testing.assert_allclose(execute(graph, x), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "count"), [("Add", 2), ("Average", 2), ("Maximum", 4), ("Concatenate", 4)])
def test_others_stay(kind: str, count: int) -> None:
    x = keras.Input((6,))
    model = keras.Model(x, getattr(layers, kind)(name="many")([layers.Dense(4)(x) for _ in range(count)]))
    graph = flatten_model(model)
    split_merges(graph)
    assert [call.kind for call in graph.calls] == ["Dense"] * count + [kind]


def test_what_is_between_has_a_grid_by_the_rules_of_the_layer() -> None:
    model = merged(layers.Add(name="many"))
    x = samples(model, 64)
    qmodel, report = qi.quantize_model(model, "w8a8", x, progress=False)
    sums = [op for op in qi.lower(qmodel).ops if op.kind == "add"]
    assert [op.attrs["activation"] for op in sums] == ["none", "none", "relu"]
    assert all(op.quantized for op in sums)
    assert {"many/1", "many/2"} <= {row.layer for row in report.rows}
    recipe = get_recipe("w8a8").with_rules(Rule("many", activations="float"))
    qmodel, _ = qi.quantize_model(model, recipe, x, progress=False)
    assert not any(op.quantized for op in qi.lower(qmodel).ops if op.kind == "add")


def test_names_of_outputs_stay() -> None:
    x = keras.Input((6,))
    model = settle(keras.Model(x, layers.Add(name="total")([layers.Dense(4)(x) for _ in range(3)])))
    qmodel, _ = qi.quantize_model(model, "w8a8", samples(model, 64), progress=False)
    assert qmodel.output_names == ["total"]


def test_the_greatest_of_many_is_an_integer_operation_on_one_grid() -> None:
    model = merged(layers.Maximum(name="many"))
    qmodel, _ = qi.quantize_model(model, "w8a8", samples(model, 64), progress=False)
    chosen = [op for op in qi.lower(qmodel).ops if op.kind == "maximum"]
    assert len(chosen) == 3
    assert all(op.quantized and all(t.qparams == op.y.qparams for t in op.inputs) for op in chosen)
