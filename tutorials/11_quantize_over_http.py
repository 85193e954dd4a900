"""The quantization service: the numpy engine over HTTP, for programs in any language, and for people in a browser.

    pip install 'quantizers-infrastructure[service]'
    python tutorials/11_quantize_over_http.py

In a shell `qi serve` starts it. Here it runs in a thread, on a port that is free, so that this script can be its client as
well. No framework is loaded on either side.
"""

import json
import socket
import sys
import threading
import urllib.request
from io import BytesIO

import numpy as np
import uvicorn

from qi.engine import QuantizationConfig, Quantizer
from qi.service.app import create_app
from qi.service.client import BadRequestError, Client, ConflictError, NotReadyError
from qi.service.settings import Settings
from qi.service.wire import HEADER_LENGTH, decode_response, encode_request

assert "tensorflow" not in sys.modules
rng = np.random.default_rng(0)
activations = rng.gamma(2.0, 1.5, size=(64, 256)).astype(np.float32)


# --- 1. A service -------------------------------------------------------------------------------------------
# Settings come from the environment (QI_API_PORT, QI_API_KEYS, ...) or from arguments. Without API keys, clients on
# this machine need none and others are refused.
listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
listening.bind(("127.0.0.1", 0))
listening.listen()
url = f"http://127.0.0.1:{listening.getsockname()[1]}"
server = uvicorn.Server(uvicorn.Config(create_app(Settings(store="memory")), log_level="warning"))
thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
thread.start()
client = Client(url)
print(f"{client}: {client.health()['status']}, instances {client.instances()}")


# --- 2. Quantize, dequantize --------------------------------------------------------------------------------
# The client has the engine's methods, and they give the engine's numbers, bit for bit.
codes = client.quantize(activations)
local = Quantizer(QuantizationConfig(symmetric=False))
assert np.array_equal(codes, local.quantize(activations))
assert np.array_equal(client.dequantize(codes), local.dequantize(codes))
print(f"\n{codes.nbytes} bytes of codes for {activations.nbytes} of numbers, greatest error "
      f"{np.abs(client.dequantize(codes) - activations).max():.4f}")  # fmt: skip


# --- 3. Quantizers of your own ------------------------------------------------------------------------------
# An instance is a quantizer with a name, that every client sees. Codes and parameters can travel together: then it
# doesn't matter what the instance does meanwhile.
client.create("weights", {"quantization_type": "INT4", "per_channel": True, "symmetric": True})
weights = rng.normal(size=(128, 64)).astype(np.float32) * np.linspace(0.1, 2.0, 128, dtype=np.float32)[:, None]
tensor = client.quantize(weights, instance="weights", return_tensor=True)
client.quantize(1000 * weights, instance="weights")
print(f"\n{tensor}: {tensor.compression_ratio:.2f} times smaller than float32")
assert np.array_equal(client.dequantize(tensor, instance="weights"), tensor.dequantize())
assert np.abs(tensor.dequantize() - weights).max() <= 0.51 * tensor.params.scale.max()


# --- 4. Calibration, and changes that collide ---------------------------------------------------------------
# A calibrated instance has one range for all that comes; one that has yet to be calibrated says so. A revision
# protects a change from others that came in between.
client.create("activations", {"quantization_mode": "CALIBRATED"})
try:
    client.quantize(activations, instance="activations")
except NotReadyError as error:
    print(f"\n{error.status}: {str(error)[:76]} ...")
found = client.calibrate([activations], instance="activations")
assert found["scale"] == Quantizer(QuantizationConfig(symmetric=False)).compute_scale_and_zero_point(activations)[0]

revision = client.revision("activations")
client.update_config({"num_bits": 6}, instance="activations", partial=True, revision=revision)
try:
    client.update_config({"num_bits": 5}, instance="activations", partial=True, revision=revision)
except ConflictError as error:
    print(f"{error.status}: somebody else was first")
assert client.config("activations")["num_bits"] == 6

restored = Quantizer()  # what the service has learned works here, too
restored.load_parameters(client.export_parameters(instance="activations"))
assert np.array_equal(restored.quantize(activations), client.quantize(activations, instance="activations"))


# --- 5. Without this client ---------------------------------------------------------------------------------
# JSON is for trying things out. The same path takes and gives .npy files as they are, chosen by the headers.


def post(path: str, body: bytes, **headers: str) -> tuple[bytes, dict[str, str]]:
    """The answer's body and headers."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    with urllib.request.urlopen(urllib.request.Request(url + path, body, sent), timeout=60) as answer:
        return answer.read(), dict(answer.headers)


text = json.dumps({"data": activations.tolist()}).encode()
answer, _ = post("/instances/default/quantize", text, Content_Type="application/json")
told = json.loads(answer)
assert np.array_equal(told["data"], codes)

file = BytesIO()
np.save(file, activations)
npy = "application/x-npy"
answer, headers = post("/instances/default/quantize", file.getvalue(), Content_Type=npy, Accept=npy)
assert np.array_equal(np.load(BytesIO(answer)), codes)
assert float(headers["qi-scale"]) == told["scale"]
print(f"\nsent as JSON: {len(text)} bytes; as .npy: {file.getbuffer().nbytes}")

# Clients of the Open Inference Protocol (Triton's, KServe's) find every instance as a model.
parts, length = encode_request({"x": activations})
answer, headers = post("/v2/models/default/infer", b"".join(parts), **{HEADER_LENGTH: str(length)})
outputs, _ = decode_response(answer, int(headers[HEADER_LENGTH.lower()]))
print({name: f"{array.dtype} {list(array.shape)}" for name, array in outputs.items()})
assert np.array_equal(outputs["q"], codes)


# --- 6. What is wrong is refused ----------------------------------------------------------------------------
# Errors are those of the engine, by class and by word, with the number under which the service has logged them.
try:
    client.quantize(np.array([1.0, np.nan]))
except BadRequestError as error:  # a ValueError, as in qi.engine
    print(f"\n{error.status} {error.code}: {error}")
assert issubclass(BadRequestError, ValueError)


# --- 7. For people, and for operators -----------------------------------------------------------------------
# At /ui a file is dropped, looked at and taken back; /docs describes every endpoint, /metrics is for Prometheus.
for path in ("/ui", "/docs", "/metrics", "/health/ready"):
    with urllib.request.urlopen(url + path, timeout=60) as answer:
        print(f"{path}: {answer.status}, {answer.headers.get_content_type()}")
assert client.stats()["quantize_calls"] >= 4

client.close()
server.should_exit = True
thread.join()
listening.close()
