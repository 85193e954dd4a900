"""Whole networks, one size each: quantized, run, saved, reloaded, trained for a step, exported; or refused in words."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import qi
from tests.families import APPLICATIONS, Family, build
from tests.family_models import OWN

# Not trained (see `settle`): their errors add up where those of trained networks fade.
LIGHT = ("MobileNetV2", "MobileNetV3Small")
SLOW = tuple(name for name in APPLICATIONS if name not in (*LIGHT, "MobileNet"))
# Of what no integer graph holds, the refusal names the layer.
REFUSED = {
    "ConvNeXtTiny": "LayerScale",
    "vit": "PatchEmbedding",
    "bert": "TokenAndPlace",
    "gpt": "GetItem",
    "lstm": "NotEqual",
    "two_tower": "Sequential",
    "vae": "Sampling",
    "super_resolution": "DepthToSpace",
}
LONG = ("vit", "bert", "gpt")
OTHERS = {"two_tower": 25.0, "vae": 20.0, "super_resolution": 30.0}  # SQNR in dB of the first output, at least

pytestmark = pytest.mark.filterwarnings("ignore::qi.errors.QuantizationWarning")


@dataclass
class Quantized:
    """A family, what its networks give, and the report."""

    family: Family
    model: keras.Model
    report: Any
    wanted: Any
    given: Any

    @property
    def agreement(self) -> float:
        return float(np.mean(first(self.wanted).argmax(-1) == first(self.given).argmax(-1)))

    @property
    def sqnr(self) -> float:
        wanted, given = first(self.wanted), first(self.given)
        return 10 * float(np.log10(np.sum(wanted**2) / np.sum((wanted - given) ** 2)))


def first(outputs: Any) -> np.ndarray:
    return keras.tree.flatten(outputs)[0]


@cache
def quantized(name: str, epochs: int = 0) -> Quantized:
    """Tests of one family follow each other, and share it."""
    family = build(name, "small", epochs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qi.QuantizationWarning)
        model, report = qi.quantize_model(family.model, "w8a8", family.calibration, progress=False)
    wanted, given = (one.predict(family.test, verbose=0) for one in (family.model, model))
    return Quantized(family, model, report, wanted, given)


def check_whole(found: Quantized) -> None:
    """Every matrix of weights has codes, and no tensor loses much of its own: what a network loses, it loses by its depth."""
    left = [
        row.path
        for row in found.report.unquantized
        if row.kind == "weight" and not row.name.endswith("bias") and np.prod(row.shape) > max((1, *row.shape))
    ]
    assert not left
    assert found.report.worst(1)[0].sqnr_db > 24


def check_reload(found: Quantized, path: Path) -> None:
    found.model.save(path)
    again = keras.models.load_model(path).predict(found.family.test, verbose=0)
    for one, other in zip(keras.tree.flatten(again), keras.tree.flatten(found.given), strict=True):
        np.testing.assert_array_equal(one, other)


def check_export(found: Quantized, path: Path) -> None:
    x = keras.tree.map_structure(lambda array: array[:4], found.family.calibration)
    report = qi.export(found.model, path, samples=x, latency=False)
    assert report.equal


def check_step(found: Quantized) -> None:
    """One step of training from where the quantized network is."""
    x = keras.tree.map_structure(lambda array: array[:8], found.family.calibration)
    y = found.family.model.predict(x, verbose=0)
    model = qi.prepare_qat(found.family.model, "w8a8", found.family.calibration, progress=False)
    model.compile(keras.optimizers.SGD(1e-4), keras.tree.map_structure(lambda _: "mse", y), jit_compile=False)
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    assert np.isfinite(model.fit(x, y, batch_size=8, verbose=0).history["loss"]).all()
    moved = [
        not np.array_equal(a, keras.ops.convert_to_numpy(v))
        for a, v in zip(before, model.trainable_variables, strict=True)
    ]
    assert np.mean(moved) > 0.5


def test_trained_network_keeps_its_classes(tmp_path: Path) -> None:
    found = quantized("MobileNet", epochs=2)
    check_whole(found)
    assert found.agreement >= 0.95
    assert found.sqnr > 20
    check_reload(found, tmp_path / "model.keras")
    check_step(found)
    check_export(found, tmp_path / "model.tflite")
    check_export(found, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT)
def test_light_networks_train_on(name: str, tmp_path: Path) -> None:
    found = quantized(name)
    check_whole(found)
    assert found.agreement > 0.6
    check_reload(found, tmp_path / "model.keras")
    check_step(found)
    check_export(found, tmp_path / "model.tflite")


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_applications(name: str, tmp_path: Path) -> None:
    found = quantized(name)
    check_whole(found)
    assert found.agreement > 0.6
    check_reload(found, tmp_path / "model.keras")
    if name in REFUSED:
        with pytest.raises(qi.UnsupportedError, match=REFUSED[name]):
            check_export(found, tmp_path / "model.onnx")
    else:
        check_export(found, tmp_path / "model.onnx")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in OWN])
def test_networks_of_ones_own(name: str, tmp_path: Path) -> None:
    found = quantized(name)
    check_whole(found)
    if name in OTHERS:
        assert found.sqnr > OTHERS[name]
    else:
        assert found.agreement >= 0.95
    check_reload(found, tmp_path / "model.keras")
    if name == "vae":  # rebuilt from its configuration, its layers have other automatic names
        with pytest.raises(qi.InputError, match="rebuilt it has"):
            check_step(found)
    else:
        check_step(found)
    for suffix in (".tflite", ".onnx"):
        if name in REFUSED:
            with pytest.raises(qi.UnsupportedError, match=REFUSED[name]):
                check_export(found, tmp_path / f"model{suffix}")
        else:
            check_export(found, tmp_path / f"model{suffix}")
