"""Losses measured in one process, in several, and in threads: the same numbers; and models that can't be sent."""

from __future__ import annotations

import threading
from typing import Any

import keras
import numpy as np
import pytest

from qi.errors import ConfigError, InputError, UnsupportedError
from qi.keras.measured import measured_losses
from qi.keras.prepare import prepare
from qi.keras.search import search
from qi.keras.searched import searched_weights
from qi.keras.sending import Source
from qi.keras.sensitivity import divergence, quantized_values, some_samples
from qi.recipes import decode_name, get_recipe
from tests.keras.models import build, samples, settle

joblib = pytest.importorskip("joblib")

SPECS = tuple(decode_name(f"w{bits}").weights for bits in (2, 4, 8))


class Twice(keras.layers.Layer):
    """Of this module, and registered nowhere: workers get the class itself."""

    factor = 2

    def call(self, x: Any) -> Any:
        return self.factor * x + 1


def custom_model() -> keras.Model:
    layers = keras.layers
    return settle(
        keras.Sequential(
            [keras.Input((6,)), layers.Dense(8, activation="relu"), Twice(), layers.Dense(5), layers.Softmax()]
        )
    )


def measure(model: keras.Model, x: Any, distance: Any = divergence, **options: Any) -> list[np.ndarray]:
    ready = prepare(model, "w8a8")
    weights, _ = searched_weights(ready, SPECS)  # type: ignore[arg-type]
    source = Source(model, get_recipe("w8a8"), SPECS)  # type: ignore[arg-type]
    held = list(some_samples(ready, x, 20, 8))
    return measured_losses(ready, held, weights, quantized_values, distance, source=source, **options)


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(map(np.array_equal, one, other))


def test_processes_and_threads_measure_the_same_bit_for_bit() -> None:
    offset = 0.5
    model = build("residual")
    x = samples(model, 20)
    own = custom_model()
    alone = measure(model, x)
    steps: list[int] = []
    assert same(measure(model, x, jobs=2, advance=steps.append), alone)
    assert sum(steps) == 3 * len(alone)  # of three batches
    with joblib.parallel_config("threading", n_jobs=2):
        assert same(measure(model, x, jobs=None), alone)

    def of_the_user(before: list[np.ndarray], after: list[np.ndarray]) -> float:
        return offset * float(np.abs(before[0] - after[0]).mean())

    y = samples(own, 8)  # one batch: the weights are shared out
    assert same(measure(own, y, of_the_user, jobs=2), measure(own, y, of_the_user))
    options: Any = {"metric": "hessian", "samples": 8, "points": 2, "progress": False}
    found = [search(own, y, {"bits": 4}, jobs=jobs, **options) for jobs in (1, 2)]
    assert [w.losses for w in found[0].weights] == [w.losses for w in found[1].weights]


def test_what_cannot_be_sent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = threading.Lock()

    def locked(before: list[np.ndarray], after: list[np.ndarray]) -> float:
        with lock:
            return 0.0

    model = custom_model()
    x = samples(model, 8)
    with pytest.raises(ConfigError, match="a metric, and layers, that can be sent to other processes"):
        measure(model, x, locked, jobs=2)

    alone = measure(model, x)
    monkeypatch.setattr(Twice, "factor", 3)  # which no file tells
    assert not same(measure(model, x), alone)
    with pytest.raises(UnsupportedError, match=r"other processes can rebuild from its file; .* its outputs are others"):
        measure(model, x, jobs=2)


def test_a_model_that_cannot_be_saved_is_refused_before_the_work() -> None:
    class Scaled(keras.layers.Layer):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

        def get_config(self) -> dict[str, Any]:
            raise NotImplementedError("no configuration")

        def call(self, x: Any) -> Any:
            return self.factor * x

    model = keras.Sequential([keras.Input((6,)), Scaled(2.0), keras.layers.Dense(4)])
    with pytest.raises(UnsupportedError, match=r"expected a model that other processes .* no configuration"):
        Source(model, get_recipe("w8"), ()).packed([], here=False)
    assert Source(model, get_recipe("w8"), ()).packed([], here=True).archive is None


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), np.ones(3), "good"])
def test_metrics_that_give_no_number_are_refused(value: Any) -> None:
    model = build("sequential")
    with pytest.raises(InputError, match="a finite number of the metric; received"):
        measure(model, samples(model, 4), lambda before, after: value)


def test_a_stopped_measurement_leaves_the_model_as_it_was() -> None:
    model = build("residual")
    before = [variable.numpy().copy() for variable in model.variables]
    calls = []

    def stop(one: Any, other: Any) -> float:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        measure(model, samples(model, 8), stop)
    assert all(map(np.array_equal, before, [variable.numpy() for variable in model.variables]))
    assert all(np.isfinite(own).all() for own in measure(model, samples(model, 8)))
