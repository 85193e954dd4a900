"""Speed of the numpy engine's kernels, as ratios of interleaved medians in one run: 16 million float32 to int8.

Run: python -m tests.benchmarks.engine [rounds] [millions]
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

import ml_dtypes
import numpy as np

from qi.core import IntGrid, PerChannel, PerGroup, PerTensor, QParams, blocked
from tests.benchmarks.common import interleaved

Actions = dict[str, Callable[[], object]]


def per_channel(x: np.ndarray, axis: int) -> QParams:
    """int8 with a scale for each index along an axis, none of them saturating."""
    granularity = PerChannel(axis)
    return QParams(np.full(granularity.param_shape(x.shape), 6.5 / 127), 0, IntGrid(8), granularity)


def actions(x: np.ndarray, bodies: tuple[str, ...]) -> tuple[Actions, dict[str, int]]:
    """What is timed, and how many bytes each moves at least."""
    scale, zero_point = np.float32(6.5 / 127), 3
    plain = QParams(scale, zero_point, IntGrid(8))
    clipping = QParams(np.float32(2.0 / 127), zero_point, IntGrid(8))
    int4 = QParams(np.float32(6.5 / 7), 0, IntGrid(4))
    group = PerGroup(0, 64)
    cube = x.reshape(-1, 64, 250)
    grouped = QParams(np.full(group.param_shape(x.reshape(-1, 1000).shape), 6.5 / 7), 0, IntGrid(4), group)
    codes, out8, out32 = np.empty(x.shape, np.int8), np.empty(x.shape, np.int8), np.empty(x.shape, np.float32)
    blocked.quantize(x, plain, out=codes)

    def numpy_dynamic() -> np.ndarray:
        s = np.float32(np.abs(x).max() / 127)
        return np.clip(np.round(x / s), -128, 127).astype(np.int8)

    def dynamic(body: str) -> object:
        lo, hi, _, _ = blocked.minmax(x, PerTensor())
        return blocked.quantize(x, QParams(np.maximum(-lo, hi) / 127, 0, IntGrid(8), PerTensor()), body=body)

    found: Actions = {
        "memcpy": lambda: np.copyto(out32, x),
        "plain quantize": lambda: np.clip(np.round(x / scale) + zero_point, -128, 127).astype(np.int8),
        "plain dequantize": lambda: (codes.astype(np.float32) - zero_point) * scale,
        "plain dynamic": numpy_dynamic,
    }
    moved = {"memcpy": 8, "plain quantize": 5, "plain dequantize": 5, "plain dynamic": 9}
    for body in bodies:
        q = partial(blocked.quantize, body=body)
        cases: dict[str, tuple[int, Callable[[], object]]] = {
            "quantize": (5, partial(q, x, plain)),
            "quantize out=": (5, partial(q, x, plain, out=out8)),
            "quantize, 5 % clipped": (5, partial(q, x, clipping)),
            "quantize, 2 threads": (5, partial(q, x, plain, num_threads=2)),
            "per channel, first": (5, partial(q, cube, per_channel(cube, 0))),
            "per channel, middle": (5, partial(q, cube, per_channel(cube, 1))),
            "per channel, last": (5, partial(q, cube, per_channel(cube, 2))),
            "int4 quantize and pack": (4, partial(blocked.quantize_packed, x, int4, body=body)),
            "int4 groups of 64, packed": (4, partial(blocked.quantize_packed, x.reshape(-1, 1000), grouped, body=body)),
            "dynamic": (9, partial(dynamic, body)),
            "fake_quantize": (8, partial(blocked.fake_quantize, x, plain, body=body)),
            "dequantize": (5, partial(blocked.dequantize, codes, plain, body=body)),
            "dequantize out=": (5, partial(blocked.dequantize, codes, plain, out=out32, body=body)),
            "dequantize, 2 threads": (5, partial(blocked.dequantize, codes, plain, body=body, num_threads=2)),
        }
        found |= {f"{body} {name}": action for name, (_, action) in cases.items()}
        moved |= {f"{body} {name}": nbytes for name, (nbytes, _) in cases.items()}
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        name = f"{bodies[0]} quantize {np.dtype(dtype).name}"
        found[name] = partial(blocked.quantize, x.astype(dtype), plain, body=bodies[0])
        moved[name] = np.dtype(dtype).itemsize + 1
    return found | torch_actions(x, codes), moved | {"torch quantize": 5, "torch dequantize": 5}


def torch_actions(x: np.ndarray, codes: np.ndarray) -> Actions:
    """The same in PyTorch on one thread."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)  # they are deprecated
    tensor = torch.from_numpy(x)
    quantized = torch.quantize_per_tensor(tensor, 6.5 / 127, 3, torch.qint8)
    return {
        "torch quantize": lambda: torch.quantize_per_tensor(tensor, 6.5 / 127, 3, torch.qint8),
        "torch dequantize": quantized.dequantize,
    }


def table(rounds: int, millions: int) -> None:
    """Milliseconds, times faster than the like of numpy and of torch, bytes a second beside memcpy's."""
    x = np.random.default_rng(0).standard_normal(millions * 1_000_000).astype(np.float32)
    found, moved = actions(x, ("numpy", "numba"))
    seconds = interleaved(found, rounds)
    rate = {name: moved[name] * x.size / value / 1e9 for name, value in seconds.items()}
    print(f"{'':36}{'ms':>8}{'x plain':>9}{'x torch':>9}{'GB/s':>7}{'of memcpy':>11}")
    for name, value in seconds.items():
        kind = next((k for k in ("dequantize", "dynamic") if k in name), "quantize")
        beside = seconds[f"plain {kind}"] / value
        torch_kind = "torch dequantize" if kind == "dequantize" else "torch quantize"
        share = rate[name] / rate["memcpy"]
        faster = f"{beside:9.2f}{seconds[torch_kind] / value:9.2f}"
        print(f"{name:36}{value * 1e3:8.2f}{faster}{rate[name]:7.1f}{share:11.0%}", flush=True)
    for body in ("numpy", "numba"):
        base = seconds[f"{body} quantize"]
        parts = ("per channel, first", "per channel, middle", "per channel, last", "int4 quantize and pack")
        print(body, "to its int8:", ", ".join(f"{part} {seconds[f'{body} {part}'] / base:.2f}x" for part in parts))
        for what in ("quantize", "dequantize"):
            ratio = seconds[f"{body} {what}"] / seconds[f"{body} {what}, 2 threads"]
            print(f"{body} {what}, two threads: {ratio:.2f}x one")


def throughput(body: str, size: int, threads: int, seconds: float = 0.5) -> float:
    """Values a second that so many of the caller's threads quantize together, each array after array of its own."""
    params, done = QParams(np.float32(0.02), 0, IntGrid(8)), [0] * threads
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    blocked.quantize(x, params, body=body)

    def work(i: int) -> None:
        out = np.empty(size, np.int8)
        while time.perf_counter() < ends:
            blocked.quantize(x, params, out=out, body=body)
            done[i] += size

    begun = time.perf_counter()
    ends = begun + seconds
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    return sum(done) / (time.perf_counter() - begun)


def two_threads(rounds: int) -> None:
    """The work of two of the caller's threads over that of one, in pairs of runs."""
    for body in ("numpy", "numba"):
        for size in (1 << 20, 1 << 24):
            found = sorted(throughput(body, size, 2) / throughput(body, size, 1) for _ in range(rounds))
            spread = f"{found[0]:.2f} to {found[-1]:.2f}"
            print(f"{body}, arrays of {size}: two callers do {found[rounds // 2]:.2f}x the work of one ({spread})")


def small() -> None:
    """Microseconds of a thousand values, beside those of the bare kernel."""
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    params, u, out = QParams(np.float32(0.05), 3, IntGrid(8)), np.empty(1000, np.float32), np.empty(1000, np.int8)
    s, magic = np.float32(0.05), np.float32(1.5 * 2**23)

    def bare() -> None:
        np.divide(x, s, out=u)
        u.min(), u.max()
        np.add(u, magic, out=u)
        np.copyto(out, u.view(np.int32), casting="unsafe")
        np.add(out, np.int8(3), out=out)

    def many(action: Callable[[], object]) -> float:
        times = []
        for _ in range(3000):
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        return median(times) * 1e6

    kernel, whole = many(bare), many(lambda: blocked.quantize(x, params))
    print(f"1,000 values: bare kernel {kernel:.1f} us, quantize {whole:.1f} us, difference {whole - kernel:.1f} us")


if __name__ == "__main__":
    small()
    two_threads(9)
    table(*(int(argument) for argument in [*sys.argv[1:], *("9", "16")[len(sys.argv) - 1 :]]))
