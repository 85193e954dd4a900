"""What an operator can set: environment variables that start with ``QI_API_``, or arguments of `Settings`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from qi.errors import ConfigError
from qi.registry import suggest

__all__ = ["Settings", "misspelt", "read_settings", "warn_of_misspelt"]

_MIB = 1 << 20

Names = Annotated[tuple[str, ...], NoDecode]
"""Several values, separated by commas in the environment."""


class Settings(BaseSettings):
    """The settings of one service; ``QI_API_MAX_NDIM=4`` sets `max_ndim`.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0: any that is free.
        api_keys: Keys that clients may show, each ``KEY``, ``read:KEY`` or ``write:KEY``; none (default): clients on
            loopback need no key, and all others are refused. ``QI_API_KEYS`` sets it, too, and counts if both do.
            A key with a colon in it is written with its scope: ``write:a:b`` for ``a:b``.
            A proxy on the same machine comes from loopback as well: it has to send ``X-Forwarded-For`` (or another
            ``X-Forwarded-`` header, ``Forwarded``, ``X-Real-IP`` or ``Via``), or everybody whom it lets in needs no key.
            Behind a proxy, set keys.
        allow_anonymous: Whether clients elsewhere need no key either.
        cors_origins: Origins whose pages may call the service from a browser; none by default.
        allowed_hosts: Values of the Host header that are answered, without port; ``*``: any. Probes are answered
            whatever it says, and so is ``/metrics`` where there are keys.
        max_json_bytes: Longest body in JSON, which takes up to 56 times as much memory, by what it holds.
        max_binary_bytes: Longest body in any other form.
        max_elements: Most numbers in one array.
        max_ndim: Most dimensions of an array.
        max_channels: Channels of an array that may have parameters of their own.
        max_instances: Most instances, the default one included.
        max_instance_id: Longest name of an instance.
        max_cache_bytes: Memory of the results that all instances of one process keep.
        workers_threads: Threads that work on arrays; 0 (default): one for each core.
        max_queue: Requests that may wait for such a thread.
        queue_timeout: Seconds that further requests wait for a place among these before they are refused.
        memory_budget: Memory that requests in flight may take together, by estimate.
        overload_status: What a client is told when the queue or the budget is full.
        max_header_bytes: Longest request line and headers.
        header_timeout: Seconds until they must have arrived. As the length, it holds where `qi serve` or
            ``python -m qi.service`` run the server; see `qi.service.http1` for others.
        body_timeout: Seconds until a body must have arrived.
        request_timeout: Seconds until a request must be answered.
        grace: Seconds that requests in flight have when the service is told to stop.
        shutdown_delay: Seconds before that, after SIGTERM, in which new requests are still answered, while readiness says
            503 and every answer closes its connection.
        log: How a request is logged.
        metrics: Whether ``GET /metrics`` is there.
        docs: Whether the interactive documentation is there.
        store: Where instances live: ``memory``; ``sqlite:///path`` or the path of a SQLite file, for one host;
            ``redis://host:port/number`` or ``postgresql://user@host/database``, for any number of hosts. Across a network
            the parameters of arrays are remembered only for clients that send ``remember: true``.
        legacy_errors: Whether errors of the user answer 500, as the origin's did.

    Example:
        >>> Settings(cors_origins="https://a.example, https://b.example").cors_origins
        ('https://a.example', 'https://b.example')
    """

    model_config = SettingsConfigDict(
        env_prefix="QI_API_", extra="ignore", frozen=True, validate_default=True, populate_by_name=True
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), validation_alias=AliasChoices("QI_API_KEYS", "QI_API_API_KEYS")
    )
    allow_anonymous: bool = False
    cors_origins: Names = ()
    allowed_hosts: Names = ("localhost", "127.0.0.1", "[::1]", "testserver")
    max_json_bytes: int = Field(default=16 * _MIB, ge=1024)
    max_binary_bytes: int = Field(default=256 * _MIB, ge=1024)
    max_elements: int = Field(default=64 * _MIB, ge=1)
    max_ndim: int = Field(default=8, ge=1, le=32)
    max_channels: int = Field(default=65536, ge=1)
    max_instances: int = Field(default=1000, ge=1)
    max_instance_id: int = Field(default=128, ge=7, le=1024)
    max_cache_bytes: int = Field(default=64 * _MIB, ge=0)
    workers_threads: int = Field(default=0, ge=0, le=1024)
    max_queue: int = Field(default=64, ge=0)
    queue_timeout: float = Field(default=0.5, ge=0)
    memory_budget: int = Field(default=2048 * _MIB, ge=_MIB)
    overload_status: Literal[503, 429] = 503
    max_header_bytes: int = Field(default=64 << 10, ge=1024, le=1 << 17)
    header_timeout: float = Field(default=10.0, gt=0)
    body_timeout: float = Field(default=30.0, gt=0)
    request_timeout: float = Field(default=60.0, gt=0)
    grace: float = Field(default=30.0, ge=0)
    shutdown_delay: float = Field(default=1.0, ge=0, le=600)
    log: Literal["json", "console"] = "console"
    metrics: bool = True
    docs: bool = True
    store: str = "memory"
    legacy_errors: bool = False

    @field_validator("api_keys", "cors_origins", "allowed_hosts", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @property
    def threads(self) -> int:
        """Threads that work on arrays."""
        return self.workers_threads or os.cpu_count() or 1


def read_settings(**given: Any) -> Settings:
    """The settings of the environment, with some given otherwise.

    Args:
        given: Fields of `Settings`; None: as the environment says.

    Raises:
        ConfigError: A value is impossible. The message names the setting, not the value.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = ".".join(map(str, first["loc"])).upper()
        raise ConfigError(f"expected another value of QI_API_{name}: {first['msg']}") from None


def misspelt(names: Iterable[str]) -> list[str]:
    """What to tell of variables that look like settings and are none.

    Args:
        names: Names of the environment's variables.

    Returns:
        a sentence for each, without values.

    Example:
        >>> misspelt(["QI_API_PORT", "QI_API_LEGACY_ERROR"])
        ["expected a setting; received QI_API_LEGACY_ERROR, which sets nothing. Did you mean 'QI_API_LEGACY_ERRORS'?"]
    """
    prefix = str(Settings.model_config.get("env_prefix", ""))
    known = {"KEYS", *(name.upper() for name in Settings.model_fields)}
    rests = {name: name[len(prefix) :].upper() for name in sorted(names) if name.upper().startswith(prefix)}
    near = {
        name: suggest(rest, known).replace(" '", f" '{prefix}") for name, rest in rests.items() if rest not in known
    }
    return [f"expected a setting; received {name}, which sets nothing.{told}" for name, told in near.items()]


def warn_of_misspelt() -> None:
    """Logs a warning for each variable of the environment that looks like a setting and is none."""
    for told in misspelt(os.environ):
        logging.getLogger(__name__).warning(told)
