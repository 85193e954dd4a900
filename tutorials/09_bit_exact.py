"""Bit exact: a fake quantization that lies, a little, and a twin that doesn't.

    python tutorials/09_bit_exact.py

It needs a runtime: pip install 'quantizers-infrastructure[litert]'. A quantized Keras model emulates: it computes in
float32, and rounds to the codes' values between the layers. The runtime sums integers and rounds once more. Nearly
always both find the same code. This is about the other times, and how to have none of them.
"""

import os
import tempfile
from pathlib import Path

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter

import qi
from qi.demo import demo_model_path, load_demo_data
from qi.ir import run
from qi.ir.routing import route

FAST = os.environ.get("QI_FAST") == "1"  # fewer samples, for a quick look

keras.utils.set_random_seed(0)
data = load_demo_data()
x, x_test = data.x_calib, data.x_test[:: 4 if FAST else 1]
model = qi.load_model(demo_model_path())


def deploy(quantized):
    """What LiteRT answers: the file is written, then run by LiteRT itself."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        qi.export(quantized, path, samples=x_test[:100], strict=True, latency=False)
        answer = Interpreter(model_content=path.read_bytes()).get_signature_runner("serving_default")
    return answer(image=x_test)["classes"]


def compare(name, predicted, deployed):
    """How many outputs, and how many of the answers, are others on the device."""
    outputs = np.count_nonzero(predicted != deployed)
    answers = np.count_nonzero(predicted.argmax(-1) != deployed.argmax(-1))
    steps = np.abs(predicted - deployed).max() * 256  # softmax has steps of 1/256
    print(f"{name:22} {outputs:5} of {deployed.size} outputs differ, by up to {steps:2.0f} steps; {answers} answers")
    return outputs


# --- 1. The lie -----------------------------------------------------------------------------------------------
# Same model, same weights, same scales; `predict` here, LiteRT there.
quantized, _ = qi.quantize_model(model, "w8a8", x, progress=False)
deployed = deploy(quantized)
lies = compare("fake quantization:", quantized.predict(x_test, verbose=0), deployed)
assert lies > 50


# --- 2. Where it comes from: one number near the middle between two codes -------------------------------------
# The sum of a convolution is an integer times s_x * s_w, to be divided by s_y. A kernel adds integers, the bias as one
# of them, and multiplies once. Fake quantization multiplies each weight and each pixel by its scale, adds up products
# in float32, and a bias that was never rounded. The results are as good as equal, and "as good as" decides between
# 3.4999 and 3.5001. A code that is off by one is an input of the next layer. Layer by layer:
graph = route(qi.lower(quantized), "litert")
few = x_test[:400]
values = run(graph, [few], every=True)  # the twin, with every tensor within
tensors = {t.name: t for t in graph.tensors() if t.quantized and not t.constant}
holders = [layer for layer in quantized.layers if layer.name in tensors]
reals = keras.Model(quantized.inputs, [layer.output for layer in holders]).predict(few, verbose=0)
print("\ncodes that fake quantization gets wrong:")
shares = []
for layer, real in zip(holders, reals, strict=True):
    codes = np.rint(real / tensors[layer.name].scale) + tensors[layer.name].zero_point
    shares.append(np.mean(codes != values[layer.name]))
    print(f"  {layer.name:30} {np.count_nonzero(codes != values[layer.name]):6} of {codes.size}")
assert shares[0] == 0 < shares[1] < 0.001 < 0.1 < max(shares)  # it begins with hardly any


# --- 3. The twin: the runtime's own arithmetic ----------------------------------------------------------------
twin = qi.emulate(quantized, x_test, "litert", progress=False)
print()
assert compare("qi.emulate:", twin, deployed) == 0


# --- 4. The same inside Keras: exact="litert" -----------------------------------------------------------------
# The model's own layers now carry integers, in float32 (it holds them exactly up to 2**24), and round as LiteRT does. It
# is a Keras model all the same: predict, evaluate, save, at about the price of fake quantization.
exact, _ = qi.quantize_model(model, "w8a8", x, exact="litert", progress=False)
assert compare('exact="litert":', exact.predict(x_test, verbose=0), deployed) == 0


# --- 5. And in training: what is trained is what will run -----------------------------------------------------
# Forward as the device computes, backward with the gradients of fake quantization.
qat = qi.prepare_qat(model, "w4a8", x, method="lsq", exact="litert", progress=False)
qat.compile(keras.optimizers.Adam(5e-4), "sparse_categorical_crossentropy", jit_compile=False)
qat.fit(x[:200] if FAST else x, data.y_calib[:200] if FAST else data.y_calib, batch_size=50, epochs=1, verbose=0)
trained = qi.convert(qat)
assert compare("trained, exact:", trained.predict(x_test, verbose=0), deploy(trained)) == 0
