"""Named quantizers: each an immutable snapshot, exchanged as a whole when it changes, here or in another process."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import orjson

from qi.engine import QuantizationConfig, Quantizer
from qi.engine.stats import Statistics
from qi.errors import ConfigError, InputError, QiError
from qi.service.conditions import check_revision
from qi.service.store import ExistsError, Record, Store, UnavailableError, missing

__all__ = ["DEFAULT", "Change", "Counters", "ForbiddenError", "Instance", "Instances"]

DEFAULT = "default"
"""The instance that is always there."""

_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TRIM_EVERY = 64  # uses; a result takes 80 KiB at most


class ForbiddenError(QiError, ValueError):
    """The default instance can't be deleted."""


Observe = Callable[[Mapping[str, int]], None]
"""Is told what each call counted."""

Change = Callable[[Quantizer], bool]
"""Changes a quantizer, and tells whether its parameters are worth keeping even if they aren't fixed."""


class Counters(Statistics):
    """Counters of an instance in this process.

    Args:
        observe: Is told what each call counted.

    Attributes:
        pair: The scale and zero point that were used last.
    """

    def __init__(self, observe: Observe | None = None) -> None:
        super().__init__()
        self.pair: tuple[float, float] | None = None
        self._observe = observe

    def add(self, started: float, ended: float, **counts: int) -> None:
        """See `Statistics.add`."""
        super().add(started, ended, **counts)
        if self._observe is not None:
            self._observe(counts)


@dataclass(frozen=True, eq=False)
class Instance:
    """One revision of a named quantizer.

    Attributes:
        record: What the store has of it.
        quantizer: Made of that. Nothing changes its configuration or fixed parameters; it knows the latest parameters.
        statistics: Counters, shared by all revisions.
        store: Where latest parameters are kept.
        sequences: Of the latest parameters that `quantizer` itself has, by layer.
    """

    record: Record
    quantizer: Quantizer
    statistics: Counters
    store: Store
    sequences: dict[str, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Its name."""
        return self.record.id

    @property
    def revision(self) -> int:
        """A number that grows with every change of configuration or fixed parameters."""
        return self.record.revision

    @property
    def config(self) -> QuantizationConfig:
        """The configuration."""
        return self.quantizer.config

    @property
    def nbytes(self) -> int:
        """How long its configuration and parameters are: what it costs to read them."""
        return len(self.record.config) + len(self.record.parameters or "")

    @cached_property
    def silent(self) -> Quantizer:
        """The same quantizer, for calls that leave the latest parameters as they are."""
        return _made(self.config, self.record.parameters, self.statistics)

    @cached_property
    def lenient(self) -> Quantizer:
        """As `silent`, and NaN and infinities are no errors to it."""
        config = self.config.replace(error_on_nan=False, error_on_inf=False)
        return _made(config, self.record.parameters, self.statistics)

    @cached_property
    def fixed(self) -> bool:
        """Whether parameters are fixed, so that they don't come from the arrays."""
        return self.quantizer._is_calibrated

    @classmethod
    def of(cls, record: Record, store: Store, statistics: Counters) -> Instance:
        """The instance that a record describes.

        Raises:
            UnavailableError: Nobody can read the record.
        """
        try:
            config = QuantizationConfig.from_dict(json.loads(record.config))
            quantizer = _made(config, record.parameters, statistics)
        except (QiError, ValueError, LookupError, TypeError) as error:
            raise UnavailableError("expected an instance that can be read; received a damaged one") from error
        return cls(record, quantizer, statistics, store)


class Instances:
    """All instances of a store, as this process sees them.

    Args:
        store: Where they live.
        default: Configuration of the default instance, where the store is new.
        max_instances: Most instances.
        max_instance_id: Longest name.
        max_cache_bytes: Memory of the results that all of them keep.
        observe: Is told what each call counted.
    """

    def __init__(
        self,
        store: Store,
        default: QuantizationConfig | None = None,
        *,
        max_instances: int = 1000,
        max_instance_id: int = 128,
        max_cache_bytes: int = 64 << 20,
        observe: Observe | None = None,
    ) -> None:
        self.store = store
        self.max_instances = max_instances
        self.max_instance_id = max_instance_id
        self.max_cache_bytes = max_cache_bytes
        self._observe = observe
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Instance] = OrderedDict()  # the least recently used first
        self._uses = 0
        self._default = _text(default or QuantizationConfig())
        self._ensure_default()

    def ids(self) -> list[str]:
        """Names of all instances, in the order of their creation."""
        return self.store.ids()

    def get(self, id: str = DEFAULT) -> Instance:
        """An instance as it is now.

        Raises:
            MissingError: There is none of this name.
            UnavailableError: Nobody can read what the store has of it.
        """
        if not _PATTERN.fullmatch(id):  # not for the store, which mightn't take it for text
            raise missing(id)
        known, revision = self._known.get(id), self.store.revision(id)
        if revision is None and id == DEFAULT:  # the store has lost everything
            self._ensure_default()
            revision = self.store.revision(id)
        if known is not None and (
            revision is None or revision < known.revision
        ):  # deleted, or the store is an older one
            self._forget(known)
        if revision is None:
            raise missing(id)
        if known is None or known.revision != revision:
            known = self._refreshed(id)
        self._used(id)
        return known

    def create(self, id: str, config: QuantizationConfig) -> Instance:
        """A new instance; see `draft` and `add`."""
        return self.add(self.draft(id, config))

    def draft(self, id: str, config: QuantizationConfig, parameters: str | None = None) -> Instance:
        """An instance that isn't in the store; only computes.

        Args:
            id: Its name.
            config: Its configuration.
            parameters: An export, as JSON.

        Raises:
            InputError: Instances can't have this name.
            ConfigError: Configuration and parameters contradict each other.
        """
        self.check_id(id)
        return self._drafted(Record(id, 0, _text(config), parameters), self._counters())

    def add(self, draft: Instance) -> Instance:
        """Puts a draft into the store.

        Raises:
            ExistsError: There is one of this name already.
            FullError: There are as many as there may be.
        """
        new = draft.record
        return self._keep(
            replace(draft, record=self.store.create(new.id, new.config, new.parameters, limit=self.max_instances))
        )

    def check_id(self, id: str) -> None:
        """Raises InputError unless an instance can have this name."""
        if len(id) > self.max_instance_id or not _PATTERN.fullmatch(id):
            raise InputError(
                f"expected a name of 1 to {self.max_instance_id} letters, digits, '.', '_' and '-', the first one a letter or "
                f"digit; received {len(id)} characters"
            )

    def delete(self, id: str, revisions: Collection[int] | None = None) -> None:
        """Deletes an instance.

        Args:
            id: Which.
            revisions: It must have one of these; None: any.

        Raises:
            ForbiddenError: It is the default one.
            MissingError: There is none of this name.
            RevisionError: It has another revision.
        """
        if id == DEFAULT:
            raise ForbiddenError("Cannot delete the default quantizer instance")
        known = self._known.get(id)
        revision = self.store.revision(id) if _PATTERN.fullmatch(id) else None
        if revision is None:
            raise missing(id)
        check_revision(id, revision, revisions)
        self.store.delete(id, None if revisions is None else revision)
        if known is not None:
            self._forget(known)

    def changed(self, instance: Instance, change: Change) -> Instance:
        """A changed copy of an instance, which isn't in the store; only computes.

        Raises:
            ValueError: What the change raises, or its outcome contradicts itself. The instance is as it was.
        """
        quantizer = _made(instance.config, instance.record.parameters, Statistics())
        keep = change(quantizer)
        exported = quantizer.export_parameters()
        parameters = _written(exported) if keep or exported["is_calibrated"] else None
        record = Record(instance.id, instance.revision, _text(quantizer.config), parameters)
        return self._drafted(record, instance.statistics)

    def commit(self, changed: Instance) -> Instance:
        """Puts a changed copy into the store.

        Raises:
            MissingError: The instance is gone.
            RevisionError: It has been changed since.
        """
        return self._keep(replace(changed, record=self.store.replace(changed.record)))

    def put(self, id: str, quantizer: Quantizer) -> Instance:
        """An instance like a given quantizer, in the place of the one of this name, if there is one."""
        draft = self.draft(id, quantizer.config, _written(quantizer.export_parameters()))
        record = self.store.get(id)
        if record is None:
            return self.add(draft)
        return self.commit(replace(draft, record=replace(draft.record, revision=record.revision)))

    def _drafted(self, record: Record, statistics: Counters) -> Instance:
        """The instance of a record that a client's wishes made: if it can't be read, the store is no worse for it."""
        try:
            return Instance.of(record, self.store, statistics)
        except UnavailableError as error:
            raise ConfigError(
                f"expected settings and parameters that go together; received others: {error.__cause__}"
            ) from error

    def _ensure_default(self) -> None:
        if self.store.get(DEFAULT) is None:
            with contextlib.suppress(ExistsError):  # another process was first
                self.store.create(DEFAULT, self._default, limit=self.max_instances)

    def _forget(self, instance: Instance) -> None:
        with self._lock:
            if self._known.get(instance.id) is instance:
                del self._known[instance.id]

    def _refreshed(self, id: str) -> Instance:
        record = self.store.get(id)
        if record is None:
            raise missing(id)
        with self._lock:
            known = self._known.get(id)
        if known is not None and known.revision >= record.revision:
            return known
        return self._keep(Instance.of(record, self.store, self._counters() if known is None else known.statistics))

    def _used(self, id: str) -> None:
        """Notes a use; from time to time the least recently used results go, if all take too much."""
        with self._lock:
            if id in self._known:
                self._known.move_to_end(id)
            self._uses += 1
            if self._uses % _TRIM_EVERY:
                return
            while len(self._known) > self.max_instances:  # deleted by other processes
                self._known.popitem(last=False)
            quantizers = [instance.quantizer for instance in self._known.values()]
        total = sum(quantizer.cache_bytes for quantizer in quantizers)
        for quantizer in quantizers:
            if total <= self.max_cache_bytes:
                break
            total -= quantizer.cache_bytes
            quantizer.clear_cache()

    def _counters(self) -> Counters:
        return Counters(self._observe)

    def _keep(self, instance: Instance) -> Instance:
        """Makes it the present one, unless a later one is known already."""
        with self._lock:
            known = self._known.get(instance.id)
            if known is not None and known.revision >= instance.revision:
                return known
            self._known[instance.id] = instance
            return instance


def _made(config: QuantizationConfig, parameters: str | None, statistics: Statistics) -> Quantizer:
    quantizer = Quantizer(config, statistics=statistics)
    if parameters is not None:
        quantizer.load_parameters(orjson.loads(parameters))
    return quantizer


def _written(parameters: Mapping[str, Any]) -> str:
    """Parameters as JSON. They may be long, and the standard library would keep all other threads waiting."""
    return orjson.dumps(parameters, option=orjson.OPT_NON_STR_KEYS).decode()


def _text(config: QuantizationConfig) -> str:
    return json.dumps(config.to_dict())
