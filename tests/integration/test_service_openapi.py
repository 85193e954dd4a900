"""The service against its own OpenAPI document: whatever is sent, answers are as documented, and none is a server error.

Each operation is called with every boundary of its schema and with random data, good and bad; a state machine follows the
document's links. Every test has a server of its own, on a free port, so that no order of tests changes what is generated.

Checks of schemathesis that are off: `ignored_auth` (there are no keys here; `test_every_operation_wants_a_key` asks it of
every operation) and `max_response_time` (machines differ). `positive_data_acceptance` is on where `tests.service.plausible`
has decided what a schema can't say; a quarter of the requests goes out as generated, and every other check holds for them.
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
from hypothesis import strategies as st
from requests import Session
from schemathesis.specs.openapi.checks import positive_data_acceptance

from qi.service.app import create_app
from qi.service.client import Client
from qi.service.formats import FORMATS
from qi.service.settings import Settings
from tests.service import plausible
from tests.service.live import serving

EXAMPLES, SEED = 25, 6


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
        pick = random.Random(zlib.crc32(repr((case.method, case.path, case.path_parameters, case.query, case.body)).encode()))
        more, excluded = {}, []
        if pick.random() < 0.75:
            more = plausible.mend(case, pick)
        else:
            excluded = [positive_data_acceptance]
        prefix = "/v1" if not case.path.startswith("/v2") and pick.random() < 0.5 else ""
        response = case.call(self.url + prefix, self.session, timeout=30, **more)
        self.answered[case.operation.label, response.status_code] += 1
        case.validate_response(response, excluded_checks=excluded, transport_kwargs={"session": self.session})

    def accepted(self) -> set[str]:
        """Operations that have done what they were asked for."""
        return {label for label, status in self.answered if status == 200}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(create_app(Settings(store="memory"))) as url:
        with Client(url) as client:
            for name, settings in (plausible.INSTANCES | dict.fromkeys(plausible.SPARE, {})).items():
                client.create(name, settings)
        found = Server(url)
        yield found
        found.session.close()
    assert found.accepted()


@schema.parametrize()
@hypothesis.settings(suppress_health_check=list(hypothesis.HealthCheck))
def test_every_operation(case: Any, server: Server) -> None:
    server.send(case)
