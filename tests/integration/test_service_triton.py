"""Triton's own client, unchanged, finds every instance as a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from qi.engine import QuantizationConfig, Quantizer
from qi.service.app import create_app
from qi.service.settings import Settings
from tests.service.live import serving

triton = pytest.importorskip("tritonclient.http")
X = np.random.default_rng(0).normal(size=(64, 100)).astype(np.float32)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    app = create_app(Settings(store="memory"))
    app.state.service.instances.create("channels", QuantizationConfig(per_channel=True, symmetric=False))
    with serving(app) as url:
        client = triton.InferenceServerClient(url.removeprefix("http://"))
        yield client
        client.close()


def given(name: str, array: np.ndarray, kind: str, *, binary: bool = True) -> Any:
    found = triton.InferInput(name, list(array.shape), kind)
    found.set_data_from_numpy(array, binary_data=binary)
    return found


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("channels")
    assert not client.is_model_ready("nobody")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert [output["name"] for output in client.get_model_metadata("channels")["outputs"]] == [
        "q",
        "scale",
        "zero_point",
    ]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("model", ["default", "channels"])
def test_codes_and_back(client: Any, model: str, binary: bool) -> None:
    quantizer = Quantizer(QuantizationConfig(per_channel=model == "channels", symmetric=False))
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("q", "scale", "zero_point")]
    result = client.infer(model, [given("x", X, "FP32", binary=binary)], outputs=wanted, request_id="7")
    codes, scale, zero_point = (result.as_numpy(name) for name in ("q", "scale", "zero_point"))
    assert result.get_response()["id"] == "7"
    assert np.array_equal(codes, quantizer.quantize(X))
    inputs = [given("q", codes, "INT8"), given("scale", scale, "FP32"), given("zero_point", zero_point, "INT32")]
    back = client.infer(model, inputs, parameters={"operation": "dequantize"})
    assert np.array_equal(back.as_numpy("y"), quantizer.dequantize(codes))


def test_errors_are_understood(client: Any) -> None:
    x = given("x", X, "FP32")
    with pytest.raises(triton.InferenceServerException, match=r"\[404\] .*nobody"):
        client.infer("nobody", [x])
    with pytest.raises(triton.InferenceServerException, match=r"\[400\] expected operation"):
        client.infer("default", [x], parameters={"operation": "guess"})
    with pytest.raises(triton.InferenceServerException, match=r"\[415\] expected a body without Content-Encoding"):
        client.infer("default", [x], request_compression_algorithm="gzip")
