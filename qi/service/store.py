"""Where instances live: the interface, and the store in memory.

A store keeps plain text and numbers; what they mean is for `qi.service.instances` to know. Every change of an instance
gives it a revision that no instance of the store ever had, so a revision that is still the same says that nothing changed.
Stores are registered by the scheme of their URL: each in a module of this package whose name ends with ``_store``.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from qi.errors import ConfigError, QiError
from qi.registry import Registry

__all__ = [
    "MAX_BYTES",
    "MAX_LAYERS",
    "STORES",
    "ExistsError",
    "FullError",
    "Latest",
    "MemoryStore",
    "MissingError",
    "Record",
    "RevisionError",
    "Store",
    "UnavailableError",
    "changed",
    "exists",
    "full",
    "missing",
    "open_store",
    "too_much",
    "unavailable",
]

MAX_LAYERS = 4096
"""Layers of one instance whose latest parameters are kept."""

MAX_BYTES = 16 << 20
"""Length of the latest parameters of one instance that are kept."""


class MissingError(QiError, LookupError):
    """There is no instance of this name."""


class ExistsError(QiError, ValueError):
    """There is an instance of this name already."""


class FullError(QiError, ValueError):
    """There are as many instances as there may be."""


class RevisionError(QiError, RuntimeError):
    """The instance has changed since it was read."""


class UnavailableError(QiError, OSError):
    """The store can't be used now: a full disk, a server that is down, another process that holds it too long."""


@dataclass(frozen=True)
class Record:
    """An instance, as it is stored.

    Attributes:
        id: Its name.
        revision: A number that grows with every change.
        config: Its configuration, as JSON.
        parameters: What calibration or an import fixed, as JSON; None: nothing.
    """

    id: str
    revision: int
    config: str
    parameters: str | None = None


@dataclass(frozen=True)
class Latest:
    """Parameters of the latest array that a layer quantized.

    Attributes:
        sequence: A number that grows with every array.
        parameters: They, as JSON.
    """

    sequence: int
    parameters: str


class Store(Protocol):
    """What every store can do, from any number of threads. Names are text without NUL.

    Each method may raise `UnavailableError`. A change that raised it was made or not, and as a whole.

    Attributes:
        shared: Whether other processes see its changes at once, and a call may therefore take time.
        remembers: Whether latest parameters are kept unless a client says otherwise. Stores across a network don't: each
            array would be a write that all hosts wait for.
    """

    shared: bool
    remembers: bool

    def ids(self) -> list[str]:
        """Names of all instances, in the order of their creation."""

    def get(self, id: str) -> Record | None:
        """An instance, or None."""

    def revision(self, id: str) -> int | None:
        """The revision of an instance, or None; cheap enough for every request."""

    def create(self, id: str, config: str, parameters: str | None = None, *, limit: int) -> Record:
        """A new instance.

        Raises:
            ExistsError: There is one already.
            FullError: There are `limit` instances already.
        """

    def replace(self, record: Record) -> Record:
        """Stores configuration and parameters, if the instance still has the record's revision.

        Returns:
            The record with its new revision.

        Raises:
            MissingError: It is gone.
            RevisionError: It has another revision.
        """

    def delete(self, id: str, revision: int | None = None) -> None:
        """Deletes an instance, if it still has this revision.

        Raises:
            MissingError: It is gone.
            RevisionError: It has another revision.
        """

    def remember(self, record: Record, layers: tuple[str, ...], parameters: str) -> int:
        """Keeps the latest parameters of layers ("": of any), unless the instance has another revision by now.

        The oldest go where there are more than `MAX_LAYERS`, or than `MAX_BYTES` hold.

        Returns:
            Their sequence number; 0 if they were not kept.
        """

    def recall(self, record: Record, layer: str) -> Latest | None:
        """The latest parameters of a layer at this revision, or None."""

    def recall_all(self, record: Record) -> dict[str, Latest]:
        """The latest parameters of all layers at this revision."""

    def check(self) -> None:
        """Raises if the store can't be used now."""

    def close(self) -> None:
        """Gives everything back; the store can't be used any more."""


STORES: Registry[Callable[[str], Store]] = Registry("store")
"""Scheme of the URL to a function from the URL to the store."""


def open_store(url: str) -> Store:
    """The store of a URL.

    Args:
        url: ``memory``; ``sqlite:///relative/path``, ``sqlite:////absolute/path`` or a plain path; ``redis://...``,
            ``postgresql://...``; or a URL of another scheme that is registered.

    Raises:
        ConfigError: Nothing is registered for its scheme, or it is wrong.
        FileFormatError: Something else is stored there.
        UnavailableError: The store can't be used now.
        MissingDependencyError: The extra that it needs isn't installed.

    Example:
        >>> store = open_store("memory")
        >>> store.create("a", "{}", limit=10).revision, store.ids()
        (1, ['a'])
    """
    if not url:
        raise ConfigError("expected the URL of a store; received ''; do: memory, or sqlite:///path")
    scheme, separator, _ = url.partition("://")
    if scheme not in STORES:
        for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
            if module.name.endswith("_store"):
                importlib.import_module(f"{__package__}.{module.name}")  # registers itself
    if separator or url in STORES:
        return STORES.get(scheme)(url)
    return STORES.get("sqlite")(f"sqlite:///{url}")


@STORES.register("memory")
class MemoryStore:
    """Instances of this process alone; they end with it."""

    shared = False
    remembers = True

    def __init__(self, url: str = "memory") -> None:
        self._lock = threading.Lock()
        self._counter = itertools.count(1)
        self._records: dict[str, Record] = {}
        self._latest: dict[str, OrderedDict[str, Latest]] = {}
        self._sizes: dict[str, int] = {}

    def ids(self) -> list[str]:
        """See `Store`."""
        with self._lock:
            return list(self._records)

    def get(self, id: str) -> Record | None:
        """See `Store`."""
        return self._records.get(id)

    def revision(self, id: str) -> int | None:
        """See `Store`."""
        record = self._records.get(id)
        return None if record is None else record.revision

    def create(self, id: str, config: str, parameters: str | None = None, *, limit: int) -> Record:
        """See `Store`."""
        with self._lock:
            if id in self._records:
                raise exists(id)
            if len(self._records) >= limit:
                raise full(limit)
            record = Record(id, next(self._counter), config, parameters)
            self._put(record)
            return record

    def replace(self, record: Record) -> Record:
        """See `Store`."""
        with self._lock:
            self._expect(record.id, record.revision)
            new = replace(record, revision=next(self._counter))
            self._put(new)
            return new

    def delete(self, id: str, revision: int | None = None) -> None:
        """See `Store`."""
        with self._lock:
            self._expect(id, revision)
            del self._records[id], self._latest[id], self._sizes[id]

    def remember(self, record: Record, layers: tuple[str, ...], parameters: str) -> int:
        """See `Store`."""
        with self._lock:
            if self.revision(record.id) != record.revision:
                return 0
            kept, size, sequence = self._latest[record.id], self._sizes[record.id], next(self._counter)
            for layer in layers:
                if layer in kept:
                    size -= len(kept.pop(layer).parameters)
                kept[layer] = Latest(sequence, parameters)
                size += len(parameters)
            while too_much(len(kept), size):
                size -= len(kept.popitem(last=False)[1].parameters)
            self._sizes[record.id] = size
            return sequence

    def recall(self, record: Record, layer: str) -> Latest | None:
        """See `Store`."""
        with self._lock:
            return self._latest[record.id].get(layer) if self.revision(record.id) == record.revision else None

    def recall_all(self, record: Record) -> dict[str, Latest]:
        """See `Store`."""
        with self._lock:
            return dict(self._latest[record.id]) if self.revision(record.id) == record.revision else {}

    def check(self) -> None:
        """See `Store`."""

    def close(self) -> None:
        """See `Store`."""

    def _put(self, record: Record) -> None:
        self._records[record.id] = record
        self._latest[record.id] = OrderedDict()
        self._sizes[record.id] = 0

    def _expect(self, id: str, revision: int | None) -> None:
        found = self.revision(id)
        if found is None:
            raise missing(id)
        if revision is not None and found != revision:
            raise changed(id, revision, found)


def too_much(layers: int, size: int) -> bool:
    """Whether the latest parameters of so many layers, of so many characters together, are more than are kept."""
    return layers > MAX_LAYERS or size > MAX_BYTES


def missing(id: str) -> MissingError:
    """The error of an instance that isn't there."""
    return MissingError(f"Quantizer instance {id} not found")


def exists(id: str) -> ExistsError:
    """The error of an instance that is there already."""
    return ExistsError(f"Quantizer instance {id} already exists")


def full(limit: int) -> FullError:
    """The error of too many instances."""
    return FullError(f"expected at most {limit} instances; received one more; do delete some first")


def changed(id: str, revision: int, found: int) -> RevisionError:
    """The error of a change that somebody else's came before."""
    return RevisionError(
        f"expected revision {revision} of instance {id}; received {found}, for it has changed; do read it again"
    )


def unavailable(error: Exception) -> UnavailableError:
    """The error of a store that doesn't answer, or not as it should: what a library raised, as one of ours."""
    text = " ".join(str(error).split())[:300]
    return UnavailableError(f"expected a store that can be used; received {type(error).__name__}: {text}")
