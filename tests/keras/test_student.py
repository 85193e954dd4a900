"""The two copies of a prepared graph: what trains in the quantized one, what doesn't and why, and what is left alone."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi.keras.running import stateless_call
from qi.keras.student import Student, elements
from qi.keras.variables import to_numpy
from tests.keras.models import build, samples
from tests.keras.prepared import start, state


def student(name: str, scope: str = "network", rounding: str = "lsq", recipe: Any = "w2a8", **options: Any) -> Any:
    model = build(name)
    ready, weights, activations = start(model, recipe, samples(model, 16))
    before = state(ready)
    made = Student(ready, weights, activations, rounding=rounding, scope=scope, **options)
    assert state(ready) == before
    return made, ready, weights, activations


def run(made: Student, x: Any, *, teacher: bool = False) -> list[np.ndarray]:
    """What all blocks, one after the other, make of inputs."""
    graph = made.teacher if teacher else made.graph
    arrays = dict(zip(map(id, graph.flat_inputs()), keras.tree.flatten(x), strict=True))
    for block in map(made.twin, made.blocks) if teacher else made.blocks:
        found = stateless_call(block.build(), [arrays[id(value)] for value in block.inputs])
        arrays |= dict(zip(map(id, block.outputs), found, strict=True))
    return [arrays[id(value)] for value in graph.flat_outputs()]


def trained(made: Student) -> set[str]:
    """Which variables train, by the end of their path."""
    return {v.path.partition("/")[2] for block in made.blocks for v in block.build().trainable_variables}


@pytest.mark.parametrize("scope", ["network", "block", "layer"])
def test_it_starts_as_the_quantized_model_beside_the_float_one(scope: str) -> None:
    model = build("residual")
    x = samples(model, 8)
    made, _, weights, _ = student("residual", scope)
    wanted = to_numpy(model(x))
    (taught,), (found,) = run(made, x, teacher=True), run(made, x)
    np.testing.assert_allclose(taught, wanted, rtol=1e-4, atol=1e-4)
    assert 1e-3 < np.mean((found - wanted) ** 2) / np.var(wanted) < 10
    for (key, path), (quantizer, values) in made.weights().items():
        assert path == "kernel"
        np.testing.assert_array_equal(values, quantizer(values))
        np.testing.assert_array_equal(values, weights[key, path](values))
    assert not made.fixed
    assert set(made.weights()) == set(weights)


def test_lsq_trains_weights_steps_and_biases() -> None:
    made, *_ = student("residual")
    assert {path.rpartition("/")[2] for path in trained(made)} == {"kernel", "kernel_step", "bias", "step"}


def test_adaround_keeps_weights_and_trains_roundings() -> None:
    made, *_ = student("residual", rounding="adaround")
    assert {path.rpartition("/")[2] for path in trained(made)} == {"kernel_rounding", "bias", "step"}
    (block,) = made.blocks
    assert len(made.rounded_up(block)) == 5
    net, x = block.build(), samples(build("residual"), 4)
    hard = to_numpy(keras.tree.flatten(net([x]))[0])
    with made.soft(block):
        soft = to_numpy(keras.tree.flatten(net([x]))[0])
    assert np.any(soft != hard)
    np.testing.assert_array_equal(to_numpy(keras.tree.flatten(net([x]))[0]), hard)


def test_weights_without_a_quantizer_stay_but_their_bias_trains() -> None:
    model = build("residual")
    ready, weights, activations = start(model, "w2a8", samples(model, 16))
    ops = {call.path: call.op for call in ready.graph.calls}
    left = {key: q for key, q in weights.items() if key[0] != id(ops["a_conv"])}
    made = Student(ready, left, activations, rounding="lsq", scope="network")
    names = {v.path for v in made.blocks[0].build().trainable_variables}
    assert {name for name in names if "a_conv" in name} == {"a_conv/bias"}
    assert (id(ops["a_conv"]), "bias") in made.floats()
    assert (id(ops["a_conv"]), "kernel") not in made.weights()


def test_layers_of_several_blocks_stay_fixed_with_a_reason() -> None:
    made, *_ = student("shared", "layer")
    assert made.fixed == dict.fromkeys(["tower/dense", "project"], "it is called in several blocks")
    assert not any("dense" in path or "project" in path for path in trained(made))
    whole, *_ = student("shared", "network")
    assert not whole.fixed
    assert any("kernel_step" in path for path in trained(whole))


def test_layers_that_share_a_weight_stay_fixed_with_a_reason() -> None:
    inputs = keras.Input((4,))
    one, other = layers.Dense(4, name="one"), layers.Dense(4, name="other")
    model = keras.Model(inputs, other(one(inputs)))
    vars(other)["_kernel"] = one._kernel
    other._trainable_variables[0] = one._kernel
    ready, weights, activations = start(model, "w2a8", samples(model, 16))
    made = Student(ready, weights, activations, rounding="lsq", scope="network")
    assert set(made.fixed) == {"one", "other"}
    assert "too" in made.fixed["one"]
    assert not any("kernel" in path or "bias" in path for path in trained(made))
    for key, (quantizer, _) in made.weights().items():
        assert quantizer is weights[key]
    assert not made.floats()


def test_a_softmax_at_the_end_rests() -> None:
    made, _, _, activations = student("mobile")
    last = made.graph.flat_outputs()[0]
    assert made.is_softmax(last)
    assert made.activations().keys() == activations.keys()
    other, *_ = student("residual")
    assert not other.is_softmax(other.graph.flat_outputs()[0])


def test_blocks_are_targets_of_the_network_as_far_as_they_fit() -> None:
    roomy, *_ = student("residual")
    (block,) = roomy.blocks
    assert len(block.outputs) == 4
    assert sum(map(roomy.weight_of, block.outputs)) == pytest.approx(1.75)
    needed = elements(block.inputs) + elements(roomy.graph.flat_outputs())
    tight, *_ = student("residual", room=needed)
    assert len(tight.blocks[0].outputs) == 1


def test_frozen_layers_train_in_the_copy_alone() -> None:
    model = build("residual")
    model.trainable = False
    ready, weights, activations = start(model, "w2a8", samples(model, 16))
    made = Student(ready, weights, activations, rounding="lsq", scope="network")
    assert any(path.endswith("kernel") for path in trained(made))
    assert not any(layer.trainable for layer in model.layers if layer.weights)
