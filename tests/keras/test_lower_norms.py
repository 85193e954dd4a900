from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi.exporters.deploy import export
from tests.keras.lowered import branches, in_integers, kinds, refusal

X = np.random.default_rng(0).normal(size=(64, 4, 6, 8)).astype("float32")


def test_real_numbers() -> None:
    x = keras.Input((3, 4, 6), name="x")
    made = {
        "norm": layers.LayerNormalization()(x),
        "bare": layers.LayerNormalization(center=False, scale=False)(x),
        "scaled": layers.LayerNormalization(center=False)(x),
        "centred": layers.LayerNormalization(scale=False, epsilon=0.1)(x),
        "two_axes": layers.LayerNormalization(axis=(2, 3))(x),
        "first_axis": layers.LayerNormalization(axis=1)(x),
        "outer_axes": layers.LayerNormalization(axis=(1, 3))(x),
        "rms": layers.RMSNormalization()(x),
        "rms_of_two": layers.RMSNormalization(axis=(-2, -1))(x),
        "groups": layers.GroupNormalization(3)(x),
        "groups_of_one": layers.GroupNormalization(-1)(x),
        "one_group": layers.GroupNormalization(1, center=False)(x),
        "bare_groups": layers.GroupNormalization(2, center=False, scale=False)(x),
        "unit": layers.UnitNormalization()(x),
        "unit_of_two": layers.UnitNormalization(axis=(1, 2))(x),
        "quantized": layers.Dense(2)(x),
    }
    branches(x, made)


def test_groups_of_channels_that_come_first() -> None:
    x = keras.Input((4, 3, 3), name="x")
    assert "axis=1" in refusal(x, layers.Dense(2)(layers.GroupNormalization(2, axis=1)(x)))


@pytest.mark.parametrize("name", ["m.tflite", "m.onnx"])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: layers.RMSNormalization(), "rms_norm"),
        (lambda: layers.GroupNormalization(2), "layer_norm"),
        (lambda: layers.UnitNormalization(), "rms_norm"),
        (lambda: layers.LayerNormalization(axis=1), "layer_norm"),
    ],
    ids=["rms", "group", "unit", "layer"],
)
def test_files_normalize_codes_exactly(make: Callable[[], Any], kind: str, name: str, tmp_path: Any) -> None:
    x = keras.Input((4, 6, 8), name="x")
    norm = make()
    y = norm(layers.Dense(8, name="before")(x))
    for i, weight in enumerate(norm.weights):
        weight.assign(np.random.default_rng(i).normal(1, 0.4, weight.shape))
    qmodel, graph, _ = in_integers(keras.Model(x, layers.Dense(16, name="after")(y)))
    assert kind in kinds(graph)
    report = export(qmodel, tmp_path / name, samples=X, latency=False)
    assert report.exact
    assert report.float_operations == (f"{kind}_of_codes ({norm.name})",)
