"""Seed 001, the quantizer API: every endpoint, field, default, success body and documented status.

Each contract test runs below ``/`` and ``/v1`` and with each store. The docstring of a test is the line of the seed that it
checks, word for word; the last test finds it there. Where the seed says 500 for what the user did, the answer is 4xx (500
with ``QI_API_LEGACY_ERRORS=1``): see `test_001_origin_defects.py`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from qi.service.app import create_app
from qi.service.service import Service
from qi.service.settings import Settings
from tests.servers import STORES

SEED = "001_quantizer_api.md"
DATA = [[1.2, 3.4, 5.6], [7.8, 9.0, 2.1]]
X = np.array(DATA)


class Api:
    """One service, called below one prefix."""

    def __init__(self, client: TestClient, prefix: str, remembers: bool) -> None:
        self.client, self.prefix, self.remembers = client, prefix, remembers

    def __call__(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        if body is not None:
            options["json"] = body
        if path.endswith("/quantize") and not self.remembers:  # codes can then be read without their parameters
            options["json"] = {"remember": True, **options["json"]}
        return self.client.request(method, self.prefix + path or "/", **options)

    def ok(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        answer = self(method, path, body, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def fails(self, status: int, method: str, path: str, body: Any = None, **options: Any) -> Any:
        answer = self(method, path, body, **options)
        assert answer.status_code == status, answer.text
        assert answer.json()["detail"]
        return answer.json()["detail"]


@pytest.fixture(params=["/", "/v1"])
def prefix(request: pytest.FixtureRequest) -> str:
    return str(request.param).rstrip("/")


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app(Settings(store="memory"))


@pytest.fixture(params=STORES)
def api(
    request: pytest.FixtureRequest, prefix: str, app: FastAPI, new_store_url: Callable[[str], str]
) -> Iterator[Api]:
    # An application takes longer to make than a test to run.
    service = app.state.service = Service(Settings(store=new_store_url(request.param)))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Api(client, prefix, service.instances.store.remembers)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_health(api: Api) -> None:
    """JSON response: `{"status": "healthy", "service": "Quantizer API"}`"""
    for path in ("", "/"):
        assert api.ok("GET", path, follow_redirects=False) == {"status": "healthy", "service": "Quantizer API"}


# --- instances ---


def test_get_all_instances(api: Api) -> None:
    """Get a list of all quantizer instances."""
    assert api.ok("GET", "/instances") == ["default"]
    for name in ("b", "a"):
        api.ok("POST", f"/instances/{name}", {})
    assert api.ok("GET", "/instances") == ["default", "b", "a"]


def test_create_instance(api: Api) -> None:
    """JSON response: `{"message": "Quantizer instance {instance_id} created successfully"}`"""
    body = {"quantization_type": "INT8", "num_bits": 8, "symmetric": True}
    answer = api.ok("POST", "/instances/custom_quantizer", body)
    assert answer == {"message": "Quantizer instance custom_quantizer created successfully"}
    assert api.ok("GET", "/instances/custom_quantizer/config")["symmetric"] is True


def test_create_instance_that_exists(api: Api) -> None:
    """`409 Conflict`: If an instance with the given ID already exists"""
    api.ok("POST", "/instances/a", {})
    for name in ("a", "default"):
        api.fails(409, "POST", f"/instances/{name}", {})


@pytest.mark.parametrize("body", [{"quantization_type": "INT9"}, {"num_bits": 16}, {"cache_size": -1}, [], None])
def test_create_instance_with_a_bad_configuration(body: Any, api: Api) -> None:
    """`500 Internal Server Error`: If there's an error creating the instance"""
    api.fails(422, "POST", "/instances/a", body)
    assert api.ok("GET", "/instances") == ["default"]


def test_delete_instance(api: Api) -> None:
    """JSON response: `{"message": "Quantizer instance {instance_id} deleted successfully"}`"""
    api.ok("POST", "/instances/a", {})
    assert api.ok("DELETE", "/instances/a") == {"message": "Quantizer instance a deleted successfully"}
    api.fails(404, "GET", "/instances/a/config")


def test_delete_default(api: Api) -> None:
    """`403 Forbidden`: If attempting to delete the default instance"""
    api.fails(403, "DELETE", "/instances/default")
    assert api.ok("GET", "/instances") == ["default"]


DEFAULTS = {
    "quantization_type": "INT8", "quantization_mode": "DYNAMIC", "num_bits": 8, "symmetric": False, "enable_cache": True,
    "cache_size": 1000, "enable_mixed_precision": False, "per_channel": False, "buffer_size": 0, "use_percentile": False,
    "min_percentile": 0.01, "max_percentile": 99.99, "error_on_nan": True, "error_on_inf": True, "optimize_memory": False,
    "enable_requantization": False, "requantization_threshold": 0.01, "outlier_threshold": None, "skip_layers": [],
    "quantize_bias": True, "quantize_weights_only": False, "mixed_precision_layers": [], "custom_quantization_config": {},
}  # fmt: skip


def test_get_config(api: Api) -> None:
    """Dictionary containing the configuration parameters"""
    assert api.ok("GET", "/instances/default/config") == DEFAULTS
    api.ok("POST", "/instances/a", {})
    assert api.ok("GET", "/instances/a/config") == DEFAULTS


CHANGED = {
    "quantization_type": "UINT8", "quantization_mode": "SYMMETRIC", "num_bits": 7, "symmetric": True, "enable_cache": False,
    "cache_size": 5, "enable_mixed_precision": True, "per_channel": True, "buffer_size": 1024, "use_percentile": True,
    "min_percentile": 1.0, "max_percentile": 99.0, "error_on_nan": False, "error_on_inf": False, "optimize_memory": True,
    "enable_requantization": True, "requantization_threshold": 0.5, "outlier_threshold": 2.5, "skip_layers": ["head"],
    "quantize_bias": False, "quantize_weights_only": True, "mixed_precision_layers": ["a/b"],
    "custom_quantization_config": {"c": {"bits": 4, "type": "int8"}},
}  # fmt: skip


def test_update_config(api: Api) -> None:
    """JSON response: `{"message": "Configuration for quantizer instance {instance_id} updated successfully"}`"""
    assert set(CHANGED) == set(DEFAULTS)
    answer = api.ok("PUT", "/instances/default/config", CHANGED)
    assert answer == {"message": "Configuration for quantizer instance default updated successfully"}
    assert api.ok("GET", "/instances/default/config") == CHANGED
    api.ok("PUT", "/instances/default/config", {})
    assert api.ok("GET", "/instances/default/config") == DEFAULTS


def test_update_config_with_a_bad_one(api: Api) -> None:
    """`500 Internal Server Error`: If there's an error updating the configuration"""
    detail = api.fails(422, "PUT", "/instances/default/config", {"quantization_mode": "FAST"})
    assert detail.startswith("Error updating configuration: expected QuantizationMode")
    assert api.ok("GET", "/instances/default/config") == DEFAULTS


# --- operations ---


def test_quantize(api: Api) -> None:
    """`data (List[List[Any]])`: Quantized data"""
    answer = api.ok("POST", "/instances/default/quantize", {"data": DATA, "validate": True})
    assert (answer["quantization_type"], answer["original_shape"]) == ("INT8", [2, 3])
    codes = np.array(answer["data"])
    assert codes.dtype == np.int64
    assert (codes.min(), codes.max()) == (-94, 127)
    assert np.abs((codes - answer["zero_point"]) * answer["scale"] - X).max() <= answer["scale"] / 2 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"data": [[1.0], [1.0, 2.0]]}, "Quantization error: expected rows of one length"),
        ({"data": DATA, "channel_dim": 2}, "Quantization error: expected channel_dim"),
        ({"data": [["a"]]}, "expected numbers"),
        ({}, "Field required"),
    ],
)
def test_quantize_what_cannot_be(body: Any, told: str, api: Api) -> None:
    """`500 Internal Server Error`: If there's an error during quantization"""
    assert told in str(api.fails(422, "POST", "/instances/default/quantize", body))


@pytest.mark.parametrize("mode", ["STATIC", "CALIBRATED"])
def test_quantize_before_calibration(mode: str, api: Api) -> None:
    """`quantization_mode (str)`: Quantization mode (DYNAMIC, DYNAMIC_PER_BATCH, CALIBRATED, etc.)"""
    api.ok("POST", "/instances/a", {"quantization_mode": mode})
    api.fails(409, "POST", "/instances/a/quantize", {"data": DATA})
    api.ok("POST", "/instances/a/calibrate", {"data": [DATA]})
    api.ok("POST", "/instances/a/quantize", {"data": DATA})


@pytest.mark.parametrize("kind", ["INT8", "UINT8", "INT16", "FLOAT16", "NONE", "MIXED"])
def test_every_type(kind: str, api: Api) -> None:
    """`quantization_type (str)`: Quantization type (INT8, UINT8, INT16, FLOAT16, NONE, MIXED)"""
    api.ok("POST", "/instances/a", {"quantization_type": kind})
    answer = api.ok("POST", "/instances/a/quantize", {"data": DATA})
    assert answer["quantization_type"] == kind
    back = api.ok("POST", "/instances/a/dequantize", {"data": answer["data"]})
    assert np.abs(np.array(back["data"]) - X).max() < 0.02


def test_channel_dim(api: Api) -> None:
    """`channel_dim (Optional[int])`: Dimension index for per-channel quantization"""
    api.ok("POST", "/instances/a", {"per_channel": True})
    for axis, channels in ((None, 2), (0, 2), (1, 3)):
        answer = api.ok("POST", "/instances/a/quantize", {"data": DATA, "channel_dim": axis})
        assert len(answer["scale"]) == channels
        back = api.ok("POST", "/instances/a/dequantize", {"data": answer["data"], "channel_dim": axis})
        assert np.abs(np.array(back["data"]) - X).max() < 0.02


def test_layer_name(api: Api) -> None:
    """`layer_name (Optional[str])`: Layer name for mixed precision handling"""
    api.ok("POST", "/instances/a", {"enable_mixed_precision": True, "mixed_precision_layers": ["conv"]})
    answer = api.ok("POST", "/instances/a/quantize", {"data": DATA, "layer_name": "conv"})
    assert (answer["quantization_type"], answer["num_bits"]) == ("INT16", 16)
    back = api.ok("POST", "/instances/a/dequantize", {"data": answer["data"], "layer_name": "conv"})
    assert np.abs(np.array(back["data"]) - X).max() < 1e-3
    assert api.ok("POST", "/instances/a/quantize", {"data": DATA})["quantization_type"] == "INT8"


def test_dequantize(api: Api) -> None:
    """`data (List[List[Any]])`: Dequantized data"""
    codes = api.ok("POST", "/instances/default/quantize", {"data": DATA})["data"]
    answer = api.ok("POST", "/instances/default/dequantize", {"data": codes})
    assert set(answer) == {"data", "original_shape"}
    assert answer["original_shape"] == [2, 3]
    assert np.abs(np.array(answer["data"]) - X).max() < 0.02


@pytest.mark.parametrize("data", [[[128]], [[0.5]], [[1], [2, 3]], [["x"]]])
def test_dequantize_what_is_no_code(data: Any, api: Api) -> None:
    """`500 Internal Server Error`: If there's an error during dequantization"""
    api.ok("POST", "/instances/default/quantize", {"data": DATA})
    api.fails(422, "POST", "/instances/default/dequantize", {"data": data})


def test_quantize_dequantize(api: Api) -> None:
    """
    Quantize and then dequantize input data to simulate quantization effects without actually changing the data type.
    """
    answer = api.ok("POST", "/instances/default/quantize_dequantize", {"data": DATA})
    assert set(answer) == {"data", "original_shape"}
    codes = api.ok("POST", "/instances/default/quantize", {"data": DATA})["data"]
    assert answer["data"] == api.ok("POST", "/instances/default/dequantize", {"data": codes})["data"]


def test_quantize_dequantize_what_cannot_be(api: Api) -> None:
    """`500 Internal Server Error`: If there's an error during processing"""
    detail = api.fails(422, "POST", "/instances/default/quantize_dequantize", {"data": [[1], [1, 2]]})
    assert detail.startswith("Quantize-dequantize error: ")


# --- calibration and parameters ---


def test_calibrate(api: Api) -> None:
    """`message (str)`: "Calibration successful\""""
    answer = api.ok("POST", "/instances/default/calibrate", {"data": [DATA, [[-1.0]]]})
    assert answer["message"] == "Calibration successful"
    assert answer["scale"] == pytest.approx(10 / 255)
    assert answer["zero_point"] == -102.0
    assert api.ok("GET", "/instances/default/config")["quantization_mode"] == "CALIBRATED"
    assert api.ok("POST", "/instances/default/quantize", {"data": [[100.0]]})["scale"] == answer["scale"]


@pytest.mark.parametrize("data", [[], [[]], [[[]]], [1, "a"]])
def test_calibrate_with_nothing(data: Any, api: Api) -> None:
    """`500 Internal Server Error`: If there's an error during calibration"""
    api.fails(422, "POST", "/instances/default/calibrate", {"data": data})
    assert api.ok("GET", "/instances/default/config") == DEFAULTS


@pytest.mark.parametrize("mode", ["DYNAMIC", "STATIC", "CALIBRATED"])
def test_compute_params(mode: str, api: Api) -> None:
    """Compute scale and zero point for input data without performing quantization."""
    api.ok("POST", "/instances/a", {"quantization_mode": mode})
    before = [api.ok("GET", f"/instances/a/{name}") for name in ("config", "parameters")]
    answer = api.ok("POST", "/instances/a/compute_params", {"data": DATA})
    assert answer == {"scale": pytest.approx(9 / 255), "zero_point": -128.0}
    own = api.ok("POST", "/instances/a/compute_params", {"data": DATA, "channel_idx": 0, "layer_name": "l"})
    assert own["scale"] == pytest.approx(5.6 / 255)
    assert [api.ok("GET", f"/instances/a/{name}") for name in ("config", "parameters")] == before


def test_compute_params_of_what_has_none(api: Api) -> None:
    """`500 Internal Server Error`: If there's an error computing parameters"""
    api.fails(422, "POST", "/instances/default/compute_params", {"data": DATA, "channel_idx": 2})


STATS = {
    "clipped_values": int, "total_values": int, "quantize_calls": int, "dequantize_calls": int, "cache_hits": int,
    "cache_misses": int, "last_scale": float, "last_zero_point": float, "processing_time_ms": float,
}  # fmt: skip


def test_stats(api: Api) -> None:
    """`processing_time_ms (float)`: Processing time in milliseconds"""
    codes = api.ok("POST", "/instances/default/quantize", {"data": DATA})
    for _ in range(3):
        api.ok("POST", "/instances/default/dequantize", {"data": codes["data"]})
    found = api.ok("GET", "/instances/default/stats")
    assert {name: type(value) for name, value in found.items()} == STATS
    assert (found["quantize_calls"], found["dequantize_calls"], found["total_values"]) == (1, 3, 24)
    assert (found["cache_hits"], found["cache_misses"], found["clipped_values"]) == (2, 1, 0)
    assert (found["last_scale"], found["last_zero_point"]) == (codes["scale"], codes["zero_point"])
    assert found["processing_time_ms"] > 0


def test_clipped_values(api: Api) -> None:
    """`clipped_values (int)`: Number of values clipped during quantization"""
    api.ok("POST", "/instances/default/calibrate", {"data": [[[-1.0, 1.0]]]})
    api.ok("POST", "/instances/default/quantize", {"data": [[-3.0, 0.5, 2.0, 7.0]]})
    assert api.ok("GET", "/instances/default/stats")["clipped_values"] == 3


def test_clear_cache(api: Api) -> None:
    """JSON response: `{"message": "Cache cleared successfully"}`"""
    codes = api.ok("POST", "/instances/default/quantize", {"data": DATA})["data"]
    for _ in range(2):
        api.ok("POST", "/instances/default/dequantize", {"data": codes})
        assert api.ok("POST", "/instances/default/clear_cache") == {"message": "Cache cleared successfully"}
    assert api.ok("GET", "/instances/default/stats")["cache_hits"] == 0


def test_reset_stats(api: Api) -> None:
    """JSON response: `{"message": "Statistics reset successfully"}`"""
    api.ok("POST", "/instances/default/quantize", {"data": DATA})
    assert api.ok("POST", "/instances/default/reset_stats") == {"message": "Statistics reset successfully"}
    found = api.ok("GET", "/instances/default/stats")
    assert (found["quantize_calls"], found["total_values"], found["processing_time_ms"]) == (0, 0, 0.0)


@pytest.mark.parametrize("config", [{}, {"per_channel": True}, {"quantization_type": "UINT8"}])
@pytest.mark.parametrize("calibrated", [False, True])
def test_parameters(calibrated: bool, config: Any, api: Api) -> None:
    """JSON response: `{"message": "Parameters imported successfully"}`"""
    api.ok("POST", "/instances/a", config)
    api.ok("POST", "/instances/b", {})
    if calibrated:
        api.ok("POST", "/instances/a/calibrate", {"data": [DATA]})
    codes = api.ok("POST", "/instances/a/quantize", {"data": DATA})["data"]
    exported = api.ok("GET", "/instances/a/parameters")
    assert exported["is_calibrated"] is calibrated
    answer = api.ok("POST", "/instances/b/parameters", {"parameters": exported})
    assert answer == {"message": "Parameters imported successfully"}
    read = [api.ok("POST", f"/instances/{name}/dequantize", {"data": codes})["data"] for name in "ab"]
    assert read[0] == read[1]
    assert api.ok("GET", "/instances/b/parameters") == exported


def test_parameters_of_another_exporter(api: Api) -> None:
    """`parameters (Dict[str, Any])`: Dictionary of parameters"""
    theirs = {
        "global_scale": 0.5, "global_zero_point": 3.0, "per_channel_scales": {}, "per_channel_zero_points": {},
        "quantization_type": "int8", "quantization_mode": "calibrated", "is_calibrated": True, "qmin": -128, "qmax": 127,
    }  # fmt: skip
    api.ok("POST", "/instances/default/parameters", {"parameters": theirs})
    assert api.ok("POST", "/instances/default/dequantize", {"data": [[3, 5]]})["data"] == [[0.0, 1.0]]


@pytest.mark.parametrize("parameters", [{}, {"global_scale": None}, {"global_scale": 0}, {"global_scale": "abc"}])
def test_parameters_that_are_impossible(parameters: Any, api: Api) -> None:
    """`500 Internal Server Error`: If there's an error importing parameters"""
    before = api.ok("GET", "/instances/default/parameters")
    detail = api.fails(422, "POST", "/instances/default/parameters", {"parameters": parameters})
    assert detail.startswith("Error importing parameters: ")
    assert api.ok("GET", "/instances/default/parameters") == before


def test_layer_params(api: Api) -> None:
    """Dictionary containing the layer's quantization parameters"""
    api.ok("POST", "/instances/a", {"skip_layers": ["block/head"]})
    assert api.ok("GET", "/instances/a/layer_params/conv") == {"bits": 8, "type": "INT8", "skip": False}
    assert api.ok("GET", "/instances/a/layer_params/block/head") == {"bits": 8, "type": "INT8", "skip": True}


# --- files ---


@pytest.mark.parametrize("operation", ["quantize", "dequantize", "quantize_dequantize"])
def test_upload_numpy(operation: str, api: Api) -> None:
    """Upload a NumPy array (.npy file) and perform quantization operations."""
    api.ok("POST", "/instances/default/quantize", {"data": DATA})
    array = X.astype(np.int8) if operation == "dequantize" else X
    answer = api.ok(
        "POST",
        "/instances/default/upload_numpy",
        files={"file": ("x.npy", npy(array))},
        params={"operation": operation},
    )
    assert "successfully" in answer["message"]
    assert (answer["shape"], answer["original_shape"]) == ([2, 3], [2, 3])
    assert answer["dtype"] == ("int8" if operation == "quantize" else "float32")
    assert answer.get("quantization_type") == ("INT8" if operation == "quantize" else None)


@pytest.mark.parametrize(
    ("name", "content", "query"),
    [
        ("x.txt", npy(X), {}),
        ("x.npy", b"junk", {}),
        ("x.npy", npy(X)[:-1], {}),
        ("x.npy", npy(X), {"operation": "zz"}),
        ("x.npy", npy(np.array(["a"])), {}),
    ],
)
def test_upload_of_what_is_no_array(name: str, content: bytes, query: dict[str, str], api: Api) -> None:
    """`400 Bad Request`: If the file is not a .npy file or the operation is invalid"""
    api.fails(400, "POST", "/instances/default/upload_numpy", files={"file": (name, content)}, params=query)


def test_upload_that_cannot_be_processed(api: Api) -> None:
    """`500 Internal Server Error`: If there's an error processing the file"""
    files = {"file": ("x.npy", npy(np.array([np.nan])))}
    detail = api.fails(422, "POST", "/instances/default/upload_numpy", files=files)
    assert detail.startswith("Error processing file: ")
    api.ok("POST", "/instances/default/upload_numpy", files=files, params={"validate": False})


# --- the rest ---


def test_documentation(api: Api) -> None:
    """JSON response containing documentation"""
    found = api.ok("GET", "/documentation")
    assert set(found) == {"title", "description", "version", "endpoints", "examples"}
    described = {(one["method"], one["path"]) for one in found["endpoints"]}
    assert {("POST", "/instances/{instance_id}/quantize"), ("GET", "/instances")} <= described
    for example in found["examples"].values():
        api.ok(example["method"], example["path"], example["body"])


UNKNOWN = (
    "DELETE ; GET /config; PUT /config; POST /quantize; POST /dequantize; POST /quantize_dequantize; POST /calibrate; "
    "POST /compute_params; GET /stats; POST /clear_cache; POST /reset_stats; GET /parameters; POST /parameters; "
    "GET /layer_params/l; POST /upload_numpy"
)


@pytest.mark.parametrize("endpoint", UNKNOWN.split("; "))
def test_an_unknown_instance(endpoint: str, api: Api) -> None:
    """`404 Not Found`: If the instance ID doesn't exist"""
    method, path = endpoint.split(" ")
    options: dict[str, Any] = {}
    if path == "/upload_numpy":
        options["files"] = {"file": ("x.npy", npy(X))}
    elif path == "/calibrate":
        options["json"] = {"data": [DATA]}
    elif path == "/parameters":
        options["json"] = {"parameters": {"global_scale": 1.0}}
    elif method == "PUT":
        options["json"] = {}
    elif "cache" not in path and "stats" not in path:
        options["json"] = {"data": DATA}
    if method in ("GET", "DELETE"):
        options = {}
    detail = api.fails(404, method, f"/instances/nobody{path}", **options)
    assert detail == "Quantizer instance nobody not found"


def test_every_quotation_stands_in_the_seed(shared_dir: Path) -> None:
    seed = " ".join((shared_dir / "seeds" / SEED).read_text(encoding="utf-8").split())
    quotations = [test.__doc__ for name, test in globals().items() if name.startswith("test_") and test.__doc__]
    assert len(quotations) == 37
    assert [text for text in quotations if " ".join(text.split()) not in seed] == []
