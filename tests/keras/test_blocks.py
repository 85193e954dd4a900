"""Cutting graphs: where blocks begin, what leads into them and out of them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

from qi import ConfigError
from qi.keras.blocks import Block, cut_graph, several_blocks
from qi.keras.graph import Call, Graph, flatten_model
from qi.keras.running import stateless_call
from tests.keras.models import build, samples


def has_weights(call: Call) -> bool:
    return isinstance(call.op, layers.Layer) and any(len(w.shape) > 1 for w in call.op.weights)


def names(blocks: list[Block]) -> list[list[str]]:
    return [[call.path for call in block.calls] for block in blocks]


def chained(graph: Graph, blocks: list[Block], x: Any) -> list[np.ndarray]:
    """The outputs of the graph from block after block."""
    arrays = dict(zip(map(id, graph.flat_inputs()), keras.tree.flatten(x), strict=True))
    for block in blocks:
        found = stateless_call(block.build(), [arrays[id(value)] for value in block.inputs])
        arrays |= dict(zip(map(id, block.outputs), found, strict=True))
    return [arrays[id(value)] for value in graph.flat_outputs()]


def test_residual_blocks_stay_whole() -> None:
    graph = flatten_model(build("residual"))
    blocks = cut_graph(graph, "block", has_weights)
    assert [block.name for block in blocks] == ["stem_conv", "a_conv", "c_conv", "logits"]
    assert [len(block.inputs) for block in blocks] == [1, 1, 1, 1]
    assert names(blocks)[1][:1] == ["a_conv"]
    assert "pool" in names(blocks)[1]  # what follows without weights belongs to the block before
    assert "join" in names(blocks)[1]
    assert [len(block.outputs) for block in blocks] == [1, 1, 1, 1]


def test_every_layer_has_a_block_of_its_own() -> None:
    graph = flatten_model(build("residual"))
    blocks = cut_graph(graph, "layer", has_weights)
    assert [block.name for block in blocks] == ["stem_conv", "a_conv", "b_conv", "c_conv", "logits"]
    shortcut = blocks[0].outputs[0]
    assert any(value is shortcut for value in blocks[2].inputs)
    assert len(blocks[2].inputs) == 2


def test_the_network_is_one_block() -> None:
    graph = flatten_model(build("list_io"))
    (block,) = cut_graph(graph, "network", has_weights)
    assert block.calls == graph.calls
    assert set(map(id, block.inputs)) == set(map(id, graph.flat_inputs()))
    assert set(map(id, block.outputs)) == set(map(id, graph.flat_outputs()))


@pytest.mark.parametrize("scope", ["network", "block", "layer"])
@pytest.mark.parametrize("name", ["residual", "list_io", "dict_io", "shared", "nested_io", "tokens"])
def test_blocks_one_after_the_other_give_what_the_model_gives(name: str, scope: str) -> None:
    model = build(name)
    x = samples(model, 3)
    graph = flatten_model(model)
    blocks = cut_graph(graph, scope, has_weights)
    assert [call for block in blocks for call in block.calls] == graph.calls
    wanted = [np.asarray(array) for array in keras.tree.flatten(model(x))]
    for found, array in zip(chained(graph, blocks, x), wanted, strict=True):
        np.testing.assert_allclose(found, array, rtol=1e-5, atol=1e-5)


def test_nothing_is_cut_where_a_value_does_not_pass() -> None:
    graph = flatten_model(build("residual"))
    whole = cut_graph(graph, "block", has_weights)
    stuck = whole[0].outputs[0]
    found = cut_graph(graph, "block", has_weights, lambda value: value is not stuck)
    assert [block.name for block in found] == ["stem_conv", "c_conv", "logits"]
    assert len(cut_graph(graph, "layer", has_weights, lambda value: False)) == 1


def test_graphs_without_weights_are_one_block() -> None:
    x = layers.Input((4,))
    graph = flatten_model(keras.Model(x, ops.tanh(layers.ReLU()(x))))
    for scope in ("network", "block", "layer"):
        assert len(cut_graph(graph, scope, has_weights)) == 1


def test_layers_that_several_blocks_call_are_known() -> None:
    graph = flatten_model(build("shared"))
    op = {call.path: call.op for call in graph.calls}
    for scope, wanted in (("network", []), ("layer", [op["tower/dense"], op["project"]])):
        found = several_blocks(cut_graph(graph, scope, has_weights))
        assert {id(one) for one in found.values() if has_weights(next(c for c in graph.calls if c.op is one))} == set(
            map(id, wanted)
        )


def test_an_unknown_scope() -> None:
    graph = flatten_model(build("residual"))
    with pytest.raises(ConfigError, match=r"expected scope to be one of .*received scope='blocks'.*'block'"):
        cut_graph(graph, "blocks", has_weights)
