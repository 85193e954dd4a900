"""Whole families of networks under w8a8: time and memory of every step, and how much of the float network is left.

Run: python -m tests.benchmarks.families [names] [--backend tensorflow|jax|torch] [--size full|small] [--epochs 3]
     python -m tests.benchmarks.families --images 64

The first writes docs/families.md, family by family (each in a process of its own, so that its memory is its own); the second
times `qi.quantize_model` on ResNet50 at 224 x 224 and checks its bounds. Nothing is downloaded: see `tests/families.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "families.md"
MOST_SECONDS, MOST_MIB = 90, 4096
STEPS = ("build", "PTQ", "predict", "save, reload", "QAT", "LiteRT", "ONNX")


def peak_mib() -> int:
    """The most memory that this process ever held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def timed(row: dict[str, Any], step: str, action: Callable[[], Any]) -> Any:
    """Runs a step and notes its seconds, or what was refused."""
    start = time.perf_counter()
    try:
        result = action()
    except Exception as error:  # whatever it is, the table shall show it
        row[step] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return None
    row[step] = round(time.perf_counter() - start, 1)
    return result


def measure(name: str, size: str, epochs: int) -> dict[str, Any]:
    """All steps of one family."""
    import keras

    import qi
    import qi.keras
    from tests.families import build

    row: dict[str, Any] = {"name": name}
    family = timed(row, "build", lambda: build(name, size, epochs))
    model = family.model
    row |= {"weights": model.count_params(), "MiB before": peak_mib()}
    quantize = lambda: qi.quantize_model(model, "w8a8", family.calibration, progress=False)
    found = timed(row, "PTQ", quantize)
    row["MiB"] = peak_mib()
    if found is None:
        return row
    quantized, report = found
    row |= worst(report) | {"rows": len(report.rows)}
    wanted = keras.tree.flatten(model.predict(family.test, verbose=0))
    given = timed(row, "predict", lambda: keras.tree.flatten(quantized.predict(family.test, verbose=0)))
    row |= quality(wanted[0], given[0], family.labels)
    with tempfile.TemporaryDirectory() as folder:
        again = timed(row, "save, reload", lambda: reloaded(quantized, Path(folder) / "model.keras"))
        if again is not None:
            row["reload"] = same(keras.tree.flatten(again.predict(family.test, verbose=0)), given)
        eight = keras.tree.map_structure(lambda array: array[:8], family.calibration)
        timed(row, "QAT", lambda: one_step(model, family.calibration, eight))
        for step, suffix in (("LiteRT", "tflite"), ("ONNX", "onnx")):
            path = Path(folder) / f"model.{suffix}"
            exported = timed(row, step, lambda path=path: qi.export(quantized, path, samples=eight, latency=False))
            if exported is not None:
                row[f"{step} is"] = "exact" if exported.exact else ("equal" if exported.equal else "not equal")
                row[f"{step} float"] = len(exported.float_operations)
    return row


def reloaded(model: Any, path: Path) -> Any:
    """The model, saved and read again."""
    import keras

    model.save(path)
    return keras.models.load_model(path)


def same(given: list[Any], wanted: list[Any]) -> bool:
    """Whether outputs are equal bit for bit."""
    return all(np.array_equal(a, b) for a, b in zip(given, wanted, strict=True))


def one_step(model: Any, calibration: Any, x: Any) -> None:
    """Prepares a model for training, and trains for one step, towards what the float model gives."""
    import keras

    import qi

    y = model.predict(x, verbose=0)
    training = qi.prepare_qat(model, "w8a8", calibration, progress=False)
    training.compile(keras.optimizers.SGD(1e-4), keras.tree.map_structure(lambda _: "mse", y), jit_compile=False)
    training.fit(x, y, batch_size=8, verbose=0)


def quality(wanted: np.ndarray, given: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
    """SQNR of the first output in dB; share of equal top-1 classes, and of right ones before and after."""
    noise = float(np.sum((wanted - given) ** 2))
    row: dict[str, Any] = {
        "SQNR": round(10 * float(np.log10(float(np.sum(wanted**2)) / noise)), 1) if noise else "exact"
    }
    if labels is not None:
        one, two = wanted.argmax(-1), given.argmax(-1)
        pairs = (("top-1", one == two), ("float", one == labels), ("quantized", two == labels))
        row |= {name: round(100 * float(np.mean(hits)), 1) for name, hits in pairs}
    return row


def worst(report: Any) -> dict[str, Any]:
    """The tensor whose own quantization loses most, and the step at which errors so far grow most."""
    row = report.worst(1)[0]
    clipped = f", {row.clipped_share:.2%} clipped" if row.clipped_share else ""
    found = {"worst": f"{row.path} {row.sqnr_db:.0f} dB ({row.grid}{clipped}, {row.range_lo:.3g}..{row.range_hi:.3g})"}
    totals = [r for r in report.rows if r.kind == "activation" and r.total_sqnr_db is not None]
    if totals:
        least = min(totals, key=lambda r: r.total_sqnr_db)
        found["least"] = (
            f"{least.path}: {least.total_sqnr_db:.0f} dB of all errors so far, {least.sqnr_db:.0f} dB of its own"
        )
    return found


def resnet(images: int) -> None:
    """`qi.quantize_model` on ResNet50 at 224 x 224, against its bounds."""
    import keras

    import qi

    keras.utils.set_random_seed(0)
    model = keras.applications.ResNet50(weights=None)
    x = np.random.default_rng(0).uniform(-1, 1, (images, 224, 224, 3)).astype("float32")
    before, start = peak_mib(), time.perf_counter()
    qi.quantize_model(model, "w8a8", x, progress=False)
    seconds, peak = time.perf_counter() - start, peak_mib()
    verdict = "" if seconds <= MOST_SECONDS and peak <= MOST_MIB else " MISSED"
    print(f"ResNet50, {images} images: {seconds:.0f} s, peak {peak} MiB, of which {before} before{verdict}")


def run(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One family in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.families", name, "--one", "--size", given.size]
    command += ["--epochs", str(given.epochs)]
    environment = {**os.environ, "KERAS_BACKEND": given.backend}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return {"name": name, "build": " ".join(done.stderr.splitlines()[-1:]) or f"ended with {done.returncode}"}


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *([str(cell).replace("|", "/") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: dict[str, Any], step: str, *details: str) -> str:
    value = row.get(step, "")
    if isinstance(value, str):
        return "refused" if value else ""
    return ", ".join([f"{value}", *(str(row[name]) for name in details if name in row)])


def document(rows: list[dict[str, Any]], given: argparse.Namespace) -> str:
    """The page."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("keras", given.backend))
    steps = [
        [row["name"], f"{row.get('weights', 0) / 1e6:.2f}", row.get("rows", "")]
        + [_cell(row, step) for step in STEPS[:3]]
        + [_cell(row, "save, reload") + {True: "", False: " DIFFERS"}.get(row.get("reload"), "")]
        + [_cell(row, step) for step in STEPS[4:]]
        + [f"{row.get('MiB before', '')} / {row.get('MiB', '')}"]
        for row in rows
    ]
    results = [
        [
            row["name"],
            row.get("SQNR", ""),
            row.get("top-1", ""),
            f"{row['float']} -> {row['quantized']}" if "float" in row else "",
        ]
        + [f"{row[key]}, {row[f'{step} float']} float" if (key := f"{step} is") in row else "" for step in STEPS[5:]]
        for row in rows
    ]
    refusals = [
        f"- {row['name']}, {step}: {row[step]}" for row in rows for step in STEPS if isinstance(row.get(step), str)
    ]
    parts = [
        "# Families of networks under w8a8",
        f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {packages}, {platform.machine()}, "
        f"{os.cpu_count()} cores, sizes: {given.size}. Made by `python -m tests.benchmarks.families`; the networks, built "
        f"without downloads and trained for {given.epochs} epochs on 768 synthetic images (those of keras.applications) or a few "
        "seconds (the others), are those of `tests/families.py`. Calibrated on 64 samples.",
        "## Time and memory",
        "Seconds of each step: building and training the float network, `quantize_model`, `predict` of 256 samples, saving "
        "and reloading (bit-equal unless marked), `prepare_qat` with one step of training, exports with proofs on 8 samples. "
        'Peak memory in MiB before and after `quantize_model`. "refused": see below.',
        table(["network", "million weights", "rows", *STEPS, "MiB"], steps),
        "## What is left of the float network",
        "SQNR of the first output in dB, top-1 agreement with the float network in percent on 256 samples that it never saw, and "
        "accuracy before and after. An export is exact (its runtime gives the twin's bits) or equal (up to float rounding), with "
        "so many operations in float.",
        table(["network", "SQNR", "top-1", "accuracy", "LiteRT", "ONNX"], results),
        "## What explains the worst",
        "The tensor whose own quantization loses most, and where the errors of all before it have grown most.",
        table(
            ["network", "worst of its own", "least in total"],
            [[r["name"], r.get("worst", ""), r.get("least", "")] for r in rows],
        ),
    ]
    if refusals:
        parts += ["## Refused", "\n".join(refusals)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--backend", choices=("tensorflow", "jax", "torch"), default="tensorflow")
    parser.add_argument("--size", choices=("full", "small"), default="full")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, help="time ResNet50 at 224 x 224 with so many images instead")
    parser.add_argument("--output", type=Path, default=DOCUMENT)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.images:
        resnet(given.images)
        return
    if given.one:
        print(json.dumps(measure(given.names[0], given.size, given.epochs)))
        return
    os.environ["KERAS_BACKEND"] = given.backend
    from tests.families import FAMILIES

    rows: list[dict[str, Any]] = []
    for name in given.names or FAMILIES:
        rows.append(run(name, given))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        given.output.parent.mkdir(exist_ok=True)
        given.output.write_text(document(rows, given), encoding="utf-8")


if __name__ == "__main__":
    main()
