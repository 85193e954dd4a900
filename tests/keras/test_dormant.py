from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi import calibrate, convert, emulate, prepare_qat, quantize_model
from qi.keras.dormant import activation_quantizers, largest_weight
from qi.keras.prepare import Prepared, prepare
from qi.recipes.dormant import dormant_ranges
from qi.recipes.plan import group_statistics
from tests.keras.models import settle

X = np.random.default_rng(0).normal(0.2, 1, (64, 8, 8, 3)).astype("float32")


def branches(asleep: int = 1) -> keras.Model:
    """Two branches, summed; the second has so many convolutions that never fire, and one after them."""
    x = keras.Input((8, 8, 3), name="x")
    dead = x
    for i in range(asleep):
        dead = layers.Conv2D(6, 3, padding="same", activation="relu", name=f"dead{i}")(dead)
    dead = layers.Conv2D(6, 3, padding="same", name="after")(dead)
    live = layers.Conv2D(6, 3, padding="same", activation="relu", name="live")(x)
    y = layers.ReLU(name="summed")(layers.Add()([live, dead]))
    model = settle(keras.Model(x, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(y))))
    for i in range(asleep):
        kernel, bias = model.get_layer(f"dead{i}").get_weights()
        model.get_layer(f"dead{i}").set_weights([kernel, np.full_like(bias, -100)])
    return model


def planned(model: keras.Model, data: Any) -> tuple[Prepared, dict[str, Any]]:
    ready = prepare(model, "w8a8")
    found = calibrate(model, data, progress=False)
    return ready, {group.key: group_statistics(group, found) for group in ready.plan.groups}


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8", "w2a8"])
@pytest.mark.filterwarnings("ignore:.*drown in error")
def test_a_dead_branch_leaves_the_bias_behind_it_exact(recipe: str) -> None:
    model = branches()
    quantized, report = quantize_model(model, recipe, X, progress=False)
    said = np.asarray(quantized.predict(X, verbose=0))
    step = next(row.scale_max for row in report.rows if (row.layer, row.kind) == ("head", "activation"))
    assert step is not None
    for target in ("litert", "onnxruntime"):
        assert np.abs(np.asarray(emulate(quantized, X, target)) - said).max() <= 2.01 * step


def test_it_stays_at_zero() -> None:
    quantized, _ = quantize_model(branches(), "w8a8", X, progress=False)
    dead = keras.Model(quantized.input, quantized.get_layer("dead0_quant").output)
    assert not np.asarray(dead.predict(X, verbose=0)).any()


def test_training_starts_from_the_same_range() -> None:
    model = branches()
    qat = prepare_qat(model, "w4a8", X, method="ste", progress=False)
    quantized, _ = quantize_model(model, "w4a8", X, progress=False)
    np.testing.assert_array_equal(convert(qat).predict(X, verbose=0), quantized.predict(X, verbose=0))


def test_the_range_follows_from_what_comes_after_it() -> None:
    model = branches(asleep=2)
    ready, seen = planned(model, X)
    names = {id(group): group.key for group in ready.plan.groups}
    found = {names[key]: size for key, size in dormant_ranges(ready.graph, ready.plan, seen, largest_weight).items()}
    gain = {name: 16 * np.abs(model.get_layer(name).get_weights()[0]).max() for name in ("after", "dead1")}
    after = float(max(-seen["after"].lo, seen["after"].hi))
    assert found == pytest.approx({"dead1": after / gain["after"], "dead0": after / gain["after"] / gain["dead1"]})


def test_it_scales_with_the_model() -> None:
    small, large = (branches() for _ in range(2))
    kernel, bias = large.get_layer("after").get_weights()
    large.get_layer("after").set_weights([kernel, 1000 * bias])
    (first,), (second,) = (
        dormant_ranges(r.graph, r.plan, s, largest_weight).values() for r, s in (planned(small, X), planned(large, X))
    )
    assert second == pytest.approx(1000 * first)


def test_where_nothing_sleeps_nothing_is_asked() -> None:
    ready, seen = planned(branches(asleep=0), X)
    assert dormant_ranges(ready.graph, ready.plan, seen, largest_weight) == {}


def test_a_model_of_zeros_has_scale_1() -> None:
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Dense(3, name="head", kernel_initializer="zeros")(x))
    ready, seen = planned(model, np.zeros((8, 4), "float32"))
    quantizers = activation_quantizers(ready.graph, ready.plan, seen)
    assert [float(q.parameters((1,))["scale"].item()) for q in quantizers.values()] == [1.0, 1.0]
