"""Write a trainable quantizer of your own: an idea in 30 lines, checked by a contract, used like the built-in ones.

    python tutorials/05_write_your_own_quantizer.py

The idea: LSQ trains the step of each quantizer. But steps differ: one layer's is 0.5, another's 0.005, while Adam
moves every variable by about the learning rate, whatever its size. So one layer's step hardly moves and another's
jumps. Let us train the step's *ratio* to where it began instead: one learning rate then means as many percent
everywhere. A researcher's job is this idea; files, axes, rounding, gradients, wrappers and conversion are QI's.
"""

import os
import tempfile
from pathlib import Path

import keras
import numpy as np

import qi
from qi.core.estimators import register_estimator
from qi.demo import load_demo_data
from qi.quantizers.trainable import positive

FAST = os.environ.get("QI_FAST") == "1"  # fewer epochs and checks, for a quick look
METHODS = [qi.QuantizationMethod.SYMMETRIC, qi.QuantizationMethod.UNIFORM]
TARGETS = [qi.QuantizationTarget.WEIGHTS, qi.QuantizationTarget.ACTIVATION]


# --- 1. The quantizer ---------------------------------------------------------------------------------------
# Two methods say it all: which variables there are, and how scale and zero point come from them. `mark_quantizer`
# registers the class: for which tensors and methods, under which name of training method, and as whose in files.
@qi.mark_quantizer(TARGETS, METHODS, "ratio", package="tutorial")
class RatioQuantizer(qi.BaseTrainableQuantizer):
    """The step is ``s = s0 |r|``: s0 is where it began, r trains, starting at 1; ``dy/dr = s0 dy/ds``."""

    def declare(self, shape, x=None):
        """Fixed ``start`` (and ``zero_point``), trainable ``ratio``."""
        start, zero_point = self.initial(shape, x)  # calibrated, configured, or from the weight x itself
        variables = [
            qi.QuantizerVariable("start", start),
            qi.QuantizerVariable("ratio", np.ones_like(start), trainable=True),
        ]
        if self.spec.method is qi.QuantizationMethod.UNIFORM:
            variables.append(qi.QuantizerVariable("zero_point", zero_point))
        return variables

    def scale_zero_point(self, variables):
        """The product, kept positive wherever an optimizer takes the ratio."""
        return positive(variables["start"] * variables["ratio"]), variables.get("zero_point")


# --- 2. Does it keep the contract? --------------------------------------------------------------------------
# That is: converts bit for bit; has the gradients that its formula says, in numpy, eager, graph and XLA mode alike;
# stays finite on the ugliest numbers; survives saving in the middle of training; works in half precision; learns.
clauses = ("forward", "gradients", "finite", "positive", "config", "refusals", "training") if FAST else None
print(qi.testing.check_quantizer(RatioQuantizer, bits=(3,), clauses=clauses))


# --- 3. What the contract is good for: the same class with a mistake ----------------------------------------
@qi.mark_quantizer(TARGETS, METHODS, "careless", package="tutorial")
class CarelessQuantizer(RatioQuantizer):
    """The step is ``s0 r``."""

    def scale_zero_point(self, variables):
        """The product as it is: and if r falls below 0?"""
        return variables["start"] * variables["ratio"], variables.get("zero_point")


try:
    qi.testing.check_quantizer(CarelessQuantizer, bits=(3,), clauses=["positive"])
except qi.ContractError as error:
    print(f"\nrefused: {error}")
else:
    raise AssertionError("the contract should have noticed")


# --- 4. In a model: 2-bit weights and activations, beside a method with fixed steps -------------------------
keras.utils.set_random_seed(0)
data = load_demo_data()
model = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        keras.layers.AveragePooling2D(2),
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu"),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.Dense(10, activation="softmax"),
    ]
)


def train(model, epochs, rate):
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
    model.fit(data.x_calib, data.y_calib, batch_size=50, epochs=epochs, verbose=0)
    return model


def accuracy(model):
    return float(np.mean(model.predict(data.x_test, verbose=0).argmax(-1) == data.y_test))


def prepare(**options):
    keras.utils.set_random_seed(0)
    return qi.prepare_qat(model, "w2a2", data.x_calib, progress=False, **options)


train(model, epochs=20, rate=3e-3)
qat = prepare(method="ratio")
results = {"float": accuracy(model), "rounded": accuracy(qat)}  # before training, it is what rounding gives
results["ste, fixed"] = accuracy(train(prepare(method="ste"), epochs=5 if FAST else 10, rate=0.01))
results["ratio"] = accuracy(train(qat, epochs=5 if FAST else 10, rate=0.01))
ratios = np.concatenate([np.ravel(v) for v in qat.trainable_variables if v.path.endswith("ratio")])
print(f"\nsteps ended at {ratios.min():.2f} to {ratios.max():.2f} times their start")


# --- 5. Only another gradient? An estimator is one function -------------------------------------------------
# Straight-through gradients are 0 where values were clipped: such weights never return. This one lets them feel
# the less the further out they are (u: the value in steps, clipped: the same within the grid).
@register_estimator("fading")
def fading(g, u, clipped, value, *, xp):
    return xp.divide(g, xp.abs(u - clipped) + np.float32(1))


qi.testing.check_quantizer(RatioQuantizer, bits=(3,), clauses=["gradients", "finite"], estimator="fading")
fades = train(prepare(method="ratio", estimator="fading"), epochs=5 if FAST else 10, rate=0.01)
results["ratio, fading"] = accuracy(fades)
for name, value in results.items():
    print(f"{name:14} {100 * value:6.2f} %")
assert results["ratio"] > results["rounded"] + 0.1


# --- 6. Convert and save: your class is needed to train, not to use what was trained ------------------------
quantized = qi.convert(qat)
assert np.array_equal(quantized.predict(data.x_test, verbose=0), qat.predict(data.x_test, verbose=0))
with tempfile.TemporaryDirectory() as folder:
    path = qi.save_model(quantized, Path(folder) / "mine.keras")
    assert b"RatioQuantizer" not in path.read_bytes()
    reloaded = qi.load_model(path)
assert np.array_equal(reloaded.predict(data.x_test, verbose=0), quantized.predict(data.x_test, verbose=0))
print("converted, saved and reloaded: the same predictions, bit for bit")
