"""Calibration holds one batch and its activations in memory, however many there are."""

from __future__ import annotations

from tests.keras.fresh import run_fresh

# Activations of a batch take 22 MB: kept, those of the second run would add 200.
CODE = """
import resource
import keras, numpy as np, qi
from keras import layers

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [keras.Input((64, 64, 3))]
    + [layers.Conv2D(8, 3, padding="same", activation="relu") for _ in range(5)]
    + [layers.GlobalAveragePooling2D(), layers.Dense(4)]
)

def batches(count):
    for seed in range(count):
        yield np.random.default_rng(seed).normal(size=(32, 64, 64, 3)).astype("float32"), np.zeros(32)

def peak(count):
    qi.quantize_model(model, "w8a8_minmax", batches(count), progress=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

first = peak(3)
print(first, peak(12) - first)
"""


def test_peak_memory_does_not_grow_with_the_data() -> None:
    base, growth = map(float, run_fresh(CODE).split())
    assert base > 100  # megabytes: the measurement works
    assert growth < 75
