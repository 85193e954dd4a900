"""Tests for qi.keras.caps: clamps whose limits differ from channel to channel, saved, reloaded and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import qi
from qi.keras.caps import ChannelCap
from tests.keras.fresh import run_fresh
from tests.keras.linked import convolutions, images
from tests.keras.lowered import agrees


@pytest.fixture(scope="module", params=["w8a8_pt_equalize", "w4a8_pt_equalize_gptq"])
def quantized(request: Any) -> keras.Model:
    """A network with caps."""
    return qi.quantize_model(convolutions(), request.param, images(), progress=False)[0]


FRESH = """
import sys, numpy as np, qi
folder = sys.argv[1]
data = np.load(folder + "/data.npz")
print(np.array_equal(np.asarray(qi.load_model(folder + "/model.keras")(data["x"])), data["y"]))
"""


def caps_of(model: keras.Model) -> list[np.ndarray]:
    return [
        np.asarray(layer.caps) for layer in model._flatten_layers(include_self=False) if isinstance(layer, ChannelCap)
    ]


def test_cuts_off_each_channel() -> None:
    cap = ChannelCap(4.0)
    x = np.array([[5.0, -1.0, 3.0]], "float32")
    np.testing.assert_array_equal(np.asarray(cap(x)), [[4.0, -1.0, 3.0]])
    cap.caps.assign([1.0, 2.0, 8.0])
    np.testing.assert_array_equal(np.asarray(cap(x)), [[1.0, -1.0, 3.0]])
    assert not cap.trainable_weights
    assert ChannelCap.from_config(cap.get_config()).value == 4.0


def test_half_precision_stays() -> None:
    cap = ChannelCap(dtype="mixed_float16")
    assert keras.backend.standardize_dtype(cap(np.ones((2, 3), "float16")).dtype) == "float16"
    assert keras.backend.standardize_dtype(cap.caps.dtype) == "float32"


def test_models_with_caps_reload_bit_equal(quantized: keras.Model, tmp_path: Path) -> None:
    """Here, and (of one recipe) in a process of its own."""
    caps, x = caps_of(quantized), images(8)
    assert len(caps) == 3
    assert any(len(np.unique(one)) > 1 for one in caps)
    quantized.save(tmp_path / "model.keras")
    again = qi.load_model(tmp_path / "model.keras")
    for before, after in zip(caps, caps_of(again), strict=True):
        np.testing.assert_array_equal(before, after)
    expected = np.asarray(quantized(x))
    np.testing.assert_array_equal(expected, np.asarray(again(x)))
    if qi.lower(quantized).ops[1].inputs[1].qparams.grid.bits == 4:
        np.savez(tmp_path / "data.npz", x=x, y=expected)
        assert run_fresh(FRESH, tmp_path).split() == ["True"]


@pytest.mark.parametrize("kind", ["tflite", "onnx"])
def test_exports_agree_with_every_output(quantized: keras.Model, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"model.{kind}"
    qi.export(quantized, path)
    shown = qi.verify(path, quantized, images(24))
    assert shown.equal
    assert shown.exact


def test_caps_lie_on_the_grid_of_what_they_clamp(quantized: keras.Model) -> None:
    graph = qi.lower(quantized)
    found = [op for op in graph.ops if op.kind == "minimum"]
    assert len(found) == 3
    for op, caps in zip(found, caps_of(quantized), strict=True):
        assert op.inputs[0].qparams == op.inputs[1].qparams == op.y.qparams
        np.testing.assert_array_equal(op.inputs[1].data, op.y.qparams.quantize(caps).codes)


def test_of_real_numbers_caps_stay_real() -> None:
    """Weights alone are quantized: the graph computes the clamp in real numbers."""
    model, _ = qi.quantize_model(convolutions(), "w8_equalize", images(), progress=False)
    graph = qi.lower(model)
    caps = [op.inputs[1] for op in graph.ops if op.kind == "minimum"]
    assert caps
    assert not any(tensor.quantized for tensor in caps)
    agrees(model, graph, images(3))


def test_exact_models_with_caps() -> None:
    model, x = convolutions(pooled=False), images()
    exact, _ = qi.quantize_model(model, "w8a8_pt_equalize", x, exact="litert", progress=False)
    plain, _ = qi.quantize_model(model, "w8a8_pt_equalize", x, progress=False)
    np.testing.assert_array_equal(exact.predict(x, verbose=0), np.asarray(qi.emulate(plain, x, "litert")))
