"""The names that `Quantizer` is documented to have inside: views of its state, and the steps of its work."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from qi.core import PerChannel, PerTensor, QParams, blocked
from qi.engine.config import QuantizationConfig
from qi.engine.inputs import array_of, codes_of, refuse
from qi.engine.ranges import requantized
from qi.engine.state import fitted

__all__ = ["SeedNames"]

_scratch = threading.local()


class SeedNames:
    """Attributes are read-only views; the truth is `Quantizer`'s state. Methods change nothing but what they return."""

    # Locks: `_lock` is an attribute of the quantizer.

    @property
    def _stats_lock(self: Any) -> Any:
        return self._statistics.lock

    @property
    def _cache_lock(self: Any) -> Any:
        return self._cache.lock

    # Parameters.

    @property
    def _global_scale(self: Any) -> float:
        return float(self.scale)

    @property
    def _global_zero_point(self: Any) -> float:
        return float(self.zero_point)

    @property
    def _scales(self: Any) -> dict[int, float]:
        return dict(self.export_parameters()["per_channel_scales"])

    @property
    def _zero_points(self: Any) -> dict[int, float]:
        return dict(self.export_parameters()["per_channel_zero_points"])

    @property
    def _is_calibrated(self: Any) -> bool:
        return self._state.fixed is not None

    @property
    def _calibration_data(self: Any) -> list[tuple[Any, Any]]:
        """The ranges that calibration kept: data itself isn't."""
        fixed = self._state.fixed
        return [] if fixed is None else [(fixed.lo.tolist(), fixed.hi.tolist())]

    # Counters and cache.

    @property
    def _quantization_stats(self: Any) -> dict[str, Any]:
        return dict(self.get_stats())

    @property
    def _cache_enabled(self: Any) -> bool:
        return bool(self.config.enable_cache)

    @property
    def _cache_size(self: Any) -> int:
        return int(self.config.cache_size)

    @property
    def _value_cache(self: Any) -> Any:
        return self._cache.results

    @property
    def _transform_cache(self: Any) -> dict[Any, Any]:
        """Empty: nothing else is kept."""
        return {}

    # The grid.

    @property
    def _qmin(self: Any) -> int:
        config = self.config
        return int(config.grid.qmin if config.quantization_type.integer else np.finfo(self._qtype).min)

    @property
    def _qmax(self: Any) -> int:
        config = self.config
        return int(config.grid.qmax if config.quantization_type.integer else np.finfo(self._qtype).max)

    @property
    def _qrange(self: Any) -> int:
        return 1 << int(self.config.bits)

    @property
    def _qtype(self: Any) -> np.dtype:
        config: QuantizationConfig = self.config
        if config.quantization_type.integer:
            return config.grid.storage_dtype
        return np.dtype("float16" if config.quantization_type == "float16" else "float32")

    def _setup_quantization_ranges(self: Any) -> None:
        """The grid follows from the configuration, which was checked when it was made."""

    # Buffers: one of each per thread.

    @property
    def _buffer_size(self: Any) -> int:
        return int(self.config.buffer_size)

    @property
    def _input_buffer(self: Any) -> np.ndarray | None:
        return _buffer("input", self.config.buffer_size, np.dtype("float32"))

    @property
    def _output_buffer(self: Any) -> np.ndarray | None:
        return _buffer("output", self.config.buffer_size, self._qtype)

    def _initialize_buffers(self: Any) -> None:
        """Buffers are made when a thread first needs them."""

    # Layers.

    @property
    def _layer_precision(self: Any) -> dict[str, dict[str, Any]]:
        return {name: self.get_layer_quantization_params(name) for name in self._state.layers}

    def _init_mixed_precision(self: Any) -> None:
        """Layers' configurations follow from the configuration, which was checked when it was made."""

    # Steps.

    def _validate_input(self: Any, data: np.ndarray) -> None:
        """Raises TypeError for what is no array of numbers, ValueError for NaN or infinity where they are errors."""
        _, _, nans, infs = blocked.minmax(array_of(data, validate=True), PerTensor())
        refuse(nans, infs, self.config)

    def _apply_requantization(self: Any, quantized_data: np.ndarray, original_data: np.ndarray) -> np.ndarray:
        """The codes again if errors can't fall; else those of a wider range, which becomes the one in use."""
        state = self._state
        x = array_of(original_data, validate=True)
        codes_of(quantized_data, state.config)
        before: QParams = self._parameters_of_codes(state, state.config, x.ndim, None, None)
        after = requantized(x, before, state.config)
        if after is before:
            return quantized_data
        self._remember(state, None, after)
        return np.asarray(after.quantize(x).codes)

    def _quantize_mixed_precision(
        self: Any, data: np.ndarray, layer_name: str, channel_dim: int | None = None
    ) -> np.ndarray:
        return np.asarray(self.quantize(data, channel_dim=channel_dim, layer_name=layer_name))

    def _dequantize_mixed_precision(
        self: Any, data: np.ndarray, layer_name: str, channel_dim: int | None = None
    ) -> np.ndarray:
        return np.asarray(self.dequantize(data, channel_dim=channel_dim, layer_name=layer_name))

    def _quantize_per_channel(self: Any, data: np.ndarray, channel_dim: int | None = None) -> np.ndarray:
        """Codes with a scale for each index along a dimension, 0 if None, whatever the configuration shares."""
        state, axis = self._state, 0 if channel_dim is None else channel_dim
        own = {"per_channel": True, "quantization_mode": "dynamic", "symmetric": state.config.is_symmetric}
        params = self._parameters(state, state.config.replace(**own), array_of(data, validate=True), axis)
        self._remember(state, None, params)
        return np.asarray(blocked.quantize(data, params)[0])

    def _dequantize_per_channel(self: Any, data: np.ndarray, channel_dim: int | None = None) -> np.ndarray:
        """The numbers that codes stand for, by the scales of the latest channels."""
        params = self._last.get(None)
        if params is None or not isinstance(params.granularity, PerChannel):
            return np.asarray(self.dequantize(data, channel_dim=channel_dim))
        codes = codes_of(data, self.config)
        return blocked.dequantize(codes, fitted(params, codes.ndim, channel_dim))


def _buffer(name: str, size: int, dtype: np.dtype) -> np.ndarray | None:
    """A thread's own buffer."""
    if not size:
        return None
    buffer: np.ndarray | None = getattr(_scratch, name, None)
    if buffer is None or buffer.size != size or buffer.dtype != dtype:
        buffer = np.empty(size, dtype)
        setattr(_scratch, name, buffer)
    return buffer
