"""All protections together, in their order; on a real server, against clients that don't keep to the protocol."""

from __future__ import annotations

import io
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from qi.errors import ConfigError, InputError
from qi.service.admission import Admission
from qi.service.guard import Guard, install
from qi.service.limits import BodyLimits
from qi.service.requests import LOGGER, configure_logging

LIMITS = BodyLimits(max_json_bytes=1000, max_binary_bytes=100_000, timeout=0.3)
READ, WRITE = {"X-API-Key": "r1"}, {"X-API-Key": "w1"}
KEYS = ("read:r1", "write:w1")


def application(**options: object) -> tuple[FastAPI, Guard]:
    app = FastAPI()

    @app.get("/livez")
    async def livez() -> str:
        return "ok"

    @app.get("/instances")
    async def instances() -> list[str]:
        return ["default"]

    @app.post("/instances/{instance_id}/quantize")
    async def quantize(instance_id: str, request: Request) -> int:
        return len(await request.body())

    @app.post("/instances/{instance_id}")
    async def create(instance_id: str, config: dict[str, int]) -> dict[str, int]:
        if not config:
            raise InputError("expected a configuration")
        return config

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError

    return app, install(app, **({"limits": LIMITS} | options))  # type: ignore[arg-type]


def client_of(host: str = "127.0.0.1", **options: object) -> TestClient:
    return TestClient(application(**options)[0], client=(host, 1))


def test_everything_answers_as_before_within_the_limits() -> None:
    client = client_of()
    assert client.get("/instances").json() == ["default"]
    assert client.post("/instances/a", json={"x": 1}).json() == {"x": 1}
    assert client.post("/instances/a/quantize", content=b"abc").json() == 3


@pytest.mark.parametrize(
    ("call", "status", "code"),
    [
        (lambda c: c.get("/nowhere"), 404, "not-found"),
        (lambda c: c.get("/broken"), 500, "internal-server-error"),
        (lambda c: c.post("/instances/a", json={}), 422, "invalid"),
        (lambda c: c.post("/instances/a", json=[]), 422, "invalid-request"),
        (lambda c: c.get("/instances", headers={"Host": "evil.example"}), 400, "unknown-host"),
        (lambda c: c.post("/instances/a/quantize", headers={"Origin": "http://evil.example"}), 403, "cross-site"),
        (lambda c: c.post("/instances/a/quantize", content=b"x" * 1001), 413, "body-too-large"),
        (lambda c: c.post("/instances/a", content=b'{"a": "' + b"x" * 1001), 413, "body-too-large"),
        (
            lambda c: c.post("/instances/a/quantize", content=b"x", headers={"Content-Encoding": "gzip"}),
            415,
            "content-encoding",
        ),
        (lambda c: c.get("/instances", headers={"X-Forwarded-For": "10.0.0.5"}), 403, "not-local"),
        (lambda c: c.get("/instances", headers={f"X-{i}": "a" for i in range(201)}), 431, "head-too-large"),
        (
            lambda c: c.post("/instances/a", content=b"x", headers={"Transfer-Encoding": "gzip, chunked"}),
            400,
            "transfer-encoding",
        ),
    ],
)
def test_every_error_is_a_problem_with_an_id(call: Callable, status: int, code: str) -> None:  # type: ignore[type-arg]
    answer = call(client_of())
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/v1/health/ready", "/v2/health/live"])
def test_probes_of_other_machines_need_no_key(path: str) -> None:
    for client in (client_of("10.0.0.5"), client_of("10.0.0.5", api_keys=["k"])):
        assert client.get(path).status_code != 403
        assert client.get(path).status_code != 401


@pytest.mark.parametrize("path", ["/", "/instances", "/metrics", "/docs", "/openapi.json", "/livez/", "/health/x"])
def test_without_keys_other_machines_get_nothing(path: str) -> None:
    answer = client_of("10.0.0.5").get(path)
    assert (answer.status_code, answer.json()["code"]) == (403, "not-local")
    assert client_of("10.0.0.5", allow_anonymous=True).get(path).status_code in (200, 404)


def test_keys_have_scopes() -> None:
    client = client_of("10.0.0.5", api_keys=KEYS)
    assert client.get("/livez").status_code == 200
    assert client.get("/instances").status_code == 401
    assert client.get("/metrics").status_code == 401
    assert client.get("/openapi.json").status_code == 401
    assert client.get("/instances", headers=READ).status_code == 200
    assert client.post("/instances/a/quantize", content=b"1", headers=READ).status_code == 200
    assert client.post("/instances/a", json={"x": 1}, headers=READ).status_code == 403
    assert client.post("/instances/a", json={"x": 1}, headers=WRITE).status_code == 200


def test_the_body_of_who_may_not_ask_is_not_read() -> None:
    app, guard = application(api_keys=KEYS, admission=Admission(memory_budget=10))
    answer = TestClient(app).post("/instances/a/quantize", content=b"x" * 999)
    assert answer.status_code == 401
    assert b"qi_bytes_in_total 0.0" in guard.metrics.text()


def test_pages_of_named_origins_need_their_key_and_see_their_errors() -> None:
    client = client_of(api_keys=KEYS, cors_origins=["https://app.example"])
    page = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    assert client.options("/instances/a", headers=page | asked).status_code == 200
    for headers, status in ((page | WRITE, 200), (page, 401)):
        answer = client.post("/instances/a", json={"x": 1}, headers=headers)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert (
        client.post("/instances/a", json={"x": 1}, headers=WRITE | {"Origin": "https://b.example"}).status_code == 403
    )


def test_without_origins_no_page_sees_an_answer() -> None:
    answer = client_of().get("/instances", headers={"Origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_legacy_errors() -> None:
    assert client_of(legacy_errors=True).post("/instances/a", json={}).status_code == 500


def test_metrics_are_a_setting() -> None:
    assert b"qi_queue_depth 0.0" in client_of().get("/metrics").content
    assert client_of(metrics=False).get("/metrics").status_code == 404


@pytest.mark.parametrize("options", [{"api_keys": [""]}, {"cors_origins": ["x"]}])
def test_settings_that_can_t_be_read_are_refused_at_once(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        application(**options)


def test_a_refused_request_is_logged_and_counted() -> None:
    logger, stream = logging.getLogger(LOGGER), io.StringIO()
    before = logger.handlers[:], logger.level, logger.propagate
    app, guard = application()
    try:
        configure_logging("json", stream=stream)
        TestClient(app, client=("10.0.0.5", 1)).get("/instances?key=secret", headers={"X-API-Key": "secret"})
    finally:
        logger.handlers[:], logger.propagate = before[0], before[2]
        logger.setLevel(before[1])
    assert '"status": 403' in stream.getvalue()
    assert "secret" not in stream.getvalue()
    assert b'qi_rejected_total{reason="not-local"} 1.0' in guard.metrics.text()


@dataclass
class Live:
    """A server on a free port."""

    port: int

    def connect(self) -> socket.socket:
        """A connection to it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def send(self, *pieces: bytes, close: bool = False) -> bytes:
        """The answer to some bytes, the first one."""
        with self.connect() as connection:
            for piece in pieces:
                connection.sendall(piece)
            if close:
                connection.shutdown(socket.SHUT_WR)
            return answer_on(connection)


def answer_on(connection: socket.socket) -> bytes:
    """Reads one answer, or what there is until the server closes the connection."""
    received = b""
    while b"\r\n\r\n" not in received and (more := connection.recv(65536)):
        received += more
    head, _, body = received.partition(b"\r\n\r\n")
    length = next((int(h[16:]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length: ")), 0)
    while len(body) < length and (more := connection.recv(65536)):
        body += more
    return head + b"\r\n\r\n" + body


@pytest.fixture(scope="module", params=["h11", "httptools"])
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    pytest.importorskip(request.param)
    patched = pytest.MonkeyPatch()
    patched.setattr("qi.service.limits._LINGER_SECONDS", 0.1)
    app, guard = application()
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=request.param, ws="none", lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield Live(listening.getsockname()[1])
    server.should_exit = True
    thread.join()
    patched.undo()
    assert (guard.admission.memory, guard.admission.in_flight) == (0, 0)  # nobody took anything along


def post(*headers: str) -> bytes:
    lines = ["POST /instances/a/quantize HTTP/1.1", "Host: localhost", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


CHUNKED = "Transfer-Encoding: chunked"
CASES = {
    "a body": ([post("Content-Length: 3"), b"abc"], 200, ""),
    "a body in pieces": ([post("Content-Length: 3"), b"a", b"bc"], 200, ""),
    "chunks": ([post(CHUNKED), b"3\r\nabc\r\n0\r\n\r\n"], 200, ""),
    "declared too long": ([post("Content-Length: 1001")], 413, "body-too-large"),
    "declared endless": ([post("Content-Length: 999999999999")], 413, "body-too-large"),
    "too long": ([post("Content-Length: 1001"), b"x" * 1001], 413, "body-too-large"),
    "chunks too long": ([post(CHUNKED), b"400\r\n" + b"x" * 1024 + b"\r\n0\r\n\r\n"], 413, "body-too-large"),
    "chunks without an end": ([post(CHUNKED), b"400\r\n" + b"x" * 1024 + b"\r\n"], 413, "body-too-large"),
    "no body": ([post("Content-Length: 9")], 408, "body-timeout"),
    "half a body": ([post("Content-Length: 9"), b"1234"], 408, "body-timeout"),
    "half a chunk": ([post(CHUNKED), b"9\r\n1234"], 408, "body-timeout"),
    "waits for a word": ([post("Content-Length: 5000", "Expect: 100-continue")], 413, "body-too-large"),
    "gzip": ([post("Content-Length: 3", "Content-Encoding: gzip"), b"abc"], 415, "content-encoding"),
    "two lengths": ([post("Content-Length: 3", "Content-Length: 4"), b"abc"], 400, ""),
    "both lengths": ([post("Content-Length: 3", CHUNKED), b"0\r\n\r\n"], 400, ""),
    "negative length": ([post("Content-Length: -3"), b"abc"], 400, ""),
    "no chunk size": ([post(CHUNKED), b"zz\r\nabc\r\n"], 400, ""),
    "no host": ([b"POST /instances/a/quantize HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc"], 400, "unknown-host"),
    "no HTTP": ([b"hello\r\n\r\n"], 400, ""),
}


@pytest.mark.parametrize("name", CASES)
def test_clients_that_break_the_rules_get_an_answer(live: Live, name: str) -> None:
    pieces, status, code = CASES[name]
    answer = live.send(*pieces)
    assert answer.startswith((f"HTTP/1.1 {status} ".encode(), f"HTTP/1.0 {status} ".encode()))
    assert f'"code":"{code}"'.encode() in answer or not code


def test_a_client_that_leaves_disturbs_nobody(live: Live) -> None:
    live.send(post("Content-Length: 9") + b"1234", close=True)
    assert live.send(post("Content-Length: 3"), b"abc").endswith(b"\r\n\r\n3")


def test_a_refused_body_leaves_the_connection_usable(live: Live) -> None:
    with live.connect() as connection:
        connection.sendall(post("Content-Length: 1001") + b"x" * 1001)
        assert b" 413 " in answer_on(connection)
        connection.sendall(post("Content-Length: 3") + b"abc")
        assert answer_on(connection).startswith(b"HTTP/1.1 200 ")


def test_with_keys_prometheus_asks_a_pod_by_its_address() -> None:
    pod = {"Host": "10.1.2.3:8000"}
    client = client_of("10.0.0.5", api_keys=KEYS)
    assert client.get("/metrics", headers=pod | READ).status_code == 200
    assert client.get("/metrics", headers=pod).status_code == 401
    assert client.get("/instances", headers=pod | READ).status_code == 400
    for options in ({}, {"allow_anonymous": True}):
        assert client_of(**options).get("/metrics", headers=pod).json()["code"] == "unknown-host"


def test_a_refused_request_counts_for_the_route_that_it_asked_for() -> None:
    app, guard = application(api_keys=KEYS)
    client = TestClient(app)
    client.post("/instances/a/quantize", content=b"1")
    client.post("/instances/a/quantize", content=b"x" * 1001, headers=READ)
    client.get("/instances/a/secret")
    text = guard.metrics.text()
    for status in (b"401", b"413"):
        assert b'method="POST",route="/instances/{instance_id}/quantize",status="%s"} 1.0' % status in text
    assert b'method="GET",route="unmatched",status="401"} 1.0' in text
    assert b"secret" not in text
