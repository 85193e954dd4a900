"""The store in a Redis server: every process of every host sees its changes at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from qi.errors import ConfigError, FileFormatError
from qi.optional import require
from qi.service import store
from qi.service.store import STORES, Latest, Record, changed, exists, full, missing, unavailable

__all__ = ["RedisStore"]

_FORMAT = "qi.service 1"
_CONNECT, _ANSWER = 3.0, 5.0  # seconds

_STAMP = """
local function stamp()
  local time = redis.call('TIME')
  local number = math.max((tonumber(redis.call('GET', KEYS[1])) or 0) + 1, time[1] * 1000000 + time[2])
  local text = string.format('%.0f', number)
  redis.call('SET', KEYS[1], text)
  return text
end
"""
"""Microseconds: a server that lost its latest changes still gives numbers that it never gave before."""

_EXPECT = """
local found = redis.call('HGET', KEYS[2], 'revision')
if not found then return {'missing'} end
if ARGV[1] ~= '' and found ~= ARGV[1] then return {'changed', found} end
"""

_CREATE = f"""{_STAMP}
if redis.call('EXISTS', KEYS[2]) == 1 then return {{'exists'}} end
if redis.call('ZCARD', KEYS[5]) >= tonumber(ARGV[2]) then return {{'full'}} end
local revision = stamp()
redis.call('HSET', KEYS[2], 'revision', revision, unpack(ARGV, 3))
redis.call('ZADD', KEYS[5], revision, ARGV[1])
return {{'done', revision}}
"""

_REPLACE = f"""{_STAMP}{_EXPECT}
local revision = stamp()
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
redis.call('HSET', KEYS[2], 'revision', revision, unpack(ARGV, 2))
return {{'done', revision}}
"""

_DELETE = f"""{_EXPECT}
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
redis.call('ZREM', KEYS[5], ARGV[2])
return {{'done', found}}
"""

_REMEMBER = f"""{_STAMP}{_EXPECT}
local sequence = stamp()
local text = sequence .. ':' .. ARGV[2]
local size = tonumber(redis.call('HGET', KEYS[2], 'size')) or 0
for index = 5, #ARGV do
  size = size + #text - redis.call('HSTRLEN', KEYS[3], ARGV[index])
  redis.call('HSET', KEYS[3], ARGV[index], text)
  redis.call('ZADD', KEYS[4], sequence, ARGV[index])
end
while redis.call('ZCARD', KEYS[4]) > tonumber(ARGV[3]) or size > tonumber(ARGV[4]) do
  local layer = redis.call('ZPOPMIN', KEYS[4])[1]
  size = size - redis.call('HSTRLEN', KEYS[3], layer)
  redis.call('HDEL', KEYS[3], layer)
end
redis.call('HSET', KEYS[2], 'size', size)
return {{'done', sequence}}
"""

_RECALL = f"""{_EXPECT}
if ARGV[2] then return {{'done', redis.call('HGET', KEYS[3], ARGV[2])}} end
return {{'done', redis.call('HGETALL', KEYS[3])}}
"""


@STORES.register("unix")
@STORES.register("rediss")
@STORES.register("redis")
class RedisStore:
    """Instances in a Redis server from version 6 on, or what speaks its protocol and runs its scripts.

    The server must keep what it is told: with ``appendonly yes`` and ``appendfsync always`` a change that was answered
    survives the death of the server, with ``appendfsync everysec`` a second's changes don't, and without either none do.
    ``maxmemory-policy`` must be ``noeviction``. No key ever expires. Each change is one script, which runs alone.

    Args:
        url: ``redis://user:password@host:port/number``, ``rediss://...`` (TLS) or ``unix:///path?db=number``, with the
            options of redis-py; ``?prefix=name`` is what all keys start with ("qi"), so that services can share a server.

    Raises:
        ConfigError: The URL can't be read.
        FileFormatError: The keys of this prefix are something else's.
        UnavailableError: The server doesn't answer.
        MissingDependencyError: redis isn't installed.
    """

    shared = True
    remembers = False

    def __init__(self, url: str) -> None:
        redis = require("redis", extra="redis", feature="the Redis store")
        self._error = (redis.RedisError, OSError)
        address, _, query = url.partition("?")
        options = dict(parse_qsl(query))
        self._prefix = options.pop("prefix", "qi")
        try:
            self._redis = redis.Redis.from_url(
                f"{address}?{urlencode(options)}",
                decode_responses=True,
                protocol=2,
                # A change whose answer is lost was made or not: it is for clients to look, not for us to make it twice.
                retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
                socket_connect_timeout=_CONNECT,
                socket_timeout=_ANSWER,
            )
            self._redis.connection_pool.make_connection()  # which knows all options
        except (ValueError, TypeError) as error:  # the URL may hold a password
            raise ConfigError("expected redis://host:port/number?prefix=name; received another URL") from error
        scripts = {"create": _CREATE, "replace": _REPLACE, "delete": _DELETE, "remember": _REMEMBER, "recall": _RECALL}
        self._scripts = {name: self._redis.register_script(text) for name, text in scripts.items()}
        with self._unavailable():
            format = self._redis.set(f"{self._prefix}:format", _FORMAT, nx=True, get=True)
        if format not in (None, _FORMAT):
            self.close()
            raise FileFormatError(
                f"expected keys of this service under the prefix {self._prefix!r}; received another's; do choose another prefix"
            )

    def ids(self) -> list[str]:
        """See `Store`."""
        with self._unavailable():
            return list(self._redis.zrange(f"{self._prefix}:ids", 0, -1))

    def get(self, id: str) -> Record | None:
        """See `Store`."""
        with self._unavailable():
            revision, config, parameters = self._redis.hmget(self._keys(id)[1], "revision", "config", "parameters")
        return None if revision is None else Record(id, int(revision), config, parameters)

    def revision(self, id: str) -> int | None:
        """See `Store`."""
        with self._unavailable():
            found = self._redis.hget(self._keys(id)[1], "revision")
        return None if found is None else int(found)

    def create(self, id: str, config: str, parameters: str | None = None, *, limit: int) -> Record:
        """See `Store`."""
        told, *found = self._run("create", id, id, limit, *_fields(config, parameters))
        if told == "exists":
            raise exists(id)
        if told == "full":
            raise full(limit)
        return Record(id, int(found[0]), config, parameters)

    def replace(self, record: Record) -> Record:
        """See `Store`."""
        found = self._run("replace", record.id, record.revision, *_fields(record.config, record.parameters))
        return replace(record, revision=_expected(record.id, record.revision, *found))

    def delete(self, id: str, revision: int | None = None) -> None:
        """See `Store`."""
        found = self._run("delete", id, "" if revision is None else revision, id)
        _expected(id, revision, *found)

    def remember(self, record: Record, layers: tuple[str, ...], parameters: str) -> int:
        """See `Store`."""
        limits = store.MAX_LAYERS, store.MAX_BYTES
        told, *found = self._run("remember", record.id, record.revision, parameters, *limits, *layers)
        return int(found[0]) if told == "done" else 0

    def recall(self, record: Record, layer: str) -> Latest | None:
        """See `Store`."""
        told, *found = self._run("recall", record.id, record.revision, layer)
        return _latest(found[0]) if told == "done" and found[0] is not None else None

    def recall_all(self, record: Record) -> dict[str, Latest]:
        """See `Store`."""
        told, *found = self._run("recall", record.id, record.revision)
        if told != "done":
            return {}
        names, texts = found[0][::2], found[0][1::2]
        return {name: _latest(text) for name, text in zip(names, texts, strict=True)}

    def check(self) -> None:
        """See `Store`."""
        with self._unavailable():
            self._redis.ping()

    def close(self) -> None:
        """See `Store`."""
        self._redis.close()

    def _keys(self, id: str) -> tuple[str, ...]:
        """Of the counter, an instance, its latest parameters, their order, and all names."""
        names = "counter", f"instance:{id}", f"latest:{id}", f"order:{id}", "ids"
        return tuple(f"{self._prefix}:{name}" for name in names)

    def _run(self, name: str, id: str, *values: Any) -> list[Any]:
        with self._unavailable():
            return list(self._scripts[name](self._keys(id), values))

    @contextlib.contextmanager
    def _unavailable(self) -> Iterator[None]:
        """Errors of redis-py as ours; none of them tells of a password."""
        try:
            yield
        except self._error as error:
            raise unavailable(error) from error


def _fields(config: str, parameters: str | None) -> tuple[str, ...]:
    return "config", config, *(() if parameters is None else ("parameters", parameters))


def _expected(id: str, revision: int | None, told: str, found: str = "0") -> int:
    """The revision that a script told of.

    Raises:
        MissingError: There is no such instance.
        RevisionError: It has another revision than was expected.
    """
    if told == "missing":
        raise missing(id)
    if told == "changed":
        raise changed(id, revision or 0, int(found))
    return int(found)


def _latest(text: str) -> Latest:
    sequence, _, parameters = text.partition(":")
    return Latest(int(sequence), parameters)
