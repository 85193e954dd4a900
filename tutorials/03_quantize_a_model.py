"""Quantize a trained model: hand over the model and some samples, get a model back, and know what it cost.

    python tutorials/03_quantize_a_model.py

The model is an image classifier that ships with QI, with 2,000 images to judge it by. It goes to 8 bits at
hardly any loss; then its weights go to 4, which costs more, and one rule for one small layer wins most of it back.
"""

import os
import tempfile
import warnings
from pathlib import Path

import numpy as np

import qi
from qi.demo import demo_model_path, load_demo_data
from qi.recipes import get_recipe

FAST = os.environ.get("QI_FAST") == "1"  # fewer samples, for a quick look

data = load_demo_data()
samples = data.x_calib[:: 4 if FAST else 1]  # to see which numbers occur; no labels are needed
x_test, y_test = data.x_test[:: 4 if FAST else 1], data.y_test[:: 4 if FAST else 1]
model = qi.load_model(demo_model_path())  # any trained Functional or Sequential Keras model


# --- 1. The main job is one line ----------------------------------------------------------------------------
# "w8a8" reads: weights in 8 bits, activations in 8 bits. The model that was given is left as it is.
w8a8, report = qi.quantize_model(model, "w8a8", samples, progress=False)
print(report)


# --- 2. What did it cost? Your metric, float beside quantized -----------------------------------------------
# "accuracy" is one QI knows by name; any function (y_true, y_pred) -> float does as well.
eight = report.evaluate("accuracy", x_test, y_test)
print(f"\n{eight}")
assert eight.quantized_value > eight.float_value - 0.01


# --- 3. Nothing fails silently: whatever stayed in float is listed, each with the reason --------------------
for reason, rows in report.unquantized_by_reason().items():
    print(f"\nin float: {len(rows)} tensors, {sum(row.size_before or 0 for row in rows)} bytes: {reason}")
assert {row.name for row in report.unquantized} == {"bias"}
assert report.totals.mac_share == 1.0  # every multiplication has a quantized weight


# --- 4. Half the size again: weights in 4 bits --------------------------------------------------------------
with warnings.catch_warnings(record=True) as found:  # QI warns where an error comes near the signal
    warnings.simplefilter("always", qi.QuantizationWarning)
    _, report = qi.quantize_model(model, "w4a8", samples, progress=False)
print(f"\nwarned: {found[0].message}")
assert "drown in error" in report.warnings[0]
four = report.evaluate("accuracy", x_test, y_test)
print(f"\nw4a8\n{four}")
print("the weights that lost most, each by itself:")
for row in report.worst(3, kind="weight"):
    print(f"  {row.path:24} {row.sqnr_db:.1f} dB")
print("and all errors together, from the first layer to the last:")
for name in ("stem_relu/output", "block1_add/output", "block2_add/output", "classes/output"):
    print(f"  {name:24} {report.find(name)[0].total_sqnr_db:.1f} dB")


# --- 5. Spend bits where they count: a rule ------------------------------------------------------------------
# The second list starts low: the first layer sees the raw image, and every layer after it inherits its error.
# It has 144 of the 34,000 weights, so 8 bits for it are nearly free. Rules match layers by path or by type;
# the first one that matches decides.
recipe = get_recipe("w4a8").with_rules(
    qi.Rule("stem", weights=qi.TensorSpec(bits=8, granularity="per_channel")), name="w4a8, stem in 8 bits"
)
mixed, mixed_report = qi.quantize_model(model, recipe, samples, progress=False)
better = mixed_report.evaluate("accuracy", x_test, y_test)
spent = mixed_report.totals.bytes_after - report.totals.bytes_after
print(f"\n{recipe.name}: {spent} bytes more than w4a8\n{better}")
assert better.quantized_value > four.quantized_value
assert spent < 100


# --- 6. Save, reload, compare -------------------------------------------------------------------------------
# The file holds codes of 4 and 8 bits with their scales. It's an ordinary .keras file: after
# `import qi.keras`, keras.models.load_model reads it too.
with tempfile.TemporaryDirectory() as folder:
    path = qi.save_model(mixed, Path(folder) / "mixed.keras")
    mixed_report.save(Path(folder) / "mixed.json")  # or .md, or .html: one page with a plot
    print(f"\n{path.name}: {path.stat().st_size:,} bytes, float: {demo_model_path().stat().st_size:,}")
    reloaded = qi.load_model(path)
assert np.array_equal(reloaded.predict(x_test, verbose=0), mixed.predict(x_test, verbose=0))
print("reloaded: the same predictions, bit for bit")
