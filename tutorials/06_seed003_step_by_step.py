"""The parts one by one: quantizer, dispatcher, wrapper, configuration, and a layer that trains with them.

    python tutorials/06_seed003_step_by_step.py

`qi.quantize_model` and `qi.prepare_qat` put these parts into a whole model. Here is one convolution and every part
by hand, in the order in which they depend on each other, first for inference alone and then for training. Read this
to build something that the two functions don't, or to know what they build.
"""

import tempfile
from pathlib import Path

import keras
import numpy as np

import qi

keras.utils.set_random_seed(0)
images = np.random.default_rng(0).uniform(-1, 1, (64, 8, 8, 3)).astype("float32")
images = images.repeat(4, axis=1).repeat(4, axis=2)  # 32 x 32 pixels, neighbours alike, as in real images


def run(layer):
    return keras.ops.convert_to_numpy(layer(images))


# --- 1. Quantizers: real numbers in, the nearest numbers of a grid out --------------------------------------
# They come in two kinds. Inferable ones are frozen: what a device will compute, emulated in floats. Trainable
# ones have learnable parameters. Every weight and every activation has a quantizer of its own.
w_quantizer = qi.WeightsSymmetricInferableQuantizer(num_bits=8, threshold=2, signed=True, per_channel=True)
assert isinstance(w_quantizer, qi.BaseInferableQuantizer)
grid = np.unique(w_quantizer(np.linspace(-3, 3, 100_000, dtype="float32")[:, None]))
print(f"8 bits on [-2, 2): {grid.size} numbers from {grid[0]} to {grid[-1]}, {grid[1] - grid[0]} apart")
assert (grid.size, grid[0], grid[-1]) == (256, -2, 2 - 2 / 128)


# --- 2. A dispatcher: which weight of a layer, and which output, gets which quantizer -----------------------
dispatcher = qi.KerasNodeQuantizationDispatcher(w_quantizer)  # short for: the layer's main weight gets it
by_name = qi.KerasNodeQuantizationDispatcher({"kernel": w_quantizer})


# --- 3. A wrapper: takes a layer's place and does what it does, with the quantized weights ------------------
inputs = keras.layers.Input(shape=(32, 32, 3))
x = keras.layers.Conv2D(6, 7, use_bias=False)(inputs)
model = keras.Model(inputs=inputs, outputs=x)
convolution = model.layers[1]
wrapper = qi.KerasQuantizationWrapper(layer=convolution, dispatcher=dispatcher)

target = run(convolution)
assert np.array_equal(run(wrapper), run(qi.KerasQuantizationWrapper(convolution, by_name)))
rounded = keras.ops.convert_to_numpy(keras.ops.conv(images, wrapper.get_quantized_weights()["kernel"]))
assert np.allclose(run(wrapper), rounded, atol=1e-5)  # the same convolution, of a rounded kernel


# --- 4. Configurations: what a trainable quantizer is made from ---------------------------------------------
# Inferable quantizers take plain arguments, as above. Trainable ones share a configuration, one class for weights
# and one for activations. Empty params: the range starts at what the weight itself covers.
q_config = qi.TrainableQuantizerWeightsConfig(
    weights_quantization_method=qi.QuantizationMethod.POWER_OF_TWO,
    weights_n_bits=9,
    weights_quantization_params={},
    enable_weights_quantization=True,
    weights_channels_axis=-1,
    weights_per_channel_threshold=True,
    min_threshold=0,
)
a_config = qi.TrainableQuantizerActivationConfig(
    activation_quantization_method=qi.QuantizationMethod.UNIFORM,
    activation_n_bits=8,
    activation_quantization_params={"min_range": float(target.min()), "max_range": float(target.max())},
)
assert isinstance(q_config, qi.BaseQuantizerConfig)
assert qi.BaseQuantizerConfig.from_dict(q_config.to_dict()) == q_config  # plain JSON in between


# --- 5. Trainable quantizers: looked up by what they are for, their method, and how they train --------------
print(f"training methods: {', '.join(qi.training_methods())}")
cls = qi.get_quantizer_class(qi.QuantizationTarget.WEIGHTS, qi.QuantizationMethod.POWER_OF_TWO, "tqt")
assert cls is qi.TQTQuantizer  # learns the exponent of a threshold that is a power of two all along
try:
    qi.TQTQuantizer(a_config)
except qi.ConfigError as error:
    print(f"refused: {error}")


# --- 6. Train one layer -------------------------------------------------------------------------------------
# Nine bits lose hardly anything, so there is nothing to win. The same configuration with two is another matter:
# the layer shall answer as it did in float, with four values to a filter, and its output in 8 bits. It can learn
# that, because a weight can make up for the rounding of its neighbour, which sees nearly the same pixel.
def trainable(config):
    dispatcher = qi.KerasNodeQuantizationDispatcher({"kernel": cls(config)}, [qi.LSQQuantizer(a_config)])
    wrapper = qi.KerasQuantizationWrapper(convolution, dispatcher)
    return wrapper, keras.Sequential([keras.Input((32, 32, 3)), wrapper])


def error(layer):
    return float(np.mean((run(layer) - target) ** 2) / np.mean(target**2))


print(f"\nerror, as a share of the signal: {error(trainable(q_config)[0]):.1e} with 9 bits")
kernel = convolution.get_weights()[0]
wrapper, student = trainable(q_config.with_bits(2))
print("what trains:", ", ".join(f"{v.path.split('/')[-1]} {tuple(v.shape)}" for v in wrapper.trainable_variables))
before = error(wrapper)
student.compile(keras.optimizers.Adam(0.001), "mse", jit_compile=False)
student.fit(images, target, batch_size=16, epochs=15, verbose=0)
print(f"with 2 bits: {before:.2f} rounded, {error(wrapper):.2f} trained")
assert error(wrapper) < 0.5 * before
assert not np.array_equal(convolution.get_weights()[0], kernel)  # the layer's own float kernel is what trained


# --- 7. Convert: trainable quantizers become the inferable ones they have arrived at ------------------------
inferable = wrapper.convert2inferable()
assert isinstance(inferable.quantizers["kernel"], qi.WeightsPOTInferableQuantizer)
assert np.array_equal(run(inferable), run(wrapper))  # bit for bit
weights = inferable.get_quantized_weights()["kernel"]
tensor = inferable.get_quantized_tensors()["kernel"]
print(f"\nfirst filter: values {np.unique(weights[..., 0])}, codes {np.unique(tensor.codes[..., 0])}")
assert np.array_equal(weights, tensor.codes * tensor.qparams.scale)
assert set(np.unique(tensor.codes)) <= {-2, -1, 0, 1}
assert np.all(np.log2(tensor.qparams.scale) % 1 == 0)  # powers of two: a device shifts in place of multiplying


# --- 8. Freeze and save -------------------------------------------------------------------------------------
inferable.freeze()
done = keras.Sequential([keras.Input((32, 32, 3)), inferable])
with tempfile.TemporaryDirectory() as folder:
    reloaded = qi.load_model(qi.save_model(done, Path(folder) / "layer.keras"))
assert np.array_equal(run(reloaded), run(wrapper))
print("converted, frozen, saved and reloaded: the same output, bit for bit")
