"""Accuracy, processor time and memory of the algorithms at 4, 3 and 2 bits on both reference models: Markdown tables.

Weights as said, activations of 8 bits, first and last layer of 8 bits; 1,024 calibration and 5,000 test images.

Run: python -m tests.benchmarks.low_bits [ablation|all_layers|encoder] [--models NAME ...] [--bits 4 3 2] [--only ROWS ...]
         [--into PAGE]

"encoder" times GPTQ on a transformer encoder of 22 million parameters with random weights, and says what memory that took.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import qi
from qi.recipes import Recipe, Rule, TensorSpec, get_recipe
from tests.benchmarks.accuracy import top1
from tests.benchmarks.common import MODELS, load_data, load_float

GPTQ_RANGE = {"name": "output_range", "rounding": "gptq"}
# Algorithms by the name of the row; the range of round-to-nearest is that of the recipes' names ("mse" with norm 3).
FLOAT = "float"
MINMAX = "round to nearest, min/max"
ROWS: dict[str, tuple[Any, ...]] = {
    MINMAX: (),
    "round to nearest": (),
    "bias_correction": ("bias_correction",),
    "norm_correction": ("norm_correction",),
    "equalize": ("equalize",),
    "equalize + bias_correction": ("equalize", "bias_correction"),
    "equalize + output_range + gptq + bias_correction": ("equalize", GPTQ_RANGE, "gptq", "bias_correction"),
    "analytic_bias_correction": ("analytic_bias_correction",),
    "empirical_bias_correction": ("empirical_bias_correction",),
    "best_range": ("best_range",),
    "smooth": ("smooth",),
    "awq": ("awq",),
    "hqq": ("hqq",),
    "output_range": ("output_range",),
    "kmeans": ("kmeans",),
    "gptq": ("gptq",),
    "gptq + bias_correction": ("gptq", "bias_correction"),
    "output_range + gptq": (GPTQ_RANGE, "gptq"),
    "output_range + gptq + bias_correction": (GPTQ_RANGE, "gptq", "bias_correction"),
    "output_range + descent": (GPTQ_RANGE, "descent"),
    "adaround": ("adaround",),
    "brecq": ("brecq",),
    "reconstruct": ("reconstruct",),
    "output_range + gptq + bias_correction + reconstruct": (GPTQ_RANGE, "gptq", "bias_correction", "reconstruct"),
}


def recipe(
    model: Any,
    bits: int,
    algorithms: Sequence[Any],
    *,
    ends: int | None = 8,
    granularity: str = "per_channel",
    suffix: str = "",
) -> Recipe:
    """A recipe of so many bits and 8-bit activations; the first and the last layer get `ends` bits, to nearest."""
    base = get_recipe(f"w{bits}a8" + ("" if granularity == "per_channel" else "_pt") + suffix)
    weights = base.weights
    assert weights is not None
    chosen = TensorSpec.from_config(weights.to_config() | {"algorithms": list(algorithms)})
    made = Recipe(f"w{bits}a8", weights=chosen, activations=base.activations)
    if ends is None:
        return made
    eight = get_recipe(f"w{ends}a8").weights
    assert eight is not None
    trained = [step for step in chosen.algorithms if step.stage == "training"]
    eight = TensorSpec.from_config(eight.to_config() | {"algorithms": [step.to_config() for step in trained]})
    return made.with_rules(*(Rule(layer, weights=eight) for layer in ends_of(model)))


def ends_of(model: Any) -> tuple[str, str]:
    """The paths of the first and the last layer with weights."""
    from qi.keras.graph import flatten_model
    from qi.keras.weights import has_policy

    layers = [call.path for call in flatten_model(model).calls if has_policy(call.op)]
    return layers[0], layers[-1]


def measured(model: Any, chosen: Recipe, data: Any, **options: Any) -> tuple[float, float, Any]:
    """(top-1, seconds of processor time, report) of a model quantized by a recipe."""
    start = time.process_time()  # what else the machine does moves it less than seconds on the clock
    quantized, report = qi.quantize_model(model, chosen, data.x_calib, progress=False, **options)
    seconds = time.process_time() - start
    return top1(quantized, data), seconds, report


def encoder() -> Any:
    """A transformer encoder of the size of ViT-S: 12 blocks of width 384, on 64 patches."""
    import keras

    layers = keras.layers
    x = inputs = keras.Input((64, 192))
    x = layers.Dense(384)(x)
    for _ in range(12):
        y = layers.LayerNormalization()(x)
        x = layers.Add()([x, layers.MultiHeadAttention(6, 64)(y, y)])
        y = layers.Dense(1536, activation="gelu")(layers.LayerNormalization()(x))
        x = layers.Add()([x, layers.Dense(384)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Dense(1000)(x))


def time_encoder() -> None:
    """Print seconds and peak memory of GPTQ on the encoder."""
    import keras

    keras.utils.set_random_seed(0)
    model = encoder()
    data = np.random.default_rng(0).normal(size=(128, 64, 192)).astype("float32")
    for name in ("w4", "w4_gptq"):
        start = time.perf_counter()
        _, report = qi.quantize_model(model, name, data, progress=False)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        error = report.settings.get("output_error_of_nearest", 1.0)
        print(
            f"{name}: {model.count_params():,} parameters, {seconds:.1f} s, peak {peak:.2f} GiB, "
            f"output error {error} of round-to-nearest's",
            flush=True,
        )


def measure_row(table: str, model_name: str, row: str, bits: Sequence[int], granularity: str) -> list[str]:
    """The cells of a row: top-1, seconds of processor time, and the peak memory of the process since the first of its cells."""
    warnings.simplefilter("ignore", qi.QuantizationWarning)
    model, data, cells = load_float(model_name), load_data(), []
    if row == FLOAT:
        return [f"{top1(model, data):.2f}"] * len(bits)
    for each in bits:
        suffix = "_minmax" if row == MINMAX else ""
        ends = 8 if table == "ablation" else None
        chosen = recipe(model, each, ROWS[row], ends=ends, granularity=granularity, suffix=suffix)
        accuracy, seconds, _ = measured(model, chosen, data)
        cells.append(f"{accuracy:.2f} ({seconds:.1f} s, {peak_memory():.1f} GiB)")
    return cells


def peak_memory() -> float:
    """GiB that this process has held at most: ru_maxrss would start from its parent's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20


def put_into(page: Path, text: str) -> None:
    """Replaces what a page has between the marks of the tables."""
    begin, end = (
        "<!-- tables: python -m tests.benchmarks.low_bits --into docs/low_bits.md -->\n",
        "<!-- end of tables -->",
    )
    head, _, rest = page.read_text(encoding="utf-8").partition(begin)
    page.write_text(head + begin + text + end + rest.partition(end)[2], encoding="utf-8")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("table", nargs="?", default="ablation", choices=["ablation", "all_layers", "encoder"])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--bits", nargs="*", type=int, default=[4, 3, 2])
    parser.add_argument("--granularity", default="per_channel")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--into", type=Path, help="a page whose tables these become")
    arguments = parser.parse_args()
    if arguments.table == "encoder":
        time_encoder()
        return
    text = ""
    for name in arguments.models:
        text += f"\n| {name} | " + " | ".join(f"w{b}a8" for b in arguments.bits) + " |\n"
        text += "| --- " * (len(arguments.bits) + 1) + "|\n"
        print(text.rpartition("\n\n")[2], end="", flush=True)
        for row in [FLOAT, *(arguments.only or ROWS)]:
            # A process each: what a row takes of memory is then its own.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                given = (arguments.table, name, row, arguments.bits, arguments.granularity)
                line = f"| {row} | " + " | ".join(pool.submit(measure_row, *given).result()) + " |\n"
            print(line, end="", flush=True)
            text += line
    if arguments.into:
        put_into(arguments.into, text + "\n")


if __name__ == "__main__":
    main()
