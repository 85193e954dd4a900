from __future__ import annotations

import threading

import pytest

from qi.engine.stats import Statistics


def test_sums() -> None:
    stats = Statistics()
    stats.add(1.0, 1.5, quantize_calls=1, total_values=10)
    stats.add(2.0, 2.25, quantize_calls=1, cache_hits=2)
    found = stats.snapshot()
    assert found.pop("processing_time_ms") == 750.0
    assert {name: count for name, count in found.items() if count} == {
        "quantize_calls": 2,
        "total_values": 10,
        "cache_hits": 2,
    }


def test_a_snapshot_is_a_copy_and_reset_is_0() -> None:
    stats = Statistics()
    stats.add(0.0, 1.0, clipped_values=3)
    stats.snapshot()["clipped_values"] = 99
    assert stats.snapshot()["clipped_values"] == 3
    stats.reset()
    assert set(stats.snapshot().values()) == {0}


def test_unknown_counters_are_refused() -> None:
    with pytest.raises(KeyError):
        Statistics().add(0.0, 0.0, quantise_calls=1)


def test_threads_lose_nothing() -> None:
    stats = Statistics()
    threads = [
        threading.Thread(target=lambda: [stats.add(0, 0, total_values=1) for _ in range(2000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stats.snapshot()["total_values"] == 8000
