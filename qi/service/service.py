"""What all routes share: the settings, the instances, and the threads that work on arrays."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from starlette.requests import Request

from qi.service.formats import Limits
from qi.service.instances import Instances
from qi.service.models import QuantizerConfigModel
from qi.service.settings import Settings, read_settings
from qi.service.store import UnavailableError, open_store

__all__ = ["Service", "service_of"]

T = TypeVar("T")
_LOG = logging.getLogger("qi.service.store")

SMALL = 1 << 14
"""Bytes of input up to which a thread would cost more than the work."""

_STORING = 8  # threads for the store, beside those that changes may hold while they wait for other processes
_STORE_WAIT = 10.0  # seconds until one of them must be free


class Service:
    """One service: opened when it is first used, so that importing it costs nothing.

    Args:
        settings: What the operator has set; what the environment says by default.

    Attributes:
        settings: The settings.
        draining: Whether it has been told to stop, and answers only what it has accepted.
        limits: What an array of a client may have.
        observe: Is told what each call of a quantizer counted.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = read_settings() if settings is None else settings
        self.draining = False
        self.observe: Callable[[Mapping[str, int]], None] = lambda counts: None
        self.limits = Limits(self.settings.max_elements, self.settings.max_ndim, self.settings.max_channels)
        self._lock = threading.Lock()
        self._instances: Instances | None = None
        self._working = CapacityLimiter(self.settings.threads)
        self._storing = CapacityLimiter(self.settings.threads + self.settings.max_queue + _STORING)

    @property
    def instances(self) -> Instances:
        """The instances.

        Raises:
            ConfigError: The store's URL is wrong.
            UnavailableError: The store can't be opened.
        """
        with self._lock:
            if self._instances is None:
                store = open_store(self.settings.store)
                self._instances = Instances(
                    store,
                    QuantizerConfigModel().to_config(),
                    max_instances=self.settings.max_instances,
                    max_instance_id=self.settings.max_instance_id,
                    max_cache_bytes=self.settings.max_cache_bytes,
                    observe=lambda counts: self.observe(counts),
                )
            return self._instances

    async def work(self, function: Callable[[], T], nbytes: int) -> T:
        """Calls a function that works on an array of so many bytes, and not on the store, in a thread unless it is small.

        Args:
            function: What to do.
            nbytes: Of the input.
        """
        if nbytes <= SMALL:
            return function()
        return await anyio.to_thread.run_sync(function, limiter=self._working)

    async def store(self, function: Callable[[], T]) -> T:
        """Calls a function that only reads or writes the store, in a thread if that takes time.

        Those threads are others than the ones that compute, so that a store that hangs keeps nobody from computing.

        Raises:
            UnavailableError: Too many wait for the store.
        """
        if not self.instances.store.shared:
            return function()
        with anyio.move_on_after(_STORE_WAIT):  # for a thread: one that has begun is waited for
            return await anyio.to_thread.run_sync(function, limiter=self._storing)
        raise UnavailableError(f"expected a turn within {_STORE_WAIT:g} seconds; received none, for too many wait")

    def ready(self) -> bool:
        """Whether requests can be answered."""
        if self.draining:
            return False
        try:
            self.instances.store.check()
        except Exception as error:  # whatever a store raises, this is the answer
            _LOG.error("not ready: %s", error)
            return False
        return True

    def close(self) -> None:
        """Gives the store back; another use opens it again."""
        with self._lock:
            instances, self._instances = self._instances, None
        if instances is not None:
            instances.store.close()


def service_of(request: Request) -> Service:
    """The service of the application that a request goes to."""
    service: Service = request.app.state.service
    return service
