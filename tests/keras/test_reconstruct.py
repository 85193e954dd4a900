"""Reconstruction: it brings quantized models nearer to the float ones, and leaves alone what it should."""

from __future__ import annotations

from functools import cache
from itertools import islice
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi import ConfigError, InputError
from qi.keras.reconstruct import Reconstructed, _orders, reconstruct
from qi.keras.running import predict
from tests.keras.models import build, samples, settle
from tests.keras.prepared import finish, nearest, start, state

QUIET: dict[str, Any] = {"progress": False, "seed": 1}


def small() -> keras.Model:
    inputs = keras.Input((6,), name="x")
    hidden = layers.Dense(8, activation="relu", name="first")(inputs)
    hidden = layers.Dense(8, activation="relu", name="second")(hidden)
    outputs = [layers.Dense(3, name="scores")(hidden), layers.Dense(2, activation="softmax", name="shares")(hidden)]
    return settle(keras.Model(inputs, outputs, name="small"))


X = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)


@cache
def digits() -> tuple[keras.Model, np.ndarray, np.ndarray]:
    """A small CNN trained on real digits, with samples to learn from and others."""
    datasets = pytest.importorskip("sklearn.datasets")
    found = datasets.load_digits()
    x, y = (found.images[..., None] / 16).astype("float32"), found.target
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    h = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(inputs)
    short = h = layers.ReLU()(layers.BatchNormalization(name="norm")(h))
    h = layers.Conv2D(8, 3, padding="same", activation="relu", name="a")(h)
    h = layers.Add()([layers.Conv2D(8, 3, padding="same", name="b")(h), short])
    h = layers.MaxPooling2D(2)(layers.ReLU()(h))
    model = keras.Model(inputs, layers.Dense(10, name="head")(layers.Flatten()(h)), name="digits")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
    model.fit(x[:1200], y[:1200], batch_size=64, epochs=2, shuffle=False, verbose=0)
    return model, x[:256], x[1200:]


def error(model: keras.Model, quantized: keras.Model, x: np.ndarray) -> float:
    """The mean squared error of the outputs over their variance."""
    wanted = predict(model, x)
    return float(np.mean((predict(quantized, x) - wanted) ** 2) / np.var(wanted))


def same(one: Reconstructed, other: Reconstructed) -> None:
    """Two results are equal, bit for bit; keys differ between two prepared graphs."""
    pairs = [*zip(one.weights.values(), other.weights.values(), strict=True)]
    found = [np.array_equal(a[1], b[1]) and np.array_equal(a[0].threshold, b[0].threshold) for a, b in pairs]
    found += [np.array_equal(a, b) for a, b in zip(one.floats.values(), other.floats.values(), strict=True)]
    found += [a == b for a, b in zip(one.activations.values(), other.activations.values(), strict=True)]
    assert all(found)
    assert one.losses == other.losses


def test_the_network_comes_nearer_on_samples_that_it_never_saw() -> None:
    model, seen, unseen = digits()
    ready, weights, activations = start(model, "w2a8", seen)
    before = state(ready)
    found = reconstruct(ready, weights, activations, seen, steps=60, learning_rate=3e-3, **QUIET)
    assert state(ready) == before
    again = start(model, "w2a8", seen)
    plain = finish(again[0], nearest(again[0], again[1]), {}, again[2])
    trained = finish(ready, found.weights, found.floats, found.activations)
    assert error(model, trained, unseen) < 0.5 * error(model, plain, unseen)
    (first, last) = found.losses["digits"]
    assert last < 0.5 * first
    assert set(found.weights) == set(weights)
    assert {path for _, path in found.floats} == {"bias"}
    assert found.samples == 256


def test_blocks_come_nearer_and_with_a_rate_of_zero_they_do_not() -> None:
    model, seen, unseen = digits()
    control = start(model, "w2a8", seen)
    still = reconstruct(*control, seen, scope="block", steps=5, learning_rate=0, control=True, **QUIET)
    assert all(first == last for first, last in still.losses.values())
    for key, (quantizer, values) in nearest(control[0], control[1]).items():
        assert still.weights[key][0].threshold == pytest.approx(quantizer.threshold)
        np.testing.assert_allclose(still.weights[key][1], values, rtol=1e-6)
    ready, weights, activations = start(model, "w2a8", seen)
    found = reconstruct(ready, weights, activations, seen, scope="block", steps=40, learning_rate=3e-3, **QUIET)
    assert list(found.losses) == ["stem", "a", "head"]
    assert sum(last for _, last in found.losses.values()) < 0.8 * sum(first for first, _ in still.losses.values())
    plain = finish(control[0], still.weights, still.floats, still.activations)
    trained = finish(ready, found.weights, found.floats, found.activations)
    assert error(model, trained, unseen) < 0.8 * error(model, plain, unseen)


def test_learned_rounding_is_better_than_nearest_on_the_same_grid() -> None:
    model, seen, _ = digits()
    ready, weights, activations = start(model, "w3a8", seen)
    found = reconstruct(ready, weights, activations, seen, rounding="adaround", steps=120, learning_rate=0.02, **QUIET)
    moved = 0
    for key, (quantizer, values) in nearest(ready, weights).items():
        new, chosen = found.weights[key]
        scale = quantizer.qparams(values.shape).scale
        np.testing.assert_array_equal(new.qparams(values.shape).scale, scale)
        assert np.max(np.abs(chosen - values) / scale) < 1.01  # the other neighbour at most
        moved += int(np.sum(chosen != values))
    assert moved > 20
    assert sum(last for _, last in found.losses.values()) < 0.8 * sum(first for first, _ in found.losses.values())


def test_several_outputs_each_by_its_own_measure() -> None:
    model = small()
    ready, weights, activations = start(model, "w2a8", X)
    found = reconstruct(ready, weights, activations, X, steps=60, learning_rate=5e-3, **QUIET)
    plain_ready, plain_weights, plain_activations = start(model, "w2a8", X)
    plain = finish(plain_ready, nearest(plain_ready, plain_weights), {}, plain_activations)
    trained = finish(ready, found.weights, found.floats, found.activations)
    for wanted, before, after in zip(*(predict(m, X) for m in (model, plain, trained)), strict=True):
        assert np.mean((after - wanted) ** 2) < 0.8 * np.mean((before - wanted) ** 2)


def test_few_samples_and_labels() -> None:
    model, few = small(), X[:5]

    def found(data: Any) -> Reconstructed:
        how = {"steps": 4, "learning_rate": 1e-3, "batch_size": 2, "progress": False}
        return reconstruct(*start(model, "w2a8", few), data, seed=1, **how)

    first = found(few)
    assert first.samples == 5
    same(first, found((batch, None) for batch in (few[:3], few[3:])))  # labels aren't looked at


def test_every_sample_has_its_turn_in_an_order_of_the_seed() -> None:
    orders = lambda seed: [list(part) for part in islice(_orders(7, 3, np.random.default_rng(seed)), 4)]
    first = orders(0)
    assert first == orders(0)
    assert first != orders(1)
    assert len(set(first[0] + first[1])) == len(set(first[2] + first[3])) == 6  # the one left over waits
    assert first[:2] != first[2:]


def test_a_shared_layer_is_left_as_it_was() -> None:
    model = build("shared")
    x = samples(model, 16)
    ready, weights, activations = start(model, "w2a8", x)
    found = reconstruct(ready, weights, activations, x, scope="layer", steps=2, learning_rate=1e-2, **QUIET)
    assert found.fixed == dict.fromkeys(["tower/dense", "project"], "it is called in several blocks")
    kept = {call.path: id(call.op) for call in ready.graph.calls}["project"]
    assert found.weights[kept, "kernel"][0] is weights[kept, "kernel"]
    assert (kept, "bias") not in found.floats


class _Stop:
    """A progress bar whose user presses Ctrl-C after some steps."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.left = 3

    def update(self, *args: Any, **options: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_control_c(monkeypatch: pytest.MonkeyPatch) -> None:
    ready, weights, activations = start(small(), "w2a8", X)
    before = state(ready)
    monkeypatch.setattr("qi.keras.reconstruct.keras.utils.Progbar", _Stop)
    how = {"steps": 50, "learning_rate": 1e-3, "scope": "block"} | QUIET
    with pytest.raises(KeyboardInterrupt):
        reconstruct(ready, weights, activations, X, **how)
    assert state(ready) == before
    found = reconstruct(ready, weights, activations, X, keep_on_interrupt=True, **how)
    assert list(found.losses) == ["first", "second", "scores", "shares"]
    (one, other), *rest = found.losses.values()
    assert other <= one
    assert all(first == last for first, last in rest)
    assert set(found.weights) == set(weights)


def test_a_loss_that_is_not_finite_names_the_block() -> None:
    ready, weights, activations = start(small(), "w2a8", X)
    before = state(ready)
    with pytest.raises(InputError, match=r"expected a finite loss; received (nan|inf) in block 'first'"):
        reconstruct(ready, weights, activations, X, steps=9, learning_rate=1e38, scope="block", **QUIET)
    assert state(ready) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "blocks"}, "expected scope to be one of"),
        ({"rounding": "up"}, "expected rounding to be one of"),
        ({"steps": 0}, "steps to be an integer from 1; received steps=0"),
        ({"learning_rate": 0}, "learning_rate to be a positive number; received learning_rate=0"),
        ({"learning_rate": -1e-3}, "received learning_rate=-0.001"),
        ({"learning_rate": float("nan")}, "received learning_rate=nan"),
        ({"drop": 1.5}, "drop to be a share from 0 to 1; received drop=1.5"),
        ({"batch_size": 0}, "batch_size"),
        ({"weights": {(1, "kernel"): None}}, "expected weights of layers of the prepared graph"),
        ({"activations": {1: None}}, "expected quantizers of groups of the plan"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    ready, weights, activations = start(small(), "w2a8", X)
    given = {"weights": weights, "activations": activations} | options
    with pytest.raises(ConfigError, match=message):
        reconstruct(ready, data=X, progress=False, **given)


def test_data_are_needed() -> None:
    ready, weights, activations = start(small(), "w2a8", X)
    for data in (None, X[:0]):
        with pytest.raises(InputError, match="expected data to reconstruct with; received"):
            reconstruct(ready, weights, activations, data, **QUIET)
