"""Quantizer: arrays to codes and back, from any number of threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from qi.core import PerTensor, QParams, QTensor, blocked
from qi.core.tiles import check_threads
from qi.engine import tensors
from qi.engine.cache import ResultCache
from qi.engine.channels import check_channel_dim, check_read_channel_dim, sharing_of
from qi.engine.config import QuantizationConfig, checked_config, checked_flag
from qi.engine.inputs import array_of, codes_of, float32_of, half, hash_array, no_tensor, refuse, untouched
from qi.engine.parameters import MAX_LAYERS, exported, imported
from qi.engine.ranges import covered, params_of, requantized, see
from qi.engine.seed_names import SeedNames
from qi.engine.state import Fixed, State, calibrated, fitted
from qi.engine.stats import Statistics
from qi.engine.types import QuantizationType
from qi.errors import InputError, NotCalibratedError, UnsupportedError

__all__ = ["Quantizer"]


class Quantizer(SeedNames):
    """Turns arrays of real numbers into codes of few bits, and back.

    Any number of threads may use one quantizer. Configuration and calibrated range are one immutable state, read once
    a call; no lock is held while numbers are computed. What a call computed with travels best with its result
    (``return_tensor=True``); `dequantize` of a plain array uses the parameters of the latest `quantize` of that layer.

    Args:
        config: How; `QuantizationConfig()` if None: 8 bits, symmetric, the range of each array by itself.
        statistics: Counters to go on with, as of the quantizer that this one replaces; new ones if None.

    Attributes:
        config: The configuration. Immutable: `update_config` sets another.

    Example:
        >>> quantizer = Quantizer(QuantizationConfig(symmetric=False))
        >>> codes = quantizer.quantize(np.array([-1.0, 0.0, 0.9921875], np.float32))
        >>> codes.tolist(), quantizer.dequantize(codes).tolist()
        ([-128, 0, 127], [-1.0, 0.0, 0.9921875])
        >>> tensor = quantizer.quantize(np.ones((2, 2), np.float32), return_tensor=True)
        >>> tensor.dequantize().tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """

    def __init__(self, config: QuantizationConfig | None = None, *, statistics: Statistics | None = None) -> None:
        config = checked_config(QuantizationConfig() if config is None else config)
        if not isinstance(statistics, Statistics | None):
            raise UnsupportedError(f"expected Statistics or None; received {type(statistics).__name__}")
        self._changing = threading.RLock()  # one change after the other, while calls go on
        self._lock = threading.RLock()
        self._state = State.of(config)
        self._last: OrderedDict[str | None, QParams] = OrderedDict()
        self._statistics = Statistics() if statistics is None else statistics
        self._cache = ResultCache(config.cache_size if config.enable_cache else 0)

    @property
    def config(self) -> QuantizationConfig:
        """The configuration."""
        return self._state.config

    @property
    def scale(self) -> float:
        """The scale in use: of the latest call, or what calibration fixed; 1.0 before either.

        Of several channels it is the scale that their whole range would have.
        """
        return self._pair()[0]

    @property
    def zero_point(self) -> float:
        """The integer code of 0, as `scale` is of; 0.0 at first."""
        return self._pair()[1]

    # Configuration.

    def update_config(self, new_config: QuantizationConfig) -> None:
        """Changes the configuration.

        A calibrated range stays and gets the new grid's parameters, unless channels are shared differently now. A new mode that
        is dynamic doesn't use it; ``config.replace(...)`` changes single fields and keeps the mode.

        Args:
            new_config: The new configuration.

        Raises:
            TypeError: It is none.
        """
        config = checked_config(new_config)
        with self._changing, self._lock:
            self._state = self._state.with_config(config)
            self._last.clear()
            self._cache.clear()
            self._cache.resize(config.cache_size if config.enable_cache else 0)

    def get_config(self) -> dict[str, Any]:
        """The configuration as plain values; see `QuantizationConfig.to_dict`."""
        return self.config.to_dict()

    def should_quantize_layer(self, layer_name: str) -> bool:
        """Whether a layer of this name is quantized; see `QuantizationConfig.should_quantize`."""
        state = self._state
        state.config_of(layer_name)  # which checks the name
        return state.config.should_quantize(layer_name)

    def get_layer_quantization_params(self, layer_name: str) -> dict[str, Any]:
        """What a layer gets: ``bits``, ``type`` (its lower-case name) and ``skip``."""
        state = self._state
        config = state.config_of(layer_name)
        skip = not state.config.should_quantize(layer_name)
        return {"bits": config.bits, "type": config.quantization_type.value, "skip": skip}

    # Parameters.

    def calibrate(self, calibration_data: Sequence[np.ndarray], channel_dim: int | None = None) -> None:
        """Fixes scale and zero point by representative data; the mode becomes CALIBRATED.

        Args:
            calibration_data: Arrays of any shapes; per channel, of equally many channels.
            channel_dim: The channel dimension, where the configuration is per channel.

        Raises:
            TypeError: Something is no array.
            ValueError: There is no finite number in it, or NaN or infinity where they are errors. The quantizer is
                as it was.
        """
        given = [calibration_data] if isinstance(calibration_data, np.ndarray) else calibration_data
        if not isinstance(given, Iterable):
            raise UnsupportedError(f"expected a list of arrays; received {type(given).__name__}")
        arrays = [array_of(x, validate=True) for x in given]
        for x in arrays:
            check_channel_dim(channel_dim, x.ndim)
        with self._changing:
            config = self.config
            sharing = sharing_of(config, channel_dim, rank=1, stacklevel=2)
            fixed = calibrated(arrays, sharing, config)
            self._fix(fixed, config.replace(quantization_mode="calibrated", symmetric=config.is_symmetric))

    def compute_scale_and_zero_point(
        self, data: np.ndarray, channel_idx: int | None = None, layer_name: str | None = None
    ) -> tuple[float, float]:
        """The scale and zero point that an array asks for; changes nothing.

        Args:
            data: The array.
            channel_idx: An index of its first dimension: the parameters are of that part only (of a one-dimensional
                array, which is a channel by itself, of all).
            layer_name: Whose configuration to use.

        Returns:
            (scale, zero_point), the zero point being an integer code.

        Raises:
            TypeError: data is no array of real numbers.
            ValueError: It holds NaN or infinity where they are errors, or has no such channel.
        """
        config = self._state.config_of(layer_name)
        x = array_of(data, validate=True)
        if channel_idx is not None and not (isinstance(channel_idx, int | np.integer) and channel_idx >= 0):
            raise InputError(f"expected channel_idx to be an index from 0; received channel_idx={channel_idx!r}")
        if channel_idx is not None and x.ndim > 1:
            if channel_idx >= x.shape[0]:
                raise InputError(f"expected channel_idx below {x.shape[0]}; received channel_idx={channel_idx}")
            x = x[channel_idx]
        if not config.quantization_type.integer:
            return 1.0, 0.0
        whole = config.replace(per_channel=False, quantization_mode=config.mode, granularity="per_tensor")
        seen = see(x, whole.sharing(), whole)
        refuse(seen.nans, seen.infs, config)
        params = params_of(seen.lo, seen.hi, whole.sharing(), whole)
        return _scalars(requantized(x, params, whole) if config.enable_requantization else params)

    def export_import_parameters(self) -> dict[str, Any]:
        """The parameters as plain values, for JSON or `load_parameters`; see `qi.engine.parameters`."""
        with self._lock:
            return exported(self._state, self._last, self._pair())

    export_parameters = export_import_parameters

    def load_parameters(self, params: Mapping[str, Any]) -> None:
        """Takes over what `export_import_parameters` gave, of this or another quantizer, also through JSON.

        Type, bits, symmetry and mode come with it where they are named: a quantizer that loads a dynamic one's is dynamic, too.

        Raises:
            TypeError: It is no dict.
            ValueError: Something in it is missing or impossible. The quantizer is as it was.
        """
        with self._changing:
            config, fixed, last = imported(params, self._state)
            self._fix(fixed, config, last)

    # Work.

    def quantize(
        self,
        data: np.ndarray,
        validate: bool = True,
        channel_dim: int | None = None,
        layer_name: str | None = None,
        *,
        out: np.ndarray | None = None,
        return_tensor: bool = False,
        num_threads: int = 1,
    ) -> Any:
        """Real numbers to codes.

        Args:
            data: Real array of any shape, order and dtype; computed in float32.
            validate: Whether data must be an array; if not, lists are taken too.
            channel_dim: The channel dimension, where the configuration is per channel; 0 if None. Elsewhere it has no effect,
                and a warning says so.
            layer_name: The layer it belongs to: its own configuration, or none if it is to be skipped.
            out: Where the codes go, of the codes' dtype and data's shape.
            return_tensor: Whether codes and parameters come back together, as a `QuantizedTensor`.
            num_threads: Threads that share the work; one takes at least 2**22 values, and two pay with the extra `fast`.

        Returns:
            codes in the type's dtype; of a skipped layer, or with type NONE, data itself.

        Raises:
            TypeError: data is no array of real numbers.
            ValueError: It holds NaN or infinity where they are errors, or has no such dimension.
            NotCalibratedError: Fixed parameters are wanted and there are none.
        """
        started = perf_counter()
        state = self._state
        config = state.config_of(layer_name)
        x = array_of(data, validate=validate)
        check_threads(num_threads)
        check_channel_dim(channel_dim, x.ndim)
        checked_flag("return_tensor", return_tensor)
        if not _quantized(state, config, layer_name):
            if return_tensor:
                raise no_tensor("none")
            _refuse_found(x, config, num_threads)
            kept = untouched(x, out)
            self._count(started, quantize_calls=1, total_values=x.size)
            return kept
        if config.quantization_type is QuantizationType.FLOAT16:
            if return_tensor:
                raise no_tensor("float16")
            halves, clipped, nans = half(x, config, out)
            self._count(started, quantize_calls=1, total_values=x.size, clipped_values=clipped, nan_values=nans)
            return halves
        params = self._parameters(state, config, x, channel_dim, num_threads)
        made: np.ndarray | QTensor
        if return_tensor and out is None:
            made, counts = params.quantize_counted(x, num_threads=num_threads, block=config.block)
        else:
            made, counts = blocked.quantize(x, params, out=out, num_threads=num_threads, block=config.block)
        self._remember(state, layer_name, params)
        self._count(
            started, quantize_calls=1, total_values=x.size, clipped_values=counts.clipped, nan_values=counts.nans
        )
        if isinstance(made, QTensor) or not return_tensor:
            return made
        return QTensor.of(made.copy(), params, nan_count=counts.nans)

    def dequantize(
        self,
        data: np.ndarray | QTensor,
        channel_dim: int | None = None,
        layer_name: str | None = None,
        *,
        out: np.ndarray | None = None,
        num_threads: int = 1,
    ) -> np.ndarray:
        """Codes to real numbers.

        Args:
            data: Codes, as `quantize` gave them. A `QuantizedTensor` is read with its own parameters; an array with fixed
                ones if there are, else with those of the latest `quantize` of this layer, or of any layer if it had
                none; layers with a configuration of their own stay apart.
            channel_dim: The channel dimension, if it differs from that of the parameters. Where these aren't of channels, or
                a `QuantizedTensor` brings them, it has no effect, and a warning says so.
            layer_name: The layer it belongs to; one that is skipped gets its numbers back as they are.
            out: Where the numbers go: float32 of data's shape.
            num_threads: Threads that share the work; one takes at least 2**22 values, and two pay with the extra `fast`.

        Returns:
            float32 array of data's shape; new, also where it came from the cache.

        Raises:
            TypeError: data is no array of codes.
            ValueError: It holds numbers that are no codes of the type, or channels don't fit.
            NotCalibratedError: There are no parameters yet.
        """
        started = perf_counter()
        check_threads(num_threads)
        if isinstance(data, QTensor):
            check_read_channel_dim(channel_dim, len(data.shape), data.qparams, stacklevel=2)
            numbers = data.dequantize(out=out, dtype="float32", num_threads=num_threads)
            self._count(started, dequantize_calls=1, total_values=numbers.size)
            return numbers
        state = self._state
        config = state.config_of(layer_name)
        if not _quantized(state, config, layer_name) or config.quantization_type is QuantizationType.FLOAT16:
            numbers = array_of(data, validate=True)
            check_channel_dim(channel_dim, numbers.ndim)
            numbers = float32_of(numbers, out)
            self._count(started, dequantize_calls=1, total_values=numbers.size)
            return numbers
        codes = codes_of(data, config)
        check_channel_dim(channel_dim, codes.ndim)
        params = self._parameters_of_codes(state, config, codes.ndim, channel_dim, layer_name)
        check_read_channel_dim(channel_dim, codes.ndim, params, stacklevel=2)
        if state is not self._state:  # replaced meanwhile: the parameters may be of the new one
            return self.dequantize(data, channel_dim, layer_name, out=out, num_threads=num_threads)
        key = self._cache.key(codes, params) if config.enable_cache and out is None else None
        found = self._cache.get(key) if key is not None else None
        if found is None:
            found = blocked.dequantize(codes, params, out=out, num_threads=num_threads, block=config.block)
            if key is not None:
                self._cache.put(key, found)
            self._count(started, dequantize_calls=1, total_values=codes.size, cache_misses=int(config.enable_cache))
        else:
            self._count(started, dequantize_calls=1, total_values=codes.size, cache_hits=1)
        return found

    def quantize_dequantize(
        self,
        data: np.ndarray,
        channel_dim: int | None = None,
        layer_name: str | None = None,
        *,
        validate: bool = True,
        num_threads: int = 1,
    ) -> np.ndarray:
        """What quantization makes of real numbers: `quantize` and `dequantize` with the same parameters, in float32.

        Args, Raises: as `quantize`.

        Returns:
            float32 array of data's shape.
        """
        started = perf_counter()
        state = self._state
        config = state.config_of(layer_name)
        x = array_of(data, validate=validate)
        check_threads(num_threads)
        check_channel_dim(channel_dim, x.ndim)
        calls = {"quantize_calls": 1, "dequantize_calls": 1, "total_values": 2 * x.size}
        if not _quantized(state, config, layer_name):
            _refuse_found(x, config, num_threads)
            numbers = float32_of(x)
            self._count(started, **calls)
            return numbers
        if config.quantization_type is QuantizationType.FLOAT16:
            numbers, clipped, nans = half(x, config, None, "float32")
            self._count(started, **calls, clipped_values=clipped, nan_values=nans)
            return numbers
        params = self._parameters(state, config, x, channel_dim, num_threads)
        how: Any = {"num_threads": num_threads, "block": config.block}
        if x.dtype == np.float32:
            numbers, counts = blocked.fake_quantize(x, params, **how)
            if counts.nans:  # which have the code of 0
                np.copyto(numbers, 0, where=np.isnan(numbers))
        else:
            codes, counts = blocked.quantize(x, params, **how)
            numbers = blocked.dequantize(codes, params, **how)
        self._remember(state, layer_name, params)
        self._count(started, **calls, clipped_values=counts.clipped, nan_values=counts.nans)
        return numbers

    # The tensor API: no instance, no state.

    quantize_tensor = staticmethod(tensors.quantize_tensor)
    dequantize_tensor = staticmethod(tensors.dequantize_tensor)
    compression_ratio = staticmethod(tensors.compression_ratio)
    quantization_error = staticmethod(tensors.quantization_error)

    # Statistics and cache.

    def get_stats(self) -> dict[str, Any]:
        """Counters since the last reset.

        Returns:
            dict of quantize_calls, dequantize_calls, total_values (of both), clipped_values (that saturated from outside
            the range), nan_values, cache_hits, cache_misses, last_scale, last_zero_point, processing_time_ms (a sum).
        """
        scale, zero_point = self._pair()
        return {**self._statistics.snapshot(), "last_scale": scale, "last_zero_point": zero_point}

    def reset_stats(self) -> None:
        """Sets all counters to 0."""
        self._statistics.reset()

    def clear_cache(self) -> None:
        """Forgets kept results."""
        self._cache.clear()

    @property
    def cache_bytes(self) -> int:
        """Memory of kept results."""
        return self._cache.nbytes

    hash_array = staticmethod(hash_array)

    # How it is done.

    def _parameters(
        self, state: State, config: QuantizationConfig, x: np.ndarray, channel_dim: int | None, num_threads: int = 1
    ) -> QParams:
        """The parameters for an array, once it is known to hold nothing that is an error."""
        sharing = sharing_of(config, channel_dim, x.ndim, stacklevel=3)
        params = state.fixed_params(config, x.ndim, channel_dim)
        if params is not None:
            _refuse_found(x, config, num_threads)
            return params
        seen = see(x, sharing, config, num_threads)
        refuse(seen.nans, seen.infs, config)
        params = params_of(seen.lo, seen.hi, sharing, config)
        return requantized(x, params, config) if config.enable_requantization else params

    def _parameters_of_codes(
        self, state: State, config: QuantizationConfig, rank: int, channel_dim: int | None, layer_name: str | None
    ) -> QParams:
        params = state.fixed_params(config, rank, channel_dim)
        if params is not None:
            return params
        with self._lock:
            params = self._last.get(layer_name)
            if params is None and layer_name not in state.layers:
                params = self._last.get(None)
        if params is None:
            raise NotCalibratedError(
                "expected parameters to read codes with; received none; "
                "do: call quantize(), calibrate() or load_parameters() first, or pass a QuantizedTensor"
            )
        return fitted(params, rank, channel_dim)

    def _remember(self, state: State, layer_name: str | None, params: QParams) -> None:
        """The latest parameters, unless the configuration they are of has been replaced meanwhile."""
        with self._lock:
            if state.revision != self._state.revision:
                return
            if layer_name not in state.layers:
                self._last[None] = params
            if layer_name is not None:
                self._last[layer_name] = params
                self._last.move_to_end(layer_name)
                while len(self._last) - (None in self._last) > MAX_LAYERS:
                    del self._last[next(name for name in self._last if name is not None)]

    def _fix(
        self, fixed: Fixed | None, config: QuantizationConfig, last: Mapping[str | None, QParams] | None = None
    ) -> None:
        with self._lock:
            self._state = self._state.with_fixed(fixed, config)
            self._last.clear()
            self._last.update(last or {})
            self._cache.clear()

    def _pair(self) -> tuple[float, float]:
        """Scale and zero point of the whole range."""
        with self._lock:
            config, params = self._state.config, self._state.current(self._last)
        if params is None:
            return 1.0, 0.0
        if params.scale.size == 1:
            return _scalars(params)
        lo, hi = covered(params, config)
        return _scalars(params_of(lo.min(initial=0.0), hi.max(initial=0.0), PerTensor(), config))

    def _count(self, started: float, **counts: int) -> None:
        self._statistics.add(started, perf_counter(), **counts)


def _refuse_found(x: np.ndarray, config: QuantizationConfig, num_threads: int) -> None:
    """Looks for what the configuration makes an error, in numbers that are looked at for nothing else."""
    if config.error_on_nan or config.error_on_inf:
        _, _, nans, infs = blocked.minmax(x, PerTensor(), num_threads=num_threads)
        refuse(nans, infs, config)


def _quantized(state: State, config: QuantizationConfig, layer_name: str | None) -> bool:
    return config.quantization_type is not QuantizationType.NONE and state.config.should_quantize(layer_name)


def _scalars(params: QParams) -> tuple[float, float]:
    return float(params.scale.flat[0]), float(params.zero_point.flat[0])
