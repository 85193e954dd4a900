"""What the peers' scripts share: one cell of the table in, one JSON line out. Needs numpy alone, so that it runs anywhere."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 32


class Limit(Exception):  # noqa: N818 (no error: a fact)
    """What a peer does not have, in words of ours; errors of its own are told as they are."""


@dataclass
class Cell:
    """One measurement: a model, a number of bits, and what is to be done.

    Attributes:
        inputs: The folder that `tests.benchmarks.low_bits_peers` fills: data and the models in every form.
        model: The model's name.
        bits: Of the weights.
        options: The method's, as its row in the table of rows has them.
        seconds: What `timed` counted: calibration and quantization, no imports, no measurement of accuracy.
        processor: The same in seconds of processor time, all threads added up, which a busy machine doesn't move.
        remarks: What the setting had to leave out, for readers.
        partial: Whether more kernels than the first and the last have more bits than asked for.
    """

    inputs: Path
    model: str
    bits: int
    options: dict[str, Any]
    seconds: float = 0.0
    processor: float = 0.0
    remarks: list[str] = field(default_factory=list)
    partial: bool = False

    @cached_property
    def data(self) -> dict[str, np.ndarray]:
        """x_calib, x_test (n, 32, 32, 3) float32, y_test (n,)."""
        with np.load(self.inputs / "data.npz") as file:
            return dict(file)

    @cached_property
    def about(self) -> dict[str, Any]:
        """Of the model: its Keras 3 config, and its first and last layer with a kernel."""
        return json.loads((self.inputs / f"{self.model}.json").read_text(encoding="utf-8"))

    @property
    def ends(self) -> list[str]:
        """The layers that keep 8 bits."""
        return self.about["ends"]

    def file(self, suffix: str) -> Path:
        """The model as a file: ".keras", ".npz", ".tflite", ".onnx"."""
        return self.inputs / f"{self.model}{suffix}"

    def batches(self, size: int = BATCH) -> Iterator[np.ndarray]:
        """The calibration images."""
        images = self.data["x_calib"]
        return (images[start : start + size] for start in range(0, len(images), size))

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Adds to `seconds` and `processor`."""
        start, used = time.perf_counter(), sum(os.times()[:4])
        yield
        self.seconds += time.perf_counter() - start
        self.processor += sum(os.times()[:4]) - used

    def check_kernels(self, bits: list[int | str]) -> None:
        """Notes it where the kernels between the first and the last are not all of the asked bits.

        Args:
            bits: of every kernel, as found in the quantized model.
        """
        inner = len(bits) if self.bits == 8 else len(bits) - len(self.ends)
        if len(bits) != self.about["kernels"] or bits.count(self.bits) < inner:
            self.partial = True
            counts = ", ".join(f"{bits.count(one)} of {one}" for one in sorted(set(bits), key=str))
            self.remarks.append(f"kernels by bits: {counts}, of {self.about['kernels']}")

    def check_float(self, scores: np.ndarray) -> None:
        """Raises where a float twin's scores of the first calibration images are not the model's."""
        with np.load(self.file(".npz")) as file:
            expected = file["scores"]
        worst = float(np.abs(np.asarray(scores) - expected).max())
        if worst > 1e-3:
            raise ValueError(f"the float twin of {self.model} is off by {worst:.2g}")


def main(run: Callable[[Cell], np.ndarray]) -> None:
    """Runs one cell as the command line says, and prints its result or its error as one line of JSON.

    Args:
        run: gives the scores (n, classes) of the test images.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--options", type=json.loads, default={})
    cell = Cell(**vars(parser.parse_args()))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            scores = np.asarray(run(cell))
        if not np.isfinite(scores).all():
            share = 100 * float(np.mean(~np.isfinite(scores).all(-1)))
            cell.remarks.append(f"{share:.0f} % of the outputs are not finite")
        hits = scores.argmax(-1) == cell.data["y_test"]
        found = {"top1": 100 * float(hits.mean()), "hits": np.packbits(hits).tobytes().hex()}
    except Limit as error:
        found = {"error": str(error)}
    except Exception as error:  # whatever a peer raises is its result
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"}
    told = {name: getattr(cell, name) for name in ("seconds", "processor", "remarks", "partial")}
    print(json.dumps({**found, **told}), flush=True)
