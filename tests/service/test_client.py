"""The client against a real server: every endpoint, with the numbers that the engine gives in this process."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from qi.engine import QuantizationConfig, Quantizer
from qi.errors import ConfigError, InputError, NotCalibratedError
from qi.service.app import create_app
from qi.service.client import (
    AccessError,
    Backoff,
    BadRequestError,
    Client,
    ConflictError,
    NotFoundError,
    NotReadyError,
    UnreachableError,
)
from qi.service.settings import Settings
from tests.service.live import serving

X = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
CONFIGS = {
    "symmetric": QuantizationConfig(),
    "channels": QuantizationConfig(per_channel=True, symmetric=False),
    "unsigned": QuantizationConfig(quantization_type="uint4", symmetric=False),
    "wide": QuantizationConfig(quantization_type="int16"),
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(create_app(Settings(store="memory", api_keys="", max_json_bytes=200_000))) as url:
        with Client(url) as client:
            for name, config in CONFIGS.items():
                client.create(name, config)
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, timeout=30) as client:
        yield client


@pytest.fixture
def own(client: Client, request: pytest.FixtureRequest) -> Iterator[str]:
    """An instance that nobody else uses."""
    name = request.node.name.translate(str.maketrans("[]", ".."))
    client.create(name)
    yield name
    client.delete(name)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("channel_dim", [None, 1])
def test_quantize_gives_what_the_engine_gives(client: Client, name: str, channel_dim: int | None) -> None:
    config = CONFIGS[name]
    dim = channel_dim if config.per_channel else None
    tensor = Quantizer(config).quantize(X, channel_dim=dim, return_tensor=True)
    found = client.quantize(X, instance=name, channel_dim=dim, return_tensor=True)
    assert found.qparams == tensor.qparams
    assert np.array_equal(found.codes, tensor.codes)
    codes = client.quantize(X, instance=name, channel_dim=dim)
    assert codes.dtype == tensor.codes.dtype
    assert np.array_equal(codes, tensor.codes)
    numbers = tensor.dequantize()
    assert np.array_equal(client.dequantize(codes, instance=name), numbers)
    assert np.array_equal(client.quantize_dequantize(X, instance=name, channel_dim=dim), numbers)
    client.quantize(7 * X, instance=name)
    assert np.array_equal(client.dequantize(found, instance=name), numbers), "its own parameters, not the latest"


@pytest.mark.parametrize(
    "data",
    [
        np.asfortranarray(X),
        X.astype(">f8"),
        X[::2, ::-3],
        np.float16(X),
        np.arange(-5, 5),
        np.float32(3.5),
        np.zeros((0, 4), np.float32),
        [[1.5, 2.5], [-3.0, 4.0]],
    ],
)
def test_arrays_of_every_kind_arrive(client: Client, data: np.ndarray) -> None:
    expected = Quantizer(QuantizationConfig(symmetric=False)).quantize(data, validate=False)
    assert np.array_equal(client.quantize(data), expected)


def test_thousands_of_scales_come_back(client: Client) -> None:
    many = np.random.default_rng(1).normal(size=(5000, 3)).astype(np.float32)
    tensor = client.quantize(many, instance="channels", return_tensor=True)
    assert tensor.qparams == Quantizer(CONFIGS["channels"]).quantize(many, return_tensor=True).qparams


def test_codes_that_came_can_be_written_to(client: Client) -> None:
    codes = client.quantize(X)
    codes[0] = 0
    assert client.dequantize(codes).shape == X.shape


def test_options_arrive(client: Client, own: str) -> None:
    config = {"enable_mixed_precision": True, "mixed_precision_layers": ["a/b"], "skip_layers": ["skip"]}
    client.update_config(config, instance=own)
    assert client.quantize(X, instance=own, layer_name="a/b").dtype == np.int16
    assert client.layer_params("a/b", instance=own) == {"bits": 16, "type": "INT16", "skip": False}
    assert np.array_equal(client.quantize(X, instance=own, layer_name="skip"), X)
    bad = np.float32([1, np.nan])
    with pytest.raises(InputError, match="NaN"):
        client.quantize(bad, instance=own)
    assert client.quantize(bad, instance=own, validate=False).shape == (2,)
    codes = client.quantize(X, instance=own)
    client.quantize(9 * X, instance=own, remember=False)
    assert np.abs(client.dequantize(codes, instance=own) - X).max() < 0.1


@pytest.mark.parametrize("arrays", [[X], [X, 2 * X], [X, 2 * X[:3]], [X[0], X[1]], X, [X.reshape(2, 3, 50), 3 * X]])
def test_calibrate(client: Client, own: str, arrays: Any) -> None:
    quantizer = Quantizer(QuantizationConfig(symmetric=False))
    quantizer.calibrate(arrays)
    found = client.calibrate(arrays, instance=own)
    assert (found["scale"], found["zero_point"]) == (quantizer.scale, quantizer.zero_point)
    assert client.config(own)["quantization_mode"] == "CALIBRATED"
    assert np.array_equal(client.quantize(3 * X, instance=own), quantizer.quantize(3 * X))


@pytest.mark.parametrize(
    ("arrays", "channel_dim"),
    [
        ([X, 2 * X], 0),
        ([X, 2 * X], 1),
        ([X], 1),
        ([X.reshape(2, 3, 50)], 1),
        ([X.reshape(2, 3, 50), -X.reshape(2, 3, 50)], 0),
        ([X.reshape(2, 3, 5, 10)], -1),
        ([X[:, :4], X], 0),
        ([X[0]], 0),
    ],
)
def test_calibrate_channels(client: Client, own: str, arrays: list[np.ndarray], channel_dim: int) -> None:
    """What has channels in the engine has the same in the service, whatever the arrays are sent as."""
    client.update_config(CONFIGS["channels"], instance=own)
    quantizer = Quantizer(CONFIGS["channels"])
    quantizer.calibrate(arrays, channel_dim)
    found = client.calibrate(arrays, instance=own, channel_dim=channel_dim)
    assert found["scales"] == list(quantizer.export_parameters()["per_channel_scales"].values())
    assert found["channel_dim"] == channel_dim


def test_parameters_go_from_one_quantizer_to_another(client: Client, own: str) -> None:
    quantizer = Quantizer(CONFIGS["symmetric"])
    quantizer.calibrate([X])
    client.load_parameters(quantizer.export_parameters(), instance=own)
    assert np.array_equal(client.quantize(X, instance=own), quantizer.quantize(X))
    back = Quantizer()
    back.load_parameters(client.export_parameters(instance=own))
    assert back.scale == quantizer.scale


def test_compute_params(client: Client) -> None:
    quantizer = Quantizer(QuantizationConfig(symmetric=False))
    assert client.compute_params(X) == quantizer.compute_scale_and_zero_point(X)
    assert client.compute_params(X, channel_idx=2) == quantizer.compute_scale_and_zero_point(X, 2)


def test_bfloat16(client: Client, own: str) -> None:
    x = X.astype(ml_dtypes.bfloat16)
    quantizer = Quantizer(QuantizationConfig(symmetric=False))
    assert np.array_equal(client.quantize(x), quantizer.quantize(x))
    assert client.compute_params(x) == quantizer.compute_scale_and_zero_point(x)
    quantizer.calibrate([x, x[:2]])
    assert client.calibrate([x, x[:2]], instance=own)["scale"] == quantizer.scale


def test_instances_come_and_go(client: Client) -> None:
    client.create("short-lived", {"num_bits": 4})
    assert client.instances()[0] == "default"
    assert "short-lived" in client.instances()
    assert client.config("short-lived")["num_bits"] == 4
    with pytest.raises(ConflictError, match="short-lived"):
        client.create("short-lived")
    client.delete("short-lived")
    assert "short-lived" not in client.instances()
    for call in (client.delete, client.config, client.revision):
        with pytest.raises(NotFoundError, match="short-lived"):
            call("short-lived")


def test_a_revision_that_is_no_more_is_refused(client: Client, own: str) -> None:
    revision = client.revision(own)
    client.update_config({"symmetric": True}, instance=own, partial=True, revision=revision)
    assert client.revision(own) > revision
    for change in (
        lambda: client.update_config({}, instance=own, revision=revision),
        lambda: client.calibrate([X], instance=own, revision=revision),
        lambda: client.load_parameters(Quantizer().export_parameters(), instance=own, revision=revision),
        lambda: client.delete(own, revision=revision),
    ):
        with pytest.raises(ConflictError, match="HTTP 412"):
            change()
    assert client.config(own)["symmetric"] is True
    client.update_config({"num_bits": 6}, instance=own)
    assert client.config(own)["symmetric"] is False


def test_statistics(client: Client, own: str) -> None:
    client.quantize(X, instance=own)
    assert client.stats(instance=own)["total_values"] == X.size
    client.reset_stats(instance=own)
    assert client.stats(instance=own)["quantize_calls"] == 0
    client.clear_cache(instance=own)


def test_upload(client: Client, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    told = client.upload_numpy(tmp_path / "x.npy", "quantize_dequantize", validate=False)
    assert (told["shape"], told["dtype"]) == ([6, 50], "float32")
    (tmp_path / "x.npy").write_bytes(b"none")
    with pytest.raises(BadRequestError, match="HTTP 400"):
        client.upload_numpy(tmp_path / "x.npy")


def test_health(client: Client) -> None:
    assert client.health() == {"status": "healthy", "service": "Quantizer API"}
    assert client.ready()
    assert client.documentation()["title"] == "Quantizer API"


def test_a_service_that_isnt_there_isnt_ready() -> None:
    with serving(create_app(Settings(store="memory"))) as url:
        pass
    with Client(url, backoff=Backoff(tries=1)) as client:
        assert not client.ready()
        with pytest.raises(UnreachableError, match="expected an answer"):
            client.quantize(X)


def test_refusals_are_the_engines_errors(client: Client, own: str) -> None:
    client.update_config({"quantization_mode": "CALIBRATED"}, instance=own)
    with pytest.raises(NotCalibratedError, match="calibrate") as caught:
        client.quantize(X, instance=own)
    assert isinstance(caught.value, NotReadyError)
    with pytest.raises(BadRequestError, match="num_bits") as invalid:
        client.create("impossible", {"num_bits": 99})
    assert (invalid.value.status, invalid.value.code) == (422, "invalid-request")
    assert invalid.value.request_id
    with pytest.raises(AccessError, match="default"):
        client.delete("default")
    client.update_config({"quantization_type": "FLOAT16"}, instance=own)
    with pytest.raises(ConfigError, match="float16"):
        client.quantize(X, instance=own, return_tensor=True)


def test_a_body_beyond_the_limit_is_refused(client: Client) -> None:
    with pytest.raises(BadRequestError, match="HTTP 413"):
        client.calibrate([np.ones(100_000), np.ones(10)])


class Nobody:
    """A connection that notes what it is asked, and whether that may be repeated."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bool]] = []

    def call(self, method: str, path: str, *args: object, repeatable: bool = True) -> None:
        self.seen.append((method, path, repeatable))
        raise UnreachableError("nobody")


@pytest.mark.parametrize(
    ("call", "seen"),
    [
        (lambda c: c.quantize(X), ("POST", "/v2/models/default/infer", True)),
        (lambda c: c.dequantize([1], instance="a"), ("POST", "/v2/models/a/infer", True)),
        (lambda c: c.calibrate([X], channel_dim=1), ("POST", "/instances/default/calibrate?channel_dim=1", True)),
        (lambda c: c.calibrate([X], revision=1), ("POST", "/instances/default/calibrate", False)),
        (lambda c: c.update_config({}), ("PUT", "/instances/default/config", True)),
        (lambda c: c.update_config({}, partial=True, revision=1), ("PATCH", "/instances/default/config", False)),
        (lambda c: c.create("a"), ("POST", "/instances/a", False)),
        (lambda c: c.delete("a"), ("DELETE", "/instances/a", False)),
        (lambda c: c.load_parameters({}), ("POST", "/instances/default/parameters", True)),
        (lambda c: c.stats(), ("GET", "/instances/default/stats", True)),
        (lambda c: c.layer_params("a/b?"), ("GET", "/instances/default/layer_params/a%2Fb%3F", True)),
    ],
)
def test_only_what_may_be_done_twice_is_repeated(call: Callable[[Client], object], seen: tuple[str, str, bool]) -> None:
    client, nobody = Client(), Nobody()
    client._connection = nobody  # type: ignore[assignment]
    with pytest.raises(UnreachableError):
        call(client)
    assert nobody.seen == [seen]


def test_keys() -> None:
    with serving(create_app(Settings(store="memory", api_keys="read:look, write:change"))) as url:
        with Client(url) as client, pytest.raises(AccessError) as caught:
            client.instances()
        assert caught.value.status == 401
        with Client(url, api_key="look") as client:
            assert client.quantize(X).shape == X.shape
            with pytest.raises(AccessError, match="HTTP 403"):
                client.create("b")
            assert "look" not in repr(client)
        with Client(url, api_key="change") as client:
            client.create("b")


def test_threads_share_a_client(client: Client) -> None:
    expected = [Quantizer(QuantizationConfig(symmetric=False)).quantize(n * X) for n in range(1, 9)]
    found: dict[int, np.ndarray] = {}

    def work(n: int) -> None:
        found[n] = client.quantize(n * X)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[n], expected[n - 1]) for n in range(1, 9))


def test_the_client_needs_nothing_of_the_server(checkout: Path) -> None:
    code = (
        "import sys, qi.service.client\n"
        "print(sorted({'fastapi', 'starlette', 'pydantic', 'orjson', 'uvicorn', 'keras', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
