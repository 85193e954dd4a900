"""What calibration sees beside ranges: moments of the inputs of layers, and statistics of single channels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qi.keras.graph import Graph, Value
from qi.keras.linear import LinearView, linear_views
from qi.keras.plan import value_name
from qi.observers import Moments, TensorStatistics

__all__ = ["Watch", "weight_key"]

_CHANNEL_BINS = 512  # of each channel's histogram: together they are finer than one of the whole tensor
_MOST_MOMENTS = 2**25  # numbers of one layer's moments: 256 MiB


@dataclass(eq=False)
class Watch:
    """What is to be seen of a graph in the pass of calibration.

    Attributes:
        inputs: moments by `weight_key`, one for all calls of a layer.
        channels: per-channel statistics by the value's name.
        seen: (value, function that sees each of its arrays).
        too_large: keys of weights whose moments would take too much memory.
    """

    inputs: dict[str, Moments] = field(default_factory=dict)
    channels: dict[str, TensorStatistics] = field(default_factory=dict)
    seen: list[tuple[Value, Callable[[np.ndarray], None]]] = field(default_factory=list)
    too_large: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, graph: Graph, keys: Collection[str] | None = None, channels: Iterable[Value] = ()) -> Watch:
        """What to watch for the weights of `keys` (None: of all that multiply an input), and the channels of values."""
        watch = cls()
        for call in graph.calls:
            for linear in linear_views(call):
                key = weight_key(call.path, linear.weight)
                if keys is None or key in keys:
                    watch._add(key, linear, call.inputs[0])
        for value in channels:
            name = value_name(value)
            if name not in watch.channels:
                watch.channels[name] = TensorStatistics(axis=-1, bins=_CHANNEL_BINS)
                watch.seen.append((value, watch.channels[name].update))
        return watch

    def _add(self, key: str, linear: LinearView, source: Value) -> None:
        groups, features, _ = linear.view.sizes
        if groups * features**2 > _MOST_MOMENTS:
            self.too_large.append(key)
            return
        moments = self.inputs.setdefault(key, Moments(groups, features))
        self.seen.append((source, lambda x: moments.update(linear.rows(np.asarray(x, np.float32)))))

    @property
    def values(self) -> list[Value]:
        """The values that are looked at, each once."""
        return list({id(value): value for value, _ in self.seen}.values())

    def update(self, values: list[Value], arrays: list[Any]) -> None:
        """Sees the arrays of values."""
        known = {id(value): array for value, array in zip(values, arrays, strict=True)}
        for value, see in self.seen:
            see(known[id(value)])


def weight_key(layer: str, weight: str) -> str:
    """The name of a weight in statistics and progress files: "block/conv/kernel"."""
    return f"{layer}/{weight}"
