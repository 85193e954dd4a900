"""Files of models on the backend that KERAS_BACKEND names: ``write FOLDER`` makes them, ``read FOLDER`` reads those of others.

`read` compares each file's variables, codes and outputs with what the backend that wrote it had, and what it exports with what
was exported there; it prints a line of JSON for each. `test_backends.py` judges them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

import qi
from qi.keras import KerasQuantizationWrapper
from qi.keras.variables import to_numpy
from tests.keras import loops, models

IMAGES, TOKENS = (64, 8, 8, 3), (64, 6)


def images() -> np.ndarray:
    return np.random.default_rng(1).normal(0.2, 1.0, IMAGES).astype(np.float32)


def tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 10, TOKENS).astype(np.int32)


def sequence() -> keras.Model:
    """Embedding, a recurrent layer, attention, layer normalization."""
    inputs = keras.Input(TOKENS[1:], dtype="int32", name="ids")
    x = layers.LSTM(6, return_sequences=True, name="memory")(layers.Embedding(10, 4, name="table")(inputs))
    x = layers.LayerNormalization(name="norm")(x + layers.MultiHeadAttention(2, 3, name="attention")(x, x))
    outputs = layers.Dense(3, name="head")(layers.GlobalAveragePooling1D(name="pool")(x))
    return models.settle(keras.Model(inputs, outputs, name="sequence"))


def quantized(model: keras.Model, recipe: str, data: np.ndarray, **options: Any) -> keras.Model:
    return qi.quantize_model(model, recipe, data, progress=False, **options)[0]


def in_training() -> keras.Model:
    """Quantizers that have trained for three steps, and an optimizer that remembers."""
    data = images()
    model = qi.prepare_qat(models.build("residual"), "w4a8", data, progress=False)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    step(model, 3)
    return model


def step(model: keras.Model, count: int = 1) -> float:
    """Trains for some steps; the last loss."""
    data = images()
    targets = np.tanh(data.reshape(len(data), -1)[:, : model.output_shape[-1]])
    return [float(model.train_on_batch(data, targets)) for _ in range(count)][-1]


FILES: dict[str, tuple[Callable[[], keras.Model], Callable[[], np.ndarray]]] = {
    "convolutions": (lambda: quantized(models.build("residual"), "w8a8", images()), images),
    "weights": (lambda: quantized(models.build("residual"), "w4", images()), images),
    "sequence": (lambda: quantized(sequence(), "w8a8", tokens()), tokens),
    "training": (in_training, images),
    "loops": (lambda: quantized(loops.built(loops.Branches(), loops.x()), "w8a8", loops.x()), loops.x),
    "exact": (lambda: quantized(models.build("residual"), "w8a8", images(), exact="litert"), images),
}
"""(model, its input) of each file."""

EXPORTED = "convolutions"
"""The model that is exported too."""


def state(model: keras.Model) -> dict[str, np.ndarray]:
    """Every variable but seeds, which Keras itself draws anew in some layers of subclassed models; every quantized weight."""
    kept = [variable for variable in model.variables if "seed_generator" not in variable.path]
    found = {f"variable {i}": to_numpy(variable) for i, variable in enumerate(kept)}
    for layer in model._flatten_layers():
        if isinstance(layer, KerasQuantizationWrapper):
            weights = layer.get_quantized_weights()
            found |= {f"weight {layer.name} {path}": value for path, value in weights.items()}
    return found


def exports(model: keras.Model, folder: Path) -> dict[str, bytes]:
    """Files of both formats; each runtime gives what the twin gives here, or `qi.export` would raise."""
    found = {}
    for ending in ("tflite", "onnx"):
        path = folder / f"{EXPORTED}.{ending}"
        qi.export(model, path, samples=images(), latency=False, strict=True)
        found[ending] = path.read_bytes()
    return found


def deployed(model: keras.Model) -> dict[str, np.ndarray]:
    """The bytes of exported files, and what the twin gives."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: np.frombuffer(content, np.uint8) for name, content in exports(model, Path(folder)).items()}
    return files | {"twin": np.asarray(qi.emulate(model, images(), progress=False))}


def write(folder: Path) -> None:
    """One file a model, and beside it what the model holds and gives."""
    for name, (make, data) in FILES.items():
        keras.utils.set_random_seed(0)
        keras.backend.clear_session()
        model = make()
        path = folder / f"{keras.backend.backend()}-{name}"
        model.save(path.with_suffix(".keras"))
        outputs = np.asarray(model.predict(data(), verbose=0))
        kept = {key.replace("/", "|"): value for key, value in state(model).items()}
        if name == EXPORTED:
            np.savez(folder / f"{keras.backend.backend()}-deployed.npz", **deployed(model))
        following = step(model) if name == "training" else 0.0
        np.savez(path.with_suffix(".npz"), outputs=outputs, following=following, **kept)


def read(folder: Path) -> list[dict[str, Any]]:
    """What each file gives here, beside what it gave where it was written."""
    found = []
    for path in sorted(folder.glob("*.keras")):
        origin, _, name = path.stem.partition("-")
        if origin == keras.backend.backend():
            continue
        with np.load(path.with_suffix(".npz")) as arrays:
            wanted = dict(arrays)
        goes_on = name == "training" and origin != "torch"  # its optimizer is of Keras' subclass for torch
        model = keras.models.load_model(path, compile=goes_on)
        if keras.backend.backend() == "torch":
            model.jit_compile = False  # "auto" is True in files of others: torch.compile, which wants a compiler of C++
        outputs = np.asarray(model.predict(FILES[name][1](), verbose=0))
        before, following = wanted.pop("outputs"), float(wanted.pop("following"))
        held = {key.replace("/", "|"): value for key, value in state(model).items()}
        differing = [key for key in held if key not in wanted or not np.array_equal(held[key], wanted[key])]
        error = np.abs(outputs.astype(np.float64) - before)
        if name == EXPORTED:
            with np.load(folder / f"{origin}-deployed.npz") as arrays:
                here = deployed(model)
                differing += [key for key in arrays if not np.array_equal(here[key], arrays[key])]
        found.append(
            {
                "from": origin,
                "on": keras.backend.backend(),
                "name": name,
                "differing": differing + [key for key in wanted if key not in held],
                "compared": len(held) + 3 * (name == EXPORTED),
                "unequal": float(np.mean(error > 0)),
                "error": float(error.max() / np.ptp(before)),
                "loss": abs(step(model) - following) / following if goes_on else 0.0,
            }
        )
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore", qi.QuantizationWarning)
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        print(*map(json.dumps, read(Path(sys.argv[2]))), sep="\n")
