"""Two trained CIFAR-10 models against their float selves: accuracy on 5,000 test images, and a graph that is all codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from qi import KerasActivationQuantizationHolder, KerasQuantizationWrapper, QuantizationReport, quantize_model
from qi.keras.graph import Call, build_model, build_tensors, flatten_model

pytestmark = pytest.mark.slow

# Points that a recipe may lose on each model.
BOUNDS = {
    "resnet8_cifar10_mltk": {"w8a8": 0.6, "w8": 0.4},
    "ref_cifar10_mbv2": {"w8a8": 0.3, "w8": 0.2},
}
CASES = [(name, recipe) for name, bounds in BOUNDS.items() for recipe in bounds]


class Bench:
    """The images, and each model with its float accuracy, loaded once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with np.load(folder / "cifar10_dev.npz", allow_pickle=False) as file:
            self.calibration, self.images = ((file[name] - 128.0) / 128.0 for name in ("x_calib", "x_test"))
            self.labels = file["y_test"].ravel()
        self.calibration, self.images = self.calibration.astype(np.float32), self.images.astype(np.float32)
        self._models: dict[str, tuple[keras.Model, float]] = {}

    def accuracy(self, model: keras.Model) -> float:
        """In percent."""
        model.compile(jit_compile=False)
        scores = model.predict(self.images, batch_size=250, verbose=0)
        return float(100 * np.mean(scores.argmax(axis=-1) == self.labels))

    def model(self, name: str) -> tuple[keras.Model, float]:
        if name not in self._models:
            model = keras.models.load_model(self.folder / "models" / f"{name}.keras", compile=False)
            self._models[name] = model, self.accuracy(model)
        return self._models[name]


@pytest.fixture(scope="module")
def bench(shared_dir: Path) -> Bench:
    folder = shared_dir / "bench"
    if not folder.is_dir():
        pytest.skip("no trained models in the reference data")
    return Bench(folder)


@pytest.mark.parametrize(("name", "recipe"), CASES)
def test_accuracy_and_grids(name: str, recipe: str, bench: Bench) -> None:
    model, before = bench.model(name)
    assert len(bench.calibration) == 1024
    assert len(bench.images) == 5000
    qmodel, report = quantize_model(model, recipe, bench.calibration, strict=True, progress=False)
    check_kernels(qmodel, report)
    if recipe == "w8a8":
        check_tensors(qmodel, report, bench.images[:64])
    after = bench.accuracy(qmodel)
    print(f"{name} {recipe}: {before:.2f} % -> {after:.2f} % ({after - before:+.2f})")
    assert before - after <= BOUNDS[name][recipe]


def check_kernels(qmodel: keras.Model, report: QuantizationReport) -> None:
    """Every kernel has at most 2**8 values in each output channel."""
    assert {row.name.rpartition("/")[2] for row in report.weights if not row.quantized} == {"bias"}
    wrapped = [layer for layer in qmodel.layers if isinstance(layer, KerasQuantizationWrapper)]
    assert len(wrapped) == sum(row.quantized for row in report.weights)
    for layer in wrapped:
        kernel, depthwise = layer.layer.kernel.numpy(), isinstance(layer.layer, layers.DepthwiseConv2D)
        for channel in np.moveaxis(kernel, -2 if depthwise else -1, 0):
            assert len(np.unique(channel)) <= 256, layer.name


def check_tensors(qmodel: keras.Model, report: QuantizationReport, images: np.ndarray) -> None:
    """Whatever an operation reads, and what the model gives, has at most 256 values, unless it is fused before."""
    assert all(row.quantized for row in report.activations)
    graph = flatten_model(qmodel)
    read = {id(value): value for call in graph.calls if not _ends_fused(call) for value in call.inputs}
    read |= {id(value): value for value in graph.flat_outputs()}
    assert not set(read) & {id(value) for value in graph.flat_inputs()}  # only their quantizer reads the inputs
    values = list(read.values())
    assert len(values) >= len(report.activations) - 1
    found = build_model(graph, build_tensors(graph), values).predict(images, verbose=0)
    for value, array in zip(values, found, strict=True):
        assert len(np.unique(array)) <= 256, value.producer


def _ends_fused(call: Call) -> bool:
    """Whether a call is the quantizer or the clamp at the end of a fused operation: integers wider than 8 bits reach it."""
    op: Any = call.op
    if isinstance(op, KerasActivationQuantizationHolder):
        return True
    clamps = isinstance(op, layers.ReLU) or getattr(getattr(op, "activation", None), "__name__", "") in (
        "relu",
        "relu6",
    )
    before = call.inputs[0].producer
    kernels = (KerasQuantizationWrapper, layers.Add)
    return clamps and not isinstance(op, kernels) and before is not None and isinstance(before.op, kernels)
