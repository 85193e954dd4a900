"""The search for bit widths on both reference models: its time, and accuracy at the bytes of uniform 4 bits.

Run: python -m tests.benchmarks.search [metric ...]
"""

from __future__ import annotations

import resource
import sys
import time
import warnings
from itertools import pairwise

import qi
from qi.keras.search import METRICS, search
from tests.benchmarks.accuracy import top1
from tests.benchmarks.common import MODELS, load_data, load_float

CANDIDATES = (2, 3, 4, 6, 8)
UNIFORM = ("w4a8", "w3a8")


def main(metrics: tuple[str, ...]) -> None:
    """Print the table."""
    data = load_data()
    print("| model | at the bytes of | uniform | metric | searched | bytes | search, s | CPU, s | gap | front |")
    print("| --- " * 10 + "|")
    for name in MODELS:
        model = load_float(name)
        for recipe in UNIFORM:
            plain, report = qi.quantize_model(model, recipe, data.x_calib, progress=False)
            budget, uniform = report.totals.bytes_after, top1(plain, data)
            for metric in metrics:
                start, worked = time.perf_counter(), time.process_time()
                found = search(model, data.x_calib, {"bytes": budget}, CANDIDATES, metric=metric, progress=False)
                seconds, worked = time.perf_counter() - start, time.process_time() - worked
                quantized, report = qi.quantize_model(model, found.recipe, data.x_calib, progress=False)
                falls = all(one.loss > other.loss for one, other in pairwise(found.front))
                rises = all(one.costs["bytes"] < other.costs["bytes"] for one, other in pairwise(found.front))
                front = f"{len(found.front)} points, {'monotone' if falls and rises else 'NOT MONOTONE'}"
                cells = [
                    name, f"{recipe} ({budget:,})", f"{uniform:.2f}", metric, f"{top1(quantized, data):.2f}",
                    f"{report.totals.bytes_after:,}", f"{seconds:.1f}", f"{worked:.1f}", f"{found.chosen.gap:.1e}", front,
                ]  # fmt: skip
                print(f"| {' | '.join(cells)} |", flush=True)
    print(f"\npeak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    warnings.simplefilter("ignore", qi.QuantizationWarning)
    main(tuple(sys.argv[1:]) or METRICS)
