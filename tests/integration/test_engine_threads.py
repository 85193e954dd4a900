"""Threads that use and change one quantizer at once: each result is that of one moment, and every call is counted.

``QI_THREADS_SECONDS=10`` makes it last longer than the two seconds that it takes otherwise.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from qi.core import QTensor
from qi.engine import QuantizationConfig, Quantizer

SECONDS = float(os.environ.get("QI_THREADS_SECONDS", "2"))
THREADS = 8
X = np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32)
DATA = [X, 10 * X + 3]
LAYERS = [None, "plain", "wide", "head"]

DYNAMIC = QuantizationConfig(enable_mixed_precision=True, mixed_precision_layers=["wide"], skip_layers=["head"])
CONFIGS = [
    DYNAMIC,
    DYNAMIC.replace(quantization_type="uint8", quantization_mode="asymmetric"),
    DYNAMIC.replace(quantization_mode="symmetric", per_channel=True),
    QuantizationConfig("int16", enable_cache=False),
]
Change = Callable[[Quantizer], None]
CHANGES: list[Change] = [lambda q, c=c: q.update_config(c) for c in CONFIGS]
CHANGES += [lambda q, d=d: q.calibrate([d, d / 2]) for d in DATA]
CHANGES += [lambda q, s=s: q.load_parameters({"global_scale": s, "quantization_type": "int8"}) for s in (0.5, 0.125)]


def described(result: np.ndarray | QTensor) -> bytes:
    """All that a result says."""
    if isinstance(result, QTensor):
        how = result.qparams
        return b"".join(
            [described(result.codes), repr(how.grid).encode(), how.scale.tobytes(), how.zero_point.tobytes()]
        )
    return result.dtype.str.encode() + result.tobytes()


def quantized(q: Quantizer, x: np.ndarray, layer: str | None) -> np.ndarray | QTensor:
    return q.quantize(x, layer_name=layer, return_tensor=layer != "head")


def codes(q: Quantizer, x: np.ndarray, layer: str | None) -> np.ndarray:
    return q.quantize(x, layer_name=layer)


def simulated(q: Quantizer, x: np.ndarray, layer: str | None) -> np.ndarray:
    return q.quantize_dequantize(x, layer_name=layer)


def there_and_back(q: Quantizer, x: np.ndarray, layer: str | None) -> np.ndarray:
    tensor = q.quantize(x, layer_name=None, return_tensor=True)
    return q.dequantize(tensor)


def computed(q: Quantizer, x: np.ndarray, layer: str | None) -> np.ndarray:
    return np.array(q.compute_scale_and_zero_point(x, layer_name=layer))


# Calls of each use: how often it quantizes and dequantizes.
USES = {quantized: (1, 0), codes: (1, 0), simulated: (1, 1), there_and_back: (1, 1), computed: (0, 0)}


def states() -> Iterator[Quantizer]:
    """A quantizer in each state that changes lead to from the first, one change after another."""
    todo: list[tuple[Change, ...]] = [()]
    known = set()
    while todo:
        path = todo.pop(0)
        quantizer = Quantizer(DYNAMIC)
        for change in path:
            change(quantizer)
        state, fixed = quantizer._state, quantizer._state.fixed
        key = (
            state.config,
            None if fixed is None else (fixed.lo.tobytes(), fixed.hi.tobytes(), fixed.params, fixed.form),
        )
        if key not in known:
            known.add(key)
            yield quantizer
            todo += [(*path, change) for change in CHANGES]


@pytest.fixture(scope="module")
def expected() -> dict[tuple[str, int, str | None], set[bytes]]:
    """What one thread gets, for each use, array and layer, in any state."""
    found: dict[tuple[str, int, str | None], set[bytes]] = {}
    count = 0
    for quantizer in states():
        count += 1
        for use in USES:
            for i, x in enumerate(DATA):
                for layer in LAYERS:
                    found.setdefault((use.__name__, i, layer), set()).add(described(use(quantizer, x, layer)))
    assert 10 < count < 200
    return found


def test_each_result_is_that_of_one_state(expected: dict[tuple[str, int, str | None], set[bytes]]) -> None:
    quantizer = Quantizer(DYNAMIC)
    end = time.monotonic() + SECONDS

    def work(seed: int) -> tuple[Counter[str], list[str]]:
        choose, counts, wrong = random.Random(seed), Counter[str](), []
        while time.monotonic() < end:
            if choose.random() < 0.2:
                choose.choice(CHANGES)(quantizer)
                counts["changes"] += 1
                continue
            use, i, layer = choose.choice(list(USES)), choose.randrange(len(DATA)), choose.choice(LAYERS)
            if described(use(quantizer, DATA[i], layer)) not in expected[use.__name__, i, layer]:
                wrong.append(f"{use.__name__} of array {i} in layer {layer}")
            there, back = USES[use]
            counts.update({"quantize_calls": there, "dequantize_calls": back, "total_values": (there + back) * X.size})
        return counts, wrong

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            results = list(pool.map(work, range(THREADS)))
    finally:
        sys.setswitchinterval(interval)
    assert [text for _, wrong in results for text in wrong] == []
    total = sum((counts for counts, _ in results), Counter())
    stats = quantizer.get_stats()
    assert total.pop("changes") > 20
    assert {name: stats[name] for name in total} == dict(total)
    assert total["quantize_calls"] > 100


def test_plain_codes_come_back_by_the_parameters_of_some_quantize() -> None:
    quantizer = Quantizer()
    inputs = [np.float32(scale) * np.arange(-127, 128, dtype=np.float32) for scale in (1, 2, 4, 8)]
    everything = np.arange(-127, 128).astype(np.int8)  # the codes of each

    def work(i: int) -> bool:
        for _ in range(100):
            found = quantizer.quantize(inputs[i % 4])
            np.testing.assert_array_equal(found, everything)
            back = quantizer.dequantize(found)  # also from the cache, whatever the scale of that moment is
            if not any(np.array_equal(back, x) for x in inputs):
                return False
        return True

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            assert all(pool.map(work, range(THREADS)))
    finally:
        sys.setswitchinterval(interval)
    stats = quantizer.get_stats()
    assert (stats["quantize_calls"], stats["dequantize_calls"]) == (100 * THREADS, 100 * THREADS)
    assert stats["cache_hits"] + stats["cache_misses"] == 100 * THREADS


def test_no_change_is_lost() -> None:
    """A calibration that began before another change and ends after it doesn't bring the old configuration back."""
    quantizer = Quantizer()

    class Slow(list):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[np.ndarray]:
            quantizer.update_config(QuantizationConfig("uint8"))
            return super().__iter__()

    quantizer.calibrate(Slow([X]))
    assert quantizer.config.quantization_type == "uint8"
    quantizers = [Quantizer() for _ in range(50)]
    big = np.zeros(200_000, np.float32)
    big[0] = 1.0
    with ThreadPoolExecutor(2) as pool:
        for q in quantizers:
            first = pool.submit(q.calibrate, [big])
            second = pool.submit(q.update_config, QuantizationConfig("uint8", "asymmetric"))
            first.result()
            second.result()
    assert {q.config.quantization_type.value for q in quantizers} == {"uint8"}
