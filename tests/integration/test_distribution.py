"""Training on two devices through Keras' and TensorFlow's own engines: equal steps everywhere, and what one device gives.

Each engine runs in processes of its own (`distributed.py`), since devices are counted once a process.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("distributed.py")
TIMEOUT = 240  # seconds; each takes a tenth of that where nothing else runs


def run_together(checkout: Path, mode: str, environments: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """One process for each environment, all at the same time; what each found."""
    base = {name: value for name, value in os.environ.items() if name not in ("TF_CONFIG", "XLA_FLAGS")}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), mode],
            env=base | {"PYTHONPATH": str(checkout), "CUDA_VISIBLE_DEVICES": ""} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments
    ]
    try:
        texts = [process.communicate(timeout=TIMEOUT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (out, err) in zip(processes, texts, strict=True):
        assert process.returncode == 0, out[-1000:] + err[-3000:]
    lines = [[line for line in out.splitlines() if line.startswith("RESULT ")] for out, _ in texts]
    return [json.loads(found[0].removeprefix("RESULT ")) for found in lines]


def check_same(found: dict[str, Any], alone: dict[str, Any], replicas: int) -> None:
    """Every step is equal on all replicas, has moved, and every value is the one that a single device finds."""
    assert found["replicas"] == [replicas] * 5
    assert found["equal"] == [True] * 5
    assert found["losses"][1] < found["losses"][0]
    np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-5)
    assert list(found["values"]) == list(alone["values"])
    for name, values in found["values"].items():
        np.testing.assert_allclose(values, alone["values"][name], rtol=1e-4, atol=1e-6, err_msg=name)
        assert np.max(np.abs(np.subtract(values, alone["start"][name]))) > 1e-5, name


def test_fit_under_mirrored_strategy(checkout: Path) -> None:
    (found,) = run_together(checkout, "mirrored", [{"KERAS_BACKEND": "tensorflow"}])
    check_same(found["together"], found["alone"], replicas=2)
    assert found["converted"]


def test_a_custom_loop_under_multi_worker_mirrored_strategy(checkout: Path) -> None:
    with socket.socket() as first, socket.socket() as second:
        for listener in (first, second):
            listener.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in (first, second)]
    environments = [
        {
            "KERAS_BACKEND": "tensorflow",
            "TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}),
        }
        for index in range(2)
    ]
    chief, other = run_together(checkout, "worker", environments)
    assert chief["together"]["values"] == other["together"]["values"]  # bit for bit
    check_same(chief["together"], chief["alone"], replicas=1)
    # Why the loop is ours: Keras' own fails there with the float model, too. Where this no longer holds, use fit above.
    assert "PerReplica" in chief["keras_fit"]


def test_fit_under_data_parallel_on_jax(checkout: Path) -> None:
    pytest.importorskip("jax")
    flags = "--xla_force_host_platform_device_count=2"
    (found,) = run_together(checkout, "jax", [{"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}])
    check_same(found["together"], found["alone"], replicas=2)
