"""Any Keras model: blocks of your own, recurrent layers, calls that branch on values, frozen trunks; and what isn't done.

    python tutorials/15_any_model.py

QI looks for weights and tensors, not for classes it knows. Four models that other tools refuse, or leave in float
without a word, go through the same function here; then how to find out what was left in float, and why. The data are
the 28 x 28 images that ship with QI: as 16 patches for the transformer, as 28 rows for the LSTM.
"""

import os
import tempfile
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

import qi
from qi.demo import load_demo_data
from qi.recipes import get_recipe

FAST = os.environ.get("QI_FAST") == "1"  # fewer test images and epochs, for a quick look
EPOCHS = 4 if FAST else 12

keras.utils.set_random_seed(0)
data = load_demo_data()
x, y = data.x_calib[..., 0], data.y_calib  # 500 images to train on
x_test, y_test = data.x_test[:: 4 if FAST else 1, ..., 0], data.y_test[:: 4 if FAST else 1]


def train(model, rate=3e-3, epochs=EPOCHS):
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(x, y, epochs=epochs, batch_size=25, verbose=0)
    return model


def show(title, **models):
    """Top-1 of several models, in one line."""
    percent = {k: 100 * np.mean(m.predict(x_test, verbose=0).argmax(-1) == y_test) for k, m in models.items()}
    print(f"{title:12}", ", ".join(f"{name} {value:.1f} %" for name, value in percent.items()))


def reloaded(model):
    """The model from its file, after a look at whether it's the same model."""
    with tempfile.TemporaryDirectory() as folder:
        again = qi.load_model(qi.save_model(model, Path(folder) / "model.keras"))
    assert np.array_equal(again.predict(x_test, verbose=0), model.predict(x_test, verbose=0))
    return again


# --- 1. A block of your own, made of layers -------------------------------------------------------------------
# QI calls it once on symbolic tensors and follows it into the layers and keras.ops that it calls: they get
# quantizers like any others, and the runtime's integers are known for them.
@keras.saving.register_keras_serializable("tutorial")
class Block(layers.Layer):
    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.attention = layers.MultiHeadAttention(2, width // 2, name="attention")
        self.norm_1, self.norm_2 = layers.LayerNormalization(name="norm_1"), layers.LayerNormalization(name="norm_2")
        self.wide = layers.Dense(2 * width, activation="gelu", name="wide")
        self.narrow = layers.Dense(width, name="narrow")

    def build(self, shape):  # so that a file's weights find their variables
        self.attention.build(shape, shape)
        self.norm_1.build(shape)
        self.norm_2.build(shape)
        self.wide.build(shape)
        self.narrow.build((*shape[:-1], 2 * self.width))

    def call(self, z):
        z = self.norm_1(z + self.attention(z, z))
        return self.norm_2(z + self.narrow(self.wide(z)))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


image = keras.Input((28, 28), name="image")
z = ops.transpose(ops.reshape(image, (-1, 4, 7, 4, 7)), (0, 1, 3, 2, 4))
z = layers.Dense(24, name="embed")(ops.reshape(z, (-1, 16, 49)))
z = Block(24, name="block")(z)
z = layers.Flatten(name="flat")(z)
transformer = train(keras.Model(image, layers.Dense(10, activation="softmax", name="classes")(z)))
quantized, report = qi.quantize_model(transformer, "w8a8", x, progress=False)
show("transformer:", float=transformer, w8a8=reloaded(quantized))
print("  inside block:", ", ".join(row.path.removeprefix("block/") for row in report.find("block/*")[:6]), "...")
twin = qi.emulate(quantized, x_test[:100], target="litert")  # what LiteRT will answer, in integers
print(f"  LiteRT: {np.mean(twin.argmax(-1) == quantized.predict(x_test[:100], verbose=0).argmax(-1)):.0%} same answers")

# --- 2. Recurrent layers --------------------------------------------------------------------------------------
# Weights, inputs and outputs are quantized. What passes from step to step isn't, until a rule says so.
rows = keras.Input((28, 28), name="rows")
z = layers.LSTM(32, name="lstm")(rows)
lstm = train(keras.Model(rows, layers.Dense(10, activation="softmax", name="classes")(z)))
plain, report = qi.quantize_model(lstm, "w8a8", x, progress=False)
print()
for row in report.find("lstm/*"):
    print(" ", row.path, row.bits, row.reason)
recipe = get_recipe("w8a8").with_rules(
    qi.Rule("*/lstm_cell:1", activations=qi.TensorSpec(bits=16)),
    qi.Rule("*/lstm_cell", activations=qi.TensorSpec(bits=8)),
)
states, report = qi.quantize_model(lstm, recipe, x, progress=False)
for row in report.find("lstm/*"):
    print(" ", row.path, row.bits, row.reason)
show("lstm:", float=lstm, w8a8=plain, states=reloaded(states))
print(report)
