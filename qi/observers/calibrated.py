"""The statistics of one calibration: by name, with what they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qi.errors import ConfigError, InputError
from qi.observers.moments import Moments
from qi.observers.statistics import TensorStatistics

__all__ = ["CalibratedStatistics"]


class CalibratedStatistics(dict[str, TensorStatistics]):
    """Statistics by name, as any dict, that remember how many samples of which model they have seen.

    A dict made from them, as by ``|``, is a plain one and remembers none of it.

    Args:
        statistics: By name; any text is a name.
        samples: How many samples were seen; None where it isn't known.
        model: What tells the model from any other, such as a hash of its weights; "" where it isn't known.
        inputs: Moments of the inputs of layers, by call site.
        channels: Statistics per channel (``axis=-1``), by the same names as the statistics per tensor.

    Raises:
        InputError: If a name isn't text, or a value isn't `TensorStatistics` (of `inputs`: `Moments`; of
            `channels`: statistics with the last axis as channel axis).
        ConfigError: If `samples` or `model` is illegal.

    Example:
        >>> found = CalibratedStatistics({"image": TensorStatistics()}, samples=64)
        >>> list(found), found.samples, found.model
        (['image'], 64, '')
    """

    def __init__(
        self,
        statistics: Mapping[str, TensorStatistics],
        *,
        samples: int | None = None,
        model: str = "",
        inputs: Mapping[str, Moments] | None = None,
        channels: Mapping[str, TensorStatistics] | None = None,
    ) -> None:
        super().__init__(statistics)
        self._inputs, self._channels = dict(inputs or {}), dict(channels or {})
        for kind, found in ((TensorStatistics, self), (Moments, self._inputs), (TensorStatistics, self._channels)):
            for name, seen in found.items():
                if not isinstance(name, str) or not isinstance(seen, kind):
                    raise InputError(
                        f"expected {kind.__name__} by name; received a {type(seen).__name__} named {name!r}"
                    )
        for name, per_channel in self._channels.items():
            if per_channel.axis != -1:
                raise InputError(
                    f"expected statistics of channels with axis=-1; received axis={per_channel.axis!r} for {name!r}"
                )
        if samples is not None and (type(samples) is not int or samples < 0):
            raise ConfigError(f"expected samples to be a whole number from 0 on or None; received samples={samples!r}")
        if not isinstance(model, str):
            raise ConfigError(f"expected model to be text; received model={model!r}")
        self._samples, self._model = samples, model

    @property
    def samples(self) -> int | None:
        """How many samples were seen; None where it isn't known."""
        return self._samples

    @property
    def model(self) -> str:
        """What tells the model from any other; "" where it isn't known."""
        return self._model

    @property
    def inputs(self) -> Mapping[str, Moments]:
        """Moments of the inputs of layers, by call site; read-only."""
        return MappingProxyType(self._inputs)

    @property
    def channels(self) -> Mapping[str, TensorStatistics]:
        """Statistics per channel, by name; read-only."""
        return MappingProxyType(self._channels)
