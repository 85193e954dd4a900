"""Ratios of time on both reference models: predict and training epochs against float, quantize_model with its report.

Run: python -m tests.benchmarks.speed [predict] [wide] [quantize] [epoch] [epoch-xla]
"""

from __future__ import annotations

import sys
import time
from functools import partial

import keras
import numpy as np

import qi
from tests.benchmarks.common import MODELS, interleaved, load_data, load_float, paired_ratio, timed_rounds

ROUNDS, BATCH, IMAGES = 15, 64, 512


def predict_ratios(name: str) -> None:
    """Predict time of quantized models over the float model's, and of exact ones over plain fake quantization's."""
    data = load_data()
    models = {"float": load_float(name)}
    for recipe, exact in (
        ("w8", None),
        ("w8a8", None),
        ("w8a8", "litert"),
        ("w8a8", "onnxruntime"),
        ("w8a8", "reference"),
    ):
        samples = data.x_calib if "a" in recipe else None
        key = f"{recipe} exact={exact}" if exact else recipe
        models[key], _ = qi.quantize_model(models["float"], recipe, samples, exact=exact, progress=False)
    x = data.x_test[:IMAGES]
    actions = {key: (lambda m=model: m.predict(x, batch_size=BATCH, verbose=0)) for key, model in models.items()}
    seconds = timed_rounds(actions, 3 * ROUNDS)
    found = ", ".join(f"{key} {paired_ratio(seconds, key, 'float'):.2f}x" for key in models)
    exact = ", ".join(f"{key} {paired_ratio(seconds, key, 'w8a8'):.2f}x" for key in models if "exact" in key)
    print(f"{name}: predict, batch {BATCH}: {found}; of w8a8: {exact}", flush=True)


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


def epoch_ratios(name: str, jit: bool) -> None:
    """Median seconds of a training epoch over the float model's, interleaved, w8a8 on 1,024 images."""
    data, model = load_data(), load_float(name)
    ways = {"ste": {"method": "ste"}, "lsq": {}, "lsq, batch_norm trained": {"batch_norm": "trained"}}
    models = {"float": keras.models.clone_model(model)}
    models |= {key: qi.prepare_qat(model, "w8a8", data.x_calib, progress=False, **how) for key, how in ways.items()}
    labels = np.random.default_rng(0).integers(0, 10, len(data.x_calib))
    for qat in models.values():
        qat.compile(keras.optimizers.SGD(1e-4), keras.losses.SparseCategoricalCrossentropy(), jit_compile=jit)
    fit = lambda qat: qat.fit(data.x_calib, labels, batch_size=BATCH, verbose=0)
    seconds = interleaved({key: partial(fit, qat) for key, qat in models.items()}, ROUNDS)
    found = ", ".join(f"{key} {value / seconds['float']:.2f}x" for key, value in seconds.items())
    print(f"{name}: epoch, w8a8, batch {BATCH}, jit_compile={jit}: {found} ({seconds['float']:.2f} s)", flush=True)


def dense(width: int = 1024) -> keras.Model:
    """Two wide layers, whose sums need two parts."""
    inputs = keras.Input((width,))
    x = keras.layers.Dense(width, activation="relu")(keras.layers.Dense(width, activation="relu")(inputs))
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def transformer(length: int = 64, width: int = 128) -> keras.Model:
    """One block."""
    inputs = keras.Input((length, width))
    add, norm = keras.layers.Add(), keras.layers.LayerNormalization()
    x = norm(add([inputs, keras.layers.MultiHeadAttention(4, 32)(inputs, inputs)]))
    return keras.Model(inputs, keras.layers.Dense(width)(keras.layers.Dense(4 * width, activation="gelu")(x)))


def wide_ratios(name: str) -> None:
    """Predict time of exact models without convolutions over plain fake quantization's, by batch size."""
    keras.utils.set_random_seed(0)
    model = {"dense": dense, "transformer": transformer}[name]()
    x = np.random.default_rng(0).standard_normal((256, *model.input_shape[1:])).astype(np.float32)
    make = lambda exact: qi.quantize_model(model, "w8a8", x[:64], exact=exact, progress=False)[0]
    models = {str(exact): make(exact) for exact in (None, "litert", "onnxruntime")}
    for batch in (32, 256):
        actions = {key: partial(made.predict, x, batch_size=batch, verbose=0) for key, made in models.items()}
        seconds = timed_rounds(actions, ROUNDS)
        found = ", ".join(f"{key} {paired_ratio(seconds, key, 'None'):.2f}x" for key in models if key != "None")
        print(f"{name}: predict of exact models, batch {batch}, of w8a8: {found}", flush=True)


TABLES = {
    "predict": predict_ratios,
    "wide": wide_ratios,
    "quantize": quantize_seconds,
    "epoch": partial(epoch_ratios, jit=False),
    "epoch-xla": partial(epoch_ratios, jit=True),
}

if __name__ == "__main__":
    for table in sys.argv[1:] or TABLES:
        for model_name in ("dense", "transformer") if table == "wide" else MODELS:
            TABLES[table](model_name)
            keras.backend.clear_session()
