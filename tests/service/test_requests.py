"""Request ids and the log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
from fastapi import APIRouter, FastAPI
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from qi.service.requests import LOGGER, AccessLog, Exchange, Requests, Templates, configure_logging, logged
from tests.service.asgi import ask, exchange, messages, ok, scope_for


class Seen:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.ended: list[Exchange] = []

    def begin(self, exchange: Exchange) -> None:
        self.began.append(exchange.request_id)

    def end(self, exchange: Exchange) -> None:
        self.ended.append(exchange)


@pytest.fixture
def logs() -> Iterator[io.StringIO]:
    logger = logging.getLogger(LOGGER)
    before = logger.handlers[:], logger.level, logger.propagate
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    yield stream
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


def record(stream: io.StringIO) -> dict[str, object]:
    (line,) = stream.getvalue().splitlines()
    return json.loads(line)  # type: ignore[no-any-return]


@pytest.mark.parametrize("given", ["abc", "A-1_2.3", "x" * 128])
def test_the_client_s_id_is_kept(given: str) -> None:
    assert ask(Requests(ok), headers={"X-Request-ID": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\nb", "<script>", "\xe9", "a,b"])
def test_other_ids_are_replaced(given: str) -> None:
    first, second = (ask(Requests(ok), headers={"X-Request-ID": given}).headers["x-request-id"] for _ in range(2))
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert first != second


def test_the_application_knows_the_id() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse(scope["state"]["request_id"], headers={"X-Request-ID": "own"})(scope, receive, send)

    answer = ask(Requests(app), headers={"X-Request-ID": "abc"})
    assert (answer.body, answer.headers["x-request-id"]) == (b"abc", "abc")


def test_observers_see_the_beginning_and_the_end() -> None:
    seen = Seen()
    answer = ask(Requests(ok, [seen]), "POST", "/", body=messages(b"abc", b"de"))
    (ended,) = seen.ended
    assert seen.began == [ended.request_id] == [answer.headers["x-request-id"]]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert (ended.status, ended.bytes_in, ended.bytes_out, ended.method, ended.problem) == (200, 5, 1, "POST", "")
    assert ended.seconds > 0


def test_an_error_is_500_with_the_id_and_its_place_but_not_its_text(logs: io.StringIO) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError("secret data")

    answer = ask(Requests(app, [AccessLog()]))
    assert (answer.status, answer.code) == (500, "internal-server-error")
    assert answer.headers["x-request-id"] in answer.body.decode()
    line = record(logs)
    assert line["error"] == "ValueError"
    assert line["level"] == "ERROR"
    assert re.fullmatch(r"test_requests\.py:\d+ app", line["at"][-1])  # type: ignore[index]
    assert "secret" not in logs.getvalue() + answer.body.decode()


def test_an_error_in_the_middle_of_an_answer_is_logged(logs: io.StringIO) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half"})
        raise KeyError

    ask(Requests(app, [AccessLog()]))
    assert (record(logs)["status"], record(logs)["error"]) == (200, "KeyError")


def test_a_client_that_leaves_is_no_error(logs: io.StringIO) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ClientDisconnect

    sent: list[object] = []
    asyncio.run(Requests(app, [AccessLog()])(scope_for(), None, sent.append))  # type: ignore[arg-type]
    assert not sent
    assert (record(logs)["status"], record(logs)["level"]) == (499, "INFO")


def test_observers_see_the_end_of_what_is_cancelled() -> None:
    async def work() -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            started.set()
            await asyncio.Event().wait()

        started, seen = asyncio.Event(), Seen()
        call = asyncio.create_task(exchange(Requests(app, [seen]), scope_for()))
        await started.wait()
        call.cancel()
        await asyncio.wait({call})
        assert len(seen.ended) == 1

    asyncio.run(work())


def test_a_record_has_templates_and_numbers_and_nothing_of_the_client(logs: io.StringIO) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["path_params"] = {"instance_id": "mine"}
        scope["state"]["route"] = "/instances/{instance_id}/quantize"
        await ok(scope, receive, send)

    headers = {"X-API-Key": "k-secret", "Authorization": "Bearer k-secret", "X-Request-ID": "r1"}
    path = "/instances/mine/quantize"
    observed = Requests(app, [AccessLog()])
    assert ask(observed, "POST", path, headers, body=messages(b"d-secret"), query_string=b"q=secret").status == 200
    line = record(logs)
    assert {k: line[k] for k in ("request_id", "method", "route", "status", "bytes_in", "instance", "logger")} == {
        "request_id": "r1",
        "method": "POST",
        "route": "/instances/{instance_id}/quantize",
        "status": 200,
        "bytes_in": 8,
        "instance": "mine",
        "logger": "qi.service.access",
    }
    assert float(line["ms"]) > 0  # type: ignore[arg-type]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line["time"]))
    assert "secret" not in logs.getvalue()


@pytest.mark.parametrize("name", ["a b\n", "a\x1b[31m", "x" * 129, "../x"])
def test_names_that_are_none_are_not_logged(logs: io.StringIO, name: str) -> None:
    ask(Requests(ok, [AccessLog()]), "GET", f"/{name}", path_params={"instance_id": name})
    assert record(logs)["instance"] == "?"


def test_strange_methods_and_paths_get_one_label() -> None:
    seen = Seen()
    ask(Requests(ok, [seen]), "BREW\n", "/x y\n")
    assert (seen.ended[0].method, seen.ended[0].route, seen.ended[0].instance) == ("OTHER", "unmatched", "")


def test_the_console_has_one_line_for_a_record() -> None:
    stream = io.StringIO()
    logger = logging.getLogger(LOGGER)
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        configure_logging("json", stream=io.StringIO())
        handler = configure_logging("console", stream=stream)
        assert [h for h in logger.handlers if h not in before[0]] == [handler]
        logger.info("two\nlines %s", "é", extra={"fields": {"a": 1, "at": ["x y"], "b": "c d"}})
        logger.debug("too unimportant")
    finally:
        logger.handlers[:], logger.propagate = before[0], before[2]
        logger.setLevel(before[1])
    (line,) = stream.getvalue().splitlines()
    assert re.fullmatch(r'\S+Z INFO two\\nlines \\xe9 a=1 at=\["x y"\] b="c d"', line)


def test_start_and_stop_pass() -> None:
    passed = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["type"])

    asyncio.run(Requests(app)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert passed == ["lifespan"]


def test_a_service_that_stops_tells_clients_to_connect_anew() -> None:
    draining = False
    app = Requests(ok, draining=lambda: draining)
    assert "connection" not in ask(app).headers
    draining = True
    assert ask(app).headers["connection"] == "close"
    assert "connection" not in ask(app, http_version="2").headers


def test_the_log_is_visible_for_a_while(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger(LOGGER)
    before = (list(logger.handlers), logger.level, logger.propagate)
    with logged("json"):
        ask(Requests(ok, [AccessLog()]))
        with logged("console"):  # somebody has seen to it
            ask(Requests(ok, [AccessLog()]))
    assert (list(logger.handlers), logger.level, logger.propagate) == before
    records = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [record["status"] for record in records] == [200, 200]


def test_templates_are_those_of_the_method_where_there_is_one() -> None:
    app, router = FastAPI(openapi_url=None), APIRouter()
    for method, path in (("GET", "/a/{one}"), ("PUT", "/a/{other}")):
        router.add_api_route(path, lambda: None, methods=[method])
    app.include_router(router)
    templates = Templates(app.routes)
    asked = [("GET", "/a/x"), ("PUT", "/a/x"), ("DELETE", "/a/x"), ("GET", "/a/x/y"), ("BREW", "/b")]
    found = [templates.find(scope_for(method, path)) for method, path in asked]
    assert found == ["/a/{one}", "/a/{other}", "/a/{one}", "", ""]
    assert templates.find(scope_for("PUT", "/api/a/x", root_path="/api")) == "/a/{other}"
