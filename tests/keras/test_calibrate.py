"""One pass of the data through the float graph: what is seen, what is kept, and what isn't."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from qi.errors import ConfigError, InputError
from qi.keras.calibrate import Calibration, collect, run
from qi.keras.graph import Graph, Value, build_tensors, flatten_model
from qi.keras.plan import value_name
from qi.observers import TensorStatistics
from qi.recipes import TensorSpec
from qi.recipes.plan import Group, group_statistics
from tests.keras.models import build, samples

module = importlib.import_module("qi.keras.calibrate")  # as an attribute of the package, that is the function


class Case:
    """A flat graph whose every value is watched."""

    def __init__(self, name: str) -> None:
        self.model = build(name)
        self.graph: Graph = flatten_model(self.model)
        self.values: list[Value] = [
            *self.graph.flat_inputs(),
            *(value for call in self.graph.calls for value in call.outputs),
        ]
        self.tensors = build_tensors(self.graph)

    def collect(self, data: Any, **options: Any) -> Calibration:
        options = {"batch_size": 4, "progress": False, "keep": 3} | options
        return collect(self.graph, self.tensors, self.values, data, **options)


@pytest.fixture(scope="module")
def residual() -> Case:
    return Case("residual")


@pytest.mark.backend
def test_every_watched_value_is_seen_as_the_model_computes_it(residual: Case) -> None:
    data = samples(residual.model, 10)
    found = residual.collect(data)
    assert list(found.statistics) == [value_name(value) for value in residual.values]
    probe = keras.Model(residual.model.inputs, [layer.output for layer in residual.model.layers])
    for layer, expected in zip(residual.model.layers, probe.predict(data, batch_size=4, verbose=0), strict=True):
        seen = found.statistics[layer.name]
        assert (seen.count, seen.batches, seen.nonfinite) == (expected.size, 3, 0), layer.name
        np.testing.assert_allclose([seen.lo, seen.hi], [expected.min(), expected.max()], rtol=1e-5, err_msg=layer.name)


@pytest.mark.backend
@pytest.mark.parametrize("name", ["dict_io", "list_io", "shared", "nested_io"])
def test_several_inputs_reach_their_places(name: str) -> None:
    case = Case(name)
    found = case.collect(samples(case.model, 6), keep=2)
    flat = keras.tree.flatten(case.model.predict(samples(case.model, 6), verbose=0))
    for value, expected in zip(case.graph.flat_outputs(), flat, strict=True):
        seen = found.statistics[value_name(value)]
        np.testing.assert_allclose([seen.lo, seen.hi], [expected.min(), expected.max()], rtol=1e-4)
    assert [array.shape[0] for array in found.sample] == [2] * len(case.graph.flat_inputs())


def test_how_the_data_are_batched_changes_no_range(residual: Case) -> None:
    data = samples(residual.model, 12)
    whole, parts = residual.collect(data, batch_size=12), residual.collect(data, batch_size=5)
    assert whole.samples == parts.samples == 12
    for name, seen in whole.statistics.items():
        np.testing.assert_allclose(
            [seen.lo, seen.hi], [parts.statistics[name].lo, parts.statistics[name].hi], rtol=1e-5
        )


def test_sample_is_a_copy_of_the_first_few(residual: Case) -> None:
    data = samples(residual.model, 10)
    (sample,) = residual.collect(data, keep=3).sample
    np.testing.assert_array_equal(sample, data[:3])
    assert sample.base is None  # a view would hold on to the whole batch


def test_nothing_watched_needs_no_model(residual: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "run", None)
    found = collect(residual.graph, {}, [], samples(residual.model, 5), batch_size=2, progress=False, keep=1)
    assert (found.statistics, found.samples) == ({}, 5)


def test_memory_holds_one_batch_and_its_activations(residual: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, alive, most = samples(residual.model, 4), set(), 0

    def tracked(array: np.ndarray) -> np.ndarray:
        key = object()
        alive.add(key)
        weakref.finalize(array, alive.discard, key)
        return array

    def source() -> Iterator[np.ndarray]:
        nonlocal most
        for _ in range(6):
            most = max(most, len(alive))  # what is left of the batch before
            yield tracked(batch.copy())

    real = module.run

    def run_tracked(*args: Any) -> Any:
        function = real(*args)
        return lambda inputs: [tracked(np.array(array)) for array in function(inputs)]

    monkeypatch.setattr(module, "run", run_tracked)
    assert residual.collect(source()).samples == 24
    assert most == 0


def test_progress_bar_is_shown_or_not(residual: Case, capsys: pytest.CaptureFixture[str]) -> None:
    data = samples(residual.model, 10)
    residual.collect(data, progress=False)
    assert capsys.readouterr().out == ""
    residual.collect(data, progress=True)
    assert "3/3" in capsys.readouterr().out
    residual.collect(iter([data]), progress=True)  # of unknown length
    assert "1/Unknown" in capsys.readouterr().out


def test_run_gives_any_values(residual: Case) -> None:
    data = samples(residual.model, 3)
    logits, image = run(residual.graph, residual.tensors, [residual.values[-1], residual.values[0]])([data])
    np.testing.assert_array_equal(image, data)
    np.testing.assert_allclose(logits, residual.model.predict(data, verbose=0), rtol=1e-4, atol=1e-5)


def test_settings_say_where_ranges_come_from() -> None:
    assert Calibration(samples=64).settings == {"calibration_samples": 64}
    assert Calibration(source="stored statistics").settings == {"calibration": "stored statistics"}
    both = Calibration(source="stored statistics", samples=64).settings
    assert both == {"calibration": "stored statistics", "calibration_samples": 64}
    assert Calibration().settings == {}


def statistics_of(*values: float) -> TensorStatistics:
    seen = TensorStatistics()
    seen.update(np.array(values, np.float32))
    return seen


def group(*names: str, fixed: Any = None) -> Group:
    return Group(TensorSpec(bits=8), fixed, names=list(names))


def test_group_sees_what_all_its_values_saw() -> None:
    merged = group_statistics(
        group("a", "b"), {"a": statistics_of(1, 2), "b": statistics_of(-4), "c": statistics_of(9)}
    )
    assert merged is not None
    assert (merged.count, float(merged.lo), float(merged.hi)) == (3, -4.0, 2.0)


def test_fixed_range_needs_no_statistics() -> None:
    assert group_statistics(group("a", fixed=(0.0, 1.0)), {}) is None


def test_a_value_that_was_not_calibrated_is_named() -> None:
    with pytest.raises(ConfigError, match=r"expected statistics for \['b'\]; received those of 1 other values"):
        group_statistics(group("a", "b"), {"a": statistics_of(1)})


def test_activations_without_a_finite_value_are_named() -> None:
    with pytest.raises(InputError, match=r"the float model gave none at \['a'\] \(2 NaN or infinite\)"):
        group_statistics(group("a"), {"a": statistics_of(np.nan, np.inf)})


def test_large_activations_are_seen_in_parts(residual: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    data = samples(residual.model, 10)
    whole = residual.collect(data, batch_size=8)
    each = sum(int(np.prod(value.shape[1:])) for value in residual.values)
    monkeypatch.setattr(module, "_WATCHED_ELEMENTS", 3 * each)
    parts = residual.collect(data, batch_size=8)
    assert parts.samples == whole.samples == 10
    for name, seen in parts.statistics.items():
        assert (seen.batches, whole.statistics[name].batches) == (4, 2)  # 3 + 3 + 2, 2
        assert seen.count == whole.statistics[name].count
        np.testing.assert_allclose(
            (seen.lo, seen.hi), (whole.statistics[name].lo, whole.statistics[name].hi), rtol=1e-5
        )
