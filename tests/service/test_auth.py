"""Keys, scopes, and who counts as this machine."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from qi.errors import ConfigError
from qi.service.auth import HEALTH, ApiKey, Auth, is_local, parse_key, remembering, route_path, scope_of
from qi.service.problems import Problem
from tests.service.asgi import ask, exchange, ok, scope_for

READER, WRITER = "read:r-secret-1", "write:w-secret-2"


def auth(*keys: str, **options: object) -> Auth:
    return Auth(ok, [parse_key(key) for key in keys], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("testclient", True),
        ("10.0.0.5", False),
        ("192.168.1.7", False),
        ("::ffff:10.0.0.5", False),
        ("fe80::1", False),
        ("0.0.0.0", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_without_keys_only_this_machine_is_answered(address: str, local: bool) -> None:
    for path in ("/", "/instances", "/metrics", "/ui"):
        answer = ask(auth(), "GET", path, client=(address, 1))
        assert answer.status == (200 if local else 403)
    if not local:
        assert answer.code == "not-local"
        assert b"QI_API_KEYS" in answer.body


def test_a_client_without_an_address_is_not_local() -> None:
    assert ask(auth(), client=None).status == 403


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("X-Forwarded-For", "10.0.0.5"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-For", ""),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "localhost"),
        ("X-Real-IP", "127.0.0.1"),
        ("Forwarded", "for=127.0.0.1;proto=http"),
        ("Via", "1.1 proxy"),
    ],
)
def test_who_comes_through_a_proxy_of_this_machine_is_not_of_it(header: str, value: str) -> None:
    """Whatever it says of whom it asks for."""
    assert is_local(scope_for(headers={header: value})) is False
    assert ask(auth(), headers={header: value}).status == 403
    assert ask(auth(), headers={"X-Forward": value, "X-Via": value}).status == 200


def test_anonymous_clients_can_be_allowed() -> None:
    assert ask(auth(allow_anonymous=True), client=("10.0.0.5", 1)).status == 200
    assert ask(auth(READER, allow_anonymous=True), "GET", "/instances").status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer r-secret-1"},
        {"Authorization": "bearer   r-secret-1"},
        {"X-API-Key": "r-secret-1"},
        {"X-API-Key": "wrong", "Authorization": "Bearer r-secret-1"},
    ],
)
def test_a_key_opens_from_anywhere(headers: dict[str, str]) -> None:
    for client in (("10.0.0.5", 1), None, ("127.0.0.1", 1)):
        assert ask(auth(READER, WRITER), "GET", "/instances", headers, client).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": "r-secret"},
        {"X-API-Key": "read:r-secret-1"},
        {"X-API-Key": "r-secret-1 "},
        {"X-API-Key": "\xff"},
        {"X-API-Key": hashlib.sha256(b"r-secret-1").hexdigest()},
        {"Authorization": "r-secret-1"},
        {"Authorization": "Basic r-secret-1"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer R-SECRET-1"},
    ],
)
def test_where_there_are_keys_everybody_needs_one(headers: dict[str, str]) -> None:
    answer = ask(auth(READER, WRITER), "GET", "/instances", headers)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert b"secret" not in answer.body


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("GET", "/instances", "read"),
        ("HEAD", "/instances/a/config", "read"),
        ("POST", "/instances/a/quantize", "read"),
        ("POST", "/v1/instances/a/upload_numpy", "read"),
        ("POST", "/v2/models/a/infer", "read"),
        ("POST", "/v2/models/a/versions/1/infer", "read"),
        ("POST", "/instances/a", "write"),
        ("POST", "/instances/quantize", "write"),
        ("POST", "/v1/instances/quantize", "write"),
        ("POST", "/instances/a/b/quantize", "write"),
        ("POST", "/instances/a/calibrate", "write"),
        ("POST", "/instances/a/parameters", "write"),
        ("POST", "/instances/a/quantize/", "write"),
        ("POST", "/instances/a/quantize\n", "write"),
        ("PUT", "/instances/a/config", "write"),
        ("DELETE", "/instances/a", "write"),
        ("DELETE", "/instances/a/quantize", "write"),
        ("BREW", "/instances", "write"),
    ],
)
def test_what_a_request_needs(method: str, path: str, needed: str) -> None:
    assert scope_of(method, path) == needed
    protected = auth(READER, WRITER)
    assert ask(protected, method, path, {"X-API-Key": "w-secret-2"}).status == 200
    answer = ask(protected, method, path, {"X-API-Key": "r-secret-1"})
    assert answer.status == (200 if needed == "read" else 403)


@pytest.mark.parametrize("path", [*HEALTH, "/v1/livez", "/ui", "/ui/page.js"])
def test_health_and_the_page_need_no_key(path: str) -> None:
    assert ask(auth(READER), "GET", path, client=("10.0.0.5", 1)).status == 200


def test_open_paths_are_a_setting() -> None:
    protected = auth(READER, open_paths=("/ui", "/static/*"))
    assert [ask(protected, "GET", p).status for p in ("/ui", "/static/a.js", "/ui/x", "/")] == [200, 200, 401, 401]
    assert ask(auth(READER, open_paths=()), "GET", "/").status == 401
    assert ask(auth(READER, open_paths=()), "GET", "/livez").status == 200
    assert ask(auth(READER, open_paths=(), probes=()), "GET", "/livez").status == 401


def test_a_prefix_of_a_proxy_is_no_part_of_the_path() -> None:
    assert route_path(scope_for(path="/api/livez", root_path="/api")) == "/livez"
    assert route_path(scope_for(path="/api/", root_path="/api/")) == "/"
    assert route_path(scope_for(path="/apis", root_path="/api")) == "/apis"
    headers = {"X-API-Key": "r-secret-1"}
    path = "/api/instances/quantize"
    assert ask(auth(READER), "POST", path, headers, root_path="/api").status == 403


def test_keys_are_kept_as_hashes() -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    for text in ("secret", "write:secret", f"sha256:{digest}", f"write:sha256:{digest.upper()}"):
        assert parse_key(text) == ApiKey(bytes.fromhex(digest), "write")
    assert parse_key("read:secret").scope == "read"
    assert "secret" not in repr(parse_key("secret"))
    assert digest[:8] not in repr(parse_key("secret"))


@pytest.mark.parametrize("text", ["", "read:", "two words", "sha256:abc", "write:sha256:", "tab\t", "ü", "line\n"])
def test_other_keys_are_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected an API key .* received a text of") as caught:
        parse_key(text)
    assert text.removeprefix("read:") in ("", "write:sha256:") or text not in str(caught.value)


@pytest.mark.parametrize("text", ["raed:hunter2", "Write:hunter2", ":hunter2", "SHA256:hunter2", "a:hunter2"])
def test_a_word_that_is_no_scope_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected 'read:' or 'write:' before an API key") as caught:
        parse_key(text)
    assert "hunter2" not in str(caught.value)
    assert text.partition(":")[0] + ":" not in str(caught.value).partition("received")[2].partition("do:")[0]


def test_a_key_with_a_colon_is_written_with_its_scope() -> None:
    assert parse_key("write:a:b") == ApiKey(hashlib.sha256(b"a:b").digest(), "write")
    assert parse_key("read:a:b") == ApiKey(hashlib.sha256(b"a:b").digest(), "read")


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, b"expected an API key; do: send it"),
        ({"Authorization": "Basic hunter2"}, b"expected an API key; do: send it"),
        ({"X-API-Key": "hunter2"}, b"expected a known API key; received one that isn't"),
        ({"Authorization": "Bearer hunter2"}, b"expected a known API key; received one that isn't"),
    ],
)
def test_a_wrong_key_is_told_from_none(headers: dict[str, str], told: bytes) -> None:
    answer = ask(auth(READER), "GET", "/instances", headers)
    assert told in answer.body
    assert b"hunter2" not in answer.body


def test_the_comparison_looks_at_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: seen.append(a) or a == b)
    assert ask(auth(READER, WRITER, "third"), "GET", "/instances", {"X-API-Key": "r-secret-1"}).status == 200
    assert len(seen) == 3


@pytest.mark.parametrize(("key", "default", "asked"), [("r-secret-1", False, None), ("w-secret-2", None, True)])
def test_only_keys_for_writing_leave_what_others_get(key: str, default: bool | None, asked: bool | None) -> None:
    scope = scope_for("POST", "/instances/default/quantize", {"X-API-Key": key})
    asyncio.run(exchange(auth(READER, WRITER), scope))
    assert remembering(scope, None) is default
    assert remembering(scope, False) is False
    if asked:
        assert remembering(scope, True) is True
        return
    with pytest.raises(Problem, match="for writing to remember") as caught:
        remembering(scope, True)
    assert (caught.value.status_code, caught.value.code) == (403, "scope")


def test_without_keys_everybody_may_leave_what_others_get() -> None:
    scope = scope_for("POST", "/instances/default/quantize")
    asyncio.run(exchange(auth(), scope))
    assert [remembering(scope, one) for one in (None, False, True)] == [None, False, True]


def test_start_and_stop_pass() -> None:
    async def app(scope, receive, send) -> None:
        passed.append(scope["type"])

    passed: list[str] = []
    asyncio.run(Auth(app, [parse_key("k")])({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert passed == ["lifespan"]
