"""Exact models on Keras' other backends: one process each, as Keras reads its backend once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("exact_on_backend.py")
LINES = {
    "jax": ["jax arithmetic", "jax litert", "jax refuses onnxruntime", "jax reference"],
    "torch": ["torch arithmetic", "torch litert", "torch onnxruntime", "torch reference"],
}


@pytest.mark.parametrize("backend", sorted(LINES))
def test_exact_models_on(backend: str, checkout: Path) -> None:
    pytest.importorskip(backend)
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env=os.environ | {"KERAS_BACKEND": backend, "JAX_ENABLE_X64": "1", "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert [line for line in done.stdout.splitlines() if line.startswith(backend)] == LINES[backend]
