"""Results of dequantization, kept for arrays that come again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np

__all__ = ["LIMIT_BYTES", "OVERHEAD", "ResultCache"]

LIMIT_BYTES = 64 << 20
"""All results of one cache together, with the codes they came from."""

LARGEST = 1 << 14
"""Bytes of the longest codes whose result is kept: beyond, finding a result takes as long as computing it."""


OVERHEAD = 512
"""Bytes of the objects around one result."""


class ResultCache:
    """The least recently used results go first.

    The key is the whole array: its bytes, shape and dtype, and the parameters it was read with. So a hit can't be
    another array's result. Results go in and out as copies.
    """

    def __init__(self, entries: int) -> None:
        self.lock = threading.Lock()
        self.entries = entries
        self.results: OrderedDict[Any, np.ndarray] = OrderedDict()
        self.nbytes = 0

    def key(self, codes: np.ndarray, params: Any) -> Any:
        """The key of an array, or None where nothing is kept."""
        if not 0 < codes.nbytes <= LARGEST or not self.entries:
            return None
        return codes.tobytes(), codes.shape, codes.dtype.str, params

    def get(self, key: Any) -> np.ndarray | None:
        """A copy of a result, or None."""
        with self.lock:
            found = self.results.get(key)
            if found is None:
                return None
            self.results.move_to_end(key)
        return found.copy()

    def put(self, key: Any, result: np.ndarray) -> None:
        """Keeps a copy, and forgets what has become too much."""
        with self.lock:
            self._drop(key)
            self.results[key] = result.copy()
            self.nbytes += _size(key, result)
            while len(self.results) > self.entries or self.nbytes > LIMIT_BYTES:
                self._drop(next(iter(self.results)))

    def clear(self) -> None:
        """Forgets everything."""
        with self.lock:
            self.results.clear()
            self.nbytes = 0

    def resize(self, entries: int) -> None:
        """Keeps at most so many results from now on."""
        with self.lock:
            self.entries = entries
            while len(self.results) > entries:
                self._drop(next(iter(self.results)))

    def _drop(self, key: Any) -> None:
        old = self.results.pop(key, None)
        if old is not None:
            self.nbytes -= _size(key, old)


def _size(key: Any, result: np.ndarray) -> int:
    codes, _, _, params = key
    return len(codes) + result.nbytes + getattr(params, "nbytes", 0) + OVERHEAD
