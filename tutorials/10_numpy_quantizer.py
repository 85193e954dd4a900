"""The numpy engine: arrays in, integers out, from any number of threads, with no framework loaded.

    python tutorials/10_numpy_quantizer.py

`qi.engine` is what stands below everything else in QI: one class, `Quantizer`, that turns arrays of real numbers into codes
of 8, 4 or 2 bits and back. Of all that QI needs it loads numpy and ml_dtypes alone. With the extra `fast`
(pip install 'quantizers-infrastructure[fast]') large arrays go through compiled code, to the same bits, once a process has worked
on enough of them to make up for loading it, or after `qi.engine.load_fast()`.
"""

import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from qi.engine import (
    BitWidth,
    DynamicRangeCalibrator,
    Granularity,
    QuantizationConfig,
    QuantizationMode,
    Quantizer,
    load_quantized,
    quantize_file,
)

assert "tensorflow" not in sys.modules
rng = np.random.default_rng(0)


# --- 1. Quantize, look, dequantize --------------------------------------------------------------------------
# The range of each array is its own, unless one was fixed. Asymmetric: 0 may have any code, so a range that leans to
# one side wastes none.
signal = rng.gamma(2.0, 1.5, size=(64, 256)).astype(np.float32)
for symmetric in (True, False):
    quantizer = Quantizer(QuantizationConfig(symmetric=symmetric))
    codes = quantizer.quantize(signal)
    error = np.abs(quantizer.dequantize(codes) - signal).max()
    used = len(np.unique(codes))
    print(
        f"symmetric={symmetric!s:5}: scale {quantizer.scale:.4f}, 0 is code {quantizer.zero_point:.0f}, "
        f"{used} of 256 codes used, greatest error {error:.4f}"
    )
    assert error <= 0.51 * quantizer.scale  # half a step, and float32's own rounding


# --- 2. Codes and parameters that travel together -----------------------------------------------------------
# A plain array of codes is read with the parameters of the latest call, and the next call has others. A
# QuantizedTensor has its own, and packs few bits into bytes.
quantizer = Quantizer(QuantizationConfig(quantization_type="int4", per_channel=True))
first = quantizer.quantize(signal, return_tensor=True)
quantizer.quantize(1000 * signal)  # changes nothing about the first
print(f"\n{first}: {first.compression_ratio:.2f} times smaller than float32")
assert np.abs(first.dequantize() - signal).max() <= 0.51 * first.params.scale.max()
assert first.nbytes == signal.size // 2 + 4 * len(signal)  # two codes a byte, one scale a row


# --- 3. A range from representative data --------------------------------------------------------------------
# After calibrate every array has the same scale: what lies outside saturates, and is counted.
quantizer = Quantizer(QuantizationConfig(symmetric=False))
quantizer.calibrate([signal[:32], signal[32:]])
quantizer.quantize(2 * signal)
stats = quantizer.get_stats()
print(f"\ncalibrated to {quantizer.scale:.4f}: {stats['clipped_values']} of {stats['total_values']} values clipped")
assert stats["clipped_values"] == np.count_nonzero(2 * signal > signal.max() + quantizer.scale / 2)
text = json.dumps(quantizer.export_parameters())
other = Quantizer()
other.load_parameters(json.loads(text))
assert np.array_equal(other.quantize(signal), quantizer.quantize(signal))


# --- 4. Layers with wishes of their own ---------------------------------------------------------------------
config = QuantizationConfig(
    enable_mixed_precision=True,
    mixed_precision_layers=["head"],  # 16 bits
    custom_quantization_config={"embedding": {"type": "int4"}},
    skip_layers=["logits"],
)
quantizer = Quantizer(config)
for layer in ("body", "head", "embedding", "logits"):
    result = quantizer.quantize(signal, layer_name=layer)
    error = np.abs(quantizer.dequantize(result, layer_name=layer) - signal).max()
    print(f"{layer:10} {result.dtype.name:8} greatest error {error:.6f}")
assert error == 0.0  # logits stay as they are


# --- 5. One quantizer, many threads -------------------------------------------------------------------------
# Each call works on one consistent state, and no lock is held while numbers are computed.
arrays = [rng.normal(scale=s + 1, size=10_000).astype(np.float32) for s in range(32)]
quantizer = Quantizer()
with ThreadPoolExecutor(8) as pool:
    tensors = list(pool.map(lambda x: quantizer.quantize(x, return_tensor=True), arrays))
for x, tensor in zip(arrays, tensors, strict=True):
    assert np.array_equal(tensor.codes, Quantizer().quantize(x))
print(f"\n{quantizer.get_stats()['quantize_calls']} calls from 8 threads, all as from one")


# --- 6. The same as functions -------------------------------------------------------------------------------
# Without an instance: a tensor, a configuration, and ranges by layer names.
config = QuantizationConfig.new(QuantizationMode.ASYMMETRIC, BitWidth.INT8, Granularity.PER_TENSOR)
quantized = Quantizer.quantize_tensor(signal, config)
print(f"mean squared error {Quantizer.quantization_error(signal, quantized):.6f}")
calibrator = DynamicRangeCalibrator()
for batch in np.array_split(signal, 4):
    calibrator.collect("activations", batch)
params = calibrator.finalize_params(config)["activations"]
assert params == quantized.params


# --- 7. Files larger than memory ----------------------------------------------------------------------------
# A checkpoint's matrices in 4 bits, a scale for each row, read and written in pieces; biases are copied.
with tempfile.TemporaryDirectory() as folder:
    weights = {"dense/kernel": rng.normal(size=(512, 256)), "dense/bias": rng.normal(size=256)}
    np.savez(Path(folder, "model.npz"), **{name: w.astype(np.float32) for name, w in weights.items()})
    small = Path(folder, "small.safetensors")
    config = QuantizationConfig(quantization_type="int4", per_channel=True)
    print("\n" + str(quantize_file(Path(folder, "model.npz"), small, config)))
    kernel = load_quantized(small)["dense/kernel"]
    assert small.stat().st_size < 0.15 * Path(folder, "model.npz").stat().st_size
    assert np.abs(kernel.dequantize() - weights["dense/kernel"]).max() <= 0.51 * kernel.params.scale.max()
