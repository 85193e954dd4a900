"""Writes tests/golden/files: quantized models as this version saves them, which every later version must load.

Run it from the checkout (``python tests/assets/make_golden_files.py``) when a new version changes what is written; then
keep the old files beside the new ones. All weights and inputs are small multiples of powers of two: in w4_g32, whose
outputs stay in float, every product and sum is exact, whatever order a processor adds in; in w8a8 outputs are on a grid.
"""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers

import qi

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "files"
RECIPES = ("w8a8", "w4_g32")


def tiny_model() -> keras.Model:
    """A nested backbone, called twice, before two heads; inputs and outputs are dicts."""
    image = keras.Input((6, 6, 2), name="inner")
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    x = layers.DepthwiseConv2D(2, name="depthwise")(x)
    backbone = keras.Model(image, layers.MaxPooling2D(name="pool")(x), name="backbone")
    inputs = {name: keras.Input((6, 6, 2), name=name) for name in ("left", "right")}
    features = layers.Concatenate(name="both")([backbone(inputs["left"]), backbone(inputs["right"])])
    features = layers.Flatten(name="flat")(layers.UpSampling2D((3, 2), name="up")(features))
    outputs = {
        "kind": layers.Dense(3, name="kind")(features),
        "size": layers.Dense(1, activation="relu", name="size")(features),
    }
    return keras.Model(inputs, outputs, name="tiny")


def settle(model: keras.Model, rng: np.random.Generator) -> None:
    """Kernels of sixteenths from -7 to 7, with a 7 in every channel and group of 32; biases of eighths."""
    for variable in model.weights:
        shape = tuple(variable.shape)
        values = rng.integers(-7, 8, shape) / 16
        if len(shape) == 1:
            values = values * 2
        elif len(shape) == 2:
            values[::32] = 7 / 16
        else:
            values[0, 0] = 7 / 16
        variable.assign(values.astype(np.float32))


def main() -> None:
    """Writes the models with their inputs and outputs."""
    rng = np.random.default_rng(20)
    model = tiny_model()
    settle(model, rng)
    data = {name: (np.round(rng.normal(0, 4, (64, 6, 6, 2))) / 8).astype(np.float32) for name in ("left", "right")}
    for recipe in RECIPES:
        quantized, _ = qi.quantize_model(model, recipe, data, progress=False)
        path = qi.save_model(quantized, FOLDER / f"{recipe}-{qi.__version__}.keras")
        given = {name: array[:16] for name, array in data.items()}
        outputs = quantized.predict(given, verbose=0)
        arrays = {f"input.{name}": array for name, array in given.items()}
        arrays |= {f"output.{name}": array for name, array in outputs.items()}
        for layer in quantized.layers:
            if isinstance(layer, qi.KerasQuantizationWrapper):
                arrays |= {f"weight.{layer.name}/{p}": w for p, w in layer.get_quantized_weights().items()}
        np.savez_compressed(path.with_suffix(".npz"), allow_pickle=False, **arrays)
        sys.stdout.write(f"{path.name}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
