"""Bits searched under budgets, and the recipes that come out."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import keras
import numpy as np
import pytest

from qi.errors import ConfigError, InputError, UnsupportedError
from qi.keras.prepare import calibrate
from qi.keras.ptq import quantize_model
from qi.keras.search import literally, search
from qi.recipes import Rule, TensorSpec, get_recipe
from tests.keras.models import build, samples

pytest.importorskip("scipy")
# Few samples, few bits: quantize_model has something to say about these models.
pytestmark = pytest.mark.filterwarnings("ignore::qi.errors.QuantizationWarning")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return build("residual")


@pytest.fixture(scope="module")
def x(model: keras.Model) -> np.ndarray:
    return np.asarray(samples(model, 24))


def find(model: keras.Model, *arguments: Any, **options: Any) -> Any:
    return search(model, *arguments, **{"samples": 8, "points": 4, "progress": False} | options)


def test_the_recipe_gives_just_the_bytes_and_bits_that_were_promised(model: keras.Model, x: np.ndarray) -> None:
    found = find(model, x, {"bytes": "0.6x", "bits": 5})
    _, report = quantize_model(model, found.recipe, x, progress=False)
    rows = {row.path: row for row in report.rows if row.kind == "weight"}
    assert report.totals.bytes_after == found.chosen.costs["bytes"] <= found.budgets["bytes"]
    assert {w.path: w.bits for w in found.weights} == {path: row.bits for path, row in rows.items() if row.quantized}
    assert all(rows[w.path].size_after == w.nbytes and rows[w.path].macs == w.macs for w in found.weights)
    numbers = {w.path: w.size for w in found.weights}
    mean = sum(rows[path].bits * size for path, size in numbers.items()) / sum(numbers.values())  # type: ignore[operator]
    assert mean == pytest.approx(found.chosen.costs["bits"])
    assert mean <= 5
    assert found.chosen.costs["bops"] == sum(w.macs * w.bits * 8 for w in found.weights)
    assert report.unused_rules == ()
    assert {row.bits for row in report.rows if row.kind == "activation"} == {8}
    _, eight = quantize_model(model, "w8a8", x, progress=False)
    assert found.budgets["bytes"] == pytest.approx(0.6 * eight.totals.bytes_after)


def test_the_front_falls_and_uniform_bits_lie_above_it(model: keras.Model, x: np.ndarray) -> None:
    found = find(model, x, {"bytes": "0.6x"}, points=12)
    assert len(found.front) > 4
    for one, other in pairwise(found.front):
        assert one.costs["bytes"] < other.costs["bytes"]
        assert one.loss > other.loss
    at_four = find(model, x, {"bytes": found.uniform["w4"].costs["bytes"]})
    assert at_four.chosen.loss <= at_four.uniform["w4"].loss
    assert at_four.chosen.bound <= at_four.chosen.loss
    assert at_four.chosen.gap == 0


@pytest.mark.parametrize("metric", ["output", "hessian"])
def test_predicted_losses_lead_to_choices_that_the_model_likes(model: keras.Model, x: np.ndarray, metric: str) -> None:
    measured, predicted = (find(model, x, {"bits": 4}, metric=m) for m in ("task", metric))
    paths = [weight.path for weight in measured.weights]
    assert [weight.path for weight in predicted.weights] == paths
    for weight in predicted.weights:
        assert weight.losses["w4"] > 4 * weight.losses["w6"] > 16 * weight.losses["w8"] > 0
    losses = {weight.path: weight.losses for weight in measured.weights}
    judged = sum(losses[path][predicted.chosen.candidates[path]] for path in paths)
    worst = sum(max(losses[path].values()) for path in paths)
    assert measured.chosen.loss <= judged * (1 + 1e-9)
    assert judged < 0.5 * worst


def test_statistics_stand_in_for_data(model: keras.Model, x: np.ndarray) -> None:
    kept = calibrate(model, x, progress=False)
    without = find(model, None, {"bits": 4}, statistics=kept)
    assert without.metric == "output"
    assert dict(without.chosen.candidates) == dict(find(model, x, {"bits": 4}, metric="output").chosen.candidates)


def test_a_metric_of_the_user_decides(model: keras.Model, x: np.ndarray) -> None:
    def only_the_first_class(before: list[np.ndarray], after: list[np.ndarray]) -> float:
        return float(np.abs(before[0][:, 0] - after[0][:, 0]).sum())

    found = find(model, x, {"bits": 4}, metric=only_the_first_class)
    assert found.metric == "only_the_first_class"
    with pytest.raises(InputError, match="a finite number of the metric; received nan"):
        find(model, x, {"bits": 4}, metric=lambda before, after: float("nan"))


def test_rules_are_kept_and_counted(model: keras.Model, x: np.ndarray) -> None:
    rules = (
        Rule("logits", weights="float"),
        Rule("stem_conv", weights=TensorSpec(bits=8)),
        Rule("gap", activations="float"),
    )
    base = get_recipe("w8a8").with_rules(*rules)
    found = find(model, x, {"bytes": 900}, recipe=base)
    assert [w.path for w in found.weights] == ["a_conv/kernel", "b_conv/kernel", "c_conv/kernel"]
    _, report = quantize_model(model, found.recipe, x, progress=False)
    bits = {row.path: row.bits for row in report.rows if row.kind == "weight" and row.name == "kernel"}
    assert bits["logits/kernel"] is None
    assert bits["stem_conv/kernel"] == 8
    assert report.totals.bytes_after == found.chosen.costs["bytes"] <= 900
    assert next(row for row in report.rows if row.layer == "gap").status == "float"


def test_candidates_by_name_and_as_specs(model: keras.Model, x: np.ndarray) -> None:
    spec = TensorSpec(bits=6, granularity="per_tensor")
    found = find(model, x, {"bytes": "0.7x"}, ("w4_pt", "w4_g8", 8, spec))
    assert list(found.uniform) == ["w4_pt", "w4_g8", "w8", str(spec)]
    costs = {name: point.costs["bytes"] for name, point in found.uniform.items()}
    assert costs["w4_pt"] < costs["w4_g8"]
    _, report = quantize_model(model, found.uniform["w4_g8"].recipe, x, progress=False)
    assert report.totals.bytes_after == costs["w4_g8"]
    assert find(model, x, {"bits": 4.0}, 4, recipe="w8a8_pt").recipe.rules[0].weights.granularity == "per_tensor"


def test_patterns_match_nothing_but_the_text() -> None:
    for text in ("conv", "d[1]*", "a?b", "[!x]"):
        assert fnmatchcase(text, literally(text))
        assert not fnmatchcase(text.replace("*", "x").replace("?", "x") + "y", literally(text))
    assert not fnmatchcase("d1x", literally("d[1]*"))


def test_budgets_that_cannot_be_met_name_the_nearest(model: keras.Model, x: np.ndarray) -> None:
    called = []
    with pytest.raises(ConfigError, match="received bytes=100; do allow at least bytes=") as caught:
        find(model, x, {"bytes": 100}, metric=lambda before, after: called.append(1) or 0.0)
    assert not called  # refused before the work
    nearest = float(str(caught.value).rpartition("=")[2])
    assert find(model, x, {"bytes": nearest}).chosen.costs["bytes"] == nearest
    with pytest.raises(ConfigError, match="do allow at least"):
        find(model, x, {"bytes": nearest - 1})


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((None, {"bits": 4}), {"metric": "task"}, InputError, "expected data for metric='task'"),
        ((None, {"bits": 4}), {}, InputError, "expected data or statistics"),
        ((0, None), {}, ConfigError, "expected budgets by name"),
        ((0, {"byte": 4}), {}, ConfigError, "received 'byte'. Did you mean 'bytes'"),
        ((0, {"bytes": "half"}), {}, ConfigError, "received bytes='half'"),
        ((0, {"bytes": True}), {}, ConfigError, "a positive number"),
        ((0, {"bits": 4}, ()), {}, ConfigError, "at least one candidate"),
        ((0, {"bits": 4}, (2.5,)), {}, ConfigError, "received 2.5"),
        ((0, {"bits": 4}, ("w4a8",)), {}, ConfigError, "weights alone, such as"),
        ((0, {"bits": 4}, (1,)), {}, ConfigError, "at least 2 bits"),
        ((0, {"bits": 4}), {"metric": "taks"}, ConfigError, "Did you mean 'task'"),
        ((0, {"bits": 4}), {"samples": 0}, ConfigError, "samples to be a whole number"),
        ((0, {"bits": 4}), {"points": 1}, ConfigError, "points to be a whole number from 2 on"),
        ((0, {"bits": 4}), {"time_limit": float("nan")}, ConfigError, "seconds above 0; received time_limit=nan"),
        ((0, {"bits": 4}), {"jobs": 0}, ConfigError, "received jobs=0"),
        ((0, {"bits": 4}, None), {}, ConfigError, "bits, names or TensorSpecs; received None"),
        ((0, {"bits": 4}, 2.5), {}, ConfigError, "received 2.5"),
        ((0, {"bits": -1}), {}, ConfigError, "a positive number.*received bits=-1"),
        ((0, {"bits": 0}), {}, ConfigError, "received bits=0"),
        ((0, {"bits": float("nan")}), {}, ConfigError, "received bits=nan"),
        ((0, {"bits": "-0.5x"}), {}, ConfigError, "received bits='-0.5x'"),
        ((0, {"bits": [4]}), {}, ConfigError, "a positive number"),
        ((0, {"bits": 4}), {"recipe": get_recipe("w8").with_rules(Rule("*", weights="float"))}, InputError, "leave open"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(
    model: keras.Model, arguments: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        find(model, *arguments, **options)


def test_models_without_a_graph_are_refused() -> None:
    class Loop(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(4)

        def call(self, x: Any) -> Any:
            for _ in range(int(keras.ops.convert_to_numpy(x).shape[0] > 0)):
                x = self.dense(x)
            return x

    made = Loop()
    made.dense.build((None, 4))
    made.build((None, 4))
    with pytest.raises(UnsupportedError, match="whose call can be followed"):
        find(made, np.ones((4, 4), "float32"), {"bits": 4})


def test_candidates_that_are_given_twice_count_once(model: keras.Model, x: np.ndarray) -> None:
    found = find(model, x, {"bits": 5}, (4, "w4", np.int64(4), 8))
    assert list(found.uniform) == ["w4", "w8"]
    assert dict(find(model, x, {"bits": 5}, (4, 8)).chosen.candidates) == dict(found.chosen.candidates)


def test_models_without_weights_to_quantize_are_refused() -> None:
    inputs = keras.Input((4,))
    bare = keras.Model(inputs, keras.layers.ReLU()(inputs), name="bare")
    with pytest.raises(InputError, match=r"a model with weights to quantize .* received 'bare', which has none"):
        find(bare, np.ones((4, 4), "float32"), {"bits": 4})


def test_one_layer_and_one_sample_are_enough() -> None:
    single = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="one")])
    for metric in ("task", "output", "hessian"):
        found = find(single, np.ones((1, 4), "float32"), {"bits": 4}, metric=metric)
        assert list(found.chosen.candidates) == ["one/kernel"]
        assert found.chosen.costs["bits"] <= 4


def test_a_layer_that_is_called_twice_is_counted_once_and_measured_at_both_calls() -> None:
    inputs = keras.Input((6,), name="x")
    shared = keras.layers.Dense(6, name="shared")
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(shared(keras.ops.relu(shared(inputs)))))
    x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    found = find(model, x, {"bytes": "0.7x"})
    assert [(w.path, w.size, w.macs) for w in found.weights] == [("shared/kernel", 36, 72), ("head/kernel", 12, 12)]
    _, report = quantize_model(model, found.recipe, x, progress=False)
    assert report.totals.bytes_after == found.chosen.costs["bytes"]


def test_layers_that_are_others_once_rebuilt_are_refused() -> None:
    class Times(keras.layers.Layer):
        factor = 1.0

        def call(self, x: Any) -> Any:
            return self.factor * x

    times = Times()
    times.factor = 3.0  # which isn't in its configuration
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4), times])
    for metric in ("task", "output"):
        with pytest.raises(InputError, match="times"):
            find(model, np.ones((4, 6), "float32"), {"bits": 4}, metric=metric)
