from __future__ import annotations

import threading

import numpy as np
import pytest

from qi.core import IntGrid, PerChannel, QParams
from qi.engine import cache
from qi.engine.cache import ResultCache


def codes(value: int, size: int = 4) -> np.ndarray:
    return np.full(size, value, np.int8)


@pytest.fixture(autouse=True)
def without_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "OVERHEAD", 0)  # so that bytes can be counted here


def test_a_result_comes_back_as_a_copy_for_equal_arrays_only() -> None:
    kept = ResultCache(8)
    result = np.float32([1, 2])
    kept.put(kept.key(codes(1), "a"), result)
    result[:] = 0
    found = kept.get(kept.key(codes(1), "a"))
    assert found is not None
    assert found.tolist() == [1, 2]
    found[:] = 0
    assert kept.get(kept.key(codes(1), "a")).tolist() == [1, 2]
    other_keys = [
        kept.key(codes(2), "a"),
        kept.key(codes(1), "b"),
        kept.key(codes(1).reshape(2, 2), "a"),
        kept.key(codes(1).view(np.uint8), "a"),
        kept.key(codes(1).view(np.int16), "a"),
    ]
    assert [kept.get(key) for key in other_keys] == [None] * 5


def test_keys_of_strided_arrays_are_their_content() -> None:
    kept = ResultCache(8)
    square = np.arange(9, dtype=np.int8).reshape(3, 3)
    assert kept.key(square.T, 0) == kept.key(square.T.copy(), 0) != kept.key(square, 0)


def test_the_least_recently_used_goes_first() -> None:
    kept = ResultCache(2)
    keys = [kept.key(codes(i), None) for i in range(3)]
    kept.put(keys[0], codes(0))
    kept.put(keys[1], codes(1))
    kept.get(keys[0])
    kept.put(keys[2], codes(2))
    assert [kept.get(key) is not None for key in keys] == [True, False, True]


def test_bytes_are_counted_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT_BYTES", 100)
    kept = ResultCache(1000)
    for i in range(20):
        kept.put(kept.key(codes(i), None), np.zeros(4, np.float32))
        kept.put(kept.key(codes(i), None), np.zeros(4, np.float32))  # again: counted once
        assert kept.nbytes == 20 * len(kept.results) <= 100
    assert len(kept.results) == 5
    kept.put(kept.key(codes(99), None), np.zeros(1000, np.float32))  # more than all
    assert (len(kept.results), kept.nbytes) == (0, 0)


@pytest.mark.parametrize(("entries", "size"), [(8, 0), (8, cache.LARGEST + 1), (0, 4)])
def test_what_is_not_kept_has_no_key(entries: int, size: int) -> None:
    assert ResultCache(entries).key(codes(1, size), None) is None
    assert ResultCache(8).key(codes(1, cache.LARGEST), None) is not None


def test_clear_and_resize() -> None:
    kept = ResultCache(5)
    for i in range(5):
        kept.put(kept.key(codes(i), None), codes(i))
    kept.resize(2)
    assert (len(kept.results), kept.nbytes) == (2, 16)
    assert kept.get(kept.key(codes(4), None)) is not None
    kept.clear()
    assert (len(kept.results), kept.nbytes) == (0, 0)


def test_threads_find_whole_results() -> None:
    kept, wrong = ResultCache(3), []

    def work(seed: int) -> None:
        for i in range(300):
            value = (i + seed) % 7
            key = kept.key(codes(value), None)
            found = kept.get(key)
            if found is None:
                kept.put(key, codes(value))
            elif found.tolist() != [value] * 4:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert kept.nbytes == 8 * len(kept.results)


def test_parameters_and_objects_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "OVERHEAD", 512)
    kept, params = ResultCache(4), QParams(np.ones((4, 1)), 0, IntGrid(8), PerChannel(0))
    kept.put(kept.key(codes(1), params), np.zeros(4, np.float32))
    assert kept.nbytes == 4 + 16 + 32 + 512
