"""The store in a Redis server: every process of every host sees its changes at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

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
if #ARGV == 2 then return {{'done', ARGV[2], redis.call('HGET', KEYS[3], ARGV[2]) or ''}} end
local rows = redis.call('HGETALL', KEYS[3])
return {{'done', unpack(rows)}}
"""


@STORES.register("unix")
@STORES.register("rediss")
@STORES.register("redis")
class RedisStore:
    """Instances in a Redis server from version 6.2 on, or what speaks its protocol and runs its scripts.

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
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        self._prefix = options.pop("prefix", "qi")
        try:
            self._redis = redis.Redis.from_url(
                urlunsplit(parts._replace(query=urlencode(options))),
                decode_responses=True,
                protocol=2,
                # A change whose answer is lost was made or not: it is for clients to look, not for us to make it twice.
                retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
                **{"socket_connect_timeout": _CONNECT, "socket_timeout": _ANSWER}
                | {"socket_keepalive": True} * (parts.scheme != "unix"),
            )
        except ValueError as error:  # the URL may hold a password
            raise ConfigError("expected redis://host:port/number?prefix=name; received another URL") from error
        for name, script in _SCRIPTS.items():
            setattr(self, name, self._redis.register_script(script))
        self._prepare()
