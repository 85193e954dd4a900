"""Spend a budget: so many bytes for the weights, and bits for each layer where they do the most good.

    python tutorials/14_spend_a_budget.py [folder]

Uniform bits treat all layers alike, but some mind rounding much more than others, and some are much larger.
`qi.search` measures what each number of bits for each weight would cost in quality, knows what it costs in bytes,
and finds the best choice that fits; it also proves that no choice is better. It needs scipy: pip install
'quantizers-infrastructure[search]'. The model is the classifier that ships with QI. Given a folder, recipes and a
picture stay there.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

import qi
from qi.demo import demo_model_path, load_demo_data

FAST = os.environ.get("QI_FAST") == "1"  # fewer images, for a quick look
warnings.simplefilter("ignore", qi.QuantizationWarning)  # QI warns where errors are large: here they are on purpose

data = load_demo_data()
x = data.x_calib[:: 2 if FAST else 1]
every = 4 if FAST else 1
x_test, y_test = data.x_test[1 :: 2 * every], data.y_test[1 :: 2 * every]  # to judge by, at the end
x_held, y_held = (
    data.x_test[:: 2 * every],
    data.y_test[:: 2 * every],
)  # for decisions in section 6: never the same images
model = qi.load_model(demo_model_path())


def accuracy(model, images=x_test, labels=y_test):
    return 100 * float(np.mean(model.predict(images, batch_size=500, verbose=0).argmax(-1) == labels))


def quantize(name, recipe, **options):
    """Quantizes the model and prints what that gives: bytes of all weights, biases and scales included, and accuracy."""
    samples = None if "statistics" in options else x
    quantized, report = qi.quantize_model(model, recipe, samples, progress=False, **options)
    print(f"{name:42} {report.totals.bytes_after:7,} bytes  {accuracy(quantized):6.2f} %", flush=True)
    return quantized, report


# --- 1. Uniform bits ------------------------------------------------------------------------------------------
# "w3a8": 3 bits for every weight, 8 for activations. What it takes is the budget for all that follows.
print(f"{'float':42} {4 * model.count_params():7,} bytes  {accuracy(model):6.2f} %")
uniform, report = quantize("3 bits everywhere", "w3a8")
budget = report.totals.bytes_after


# --- 2. Search ------------------------------------------------------------------------------------------------
# For each weight and each number of bits, the model runs on some samples with that one weight quantized. The loss is
# how far the outputs move (the Kullback-Leibler divergence: 0 if the probabilities stay the same). No labels are
# needed. Then an integer program, solved exactly, picks one candidate for each weight: the least sum of losses that
# fits into the budget.
found = qi.search(
    model, x, {"bytes": budget}, candidates=(2, 3, 4, 5, 6, 8), samples=64 if FAST else 256, progress=False
)
print(f"\n{found}\n")
assert found.chosen.costs["bytes"] <= budget
assert found.chosen.loss <= found.uniform["w3"].loss  # uniform 3 bits was one of the choices

# How to read it. The first table: what each weight got. Few numbers and much loss make many bits. The second: points
# of the front, each the best for its bytes, between uniform bits ("all w3"), which lie above it: more loss for as
# many bytes. The gap is how far the loss may be from the least possible: 0 % says that it is the least.
assert found.chosen.gap < 1e-6
losses = [point.loss for point in found.front]
assert losses == sorted(losses, reverse=True)  # more bytes, less loss


# --- 3. Keep it --------------------------------------------------------------------------------------------------
# The result is a recipe as any other: a text file that can be read, edited and kept with the code, also for
# `qi quantize --recipe recipe.json`. A folder gets it, and those of the front, and all numbers. `qi search` does all this
# on the command line.
folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
found.save(folder)
if importlib.util.find_spec("matplotlib"):
    found.plot(folder / "front.png")  # the front beside uniform bits, and the bits of each weight
print(f"kept: {len(list(folder.iterdir()))} files\n")
recipe = qi.recipes.get_recipe(folder / "recipe.json")
assert recipe == found.recipe
if len(sys.argv) == 1:
    shutil.rmtree(folder)


# --- 4. Quantize with it -------------------------------------------------------------------------------------------
# Losses were measured with rounding to nearest; the better algorithms of tutorial 13 go on top, with effort="balanced". The
# comparison is fair: the same bytes, the same algorithms. Bytes are those of packed codes, biases and scales; not every
# runtime packs all bits: for LiteRT, say, search with candidates=(4, 8), and export with packed=True.
searched, report = quantize("searched", recipe)
assert report.totals.bytes_after == found.chosen.costs["bytes"]  # the budget is kept to the byte
quantize('3 bits everywhere, effort="balanced"', "w3a8", effort="balanced")
quantize('searched, effort="balanced"', recipe, effort="balanced")
assert accuracy(searched) > accuracy(uniform)


# --- 5. Other budgets, and too small ones ---------------------------------------------------------------------------
# "0.5x" is half of what 8 bits everywhere take. "bits" is the mean over all weights, "bops" counts bit operations:
# multiplications x bits of the weight x bits of the activation, a measure of time and energy on hardware that gains
# from few bits. Several budgets hold together. metric="output" predicts errors of each layer from moments of its
# inputs (tutorial 13): no run of the model for each weight, so it's quick, and statistics from `qi.calibrate` do in
# place of data. It knows less, however: it can't tell which layers matter.
start = time.perf_counter()
statistics = qi.calibrate(model, x, progress=False)
both = {"bytes": "0.5x", "bops": "0.45x"}
quick = qi.search(model, None, both, metric="output", statistics=statistics, points=4, progress=False)
print(f"\nfrom statistics, in {time.perf_counter() - start:.1f} s:")
for name, limit in quick.budgets.items():
    print(f"  {name:6} {quick.chosen.costs[name]:12,.0f} of {limit:12,.0f}")
    assert quick.chosen.costs[name] <= limit
try:
    qi.search(model, x, {"bytes": 9000}, progress=False)
except qi.ConfigError as error:  # before any work, and with the nearest budget that can be met
    print(f"\nrefused: {error}")
else:
    raise AssertionError("9,000 bytes should be too few")


# --- 6. The other way round: a limit for the drop --------------------------------------------------------------------
# Often the drop is given, and the bytes are what you want to know. max_drop= takes a metric of yours, any function of
# a model, the more the better. It begins with the bits of the recipe and adds some where they do the most good, as
# long as the metric is too low. Judge by other images than those that the metric used: it chose what looks good on
# these.
def metric(model):
    return accuracy(model, x_held, y_held)


print()
limit = {"max_drop": 1.0, "metric": metric}
_, held = quantize("3 bits, at most 1 point lost", "w3a8", effort="balanced", statistics=statistics, **limit)
told = held.settings
start, first, last = (told[f"metric_{name}"] for name in ("float", "before_raising", "quantized"))
print(f"on the images of the metric: float {start:.2f}, 3 bits {first:.2f}, at last {last:.2f}")
print(f"raised, for {told['raised_bytes']:,} bytes: {told['raised']}")
assert last >= start - limit["max_drop"]
