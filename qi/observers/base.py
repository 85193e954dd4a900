"""What every statistic is: fed with batches, mergeable, stored as plain arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from qi.errors import ConfigError, InputError, NotCalibratedError
from qi.observers.batch import Block, as_planes, blocks, check_axis
from qi.typing import Array

__all__ = ["State", "Statistic", "feed"]

State = dict[str, np.ndarray]
"""A statistic as plain arrays by name."""

_NO_AXIS = np.empty(0, np.int64)


class Statistic(ABC):
    """Something remembered about all values of a tensor, without the values.

    NaN and infinities are skipped and counted. Values are taken as float32. Not for use by several threads at
    once: give each its own and merge them.

    Args:
        axis: Channel axis (negative ones count from the end), or None for the tensor as a whole.

    Attributes:
        axis: As given.
        count: Finite values seen, over all channels.
        nonfinite: NaN and infinite values skipped.
        batches: Calls of `update`, those with an empty batch included.
        channels: Number of channels (1 per tensor), None before the first batch.
    """

    # Every array of the state besides the bookkeeping, with its dtype; each has the channels as its first
    # axis.
    _ARRAYS: ClassVar[dict[str, type[np.generic]]]

    def __init__(self, axis: int | None = None) -> None:
        self.axis = check_axis(axis)
        self.reset()

    def reset(self) -> None:
        """Forget everything seen; the configuration stays."""
        self.count = self.nonfinite = self.batches = 0
        self.channels: int | None = None
        if self.axis is None:
            self._open(1)

    def update(self, x: Array) -> None:
        """See one batch.

        Args:
            x: Real numbers of any shape and dtype; with an `axis`, always as many channels. An empty batch
                counts as a batch and changes nothing else.

        Raises:
            InputError: If the dtype isn't real, or the channels don't fit those of earlier batches.
        """
        feed([self], x)

    def merge(self, other: Self) -> Self:
        """Return a new statistic that has seen what this one and then `other` have seen.

        Raises:
            ConfigError: If the two are of different kinds or configurations.
            InputError: If they have seen different numbers of channels.
        """
        if type(other) is not type(self) or other._config() != self._config():
            raise ConfigError(
                f"expected a {type(self).__name__} with {self._config()} to merge with; received a "
                f"{type(other).__name__} with {getattr(other, '_config', dict)()}"
            )
        merged = type(self)(**self._config())
        channels = self.channels if other.channels is None else other.channels
        if channels is not None:
            for part in (self, other):
                merged._accept(part.channels or channels)
            merged._combine(self._opened(channels), other._opened(channels))
        for name in ("count", "nonfinite", "batches"):
            setattr(merged, name, getattr(self, name) + getattr(other, name))
        return merged

    def state(self) -> State:
        """Return everything as plain arrays: copies, which `from_state` takes back bit for bit."""
        numbers = {"count": self.count, "nonfinite": self.nonfinite, "batches": self.batches}
        state = {name: np.asarray(value, np.int64) for name, value in numbers.items()}
        for name, value in self._config().items():
            state[name] = np.asarray(_NO_AXIS if value is None else value)
        if self.channels is not None:
            state |= {name: getattr(self, f"_{name}").copy() for name in self._ARRAYS}
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Self:
        """Return the statistic that `state` describes.

        Raises:
            InputError: If arrays are missing, unknown, of a wrong type or shape, or contradict each other.
        """
        arrays = {name: np.asarray(value) for name, value in state.items()}
        fresh = cls(**{name: _number(arrays, name, optional=name == "axis") for name in cls()._config()})
        for name in ("count", "nonfinite", "batches"):
            setattr(fresh, name, _number(arrays, name))
        expected = {"count", "nonfinite", "batches", *fresh._config()}
        seen = set(arrays) - expected
        if seen:
            expected |= set(cls._ARRAYS)
        if set(arrays) != expected or (fresh.axis is None and not seen):
            raise InputError(
                f"expected the arrays {sorted({*expected, *cls._ARRAYS})} of a {cls.__name__}; "
                f"received {sorted(arrays)}"
            )
        if seen:
            first = arrays[next(iter(cls._ARRAYS))]
            fresh._accept(first.shape[0] if first.ndim else 0)
            fresh._restore(arrays)
        return fresh

    def _restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, dtype in self._ARRAYS.items():
            own, array = getattr(self, f"_{name}"), arrays[name]
            if array.dtype != dtype or array.shape != own.shape or np.isnan(array).any():
                raise InputError(
                    f"expected {name} as {np.dtype(dtype)} {own.shape} without NaN; "
                    f"received {array.dtype} {array.shape}"
                )
            setattr(self, f"_{name}", array.copy())
        if not self._is_consistent():
            raise InputError(f"expected the arrays of a {type(self).__name__} to fit each other; received damaged ones")

    def _config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {"axis": self.axis}

    def _accept(self, channels: int) -> None:
        """Take the number of channels from the first batch, and refuse another one later."""
        if self.channels is None:
            self._open(channels)
        elif channels != self.channels:
            raise InputError(
                f"expected {self.channels} channels along axis {self.axis} as before; received {channels}; "
                "reset the statistic or use another one"
            )

    def _open(self, channels: int) -> None:
        self.channels = channels
        self._allocate(channels)

    def _opened(self, channels: int) -> Self:
        """This statistic, or a fresh one of `channels` channels where this one saw nothing."""
        if self.channels is not None:
            return self
        fresh = type(self)(**self._config())
        fresh._open(channels)
        return fresh

    def _require_data(self) -> None:
        if self.count == 0:
            raise NotCalibratedError(
                f"expected a {type(self).__name__} that has seen finite values; received "
                f"{self.batches} batches with none ({self.nonfinite} NaN or infinite values); update it first"
            )

    def _shaped(self, per_channel: np.ndarray) -> np.ndarray:
        """A copy that is 0-d per tensor and ``[channels]`` per channel."""
        return per_channel.copy() if self.axis is not None else per_channel[0].reshape(()).copy()

    @abstractmethod
    def _allocate(self, channels: int) -> None:
        """Create every array of `_ARRAYS`, as `self._name`, with nothing seen."""

    @abstractmethod
    def _is_consistent(self) -> bool:
        """Whether the arrays, of the right types and shapes, can be those of a statistic."""

    @abstractmethod
    def _add(self, block: Block) -> None:
        """See one block of a batch."""

    def _end_batch(self, lo: np.ndarray, hi: np.ndarray) -> None:  # noqa: B027 - nothing to do for most
        """See the end of a batch with these extremes (inf and -inf where nothing was finite)."""

    @abstractmethod
    def _combine(self, first: Self, second: Self) -> None:
        """Become what has seen `first`, then `second`; all three have the same channels."""


def feed(statistics: Sequence[Statistic], x: Array) -> None:
    """Show one batch to several statistics of the same axis, in one pass.

    Raises:
        InputError: See `Statistic.update`; then no statistic has changed.
    """
    planes = as_planes(x, statistics[0].axis)
    channels = planes.shape[1]
    if planes.size:
        for statistic in statistics:
            statistic._accept(channels)
    lo, hi = np.full(channels, np.inf), np.full(channels, -np.inf)
    for block in blocks(planes):
        lo, hi = np.minimum(lo, block.lo), np.maximum(hi, block.hi)
        for statistic in statistics:
            statistic.count += block.count
            statistic.nonfinite += block.nonfinite
            statistic._add(block)
    for statistic in statistics:
        statistic.batches += 1
        if planes.size:
            statistic._end_batch(lo, hi)


def _number(arrays: Mapping[str, np.ndarray], name: str, *, optional: bool = False) -> Any:
    array = arrays.get(name, np.empty(2))
    if optional and array.shape == (0,):
        return None
    if array.shape != () or array.dtype.kind not in "iuf" or (array.dtype.kind == "f") != (name == "momentum"):
        raise InputError(f"expected a single number {name}; received {array.dtype} {array.shape}")
    if name != "axis" and array < 0:
        raise InputError(f"expected {name} >= 0; received {array}")
    return array.item()
