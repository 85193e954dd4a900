"""What is Redis' own; what every store does is in `test_store.py`, and what dies in `tests/integration`."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qi.errors import ConfigError, FileFormatError
from qi.service.redis_store import RedisStore
from qi.service.store import MAX_LAYERS, UnavailableError
from tests.servers import RedisServer, Servers, free_port


@pytest.fixture
def server(servers: Servers) -> RedisServer:
    return servers.redis()


@pytest.fixture
def client(server: RedisServer) -> Iterator[Any]:
    """Redis' own client."""
    import redis

    with redis.Redis.from_url(f"redis://{server.address}", decode_responses=True) as client:
        yield client


@pytest.fixture
def store(server: RedisServer) -> Iterator[RedisStore]:
    opened = RedisStore(server.url(f"own{time.monotonic_ns()}"))
    yield opened
    opened.close()


def test_services_share_a_server_by_prefixes(server: RedisServer, client: Any) -> None:
    client.set("mine", "1")
    one, two = RedisStore(server.url("one")), RedisStore(f"unix://{server.socket}?db=0&prefix=two")
    one.create("a", "1", limit=1)
    two.create("a", "2", limit=1)
    assert one.get("a") != two.get("a")
    assert sorted(client.keys("one:*")) == ["one:counter", "one:format", "one:ids", "one:instance:a"]
    one.close()
    two.close()
    standard = RedisStore(f"redis://{server.address}")
    standard.close()
    assert client.exists("qi:format")
    assert client.get("mine") == "1"


def test_nothing_expires(store: RedisStore, client: Any) -> None:
    store.remember(store.create("a", "{}", limit=1), ("", "x"), "1")
    keys = client.keys(f"{store._prefix}:*")
    assert len(keys) == 6
    assert {client.ttl(key) for key in keys} == {-1}


def test_nothing_is_left_of_what_is_deleted(store: RedisStore, client: Any) -> None:
    record = store.create("a", "{}", limit=1)
    store.remember(record, ("", "x"), "1")
    store.delete("a")
    assert sorted(client.keys(f"{store._prefix}:*")) == [f"{store._prefix}:counter", f"{store._prefix}:format"]


def test_no_revision_comes_back_from_a_server_that_lost_everything(store: RedisStore, client: Any) -> None:
    """A cache of another process would take what has an old revision for what it has already."""
    record = store.create("a", "1", limit=1)
    for _ in range(100):
        record = store.replace(record)
    client.delete(*client.keys(f"{store._prefix}:*"))
    assert store.get("a") is None
    assert store.create("a", "2", limit=1).revision > record.revision


def test_scripts_are_loaded_again_where_the_server_forgot_them(store: RedisStore, client: Any) -> None:
    record = store.create("a", "1", limit=1)
    client.script_flush()
    assert store.replace(record).revision > record.revision


def test_as_many_layers_as_are_kept_can_be_read_at_once(store: RedisStore) -> None:
    record = store.create("a", "1", limit=1)
    names = [f"layer{number}" for number in range(MAX_LAYERS + 2)]
    for start in range(0, len(names), 1000):
        store.remember(record, tuple(names[start : start + 1000]), "1")
    assert len(store.recall_all(record)) == MAX_LAYERS


def test_keys_of_something_else_are_left_alone(server: RedisServer, client: Any) -> None:
    client.set("theirs:format", "another program 7")
    with pytest.raises(FileFormatError, match="another prefix"):
        RedisStore(server.url("theirs"))
    assert client.keys("theirs:*") == ["theirs:format"]
    client.rpush("list:format", "1")
    with pytest.raises(UnavailableError, match="WRONGTYPE"):
        RedisStore(server.url("list"))


@pytest.mark.parametrize("url", ["redis://h:port", "redis://:secret@h:1?db=x", "redis://:secret@h:1?nonsense=1"])
def test_a_url_that_cannot_be_read_is_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="expected redis://") as caught:
        RedisStore(url)
    assert "secret" not in str(caught.value)


def test_a_server_that_hangs_is_not_waited_for(server: RedisServer, store: RedisStore) -> None:
    url = f"{server.url(store._prefix)}&socket_timeout=0.2"
    impatient = RedisStore(url)
    record = impatient.create("a", "1", limit=1)
    with server.hanging():
        started = time.monotonic()
        for call in (impatient.ids, impatient.check, lambda: impatient.replace(replace(record, config="2"))):
            with pytest.raises(UnavailableError):
                call()
        assert time.monotonic() - started < 5
    found = impatient.get("a")
    assert found is not None
    impatient.replace(replace(found, config="3"))
    assert impatient.ids() == ["a"]
    impatient.close()


def test_a_change_is_never_sent_twice(store: RedisStore, server: RedisServer) -> None:
    """The answer may be lost of a change that was made: to try again would say that the instance exists already."""
    assert store._redis.connection_pool.connection_kwargs["retry"].get_retries() == 0
    server.restart()
    assert store.create("a", "1", limit=1).id == "a"  # a connection that was idle is renewed, nothing is repeated


def test_a_server_that_is_full_takes_no_part_of_a_change(store: RedisStore, client: Any) -> None:
    record = store.create("a", "1", limit=9)
    client.config_set("maxmemory", "1")
    try:
        for call in (lambda: store.create("b", "1", limit=9), lambda: store.replace(record)):
            with pytest.raises(UnavailableError, match="OutOfMemory"):
                call()
        assert (store.ids(), store.get("a")) == (["a"], record)
    finally:
        client.config_set("maxmemory", "0")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by openssl")
def test_passwords_and_encryption(servers: Servers, tmp_path: Path) -> None:
    servers.redis()  # skips where it isn't installed
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*make.split(), *names], check=True, capture_output=True, timeout=60)
    port = free_port()
    tls = f"--tls-port {port} --tls-cert-file {certificate} --tls-key-file {key} --tls-auth-clients no"
    server = RedisServer(f"{tls} --requirepass secret")
    try:
        for address in (
            f"rediss://:secret@127.0.0.1:{port}?ssl_ca_certs={certificate}",
            f"redis://:secret@{server.address}",
        ):
            store = RedisStore(address)
            store.check()
            store.close()
        for address in (f"rediss://:secret@127.0.0.1:{port}", f"redis://:Secret@{server.address}", server.url("qi")):
            with pytest.raises(UnavailableError) as caught:
                RedisStore(address)
            assert "secret" not in str(caught.value).lower()
    finally:
        server.stop(keep=False)
