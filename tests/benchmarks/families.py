"""Whole families of networks under w8a8, on every backend: what each step takes, and how much of the float network is left.

Run: python -m tests.benchmarks.families --write [--only NAME ...] [--sizes small full] [--backend tensorflow jax torch]
     python -m tests.benchmarks.families --images 64

The first measures network by network, each in a process of its own, so that its memory is its own, and writes docs/families.md
with all results so far (docs/families.json keeps them), so that single rows can be made again; `--page` writes it from them
alone. The second times `qi.quantize_model` on ResNet50 at 224 x 224 and checks its bounds. Nothing is downloaded: see
`tests/families.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.family_page import DOCUMENT, RESULTS, key, page

BACKENDS, SIZES = ("tensorflow", "jax", "torch"), ("full", "small")
MOST_SECONDS, MOST_MIB = 90, 4096
_HELD = {  # threads that wait shall not count as work, nor what XLA's compiler does to make long runs faster
    "OMP_WAIT_POLICY": "PASSIVE",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}


def processor_seconds() -> float:
    """What all threads of this process, and of processes that it started and that ended, have computed."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def peak_mib() -> int:
    """The most memory that this process ever held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def timed(row: dict[str, Any], step: str, action: Callable[[], Any]) -> Any:
    """Runs a step and notes its seconds of processor time, or what was refused."""
    start = processor_seconds()
    try:
        result = action()
    except Exception as error:  # whatever it is, the table shall show it
        row[step] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return None
    row[step] = round(processor_seconds() - start, 1)
    return result


def measure(name: str, size: str) -> dict[str, Any]:
    """All steps of one family on this process's backend."""
    import keras

    import qi
    import qi.keras
    from tests.families import build

    backend = keras.backend.backend()
    row: dict[str, Any] = {"name": name, "size": size, "backend": backend, "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    family = timed(row, "build", lambda: build(name, size))
    if family is None:
        return row
    model = family.model
    row |= {"weights": model.count_params(), "MiB before": peak_mib()}
    found = timed(row, "PTQ", lambda: qi.quantize_model(model, "w8a8", family.calibration, progress=False))
    row["MiB"] = peak_mib()
    if found is None:
        return row
    quantized, report = found
    row |= worst(report) | {"rows": len(report.rows)}
    wanted = keras.tree.flatten(model.predict(family.test, verbose=0))
    given = timed(row, "predict", lambda: keras.tree.flatten(quantized.predict(family.test, verbose=0)))
    row |= quality(wanted[0], given[0], family.labels)
    eight = keras.tree.map_structure(lambda array: array[:8], family.calibration)
    with tempfile.TemporaryDirectory() as folder:
        again = timed(row, "reload", lambda: reloaded(quantized, Path(folder) / "model.keras"))
        if again is not None:
            row["same"] = same(keras.tree.flatten(again.predict(family.test, verbose=0)), given)
        timed(row, "QAT", lambda: one_step(model, family.calibration, eight))
        for step, suffix in (("LiteRT", "tflite"), ("ONNX", "onnx")) if backend == "tensorflow" else ():
            path = Path(folder) / f"model.{suffix}"
            exported = timed(row, step, lambda path=path: qi.export(quantized, path, samples=eight, latency=False))
            if exported is not None:
                row[f"{step} is"] = "exact" if exported.exact else ("equal" if exported.equal else "NOT EQUAL")
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
    losses = keras.tree.map_structure(lambda _: "mse", y)
    training.compile(keras.optimizers.SGD(1e-4), losses, jit_compile=False, run_eagerly=True)
    loss = training.train_on_batch(x, y)
    if not np.isfinite(loss).all():
        raise FloatingPointError(f"the loss is {loss}")


def quality(wanted: np.ndarray, given: np.ndarray, labels: np.ndarray | None) -> dict[str, Any]:
    """SQNR of the first output in dB; share of equal top-1 classes, and of right ones before and after."""
    noise = float(np.sum((wanted - given) ** 2))
    row: dict[str, Any] = {"SQNR": round(10 * float(np.log10(float(np.sum(wanted**2)) / noise)), 1) if noise else None}
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


def run(name: str, size: str, backend: str) -> dict[str, Any]:
    """One family in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.families", "--one", "--only", name, "--sizes", size]
    environment = {**os.environ, "KERAS_BACKEND": backend, **_HELD}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, json.JSONDecodeError):
        why = " ".join(done.stderr.splitlines()[-1:]) or f"ended with {done.returncode}"
        return {"name": name, "size": size, "backend": backend, "build": why, "date": f"{datetime.now(UTC):%Y-%m-%d}"}


def sweep(names: list[str], sizes: list[str], backends: list[str], *, write: bool) -> None:
    """Measures, and replaces the rows of what was measured, one after the other."""
    for size, backend in [(size, backend) for size in sizes for backend in backends]:
        if size == "full" and backend != "tensorflow":
            continue  # the small ones have the same kinds of layers
        for name in names:
            row = run(name, size, backend)
            print(json.dumps(row), file=sys.stderr, flush=True)
            if write:
                rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
                rows[key(name, size, backend)] = row
                RESULTS.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n", encoding="utf-8")
                DOCUMENT.write_text(page(rows), encoding="utf-8")


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="networks to measure; the others' rows stay")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--write", action="store_true", help=f"keep the results, and write {DOCUMENT.name}")
    parser.add_argument("--page", action="store_true", help=f"write {DOCUMENT.name} from the results so far")
    parser.add_argument("--images", type=int, help="time ResNet50 at 224 x 224 with so many images instead")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.images:
        resnet(given.images)
    elif given.page:
        DOCUMENT.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
    elif given.one:
        print(json.dumps(measure(given.only[0], given.sizes[0])))
    else:
        from tests.families import FAMILIES

        sweep(given.only or list(FAMILIES), given.sizes, given.backend, write=given.write)


if __name__ == "__main__":
    main()
