"""Running a service with uvicorn: one process, or several that share a store."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import math
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI

from qi.errors import ConfigError
from qi.service import docs
from qi.service.app import create_app
from qi.service.auth import parse_key
from qi.service.http1 import BoundedProtocol, HeadLimits
from qi.service.metrics import SHARED_DIRECTORY
from qi.service.requests import configure_logging
from qi.service.service import Service
from qi.service.settings import Settings, read_settings, warn_of_misspelt
from qi.service.stopping import StoppingServer
from qi.service.workers import Workers

__all__ = ["check_settings", "listening", "serve"]

_WORKER = "qi.service.server:make_worker"
_BACKLOG = 2048


def serve(settings: Settings, *, workers: int = 1, announce: Callable[[str], None] | None = None) -> None:
    """Answers requests until the process is told to stop; then those that it has accepted, for `Settings.grace` seconds.

    Args:
        settings: What the operator has set.
        workers: Processes.
        announce: Is told the URL, and what a person finds there, once clients can connect.

    Raises:
        ConfigError: The settings don't fit together, see `check_settings`, or the address is taken.
        UnavailableError: The store can't be opened.
    """
    check_settings(settings, workers)
    service = Service(settings)
    service.instances.ids()  # what is wrong with the store is told now, in one line, and not by every worker
    service.close()
    with listening(settings.host, settings.port) as shared:
        where = _where(settings, shared.getsockname()[1])
        tell = functools.partial(announce, where) if announce is not None else None
        _configure_logging(settings)
        warn_of_misspelt()  # here and not in every worker
        if workers == 1:
            config = uvicorn.Config(create_app(settings), **_options(settings))
            StoppingServer(config, settings.shutdown_delay, tell).run([shared])
            return
        os.environ.update(_environment(settings))
        config = uvicorn.Config(_WORKER, factory=True, workers=workers, **_options(settings))
        with _shared_metrics():
            if tell is not None:
                tell()
            Workers(config, [shared], settings.shutdown_delay).run()


def _configure_logging(settings: Settings) -> None:
    """One log for the service and, where something is wrong, for the server."""
    theirs = logging.getLogger("uvicorn.error")
    theirs.handlers = [configure_logging(settings.log)]
    theirs.setLevel(logging.WARNING)
    theirs.propagate = False


def _options(settings: Settings) -> dict[str, Any]:
    """What uvicorn is told."""
    head = HeadLimits(settings.max_header_bytes, settings.header_timeout)
    return {
        "http": functools.partial(BoundedProtocol, limits=head),
        "h11_max_incomplete_event_size": head.max_bytes,
        "ws": "none",
        "timeout_graceful_shutdown": math.ceil(settings.grace),
        "access_log": False,
        "server_header": False,
        "log_config": None,
    }


def listening(host: str, port: int) -> socket.socket:
    """A socket at which clients wait until somebody answers.

    It says that it is one of TCP, which asyncio looks for before it turns off Nagle's algorithm: that makes every answer
    wait for 40 ms.

    Args:
        host: An address or a name.
        port: 0: any that is free.

    Raises:
        ConfigError: It isn't this machine's, or taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"expected a free address of this machine; received host={host!r}, port={port}: {error.strerror}; "
            "do: choose another, or stop what listens there"
        ) from None
    return socket.socket(fileno=made.detach())


def make_worker() -> FastAPI:
    """The application of one of several processes, as the environment sets it."""
    settings = read_settings()
    _configure_logging(settings)
    return create_app(settings)


def check_settings(settings: Settings, workers: int = 1) -> None:
    """Refuses what can't go well.

    Raises:
        ConfigError: A key can't be read, everybody could use the service, or workers wouldn't see each other's instances.
    """
    for key in settings.api_keys:
        parse_key(key.get_secret_value())
    if not (settings.api_keys or settings.allow_anonymous or _is_loopback(settings.host)):
        raise ConfigError(
            f"expected API keys to listen on other addresses than this machine's own; received host={settings.host!r} and "
            "none; do: set QI_API_KEYS, or QI_API_ALLOW_ANONYMOUS=1 where everybody may use it"
        )
    if workers > 1 and settings.store == "memory":
        raise ConfigError(
            f"expected a store that {workers} workers can share; received store='memory'; do: sqlite:///PATH"
        )


@contextlib.contextmanager
def _shared_metrics() -> Iterator[None]:
    """A folder in which the workers count together, unless the operator has named one."""
    if os.environ.get(SHARED_DIRECTORY):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="qi-metrics-") as folder:
        os.environ[SHARED_DIRECTORY] = folder
        try:
            yield
        finally:
            del os.environ[SHARED_DIRECTORY]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _where(settings: Settings, port: int) -> str:
    """The URL, and the pages below it."""
    pages = "/ui and /docs" if settings.docs and docs.available() else "/ui"
    return f"{_url(settings.host, port)} with {pages}"


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _environment(settings: Settings) -> dict[str, str]:
    """The settings that differ from their defaults, as other processes of this command read them."""
    prefix = str(settings.model_config.get("env_prefix", ""))
    found = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if name == "api_keys":
            value, name = tuple(key.get_secret_value() for key in value), "keys"
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        found[f"{prefix}{name.upper()}"] = text
    return found
