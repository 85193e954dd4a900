"""What a `Quantizer` is at one moment: immutable, so that a call which reads it once can't mix two moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from qi.core import Granularity, PerChannel, PerGroup, PerTensor, QParams
from qi.engine.config import QuantizationConfig, checked_layer
from qi.engine.inputs import refuse
from qi.engine.ranges import Seen, covered, params_of, see
from qi.errors import ConfigError, InputError, NotCalibratedError

__all__ = ["Fixed", "State", "calibrated", "fitted"]


@dataclass(frozen=True, eq=False)
class Fixed:
    """Parameters that calibration or loading fixed.

    Attributes:
        lo: Lower ends; 0-d, or one for each index of the channel dimension.
        hi: Upper ends.
        axis: The channel dimension, or None.
        params: What was loaded, as it was; None where the range is all there is.
        form: The configuration's grid and symmetry that `params` were loaded for.
    """

    lo: np.ndarray
    hi: np.ndarray
    axis: int | None = None
    params: QParams | None = None
    form: Any = None
    _made: dict[Any, QParams] = field(default_factory=dict)

    def params_for(self, config: QuantizationConfig, rank: int, channel_dim: int | None = None) -> QParams:
        """The parameters for an array of so many dimensions, whose channels may lie elsewhere.

        Raises:
            InputError: There is no such channel dimension.
        """
        axis = self.axis if channel_dim is None or self.axis is None else channel_dim
        key = _form(config), rank, axis
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._params_for(config, rank, axis)
        return found

    def params_of_channels(self, config: QuantizationConfig) -> QParams:
        """The parameters for an array of as few dimensions as there may be."""
        axis = self.axis
        return self.params_for(config, 0 if axis is None else max(axis + 1, -axis))

    def _params_for(self, config: QuantizationConfig, rank: int, axis: int | None) -> QParams:
        granularity: Granularity = PerTensor() if axis is None else PerChannel(axis)
        if self.params is not None and self.form == _form(config):
            return fitted(self.params, rank, axis)
        shape = _param_shape(granularity, rank, self.lo.size)
        return params_of(self.lo.reshape(shape), self.hi.reshape(shape), granularity, config)

    @classmethod
    def calibrated(cls, seen: list[Seen], granularity: Granularity) -> Self:
        """The union of what several arrays showed.

        Raises:
            InputError: Channels differ in number.
            ConfigError: Groups, whose scales belong to one shape.
        """
        if isinstance(granularity, PerGroup):
            raise ConfigError("expected one scale per tensor or per channel to calibrate; received groups")
        axis = granularity.axis if isinstance(granularity, PerChannel) else None
        sizes = {one.lo.size for one in seen}
        if len(sizes) > 1:
            raise InputError(f"expected arrays with equally many channels along {axis}; received {sorted(sizes)}")
        shape = (-1,) if axis is not None else ()
        lo = np.min([one.lo.reshape(shape) for one in seen], axis=0)
        hi = np.max([one.hi.reshape(shape) for one in seen], axis=0)
        return cls(np.asarray(lo), np.asarray(hi), axis)

    @classmethod
    def loaded(
        cls, params: QParams, axis: int | None, config: QuantizationConfig, ends: tuple[Any, Any] | None = None
    ) -> Self:
        """Given parameters, and for grids other than their own the range they are of, or else that they cover."""
        lo, hi = covered(params, config) if ends is None else ends
        return cls(np.asarray(lo), np.asarray(hi), axis, params, _form(config))


def calibrated(arrays: Sequence[np.ndarray], sharing: Granularity, config: QuantizationConfig) -> Fixed:
    """What arrays of any shapes show together.

    Raises:
        InputError: There is no finite number in them, or what the configuration takes for an error.
        ConfigError: The type has no codes.
    """
    if not config.quantization_type.integer:
        raise ConfigError(f"expected an integer type to calibrate; received {config.quantization_type.value!r}")
    size = sum(x.size for x in arrays)
    if not size:
        raise InputError("expected calibration_data with at least one number; received none")
    seen = []
    for x in arrays:
        if x.size:
            seen.append(see(x, sharing, config))
            refuse(seen[-1].nans, seen[-1].infs, config)
    if sum(s.nans + s.infs for s in seen) == size:
        raise InputError("expected calibration_data with finite numbers; received only NaN and infinities")
    return Fixed.calibrated(seen, sharing)


def fitted(params: QParams, rank: int, channel_dim: int | None = None) -> QParams:
    """Parameters of channels, in the shape that an array of so many dimensions wants.

    Args:
        params: Any; those that aren't of channels come back as they are.
        rank: Dimensions of the array.
        channel_dim: The array's channel dimension, if it isn't that of the parameters.

    Raises:
        InputError: There is no such channel dimension.
    """
    if not isinstance(params.granularity, PerChannel):
        return params
    granularity = params.granularity if channel_dim is None else PerChannel(channel_dim)
    if granularity == params.granularity and params.scale.ndim == rank > 1:
        return params
    shape = _param_shape(granularity, rank, params.scale.size)
    return QParams(params.scale.reshape(shape), params.zero_point.reshape(shape), params.grid, granularity)


def _param_shape(granularity: Granularity, rank: int, size: int) -> tuple[int, ...]:
    if not isinstance(granularity, PerChannel):
        return ()
    axis = granularity.axis
    if not -rank <= axis < rank:
        raise InputError(f"expected an array with a dimension {axis}, its channels; received one of rank {rank}")
    return tuple(size if i == axis % rank else 1 for i in range(rank))


def _form(config: QuantizationConfig) -> Any:
    return config.grid, config.is_symmetric


@dataclass(frozen=True, eq=False)
class State:
    """Configuration and fixed parameters, with a number that grows with every change."""

    config: QuantizationConfig
    fixed: Fixed | None = None
    revision: int = 0
    layers: dict[str, QuantizationConfig] = field(default_factory=dict)

    @classmethod
    def of(cls, config: QuantizationConfig, fixed: Fixed | None = None, revision: int = 0) -> Self:
        """A state, with the configurations of the layers that have their own."""
        names = {*config.custom_quantization_config, *config.mixed_precision_layers}
        own = {name: config.for_layer(name) for name in names}
        return cls(config, fixed, revision, {name: layer for name, layer in own.items() if layer is not config})

    def config_of(self, layer_name: str | None) -> QuantizationConfig:
        """The configuration of a layer.

        Raises:
            UnsupportedError: It isn't a name.
        """
        name = checked_layer(layer_name)
        return self.config if name is None else self.layers.get(name, self.config)

    def with_config(self, config: QuantizationConfig) -> Self:
        """After `Quantizer.update_config`: a calibrated range stays, unless channels are shared differently now."""
        fixed = self.fixed
        if fixed is not None:
            sharing = config.sharing(fixed.axis)
            same = isinstance(sharing, PerTensor) if fixed.axis is None else isinstance(sharing, PerChannel)
            fixed = fixed if same and config.quantization_type.integer else None
        return type(self).of(config, fixed, self.revision + 1)

    def with_fixed(self, fixed: Fixed | None, config: QuantizationConfig) -> Self:
        """After `Quantizer.calibrate` or `Quantizer.load_parameters`."""
        return type(self).of(config, fixed, self.revision + 1)

    def current(self, last: Mapping[str | None, QParams]) -> QParams | None:
        """What codes without a layer are read with: what is fixed where the mode wants it, else of the latest call."""
        if self.fixed is not None and not self.config.quantization_mode.dynamic:
            return self.fixed.params_of_channels(self.config)
        return last.get(None)

    def fixed_params(self, config: QuantizationConfig, rank: int, channel_dim: int | None = None) -> QParams | None:
        """Parameters that don't depend on the array; None where they come from it.

        Raises:
            NotCalibratedError: The mode wants fixed parameters and there are none.
        """
        mode = config.quantization_mode
        if mode.dynamic:
            return None
        if self.fixed is not None:
            return self.fixed.params_for(config, rank, channel_dim)
        if mode.value in ("static", "calibrated"):
            raise NotCalibratedError(
                f"expected fixed parameters for quantization_mode={mode.value!r}; received none; "
                "do: call calibrate() or load_parameters() first, or choose a dynamic mode"
            )
        return None
