"""What the benchmarks share: the reference models and data, and interleaved timing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

MODELS = ("resnet8_cifar10_mltk", "ref_cifar10_mbv2")


class Data(NamedTuple):
    """CIFAR-10 as the reference models take it: (n, 32, 32, 3) float32 in [-1, 1)."""

    x_calib: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def bench_dir() -> Path:
    """The folder ``bench`` of reference models and data: under $QI_SHARED, or ``shared`` beside the checkout."""
    default = Path(__file__).resolve().parents[3] / "shared"
    return Path(os.environ.get("QI_SHARED", default)) / "bench"


def load_data() -> Data:
    """1,024 training images and 5,000 test images."""
    with (bench_dir() / "cifar10_dev.npz").open("rb") as file:
        arrays = np.load(file, allow_pickle=False)
        x_calib, x_test, y_test = (arrays[name] for name in ("x_calib", "x_test", "y_test"))
    return Data(_scaled(x_calib), _scaled(x_test), y_test.ravel())


def _scaled(images: np.ndarray) -> np.ndarray:
    return (images.astype(np.float32) - 128) / 128


def load_float(name: str) -> Any:
    """A reference model."""
    import keras

    return keras.models.load_model(bench_dir() / "models" / f"{name}.keras", compile=False)


def interleaved(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each action; see `timed_rounds`."""
    return {name: median(seconds) for name, seconds in timed_rounds(actions, rounds).items()}


def timed_rounds(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each action in each round; one after the other in every round, so that they share the machine's moods."""
    for action in actions.values():
        action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            times[name].append(time.perf_counter() - start)
    return times


def paired_ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> float:
    """Median over the rounds of one action's time over another's: what moods that last for several rounds can't move."""
    return median(one / other for one, other in zip(seconds[name], seconds[base], strict=True))
