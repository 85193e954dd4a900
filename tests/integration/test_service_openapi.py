"""The service against its own OpenAPI document: whatever is sent, answers are as documented, and none is a server error.

Each operation is called with every boundary of its schema and with random data, good and bad; a state machine follows the
document's links. Every test has a server of its own, on a free port, so that no order of tests changes what is generated.

Off are these checks of schemathesis: `ignored_auth` (there are no keys here; `test_who_may_not_ask_is_told_as_documented`
asks it of every operation) and `max_response_time` (machines differ). `positive_data_acceptance` is on where
`tests.service.plausible` has decided what a schema can't say; a quarter of the requests goes out as generated, and every other
check holds for them. `negative_data_rejection` lets unknown options of the query string pass: where no array is worked on
they are ignored, as proxies and browsers add their own.
"""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from requests import Session
from schemathesis.generation.meta import CoverageScenario
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from qi.service import page
from qi.service.app import create_app
from qi.service.client import Client
from qi.service.formats import FORMATS
from qi.service.settings import Settings
from tests.service import plausible
from tests.service.live import serving

EXAMPLES, SEED = 20, 6


def _schema() -> Any:
    config = schemathesis.Config(seed=SEED)
    config.projects.default.generation.update(deterministic=True, max_examples=EXAMPLES)
    # Nothing but the document decides what is generated: neither answers to earlier tests nor this library's sources.
    config.projects.default.analysis.constants.enabled = False
    for phase in (config.projects.default.phases.fuzzing, config.projects.default.phases.coverage):
        phase.extra_data_sources.responses = False
    config.projects.default.phases.fuzzing.error_feedback.is_enabled = False
    for name in FORMATS.names():
        schemathesis.openapi.media_type(name, st.binary())
    schemathesis.openapi.media_type("application/octet-stream", st.binary())
    return schemathesis.openapi.from_dict(create_app(Settings(store="memory")).openapi(), config=config)


schema = _schema()


class Server:
    """A running service with instances of many kinds, and what it answered."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.session = Session()
        self.answered: Counter[tuple[str, int]] = Counter()

    def send(self, case: Any) -> None:
        """Sends a request, half of them below /v1, and checks the answer."""
        pick = self.pick(case)
        more, excluded = {}, []
        if getattr(case.meta.phase.data, "scenario", None) is CoverageScenario.OBJECT_UNEXPECTED_PROPERTIES:
            excluded = [negative_data_rejection]
        if pick.random() < 0.75:
            more = plausible.mend(case, pick)
        else:
            excluded.append(positive_data_acceptance)
        prefix = "/v1" if not case.path.startswith("/v2") and pick.random() < 0.5 else ""
        response = self.call(case, prefix, **more)
        case.validate_response(response, excluded_checks=excluded, transport_kwargs={"session": self.session})

    def call(self, case: Any, prefix: str = "", **more: Any) -> Any:
        """The answer to a request."""
        response = case.call(self.url + prefix, self.session, timeout=30, **more)
        self.answered[case.operation.label, response.status_code] += 1
        return response

    def pick(self, case: Any) -> random.Random:
        """Numbers that follow from a request."""
        found = (case.method, case.path, case.path_parameters, case.query, case.body)
        return random.Random(zlib.crc32(repr(found).encode()))

    def accepted(self) -> set[str]:
        """Operations that have done what they were asked for."""
        return {label for label, status in self.answered if status == 200}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(create_app(Settings(store="memory"))) as url:
        with Client(url) as client:
            for name, settings in plausible.INSTANCES.items():
                client.create(name, settings)
        found = Server(url)
        yield found
        found.session.close()


@pytest.fixture
def useful(server: Server) -> Iterator[Server]:
    """One that must have done what it was asked for at least once."""
    yield server
    assert server.accepted()


@schema.parametrize()
@hypothesis.settings(suppress_health_check=list(hypothesis.HealthCheck))
def test_every_operation(case: Any, useful: Server) -> None:
    useful.send(case)


def test_links(server: Server) -> None:
    """What the document links can be done one after the other, to the end of an instance's life."""

    class Workflow(schema.as_state_machine()):  # type: ignore[misc]
        def setup(self) -> None:
            for name in server.session.get(f"{server.url}/instances").json()[1:]:
                server.session.delete(f"{server.url}/instances/{name}")
            server.session.put(f"{server.url}/instances/default/config", json={})

        def call(self, case: Any, **kwargs: Any) -> Any:
            pick = server.pick(case)
            more = plausible.mend(case, pick, paths=case.operation.label == "POST /instances/{instance_id}")
            return server.call(case, **more)

        def validate_response(self, response: Any, case: Any, **kwargs: Any) -> None:
            # What was created decides: halves can't be calibrated.
            case.validate_response(response, excluded_checks=[positive_data_acceptance], recorder=self.recorder)

    Workflow.run(
        settings=hypothesis.settings(
            max_examples=EXAMPLES, stateful_step_count=12, derandomize=True, database=None, deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
    )  # fmt: skip
    assert {label.replace("{instance_id}", "x") for label in server.accepted()} >= {
        "POST /instances/x", "PUT /instances/x/config", "POST /instances/x/quantize", "POST /instances/x/calibrate",
        "GET /instances/x/parameters", "DELETE /instances/x",
    }  # fmt: skip


def _operations() -> list[tuple[str, str, dict[str, Any]]]:
    """(method, path, what is documented) of every operation."""
    paths = schema.raw_schema["paths"]
    return [(method.upper(), path, found) for path, methods in paths.items() for method, found in methods.items()]


def _documented(response: Any, operation: dict[str, Any]) -> bool:
    """Whether an answer's status and media type are in the document."""
    found = operation["responses"].get(str(response.status_code), {})
    return response.headers["content-type"].partition(";")[0] in found.get("content", {})


def _path(template: str) -> str:
    return template.replace("{instance_id}", "default").replace("{model}", "default").replace("{layer_name}", "a/b")


@pytest.mark.parametrize("keyed", [True, False])
def test_who_may_not_ask_is_told_as_documented(keyed: bool) -> None:
    """Without its key nobody gets further than the paths that need none; without keys nobody from elsewhere does."""
    keys = [SecretStr("a-key")] if keyed else []
    app = create_app(Settings(store="memory", api_keys=tuple(keys)))
    where = ("127.0.0.1", 1) if keyed else ("192.0.2.1", 1)
    answered = {}
    with TestClient(app, client=where, raise_server_exceptions=False) as client:
        for method, path, operation in _operations():
            response = client.request(method, _path(path))
            answered[method, path] = response.status_code
            assert _documented(response, operation), (method, path, response.status_code, response.headers)
    refused = {asked for asked, status in answered.items() if status == (401 if keyed else 403)}
    assert refused >= {
        (method, path) for method, path, _ in _operations() if path.startswith(("/instances", "/v2/models"))
    }
    assert set(answered.values()) <= {200, 401 if keyed else 403}


@pytest.mark.parametrize("media_type", ["application/json", "application/x-npy"])
def test_too_much_is_told_as_documented(media_type: str) -> None:
    app = create_app(Settings(store="memory", max_json_bytes=1024, max_binary_bytes=1024))
    with TestClient(app, raise_server_exceptions=False) as client:
        for method, path, operation in _operations():
            if "requestBody" not in operation:
                continue
            response = client.request(method, _path(path), content=b"1" * 1025, headers={"Content-Type": media_type})
            assert response.status_code == 413
            assert _documented(response, operation), (method, path)


UNDOCUMENTED = ("/openapi.json", "/docs", "/redoc", "/metrics", *page.PATHS)


def test_pages_for_people_and_machines(server: Server) -> None:
    """What isn't in the document: its own pages, the metrics and the page, whatever they are asked."""
    for path in UNDOCUMENTED:
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "NONSENSE"):
            for query in ("", "?a=%00&b=%ff%fe&" + "c" * 5000, "?callback=<script>alert()"):
                answer = server.session.request(method, server.url + path + query, headers={"If-None-Match": "\xff"})
                assert answer.status_code in ((200,) if method == "GET" else (200, 400, 405)), (method, path, query)
                assert b"alert()" not in answer.content
        assert server.session.get(f"{server.url}{path}/%00").status_code == 404


def test_metrics_can_be_read_and_count_what_was_asked(server: Server) -> None:
    server.session.post(f"{server.url}/instances/default/quantize", json={"data": [1.0, 2.0]})
    server.session.get(f"{server.url}/instances/%F0%9F%92%A9\\%22%0a/stats")
    text = server.session.get(f"{server.url}/metrics").text
    counted: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "qi_request_total":
                counted[sample.labels["route"], sample.labels["status"]] += sample.value
    assert counted["/instances/{instance_id}/quantize", "200"] == 1
    assert counted["/instances/{instance_id}/stats", "404"] == 1
    assert "\U0001f4a9" not in text
