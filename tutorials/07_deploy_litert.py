"""Deploy to LiteRT: a file for phones, and one for microcontrollers, with the proof that they give these very numbers.

    python tutorials/07_deploy_litert.py

It needs the runtime: pip install 'quantizers-infrastructure[litert]'. QI writes the file itself, operation by operation
(no converter comes between), then runs it in LiteRT and compares every output with its *twin*: the same integer
arithmetic, computed by QI. Not close: equal. The model is the image classifier that ships with QI.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

import qi
from qi.demo import demo_model_path, load_demo_data

FAST = os.environ.get("QI_FAST") == "1"  # fewer samples, for a quick look

data = load_demo_data()
x_test, y_test = data.x_test[:: 4 if FAST else 1], data.y_test[:: 4 if FAST else 1]
model = qi.load_model(demo_model_path())
quantized, _ = qi.quantize_model(model, "w8a8", data.x_calib, progress=False)
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)


# --- 1. One line: the file and its proof --------------------------------------------------------------------
# Without `samples`, 64 made-up inputs over the calibrated range would be compared. What differs is warned of, with the
# first tensor that does; strict=True raises instead and writes nothing.
report = qi.export(quantized, folder / "model.tflite", samples=x_test)
print(report)
assert report.exact  # every one of the outputs, bit for bit
assert report.float_operations == ()  # all of it runs in integers
print(
    f"\n{report.size_ratio:.2f} times smaller than the same model in float, {report.speedup:.2f} times as fast here\n"
)


# --- 2. See for yourself: LiteRT, called by hand ------------------------------------------------------------
# Inputs and outputs have the Keras model's names, layout and type (float32); any batch size will do.
interpreter = Interpreter(model_content=(folder / "model.tflite").read_bytes())
answer = interpreter.get_signature_runner("serving_default")
deployed = answer(image=x_test)["classes"]
emulated = qi.emulate(quantized, x_test, "litert", progress=False)
print(f"outputs that differ between LiteRT and qi.emulate: {np.count_nonzero(deployed != emulated)} of {emulated.size}")
assert np.array_equal(deployed, emulated)
accuracy = float(np.mean(deployed.argmax(-1) == y_test))
print(f"accuracy of the file: {100 * accuracy:.2f} %; known without a phone, from the twin, image by image\n")
assert accuracy == float(np.mean(emulated.argmax(-1) == y_test))


# --- 3. What is in the file: the graph of integers ----------------------------------------------------------
# Each tensor with its scale s and zero point z: value = s * (code - z).
graph = qi.lower(quantized)
print("\n".join(line[:100] for line in str(graph).splitlines()[:5]), "\n  ...\n")


# --- 4. For microcontrollers and NPUs: codes in, codes out, nothing in float --------------------------------
# Their kernels round otherwise than LiteRT's fast ones on a CPU; "reference" is that arithmetic. So a file's
# answers depend on where it runs: it's better to know by how much before than after.
small = qi.export(quantized, folder / "micro.tflite", samples=x_test, integer_io=True, integer_only=True, latency=False)
assert small.exact
interpreter = Interpreter(model_content=(folder / "micro.tflite").read_bytes())
interpreter.allocate_tensors()
details = interpreter.get_input_details()[0]
scale, zero_point = details["quantization"]
print(f"input of micro.tflite: {details['dtype'].__name__}, code = round(pixel / {scale:.6f}) {zero_point:+d}")
on_phone = qi.emulate(quantized, x_test, "litert", raw=True, progress=False)
on_micro = qi.emulate(quantized, x_test, "reference", raw=True, integer_only=True, progress=False)
moved = np.count_nonzero(on_phone != on_micro)
changed = np.count_nonzero(on_phone.argmax(-1) != on_micro.argmax(-1))
print(
    f"on a microcontroller {moved} of {on_phone.size} output codes are others, and {changed} of {len(y_test)} answers\n"
)
assert 0 < moved < 0.2 * on_phone.size
assert changed < 0.01 * len(y_test)


# --- 5. Later, anywhere: is this file still that model? -----------------------------------------------------
# `qi verify model.tflite --model quantized.keras` is the same as a command, with an exit code for scripts.
found = qi.verify(folder / "model.tflite", quantized, x_test)
print(found)
assert found.exact
assert found.identical  # even byte for byte what an export gives
content = bytearray((folder / "model.tflite").read_bytes())
content[len(content) // 2] ^= 1  # one bit flips
(folder / "damaged.tflite").write_bytes(content)
try:
    qi.verify(folder / "damaged.tflite", quantized)
except qi.FileFormatError as error:
    print(f"\nrefused: {error}")
else:
    raise AssertionError("a damaged file should be refused")
scratch.cleanup()
