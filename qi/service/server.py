"""Running a service with uvicorn: one process, or several that share a store."""

from __future__ import annotations

import ipaddress
import math
import os
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.supervisors import Multiprocess

from qi.errors import ConfigError
from qi.service.app import create_app
from qi.service.requests import configure_logging
from qi.service.service import Service
from qi.service.settings import Settings, read_settings

__all__ = ["check_settings", "serve"]

_WORKER = "qi.service.server:make_worker"


def serve(settings: Settings, *, workers: int = 1, announce: Callable[[str], None] | None = None) -> None:
    """Answers requests until the process is told to stop; then those that it has accepted, for `Settings.grace` seconds.

    Args:
        settings: What the operator has set.
        workers: Processes.
        announce: Is told the URL once clients can connect.

    Raises:
        ConfigError: The settings don't fit together; see `check_settings`.
    """
    check_settings(settings, workers)
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "timeout_graceful_shutdown": math.ceil(settings.grace),
        "access_log": False,
        "server_header": False,
        "log_config": None,
    }
    if workers == 1:
        configure_logging(settings.log)
        app = create_app(settings)
        _Server(uvicorn.Config(app, **options), app.state.service, announce).run()
        return
    os.environ.update(_environment(settings))
    config = uvicorn.Config(_WORKER, factory=True, workers=workers, **options)
    shared = listening(config)
    if announce is not None:
        announce(_url(settings.host, shared.getsockname()[1]))
    Multiprocess(config, sockets=[shared]).run()


def listening(config: uvicorn.Config) -> socket.socket:
    """The socket that workers share.

    It says that it is one of TCP, which uvicorn's own doesn't: only then does asyncio turn off Nagle's algorithm, which
    makes every answer wait for 40 ms.

    Args:
        config: Where to listen.
    """
    shared = socket.socket(fileno=config.bind_socket().detach())
    shared.listen(config.backlog)  # clients that come before the workers are ready wait
    return shared


def make_worker() -> FastAPI:
    """The application of one of several processes, as the environment sets it."""
    settings = read_settings()
    configure_logging(settings.log)
    return create_app(settings)


def check_settings(settings: Settings, workers: int = 1) -> None:
    """Refuses what can't go well.

    Raises:
        ConfigError: Everybody could use the service, or workers wouldn't see each other's instances.
    """
    if not (settings.api_keys or settings.allow_anonymous or _is_loopback(settings.host)):
        raise ConfigError(
            f"expected API keys to listen on other addresses than this machine's own; received host={settings.host!r} and "
            "none; do: set QI_API_API_KEYS, or QI_API_ALLOW_ANONYMOUS=1 where everybody may use it"
        )
    if workers > 1 and settings.store == "memory":
        raise ConfigError(
            f"expected a store that {workers} workers can share; received store='memory'; do: sqlite:///PATH"
        )


class _Server(uvicorn.Server):
    """A server that says where it listens, and stops being ready as soon as it is told to stop."""

    def __init__(self, config: uvicorn.Config, service: Service, announce: Callable[[str], None] | None) -> None:
        super().__init__(config)
        self._service, self._announce = service, announce

    async def startup(self, sockets: Any = None) -> None:
        """Starts to listen."""
        await super().startup(sockets)
        if self.started and self._announce is not None:
            port = self.servers[0].sockets[0].getsockname()[1]
            self._announce(_url(self.config.host, port))

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Told to stop."""
        self._service.draining = True
        super().handle_exit(sig, frame)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _environment(settings: Settings) -> dict[str, str]:
    """The settings that differ from their defaults, as other processes of this command read them."""
    prefix = str(settings.model_config.get("env_prefix", ""))
    found = {}
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if name == "api_keys":
            value = tuple(key.get_secret_value() for key in value)
        text = ",".join(value) if isinstance(value, tuple) else str(value)
        found[f"{prefix}{name.upper()}"] = text
    return found
