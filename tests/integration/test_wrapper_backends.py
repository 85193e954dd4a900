"""Wrapper and holder on Keras' other backends: one process each, as Keras reads its backend once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("wrapper_on_backend.py")
CHECKS = [
    "weights_are_numpys",
    "outputs_are_numpys",
    "regularizers_are_counted_once",
    "training_leaves_frozen_kernels_alone",
    "statistics_and_seeds_move_in_training",
    "models_come_back_bit_equal",
    "mixed_precision",
]


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_wrapper_and_holder_on(backend: str, tmp_path: Path, checkout: Path) -> None:
    pytest.importorskip(backend)
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(SCRIPT), str(tmp_path)],
        env=os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert [line for line in done.stdout.splitlines() if line.startswith(backend)] == [f"{backend} {c}" for c in CHECKS]
