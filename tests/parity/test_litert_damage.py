"""Damaged files end in an error, never in a dead process: each is run for real, in a process that would show it."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import collections, numpy as np
from qi.errors import FileFormatError
from qi.exporters import litert
from qi.ir.routing import route
from tests.parity.operations import case, samples
files = [(litert.write(route(g, "litert")), samples(g)) for g in (case(k, 1) for k in ("conv2d", "moves", "mean", "dense_int4"))]
counts = collections.Counter()
for seed in range(400):
    rng = np.random.default_rng(seed)
    data, inputs = files[seed % len(files)]
    data = bytearray(data)
    if seed % 3 == 0:
        data = data[: rng.integers(len(data))]
    else:
        for at in rng.integers(0, len(data), rng.integers(1, 9)):
            data[at] ^= 1 << rng.integers(8)
    try:
        litert.run(bytes(data), inputs)
        counts["ran"] += 1
    except FileFormatError:
        counts["refused"] += 1
print(counts["ran"], counts["refused"])
"""


def test_damaged_files() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ran, refused = map(int, done.stdout.split())
    assert refused >= 390
    assert ran + refused == 400
