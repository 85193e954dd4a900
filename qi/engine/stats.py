"""Counters of a `Quantizer`, exact under any number of threads."""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["Statistics"]

_COUNTERS = (
    "quantize_calls",
    "dequantize_calls",
    "total_values",
    "clipped_values",
    "nan_values",
    "cache_hits",
    "cache_misses",
)


class Statistics:
    """Sums over calls; `processing_time_ms` is a sum of the calls' wall-clock times too."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.values: dict[str, Any] = {}
        self.reset()

    def add(self, started: float, ended: float, **counts: int) -> None:
        """Adds to counters, and the time between two readings of ``time.perf_counter``."""
        with self.lock:
            for name, count in counts.items():
                self.values[name] += count
            self.values["processing_time_ms"] += (ended - started) * 1e3

    def reset(self) -> None:
        """Everything is 0 again."""
        with self.lock:
            self.values.update({**dict.fromkeys(_COUNTERS, 0), "processing_time_ms": 0.0})

    def snapshot(self) -> dict[str, Any]:
        """A copy, of one moment."""
        with self.lock:
            return dict(self.values)
