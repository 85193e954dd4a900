"""Four bits, and three, without training: what rounding loses, and the algorithms that win most of it back.

    python tutorials/13_four_bits_without_training.py [plot.png]

Tutorial 04 trains a model with its rounding, on labelled images. Here there are no labels, only some samples: they show what
goes into each layer, and that is enough to round much better than to the nearest value. The model is the classifier that
ships with QI; it has depthwise convolutions and ReLU6, which make it hard to round. docs/algorithms.md lists all algorithms.
"""

import importlib.util
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import keras
import numpy as np

import qi
from qi.demo import demo_model_path, load_demo_data
from qi.recipes import get_recipe

FAST = os.environ.get("QI_FAST") == "1"  # fewer test images and steps, for a quick look
warnings.simplefilter("ignore", qi.QuantizationWarning)  # QI warns where errors are large: here they are on purpose

data = load_demo_data()
x = data.x_calib[:: 4 if FAST else 2]  # 250 images
x_test, y_test = data.x_test[:: 4 if FAST else 1], data.y_test[:: 4 if FAST else 1]
model = qi.load_model(demo_model_path())
truth = model.predict(x_test, batch_size=500, verbose=0)
rows = [("float", 100 * np.mean(truth.argmax(-1) == y_test), np.inf, 0.0)]


def quantize(name, recipe, samples=x, **options):
    """Quantizes the model, and notes two numbers: accuracy in percent, and SQNR in decibels (dB).

    SQNR, the signal to quantization noise ratio, compares the outputs with their error: at 0 dB both are as large, at 10 dB
    the error has a tenth of the energy, at 20 dB a hundredth. It moves before accuracy does, and needs no labels.
    """
    start = time.perf_counter()
    quantized, report = qi.quantize_model(model, recipe, samples, progress=False, **options)
    seconds = time.perf_counter() - start
    outputs = quantized.predict(x_test, batch_size=500, verbose=0)
    sqnr = 10 * np.log10(np.sum(truth**2) / np.sum((outputs - truth) ** 2))
    rows.append((name, 100 * np.mean(outputs.argmax(-1) == y_test), sqnr, seconds))
    print(f"{name:44} {rows[-1][1]:6.2f} %  {sqnr:5.1f} dB  {seconds:5.1f} s", flush=True)
    return outputs, report, sqnr


# --- 1. Round to nearest ------------------------------------------------------------------------------------
# Each weight becomes code x scale; the code is a whole number of 4 bits (-7 to 7) or 3 bits (-3 to 3), the nearest
# there is. "_pt" in a name: one scale for the whole tensor (per tensor). Without it: one scale for each output
# channel (per channel). Activations keep 8 bits in all of this tutorial.
print(f"{'float':44} {rows[0][1]:6.2f} %\n\nround to nearest")
_, _, tensor4 = quantize("4 bits, per tensor", "w4a8_pt")
_, _, channel4 = quantize("4 bits, per channel", "w4a8")
_, _, tensor3 = quantize("3 bits, per tensor", "w3a8_pt")
_, _, channel3 = quantize("3 bits, per channel", "w3a8")
assert channel4 > tensor4
assert channel3 > tensor3


# --- 2. One scale for all channels: equalization -------------------------------------------------------------
# A scale per tensor has to cover the widest channel; a narrow one is then left with a few codes, or with 0 alone. How
# unlike channels are, can be seen once the batch normalization is folded (multiplied) into the kernel, as QI does:
norm = model.get_layer("block1_depthwise_bn")
weights = (norm.gamma, norm.moving_variance, model.get_layer("block1_depthwise").kernel)
gamma, variance, kernel = map(keras.ops.convert_to_numpy, weights)
widths = np.abs(kernel[..., 0] * gamma / np.sqrt(variance + norm.epsilon)).max((0, 1))
print(
    f"\nblock1_depthwise: channels {widths.min():.2g} to {widths.max():.2g} wide, half of them below {np.median(widths):.2g}"
)
# ReLU(c x) = c ReLU(x) for c > 0. So a channel may be divided by c in one layer and multiplied by it in the next: the
# float model stays the same, and the channels of both layers can be given equal widths.
_, _, equal3 = quantize("3 bits, per tensor, equalize", "w3a8_pt_equalize")
assert equal3 > tensor3


# --- 3. The mean of the error: bias correction -----------------------------------------------------------------
# Rounding errors of a layer don't cancel: its outputs are shifted a little, on average. Calibration knows the mean
# input, so the shift can be computed and taken off the bias. It's nearly free, and repairs means only: don't expect
# much of it alone.
print("\nbias correction alone")
_, _, shifted4 = quantize("4 bits, bias_correction", "w4a8_bias_correction")


# --- 4. Round with the inputs in mind: GPTQ -----------------------------------------------------------------------
# What counts is the error of a layer's output, not of its weights. Where inputs move together (they nearly always
# do), the error of one weight can be made up for by another: GPTQ rounds one input's weights after the other, and
# moves those that are still to come. It needs the second moments E[x x^T] of the layer's input x, which calibration
# collects in one pass.
print("\nGPTQ")
_, report, gptq3 = quantize("3 bits, gptq", "w3a8_gptq")
assert gptq3 > channel3
# Look at this column when something went wrong: the error of each layer's output, where rounding to nearest is 1.
print("error of the layer's output, as a share of that of rounding to nearest:")
known = sorted((row for row in report.weights if row.output_error is not None), key=lambda row: row.output_error)
for row in (*known[:2], *known[-2:]):
    print(f"  {row.path:36} {row.output_error:.2f}")
assert all(row.output_error <= 1 for row in known)
# Algorithms go together. With all three, one scale per tensor does, where hardware has nothing else:
_, _, joint4 = quantize("4 bits, per tensor, all three", "w4a8_pt_equalize_gptq_bias_correction")
assert joint4 > channel4


# --- 5. Train without labels: reconstruction -------------------------------------------------------------------------
# The quantized weights, their scales and the biases are trained by gradients until the quantized model gives what the
# float model gives. The float model is the teacher, so that samples without labels do.
print("\nreconstruction")
steps = {"name": "reconstruct", "steps": 30 if FAST else 60}  # effort="best" takes more: 600 at 3 bits
few = qi.TensorSpec(bits=3, granularity="per_channel", range="mse", range_options={"norm": 3}, algorithms=(steps,))
_, _, taught = quantize(
    "3 bits, reconstruct", qi.Recipe("taught", weights=few, activations=get_recipe("w3a8").activations)
)
assert taught > channel3


# --- 6. One word instead: effort ---------------------------------------------------------------------------------
# "fast" rounds to nearest; "balanced" is GPTQ with ranges made for it, and bias correction; "best" is all that, and
# reconstruction from there, in minutes. Algorithms that a recipe names stay as they are.
print("\neffort")
by_effort, balanced, balanced4 = quantize('4 bits, effort="balanced"', "w4a8", effort="balanced")
assert balanced4 > shifted4
assert balanced.find("classes/kernel")[0].algorithms == "output_range, gptq, bias_correction"


# --- 7. By layer: rules --------------------------------------------------------------------------------------------
# The first layer sees the image itself, and depthwise layers have 9 weights a channel: too few to make up for each
# other's errors. Both are small, so 8 bits for them cost little. The first rule that matches a layer decides.
eight = qi.TensorSpec(bits=8, granularity="per_channel")
ruled = get_recipe("w3a8_gptq_bias_correction").with_rules(
    qi.Rule("stem", weights=eight),
    qi.Rule("*depthwise*", weights=eight),
    qi.Rule("separable", weight="depthwise_kernel", weights=eight),
)
print("\nrules")
_, mixed, better = quantize("3 bits, gptq, small layers in 8 bits", ruled)
spent = mixed.totals.bytes_after - report.totals.bytes_after
print(f"{spent:,} bytes more than {report.totals.bytes_after:,}")
assert better > gptq3
best = rows[-1][1]


# --- 8. Without the samples: statistics ------------------------------------------------------------------------------
# One pass collects all that the algorithms of sections 1 to 4 need; the file may go where the images may not. And a
# file named by resume= keeps what is done, weight by weight: after Ctrl-C, the same call goes on from there.
print("\nfrom a file of statistics")
with tempfile.TemporaryDirectory() as folder:
    path = qi.observers.save_statistics(Path(folder) / "statistics.npz", qi.calibrate(model, x, progress=False))
    print(f"{path.stat().st_size:,} bytes; the images: {x.nbytes:,}")
    stored = {"statistics": path, "resume": Path(folder) / "work.progress"}
    first, _, _ = quantize("4 bits, balanced, no images", "w4a8", None, effort="balanced", **stored)
    again, _, _ = quantize("the same again, with its progress file", "w4a8", None, effort="balanced", **stored)
assert np.array_equal(first, by_effort)  # bit for bit what the images gave
assert np.array_equal(again, first)


# --- 9. What to look at -----------------------------------------------------------------------------------------------
# SQNR of the outputs first: it tells small differences apart, and needs no labels. If it's low, the report's output_error
# and its warnings say where. What to try, in this order: a scale per channel, which costs no work; GPTQ, which takes
# seconds; more bits where they count (tutorial 14 finds out where); reconstruction, which takes longest and gains most with
# the fewest bits: at 2 bits, with twice these samples, rounding this model leaves 17 %, effort="balanced" 80 %, "best" 90 %.
def plot(path):
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(8, 4.5), layout="constrained")).subplots()
    names = [name for name, *_ in rows]
    bars = axes.barh(names, [accuracy for _, accuracy, *_ in rows], color="#3d7ab5")
    axes.bar_label(bars, fmt="%.2f", padding=-34, color="white")
    axes.axvline(rows[0][1], color="#c2413b", linewidth=1, linestyle="--")
    axes.invert_yaxis()
    axes.set(xlabel=f"accuracy on {len(x_test):,} test images, %", xlim=(0, 100))
    axes.set_title("weights of 3 and 4 bits, activations of 8")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


print(f"\n3 bits for most weights, no labels, and {rows[0][1] - best:.1f} points below float")
if len(sys.argv) > 1 and importlib.util.find_spec("matplotlib"):
    plot(sys.argv[1])
    print(f"drawn: {sys.argv[1]}")
