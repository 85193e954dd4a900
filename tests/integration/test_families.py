"""Whole networks, one size each: quantized, run, saved, reloaded, trained for a step, exported; or refused in words."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import qi
from tests.families import APPLICATIONS, FAMILIES, Family, build
from tests.family_models import OWN

QUICK = ("MobileNetV2", "unet", "audio", "lstm", "two_tower", "vae", "super_resolution")
# Of what no integer graph holds, the refusal names the class of the layer.
REFUSED = {
    "vit": "PatchEmbedding",
    "bert": "TokenAndPlace",
    "lstm": "Bidirectional",
    "vae": "Sampling",
}
NO_CLASSES = {"two_tower": 25.0, "vae": 20.0, "super_resolution": 30.0}  # SQNR in dB of the first output, at least

pytestmark = pytest.mark.filterwarnings("ignore::qi.errors.QuantizationWarning")


@dataclass
class Quantized:
    """A family, what its networks give, and the report."""

    name: str
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


def called(model: keras.Model, x: Any) -> Any:
    """What a float network gives; called as it is, which takes less than to compile it."""
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(x, training=False))


def quantized(name: str) -> Quantized:
    family = build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", qi.QuantizationWarning)
        model, report = qi.quantize_model(family.model, "w8a8", family.calibration, progress=False)
    wanted, given = called(family.model, family.test), model.predict(family.test, verbose=0)
    return Quantized(name, family, model, report, wanted, given)


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
    """The file and its twin agree; or the refusal names the layer."""
    x = keras.tree.map_structure(lambda array: array[:4], found.family.calibration)
    export = lambda: qi.export(found.model, path, samples=x, latency=False)
    if found.name in REFUSED:
        with pytest.raises(qi.UnsupportedError, match=f"of class {REFUSED[found.name]}"):
            export()
    else:
        assert export().equal


def check_step(found: Quantized) -> None:
    """One step of training from where the quantized network is; not compiled, which takes longer than all the rest."""
    x = keras.tree.map_structure(lambda array: array[:8], found.family.calibration)
    y = called(found.family.model, x)
    model = qi.prepare_qat(found.family.model, "w8a8", found.family.calibration, progress=False)
    losses = keras.tree.map_structure(lambda _: "mse", y)
    model.compile(keras.optimizers.Adam(1e-4), losses, jit_compile=False, run_eagerly=True)
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    assert np.isfinite(model.train_on_batch(x, y)).all()
    moved = [
        not np.array_equal(a, keras.ops.convert_to_numpy(v))
        for a, v in zip(before, model.trainable_variables, strict=True)
    ]
    assert np.mean(moved) > 0.5


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_family(name: str, tmp_path: Path) -> None:
    found = quantized(name)
    check_whole(found)
    if name in NO_CLASSES:
        assert found.sqnr > NO_CLASSES[name]
    else:
        assert found.agreement >= 0.95
    check_reload(found, tmp_path / "model.keras")
    check_step(found)
    for suffix in (".tflite", ".onnx"):
        check_export(found, tmp_path / f"model{suffix}")


def test_every_family_is_named() -> None:
    """Thirteen published networks, and nine as people write them."""
    assert len(APPLICATIONS) == 13
    assert set(FAMILIES) == set(APPLICATIONS) | set(OWN)
    assert set(REFUSED) | set(NO_CLASSES) | set(QUICK) <= set(FAMILIES)
