"""Seed 001's commands, as printed but for the port: ``python main.py``, ``uvicorn main:app`` and the calls of curl."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

X = np.array([[1.2, 3.4, 5.6], [7.8, 9.0, 2.1]])

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="the seed's examples are calls of curl")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(params=["python main.py", "uvicorn main:app --host 0.0.0.0 --port 8000"])
def address(request: pytest.FixtureRequest, checkout: Path) -> Iterator[str]:
    """Where a server listens that was started so."""
    port = free_port()
    command = request.param.replace("8000", str(port)).split()
    command = [sys.executable, *(("-m", "uvicorn") if command[0] == "uvicorn" else ()), *command[1:]]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QI_API_")}
    environment |= {"PYTHONPATH": str(checkout), "QI_API_PORT": str(port), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=checkout / "tutorials" / "seed001", env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    told: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=lambda: [told.put(line) for line in process.stdout or ()], daemon=True)
    reader.start()
    try:
        while not re.search(r"http://\S+:\d+", told.get(timeout=60)):
            pass
        yield f"localhost:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        reader.join()
        if process.stdout is not None:
            process.stdout.close()


def curl(*arguments: str) -> object:
    done = subprocess.run(
        ["curl", "-sS", "--noproxy", "*", *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout)


def test_the_printed_examples(address: str) -> None:
    assert curl(f"http://{address}/") == {"status": "healthy", "service": "Quantizer API"}
    created = curl(
        "-X", "POST", f"http://{address}/instances/custom_quantizer", "-H", "Content-Type: application/json",
        "-d", '{"quantization_type": "INT8", "num_bits": 8, "symmetric": true}',
    )  # fmt: skip
    assert created == {"message": "Quantizer instance custom_quantizer created successfully"}
    told = curl(
        "-X", "POST", f"http://{address}/instances/default/quantize", "-H", "Content-Type: application/json",
        "-d", '{"data": [[1.2, 3.4, 5.6], [7.8, 9.0, 2.1]], "validate": true}',
    )  # fmt: skip
    assert isinstance(told, dict)
    assert (told["quantization_type"], told["original_shape"]) == ("INT8", [2, 3])
    back = curl(
        "-X", "POST", f"http://{address}/instances/default/dequantize", "-H", "Content-Type: application/json",
        "-d", json.dumps({"data": told["data"]}),
    )  # fmt: skip
    assert isinstance(back, dict)
    assert np.abs(np.array(back["data"]) - X).max() <= 0.02


def test_the_examples_are_those_of_the_seed(shared_dir: Path) -> None:
    seed = (shared_dir / "seeds" / "001_quantizer_api.md").read_text(encoding="utf-8")
    source = Path(__file__).read_text(encoding="utf-8")
    bodies = set(re.findall(r"-d '(.*?)'", seed))
    assert len(bodies) == 2
    assert all(body in source for body in bodies)
    for command in ("python main.py", "uvicorn main:app --host 0.0.0.0 --port 8000"):
        assert command in seed
