"""What a head may say, asked without a server in front."""

from __future__ import annotations

import asyncio

import pytest

from qi.errors import InputError
from qi.service.heads import HeadCheck, origin_form
from tests.service.asgi import ask, ok

APP = HeadCheck(ok)


@pytest.mark.parametrize("codings", [[], ["chunked"], ["Chunked "]])
def test_bodies_come_whole_or_chunked(codings: list[str]) -> None:
    assert ask(APP, "POST", headers=[("Transfer-Encoding", coding) for coding in codings]).status == 200


@pytest.mark.parametrize(
    "codings", [["gzip, chunked"], ["gzip"], ["chunked, chunked"], ["gzip", "chunked"], ["identity"], [""]]
)
def test_bodies_that_come_otherwise_are_refused(codings: list[str]) -> None:
    answer = ask(APP, "POST", headers=[("Transfer-Encoding", coding) for coding in codings])
    assert (answer.status, answer.code) == (400, "transfer-encoding")
    assert answer.headers["connection"] == "close"


def test_a_body_comes_in_one_way() -> None:
    both = [("Content-Length", "3"), ("Transfer-Encoding", "chunked")]
    for headers, version in ((both, "1.1"), (both[::-1], "1.1"), (both[1:], "1.0")):
        answer = ask(APP, "POST", headers=headers, http_version=version)
        assert (answer.status, answer.code) == (400, "transfer-encoding")
        assert answer.headers["connection"] == "close"
    assert ask(APP, "POST", headers=both[:1]).status == 200


def test_targets_are_paths_or_urls_of_the_host() -> None:
    assert [origin_form(target, []) for target in (b"/a?b", b"//a", b"*")] == [b"/a?b", b"//a", b"*"]
    assert origin_form(b"https://A.example:443/b", [b"a.example"]) == b"/b"
    for target, hosts in (
        (b"http://a/b", []),
        (b"http://a/b", [b"a", b"a"]),
        (b"http://a:443/b", [b"a"]),
        (b"a:80", [b"a:80"]),
        (b"a", [b"a"]),
        (b"", [b""]),
    ):
        with pytest.raises(InputError):
            origin_form(target, hosts)


def test_heads_are_bounded() -> None:
    assert ask(APP, headers=[(f"X-{number}", "a") for number in range(150)]).status == 200
    for headers, more in (
        ([(f"X-{number}", "a") for number in range(201)], {}),
        ([("X-A", "a" * (1 << 17))], {}),
        ([], {"raw_path": b"/" + b"a" * (1 << 17)}),
        ([], {"query_string": b"a" * (1 << 18)}),
    ):
        answer = ask(APP, headers=headers, **more)
        assert (answer.status, answer.code) == (431, "head-too-large")


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_other_scopes_pass(kind: str) -> None:
    passed = []

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        passed.append(scope["type"])

    asyncio.run(HeadCheck(app)({"type": kind, "headers": []}, None, None))  # type: ignore[arg-type]
    assert passed == [kind]
