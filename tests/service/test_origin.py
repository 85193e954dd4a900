"""Names, sites and origins: what a page of a browser can reach."""

from __future__ import annotations

import pytest

from qi.errors import ConfigError
from qi.service.origin import CrossSiteCheck, HostCheck, cors
from tests.service.asgi import ask, ok

HOST = ("Host", "localhost:8000")


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("127.0.0.1:65535", True),
        ("[::1]:8000", True),
        ("testserver", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("localhost:8000:9", False),
        ("localhost:port", False),
        ("evil.example@localhost", False),
        ("localhost/", False),
        ("::1", False),
        (" localhost", False),
        ("", False),
        ("*", False),
    ],
)
def test_only_known_names_are_answered(host: str, known: bool) -> None:
    answer = ask(HostCheck(ok), headers={"Host": host})
    assert answer.status == (200 if known else 400)
    if not known:
        assert answer.code == "unknown-host"
        assert b"evil" not in answer.body


@pytest.mark.parametrize("headers", [[], [("Host", "localhost"), ("Host", "localhost")]])
def test_there_is_one_host(headers: list[tuple[str, str]]) -> None:
    assert ask(HostCheck(ok), headers=headers).status == 400


def test_names_of_a_setting() -> None:
    guarded = HostCheck(ok, ["*.example.com", "Api.Example.org"])
    hosts = ["a.example.com", "a.b.example.com:1", "api.example.org", "example.com", "aexample.com", "localhost"]
    assert [ask(guarded, headers={"Host": h}).status for h in hosts] == [200, 200, 200, 400, 400, 400]
    assert ask(HostCheck(ok, ["*"]), headers={"Host": "x.y"}).status == 200


def test_probes_may_ask_by_an_address() -> None:
    headers = {"Host": "10.1.2.3:8000"}
    assert ask(HostCheck(ok), "GET", "/livez", headers).status == 200
    assert ask(HostCheck(ok), "GET", "/", headers).status == 400
    assert ask(HostCheck(ok, except_paths=()), "GET", "/livez", headers).status == 400


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),  # a program
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://inner:1"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:8000"}, False),
        ({"Sec-Fetch-Site": "new-word"}, False),
        ({"Origin": "http://localhost:8000"}, True),
        ({"Origin": "https://localhost:8000"}, True),
        ({"Origin": "http://localhost:3000"}, False),
        ({"Origin": "http://localhost"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "file://"}, False),
        ({"Origin": "http://localhost:8000/path"}, False),
        ({"Origin": ""}, False),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "BREW"])
def test_pages_of_other_sites_change_nothing(method: str, headers: dict[str, str], allowed: bool) -> None:
    answer = ask(CrossSiteCheck(ok), method, "/instances/a/clear_cache", [HOST, *headers.items()])
    assert answer.status == (200 if allowed else 403)
    assert allowed or answer.code == "cross-site"
    assert ask(CrossSiteCheck(ok), "GET", "/", [HOST, *headers.items()]).status == 200


def test_the_default_port_may_be_left_out() -> None:
    headers = [("Host", "a.example"), ("Origin", "https://a.example:443")]
    assert ask(CrossSiteCheck(ok), "POST", "/", headers).status == 200


def test_named_origins_may() -> None:
    headers = [HOST, ("Origin", "https://App.example"), ("Sec-Fetch-Site", "cross-site")]
    assert ask(CrossSiteCheck(ok, ["https://app.example/"]), "POST", "/", headers).status == 200
    assert ask(CrossSiteCheck(ok, ["*"]), "POST", "/", headers).status == 200
    assert ask(CrossSiteCheck(ok, ["https://b.example"]), "POST", "/", headers).status == 403


PREFLIGHT = {"Origin": "https://app.example", "Access-Control-Request-Method": "PUT", "Host": "localhost"}


def test_answers_are_closed_to_other_pages() -> None:
    assert cors(ok) is ok
    answer = ask(cors(ok), "GET", "/", {"Origin": "https://app.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_named_origins_read_answers_without_credentials() -> None:
    opened = cors(ok, ["https://app.example"])
    answer = ask(opened, "GET", "/", {"Origin": "https://app.example"})
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "etag" in answer.headers["access-control-expose-headers"].lower()
    assert "access-control-allow-origin" not in ask(opened, "GET", "/", {"Origin": "https://evil.example"}).headers
    preflight = ask(opened, "OPTIONS", "/", PREFLIGHT | {"Access-Control-Request-Headers": "x-api-key"})
    assert preflight.status == 200
    assert "PUT" in preflight.headers["access-control-allow-methods"]
    for each in (answer, preflight, ask(cors(ok, ["*"]), "GET", "/", {"Origin": "https://x.example", "Cookie": "a=b"})):
        assert "access-control-allow-credentials" not in each.headers
    assert each.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "origin", ["app.example", "https://", "ftp://a.example", "https://a.example/path", "https://a b"]
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    for use in (cors, CrossSiteCheck):
        with pytest.raises(ConfigError, match="expected an origin"):
            use(ok, [origin])
