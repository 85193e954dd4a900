"""Ratios of time on both reference models: predict against float, quantize_model with its report.

Run: python -m tests.benchmarks.speed
"""

from __future__ import annotations

import time

import keras

import qi
from tests.benchmarks.common import MODELS, interleaved, load_data, load_float

ROUNDS, BATCH, IMAGES = 15, 64, 2048


def predict_ratios(name: str) -> None:
    """Median predict time of quantized models over the float model's, interleaved."""
    data = load_data()
    models = {"float": load_float(name)}
    for recipe in ("w8", "w8a8"):
        models[recipe], _ = qi.quantize_model(
            models["float"], recipe, data.x_calib if "a" in recipe else None, progress=False
        )
    x = data.x_test[:IMAGES]
    actions = {key: (lambda m=model: m.predict(x, batch_size=BATCH, verbose=0)) for key, model in models.items()}
    seconds = interleaved(actions, ROUNDS)
    print(
        f"{name}: predict, batch {BATCH}: " + ", ".join(f"{k} {v / seconds['float']:.2f}x" for k, v in seconds.items())
    )


def quantize_seconds(name: str) -> None:
    """Seconds of quantize_model with 1,024 images, the report saved as a page."""
    data, model = load_data(), load_float(name)
    start = time.perf_counter()
    _, report = qi.quantize_model(model, "w8a8", data.x_calib, progress=False)
    done = time.perf_counter() - start
    text = len(str(report))
    print(
        f"{name}: quantize_model w8a8 with {len(data.x_calib)} images and report: {done:.1f} s (table of {text} characters)"
    )


if __name__ == "__main__":
    for model_name in MODELS:
        predict_ratios(model_name)
        keras.backend.clear_session()
        quantize_seconds(model_name)
