"""docs/families.md, made of the results that `tests.benchmarks.families` keeps beside it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "families.md"
RESULTS = DOCUMENT.with_suffix(".json")

STEPS = ("build", "PTQ", "predict", "reload", "QAT", "LiteRT", "ONNX")
_EVERYWHERE = ("PTQ", "predict", "reload", "QAT")
_OTHERS = ("jax", "torch")

_TEXT = """\
Made by `python -m tests.benchmarks.families --write`, with Python {python}, {packages}, on {machine} with {cores} cores;
dates are those of the rows. The networks are those of `tests/families.py`, built without downloads. Those of
keras.applications get settled weights: statistics of batch normalizations from images, shifts and branches as trained
networks have them, and a last layer fitted to ten classes of synthetic images by least squares; MobileNets and EfficientNets
of full size, in which many random layers leave little of a class, are trained for three epochs of 768 images more. The
others are trained for a few epochs on data made by a rule. Size "full" is the published network on images of 32 x 32
pixels (Xception: 71 x 71, InceptionV3: 75 x 75) or, of the others, twice the width; "small" has fewer stages or blocks.
All are quantized by `qi.quantize_model(model, "w8a8", data)` with 64 samples."""

_LEFT = """\
SQNR of the first output in dB, and in how many percent of samples that it never saw the quantized network gives the
class (top-1) of the float one; accuracy of both. JAX and torch run the small ones: each backend builds networks of its own,
with other random weights, so that numbers of one network differ between backends as they do between seeds. Networks
without classes have no agreement. The vae trains by a step that is written for TensorFlow: on the others it is untrained, and
gives less than one step of the grid of its last tanh. An export is exact (the runtime gives the twin's bits) or equal (up to
float rounding), with so many operations in float."""

_TIME = """\
Seconds of processor time, of all threads together, since clock time on a shared machine says nothing: building (and
training) the float network; `quantize_model`; `predict` of all test samples by the quantized network; saving and reloading it,
with predictions equal bit for bit unless the cell says DIFFERS; `prepare_qat` and one step of training, not compiled;
exports with their proofs on 8 samples. Peak memory of the process in MiB, before `quantize_model` and after it. For JAX and
torch: the sum of PTQ, predict, reload and QAT, whose compilation (at XLA's lowest level) is most of it on JAX."""

_WORST = """\
The tensor whose own quantization loses most, and where the errors of all before it have grown most: numbers on
TensorFlow. Where the first is good and the second isn't, no single tensor is to blame: rounding of many layers adds up."""


def key(name: str, size: str, backend: str) -> str:
    """The name of a row among the results."""
    return f"{name}/{size}/{backend}"


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *([str(cell).replace("|", "/") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(rows: dict[str, dict[str, Any]]) -> str:
    """The page.

    Args:
        rows: results by `key`.
    """
    from tests.families import FAMILIES

    shown = [(name, size) for name in FAMILIES for size in ("full", "small")]
    shown = [pair for pair in shown if any(key(*pair, backend) in rows for backend in ("tensorflow", *_OTHERS))]
    at = lambda pair, backend: rows.get(key(*pair, backend), {})
    packages = ", ".join(f"{name} {version(name)}" for name in ("keras", "tensorflow", *_OTHERS))
    facts = {"python": platform.python_version(), "packages": packages}
    parts = [
        "# Families of networks under w8a8",
        _TEXT.format(**facts, machine=platform.machine(), cores=os.cpu_count()),
        "## What is left of the float network",
        _LEFT,
        table(
            ["network", "size", "SQNR", "top-1", "accuracy", *(f"{b}: SQNR, top-1" for b in _OTHERS), "LiteRT", "ONNX"],
            [_quality(pair, at(pair, "tensorflow"), [at(pair, other) for other in _OTHERS]) for pair in shown],
        ),
        "## Time and memory",
        _TIME,
        table(
            ["network", "size", "million weights", "rows", *STEPS, "MiB", *_OTHERS, "date"],
            [_time(pair, at(pair, "tensorflow"), [at(pair, other) for other in _OTHERS]) for pair in shown],
        ),
        "## What explains the worst",
        _WORST,
        table(
            ["network", "size", "worst of its own", "least in total"],
            [
                [*pair, at(pair, "tensorflow").get("worst", ""), at(pair, "tensorflow").get("least", "")]
                for pair in shown
            ],
        ),
    ]
    refused = _refused(rows[key(*pair, b)] for pair in shown for b in ("tensorflow", *_OTHERS) if key(*pair, b) in rows)
    if refused:
        parts += ["## Refused", "\n".join(refused)]
    return "\n\n".join(parts) + "\n"


def _quality(pair: tuple[str, str], row: dict[str, Any], others: list[dict[str, Any]]) -> list[Any]:
    accuracy = f"{row['float']} -> {row['quantized']}" if "float" in row else ""
    left = [", ".join(str(one[name]) for name in ("SQNR", "top-1") if name in one) for one in others]
    exports = []
    for step in STEPS[-2:]:
        known = f"{row.get(f'{step} is')}, {row.get(f'{step} float')} float"
        exports.append(known if f"{step} is" in row else _cell(row, step))
    return [*pair, row.get("SQNR", ""), row.get("top-1", ""), accuracy, *left, *exports]


def _time(pair: tuple[str, str], row: dict[str, Any], others: list[dict[str, Any]]) -> list[Any]:
    steps = [_cell(row, step) + (" DIFFERS" if step == "reload" and row.get("same") is False else "") for step in STEPS]
    memory = f"{row['MiB before']} / {row['MiB']}" if "MiB" in row else ""
    weights = f"{row['weights'] / 1e6:.2f}" if "weights" in row else ""
    return [*pair, weights, row.get("rows", ""), *steps, memory, *(_total(one) for one in others), row.get("date", "")]


def _total(row: dict[str, Any]) -> str:
    if not row:
        return ""
    if isinstance(row["build"], str) or any(isinstance(row.get(step), str) for step in _EVERYWHERE):
        return "refused"
    differs = " DIFFERS" if row.get("same") is False else ""
    return f"{sum(row[step] for step in _EVERYWHERE):.1f}{differs}"


def _cell(row: dict[str, Any], step: str) -> str:
    value = row.get(step, "")
    if isinstance(value, str):
        return "refused" if value else ""
    return str(value)


def _refused(rows: Iterable[dict[str, Any]]) -> list[str]:
    """What was refused and why, each reason once for all networks, sizes and steps that it stopped."""
    found: dict[str, list[str]] = {}
    for row in rows:
        backend = "" if row["backend"] == "tensorflow" else f" on {row['backend']}"
        for step in STEPS:
            if isinstance(row.get(step), str):
                reason = row[step] if len(row[step]) < 400 else f"{row[step][:400]}..."
                reason = re.sub(r"\b([a-z]+(?:_[a-z]+)*)_\d+'", r"\1'", reason)  # one layer of several like it
                places = found.setdefault(reason, [])
                places += [place for place in [f"{row['name']} ({step}{backend})"] if place not in places]
    return [f"- {', '.join(places)}: {reason}" for reason, places in found.items()]
