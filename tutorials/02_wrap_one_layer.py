"""Quantize one layer of a model: a quantizer, a dispatcher, a wrapper.

    python tutorials/02_wrap_one_layer.py

A *quantizer* says which numbers remain. A *dispatcher* says which weight of a layer, or which output, gets
which quantizer. A *wrapper* takes the place of the layer and runs it with the quantized numbers. Each does
one thing, so any quantizer works with any layer. We wrap a convolution, look at the integers inside, do the
convolution once more in integers alone, and save it all.
"""

import tempfile
from pathlib import Path

import keras
import numpy as np

import qi

keras.utils.set_random_seed(0)
images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype("float32")  # pixels: 0, 1, ... 255


def run(model):
    return keras.ops.convert_to_numpy(model(images))


# --- 1. A float model with one convolution ------------------------------------------------------------------
inputs = keras.layers.Input(shape=(32, 32, 3))
x = keras.layers.Conv2D(6, 7, use_bias=False)(inputs)
model = keras.Model(inputs=inputs, outputs=x)
convolution = model.layers[1]
kernel = convolution.get_weights()[0] * np.float32([1, 0.5, 2, 0.1, 1, 3])  # six filters of unequal size, as
convolution.set_weights([kernel])  # training leaves them
float_output = run(model)


def sqnr(model):  # signal to noise in decibels: 6 dB less is twice the error
    return 10 * np.log10(np.mean(float_output**2) / np.mean((run(model) - float_output) ** 2))


# --- 2. The quantizer: 8 bits for the interval [-2, 2), which is 256 steps of 2 / 128 -----------------------
w_quantizer = qi.WeightsSymmetricInferableQuantizer(num_bits=8, threshold=2, signed=True, per_channel=True)
print(f"{w_quantizer}\n  makes {w_quantizer(np.float32([[0.3]]))[0, 0]} of 0.3\n")


# --- 3. The dispatcher: a bare quantizer goes to the layer's main weight, here the kernel -------------------
dispatcher = qi.KerasNodeQuantizationDispatcher(w_quantizer)


# --- 4. The wrapper: the layer's replacement ----------------------------------------------------------------
def replace(layer, dispatcher):
    wrapper = qi.KerasQuantizationWrapper(layer=layer, dispatcher=dispatcher)
    return wrapper, keras.Sequential([keras.layers.Input(shape=(32, 32, 3)), wrapper])


wrapper, wide = replace(convolution, dispatcher)
codes = wrapper.get_quantized_tensors()["kernel"].codes
print(f"threshold 2:           {sqnr(wide):.1f} dB, {codes.dtype} codes {codes.min()}..{codes.max()}")
assert np.array_equal(convolution.get_weights()[0], kernel)  # the layer itself is as it was


# --- 5. A better range: nothing in this kernel reaches 0.4, so most of the codes went unused ----------------
# One threshold for each of the six filters: the least power of two that covers it.
thresholds = 2 ** np.ceil(np.log2(np.abs(kernel).max(axis=(0, 1, 2))))
w_quantizer = qi.WeightsPOTInferableQuantizer(8, threshold=thresholds.tolist(), signed=True, per_channel=True)
wrapper, model_q = replace(convolution, qi.KerasNodeQuantizationDispatcher({"kernel": w_quantizer}))
weights = wrapper.get_quantized_tensors()["kernel"]
codes = weights.codes
print(f"one for each filter:   {sqnr(model_q):.1f} dB, {codes.dtype} codes {codes.min()}..{codes.max()}")
assert sqnr(model_q) > sqnr(wide) + 10


# --- 6. The same convolution in integers: 8-bit weights times pixels, added up, scaled once at the end ------
pixels = np.lib.stride_tricks.sliding_window_view(images.astype(np.int64), (7, 7), axis=(1, 2))
sums = np.einsum("nhwcij,ijco->nhwo", pixels, codes.astype(np.int64))
assert np.array_equal(run(model_q), sums * weights.qparams.scale.reshape(6))  # not close: equal
print("emulated in float32 = computed in integers, bit for bit")


# --- 7. Outputs are quantized too, where the dispatcher has a quantizer for them ----------------------------
limit = float(np.abs(float_output).max())
a_quantizer = qi.ActivationUniformInferableQuantizer(num_bits=8, min_range=-limit, max_range=limit)
both = qi.KerasNodeQuantizationDispatcher({"kernel": w_quantizer}, [a_quantizer])
output = run(replace(convolution, both)[1])
print(f"with an 8-bit output: {np.unique(output).size} different values among {output.size:,}")
assert np.unique(output).size <= 256


# --- 8. Freeze and save: codes and scales go into the file, not floats --------------------------------------
# Until now every call quantized the float kernel anew, so it could still train. Now it is done, once.
expected = run(model_q)
wrapper.freeze()
print(f"\n{qi.inspect_model(model_q)}")
with tempfile.TemporaryDirectory() as folder:
    path = qi.save_model(model_q, Path(folder) / "one_layer.keras")
    reloaded = qi.load_model(path)  # or `import qi.keras`, and then keras.models.load_model
assert np.array_equal(run(reloaded), expected)
print("\nsaved and reloaded: the same output, bit for bit")
