"""Top-1 accuracy of every recipe on both reference models, beside round-to-nearest: a Markdown table.

Run: python -m tests.benchmarks.accuracy [recipe ...]
"""

from __future__ import annotations

import sys
import warnings

import numpy as np

import qi
from tests.benchmarks.common import MODELS, Data, load_data, load_float

RECIPES = ("w8a8", "w8", "w8a16", "w4a8", "w4", "w4_g32", "w3", "w2")


def top1(model: object, data: Data) -> float:
    """Percent of the test images whose class is predicted."""
    scores = model.predict(data.x_test, batch_size=250, verbose=0)  # type: ignore[attr-defined]
    return 100 * float(np.mean(scores.argmax(-1) == data.y_test))


def nearest(recipe: str) -> str:
    """The same recipe with absmax weights and min/max activations: plain round-to-nearest."""
    return f"{recipe}_minmax"


def main(recipes: tuple[str, ...]) -> None:
    """Print the table."""
    data = load_data()
    print("| model | float | " + " | ".join(f"{r} (round-to-nearest)" for r in recipes) + " |")
    print("| --- " * (len(recipes) + 2) + "|")
    for name in MODELS:
        model = load_float(name)
        cells = [f"{top1(model, data):.2f}"]
        for recipe in recipes:
            pair = []
            for chosen in (recipe, nearest(recipe)):
                calib = data.x_calib if "a" in recipe else None
                quantized, _ = qi.quantize_model(model, chosen, calib, progress=False)
                pair.append(top1(quantized, data))
            cells.append(f"{pair[0]:.2f} ({pair[1]:.2f})")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore", qi.QuantizationWarning)
    main(tuple(sys.argv[1:]) or RECIPES)
