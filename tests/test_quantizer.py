"""The quantizer in short, as its documentation asks: ``python -m unittest tests/test_quantizer.py``.

Threads, correctness, large arrays, the cache, calibration. What goes further lies in tests/engine, tests/seeds,
tests/integration and tests/parity.
"""

from __future__ import annotations

import unittest
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from qi.engine import QuantizationConfig, QuantizationMode, QuantizationType, Quantizer

DATA = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)


class TestQuantizer(unittest.TestCase):
    def test_thread_safety_with_concurrent_operations(self) -> None:
        quantizer = Quantizer()
        inputs = [DATA * (i + 1) for i in range(8)]
        expected = [Quantizer().quantize_dequantize(x) for x in inputs]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(5):
                for found, wanted in zip(pool.map(quantizer.quantize_dequantize, inputs), expected, strict=True):
                    np.testing.assert_array_equal(found, wanted)
        assert quantizer.get_stats()["quantize_calls"] == 40

    def test_correctness_of_quantization_and_dequantization(self) -> None:
        for kind in ("int8", "uint8", "int16", "int4", "uint4"):
            for symmetric in (True, False):
                for per_channel in (True, False):
                    config = QuantizationConfig(kind, symmetric=symmetric, per_channel=per_channel)
                    tensor = Quantizer(config).quantize(DATA, return_tensor=True)
                    error = np.abs(tensor.dequantize() - DATA)
                    with self.subTest(config=config):
                        assert (error <= tensor.qparams.scale / 2 + 1e-06 * np.abs(DATA)).all()

    def test_float16(self) -> None:
        quantizer = Quantizer(QuantizationConfig(QuantizationType.FLOAT16))
        np.testing.assert_array_equal(quantizer.quantize(DATA), DATA.astype(np.float16))

    def test_large_arrays(self) -> None:
        large = np.tile(DATA.ravel(), 400)
        quantizer = Quantizer()
        codes = quantizer.quantize(large)
        assert codes.shape == large.shape
        np.testing.assert_array_equal(codes[: DATA.size], Quantizer().quantize(DATA.ravel()))
        assert np.abs(quantizer.dequantize(codes) - large).max() <= quantizer.scale * 0.500001

    def test_caching(self) -> None:
        quantizer = Quantizer()
        codes = quantizer.quantize(DATA)
        first = quantizer.dequantize(codes)
        expected = first.copy()
        first[:] = 0  # the caller's own
        np.testing.assert_array_equal(quantizer.dequantize(codes), expected)
        quantizer.quantize(2 * DATA)
        np.testing.assert_array_equal(quantizer.dequantize(codes), 2 * expected)
        stats = quantizer.get_stats()
        assert (stats["cache_hits"], stats["cache_misses"]) == (1, 2)
        quantizer.clear_cache()
        assert len(quantizer._value_cache) == 0

    def test_calibration_with_representative_data(self) -> None:
        quantizer = Quantizer(QuantizationConfig(symmetric=False))
        quantizer.calibrate([np.float32([-1.0, 0.5]), np.float32([[1.55]])])
        assert quantizer.config.quantization_mode == QuantizationMode.CALIBRATED
        assert abs(quantizer.scale - 0.01) < 1e-8
        assert quantizer.zero_point == -28
        assert quantizer.quantize(np.float32([-5.0, 0.0, 5.0])).tolist() == [-128, -28, 127]


if __name__ == "__main__":
    unittest.main()
