"""The service on a local Ray: two replicas that agree, behind one address."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = """
import io, json, os, socket, sys, urllib.error, urllib.request
import numpy as np
import ray
from ray import serve

def free():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]

port = free()
ray.init(
    num_cpus=2, include_dashboard=False, configure_logging=False, log_to_driver=False, _temp_dir=sys.argv[1],
    object_store_memory=100 << 20,
)
serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
from deploy.ray_serve import app
serve.run(app, name="qi", route_prefix="/")

def call(path, data=None, method=None, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)

found = {}
replicas = serve.status().applications["qi"].deployments["Quantizers"].replica_states
found["replicas"] = {str(getattr(k, "value", k)): v for k, v in replicas.items()}
created = [call(f"/instances/i{n}", b'{"quantization_type": "INT16"}', Content_Type="application/json")[0] for n in range(10)]
found["created"] = created
found["seen"] = [[call(f"/instances/i{n}/config")[0] for _ in range(4)] for n in range(10)]
array = np.linspace(-1, 3, 1000, dtype=np.float32).reshape(10, 100)
file = io.BytesIO()
np.save(file, array)
answers = [
    call("/instances/i3/quantize", file.getvalue(), Content_Type="application/x-npy", Accept="application/x-npy")
    for _ in range(8)
]
found["statuses"] = [status for status, _, _ in answers]
np.save(sys.argv[2], np.stack([np.load(io.BytesIO(body)) for _, body, _ in answers]))
np.save(sys.argv[3], array)
found["stranger"] = call("/instances", X_Forwarded_For="10.0.0.1")[0]
found["metrics"] = call("/metrics")[0]
found["ready"] = call("/readyz")[0]
serve.shutdown()
ray.shutdown()
print("FOUND " + json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray isn't installed")
def test_replicas_agree(checkout: Path, tmp_path: Path) -> None:
    import numpy as np

    from qi.engine import Quantizer
    from qi.service.models import QuantizerConfigModel

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("QI_API_", "RAY_"))} | {
        "PYTHONPATH": str(checkout), "QI_API_STORE": f"sqlite:///{tmp_path / 'shared.db'}", "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONWARNINGS": "ignore", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }  # fmt: skip
    codes, array = tmp_path / "codes.npy", tmp_path / "array.npy"
    with tempfile.TemporaryDirectory(prefix="qi") as folder:  # Ray's sockets bear short paths alone
        command = [sys.executable, "-c", SCRIPT, folder, str(codes), str(array)]
        done = subprocess.run(
            command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=170, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))[6:])
    assert found["replicas"] == {"RUNNING": 2}
    assert found["created"] == [200] * 10
    assert found["seen"] == [[200] * 4] * 10
    assert found["statuses"] == [200] * 8
    expected = Quantizer(QuantizerConfigModel(quantization_type="INT16").to_config()).quantize(np.load(array))
    assert all(np.array_equal(answer, expected) for answer in np.load(codes))
    assert (found["stranger"], found["metrics"], found["ready"]) == (403, 404, 200)
