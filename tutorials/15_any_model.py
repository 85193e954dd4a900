"""Any Keras model: blocks of your own, recurrent layers, calls that branch on values, frozen trunks; and what isn't done.

    python tutorials/15_any_model.py

QI looks for weights and tensors, not for classes it knows. Four models that other tools refuse, or leave in float
without a word, go through the same function here; then how to find out what was left in float, and why. The data are
the 28 x 28 images that ship with QI: as 16 patches for the transformer, as 28 rows for the LSTM.
"""

# ruff: noqa: D102
import os
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

import qi
from qi.demo import load_demo_data
from qi.recipes import get_recipe

FAST = os.environ.get("QI_FAST") == "1"  # fewer test images and epochs, for a quick look
EPOCHS = 2 if FAST else 4

keras.utils.set_random_seed(0)
data = load_demo_data()
x, y = data.x_calib[..., 0], data.y_calib  # 500 images to train on
x_test, y_test = data.x_test[:: 4 if FAST else 1, ..., 0], data.y_test[:: 4 if FAST else 1]


def train(model, labels=y):
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(x, labels, epochs=EPOCHS, batch_size=25, verbose=0)
    return model


def run(model):
    return ops.convert_to_numpy(model(x_test))


def show(labels=y_test, **models):
    """Top-1 of several models, in one line."""
    print("  " + ", ".join(f"{name} {100 * np.mean(run(m).argmax(-1) == labels):.1f} %" for name, m in models.items()))


def reloaded(model):
    """The model from its file, after a look at whether it's the same model."""
    with tempfile.TemporaryDirectory() as folder:
        again = qi.load_model(qi.save_model(model, Path(folder) / "model.keras"))
    assert np.array_equal(run(again), run(model))
    return again


# --- 1. A block of your own, made of layers -------------------------------------------------------------------
# QI calls it once on symbolic tensors and follows it into the layers and keras.ops that it calls: they get
# quantizers like any others, and the runtime's integers are known for them.
@keras.saving.register_keras_serializable("tutorial")
class Block(layers.Layer):
    """Attention, then two Dense layers, both with a way around."""

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
print("A transformer")
show(float=transformer, w8a8=reloaded(quantized))
rows = report.find("block/*")
left = {row.reason for row in rows if not row.quantized}
print(f"  {sum(row.quantized for row in rows)} of {len(rows)} tensors inside the block are quantized; the others:")
print("   ", "\n    ".join(sorted(left)))
same = qi.emulate(quantized, x_test, "litert", progress=False).argmax(-1) == run(quantized).argmax(-1)
print(f"  LiteRT will give {np.count_nonzero(same)} of {len(same)} answers as the Keras model does")


# --- 2. Recurrent layers --------------------------------------------------------------------------------------
# Weights, inputs and outputs are quantized; what passes from step to step isn't, and the report says so. Rules for
# the cell change that: it gives an output (which is the first state as well) and further states, ":1" here, the
# sums of a whole sequence, which get 16 bits. The first rule that matches decides.
def within(report):
    for row in report.find("lstm/*"):
        print(f"  {row.path:32}", f"{row.bits} bits" if row.quantized else row.reason)


image = keras.Input((28, 28), name="image")
z = layers.LSTM(32, name="lstm")(image)  # a row of pixels at a time
lstm = train(keras.Model(image, layers.Dense(10, activation="softmax", name="classes")(z)))
plain, report = qi.quantize_model(lstm, "w8a8", x, progress=False)
print("\nAn LSTM, w8a8")
within(report)
recipe = get_recipe("w8a8").with_rules(
    qi.Rule("*/lstm_cell:1", activations=qi.TensorSpec(bits=16)),
    qi.Rule("*/lstm_cell", activations=qi.TensorSpec(bits=8)),
)
states, report = qi.quantize_model(lstm, recipe, x, progress=False)
print("with rules for the cell")
within(report)
show(float=lstm, w8a8=plain, states=reloaded(states))


# --- 3. A call that branches on values ------------------------------------------------------------------------
# There is no graph to follow: which layers run depends on the numbers. The copy keeps its class, its call and its
# train_step, and each layer is quantized where it is, however often it's called. QI warns that no runtime's file can be
# made of that.
@keras.saving.register_keras_serializable("tutorial")
class Recheck(keras.Model):
    """Looks a second time where its gate is open; trains on images that it disturbs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flat, self.first = layers.Flatten(name="flat"), layers.Dense(32, activation="relu", name="first")
        self.second = layers.Dense(32, activation="relu", name="second")
        self.classes = layers.Dense(10, activation="softmax", name="classes")
        self.gate = self.add_weight(shape=(32, 1), name="gate")  # no layer holds it

    def call(self, images):
        z = self.first(self.flat(images))
        gate = ops.sigmoid(ops.matmul(z, self.gate))
        z = ops.cond(ops.mean(gate) < 0.1, lambda: z, lambda: z + gate * self.second(z))
        return self.classes(z)

    def train_step(self, batch):
        images, labels = batch
        return super().train_step((images + keras.random.normal(ops.shape(images), stddev=0.05), labels))


recheck = Recheck(name="recheck")
recheck(x[:1])
train(recheck)
print("\nA call of its own")
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always", qi.QuantizationWarning)
    rounded, report = qi.quantize_model(recheck, "w2a8", x, progress=False)
    qat = train(qi.prepare_qat(recheck, "w2a8", x, method="lsq", progress=False))
print(f"  warned: {str(found[0].message).partition(':')[0]}")
trained = qi.convert(qat)
assert isinstance(qat, Recheck)
assert np.array_equal(run(trained), run(qat))
show(float=recheck, w2a8=rounded, trained=reloaded(trained))


# --- 4. A frozen trunk in a new model -------------------------------------------------------------------------
# The LSTM, less its last layer, under a new head that tells clothes, shoes and bags. Quantization-aware training leaves
# frozen what was frozen: only the head would train, and the steps of quantizers.
kinds, kinds_test = (np.isin(labels, (5, 7, 9)) + 2 * (labels == 8) for labels in (y, y_test))
trunk = keras.Model(lstm.input, lstm.get_layer("lstm").output, name="trunk")
trunk.trainable = False
image = keras.Input((28, 28), name="image")
z = layers.Dense(3, activation="softmax", name="kind")(trunk(image, training=False))
transfer = train(keras.Model(image, z), kinds)
quantized, _ = qi.quantize_model(transfer, "w4a8", x, progress=False)
qat = qi.prepare_qat(transfer, "w4a8", x, progress=False)
print("\nA frozen trunk. What would train:", ", ".join(variable.path for variable in qat.trainable_variables))
show(kinds_test, float=transfer, w4a8=reloaded(quantized))


# --- 5. What stays in float, and how to insist ----------------------------------------------------------------
# Every row has a reason. Rules that fit no layer are told, with the name that was perhaps meant.
rules = [qi.Rule("clases", weights="float"), qi.Rule("first", weights="float")]
with warnings.catch_warnings(record=True):
    warnings.simplefilter("always", qi.QuantizationWarning)
    _, report = qi.quantize_model(recheck, get_recipe("w8a8").with_rules(*rules), x[:100], progress=False)
print("\nIn float")
for reason, rows in report.unquantized_by_reason().items():
    print(f"  {', '.join(row.path for row in rows)}: {reason}")
print(f"  rules that fit nothing: {report.unused_rules[0]}")
# strict=True refuses where a weight matrix would stay in float that no rule leaves there: the gate, which a layer
# would have to hold, not the kernel that the rule spoke of.
try:
    qi.quantize_model(recheck, get_recipe("w8").with_rules(rules[1]), strict=True, progress=False)
except qi.errors.StrictError as refusal:
    print(f"  strict=True: {refusal}")
