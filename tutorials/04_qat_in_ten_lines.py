"""Quantization-aware training: weights of 2 bits, which rounding alone ruins, brought back by training with it.

    python tutorials/04_qat_in_ten_lines.py

Two bits leave three values to a weight: -s, 0 and s. Rounding a trained model to them (post-training quantization,
tutorial 03) breaks it, because no weight knew what was coming. Training *with* the rounding lets all of them adapt,
and the steps s as well. The model is the classifier that ships with QI; 500 labelled images are all it trains on.
"""

import os
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np

import qi
from qi.demo import demo_model_path, load_demo_data

FAST = os.environ.get("QI_FAST") == "1"  # fewer epochs and images, for a quick look
EPOCHS = 4 if FAST else 9

keras.utils.set_random_seed(0)
data = load_demo_data()
x, y = data.x_calib, data.y_calib
x_test, y_test = data.x_test[:: 4 if FAST else 1], data.y_test[:: 4 if FAST else 1]
model = qi.load_model(demo_model_path())  # any trained Functional or Sequential Keras model


def run(model, images):
    return keras.ops.convert_to_numpy(model(images))


def accuracy(model):
    return float(np.mean(run(model, x_test).argmax(-1) == y_test))


# --- 1. Before: the float model, and what rounding alone makes of it ----------------------------------------
# "w2a8" reads: weights in 2 bits, activations in 8. QI says itself that this won't do.
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always", qi.QuantizationWarning)
    ptq, _ = qi.quantize_model(model, "w2a8", x, progress=False)
print(f"warned: {found[0].message}\n")
before = {"float": accuracy(model), "rounded": accuracy(ptq)}


# --- 2. Quantization-aware training, in ten lines -----------------------------------------------------------
def train(x, y):
    qat = qi.prepare_qat(model, "w2a8", x, method="lsq", progress=False)
    qat.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, EPOCHS * len(x) // 20)),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,  # compiling by XLA would take longer than this training
    )
    qat.fit(x, y, batch_size=20, epochs=EPOCHS, verbose=2)
    return qat, qi.convert(qat)


qat, quantized = train(x, y)
# `qat` is an ordinary Keras model: fit, callbacks, a loop of your own, saving in the middle, all as usual. It
# began where `ptq` is, and its scales trained along ("lsq"). `convert` fixed them: same predictions, bit for bit.
assert np.array_equal(run(quantized, x), run(qat, x))


# --- 3. Save and reload -------------------------------------------------------------------------------------
with tempfile.TemporaryDirectory() as folder:
    path = qi.save_model(quantized, Path(folder) / "w2a8.keras")
    print(f"\n{path.name}: {path.stat().st_size:,} bytes, float: {demo_model_path().stat().st_size:,}")
    reloaded = qi.load_model(path)
kernel = reloaded.get_layer("block1_project").get_quantized_tensors()["kernel"]
print(f"a kernel inside: {kernel.codes.shape} codes, values {np.unique(kernel.codes)}, one scale for each channel\n")
assert set(np.unique(kernel.codes)) == {-1, 0, 1}


# --- 4. What it brought -------------------------------------------------------------------------------------
results = before | {"trained": accuracy(quantized), "reloaded": accuracy(reloaded)}
for name, value in results.items():
    print(f"{name:9} {100 * value:6.2f} %")
assert results["reloaded"] == results["trained"] > results["rounded"] + 0.5
# What is left to the float model is the price of three values, and of 500 images: it was trained on 60,000.
