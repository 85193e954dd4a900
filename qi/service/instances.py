"""Named quantizers: each an immutable snapshot, exchanged as a whole when it changes, here or in another process."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from qi.engine import QuantizationConfig, Quantizer
from qi.engine.stats import Statistics
from qi.errors import InputError, QiError
from qi.service.store import ExistsError, Record, RevisionError, Store, missing

__all__ = ["DEFAULT", "Counters", "ForbiddenError", "Instance", "Instances"]

DEFAULT = "default"
"""The instance that is always there."""

_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TRIM_EVERY = 64  # uses; a result takes 80 KiB at most
_ATTEMPTS = 16  # changes of others that may come before ours


class ForbiddenError(QiError, ValueError):
    """The default instance can't be deleted."""


Observe = Callable[[Mapping[str, int]], None]
"""Is told what each call counted."""


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
        return self.quantizer.export_parameters()["is_calibrated"] is True

    @classmethod
    def of(cls, record: Record, store: Store, statistics: Counters) -> Instance:
        """The instance that a record describes."""
        config = QuantizationConfig.from_dict(json.loads(record.config))
        return cls(record, _made(config, record.parameters, statistics), statistics, store)


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
        if store.get(DEFAULT) is None:
            with contextlib.suppress(ExistsError):  # another process was first
                store.create(DEFAULT, _text(default or QuantizationConfig()), limit=max_instances)

    def ids(self) -> list[str]:
        """Names of all instances, in the order of their creation."""
        return self.store.ids()

    def get(self, id: str = DEFAULT) -> Instance:
        """An instance as it is now.

        Raises:
            MissingError: There is none of this name.
        """
        known, revision = self._known.get(id), self.store.revision(id)
        if revision is None:
            with self._lock:
                self._known.pop(id, None)
            raise missing(id)
        if known is None or known.revision != revision:
            known = self._refreshed(id)
        self._used(id)
        return known

    def create(self, id: str, config: QuantizationConfig) -> Instance:
        """A new instance.

        Raises:
            InputError: Instances can't have this name.
            ExistsError: There is one of this name already.
            FullError: There are as many as there may be.
        """
        self.check_id(id)
        record = self.store.create(id, _text(config), limit=self.max_instances)
        return self._keep(Instance.of(record, self.store, self._counters()))

    def check_id(self, id: str) -> None:
        """Raises InputError unless an instance can have this name."""
        if len(id) > self.max_instance_id or not _PATTERN.fullmatch(id):
            raise InputError(
                f"expected a name of 1 to {self.max_instance_id} letters, digits, '.', '_' and '-', the first one a letter or "
                f"digit; received {len(id)} characters"
            )

    def delete(self, id: str, revision: int | None = None) -> None:
        """Deletes an instance, if it has this revision.

        Raises:
            ForbiddenError: It is the default one.
            MissingError: There is none of this name.
            RevisionError: It has another revision.
        """
        if id == DEFAULT:
            raise ForbiddenError("Cannot delete the default quantizer instance")
        self.store.delete(id, revision)
        with self._lock:
            self._known.pop(id, None)

    def configure(
        self, id: str, config: QuantizationConfig | Callable[[QuantizationConfig], QuantizationConfig],
        revision: int | None = None,
    ) -> Instance:  # fmt: skip
        """Changes the configuration; a calibrated range stays where it can, see `Quantizer.update_config`.

        Args:
            id: Of which instance.
            config: The new one, or a function from the present one to it.
            revision: The instance must have it; None: any.

        Raises:
            MissingError: There is none of this name.
            RevisionError: It has another revision.
        """

        def change(quantizer: Quantizer) -> bool:
            quantizer.update_config(config(quantizer.config) if callable(config) else config)
            return False

        return self._changed(id, change, revision)

    def calibrate(
        self, id: str, arrays: Sequence[np.ndarray], channel_dim: int | None = None, revision: int | None = None
    ) -> Instance:
        """Fixes parameters by representative data; see `Quantizer.calibrate`.

        Raises:
            MissingError: There is none of this name.
            RevisionError: It has another revision.
            ValueError: The data can't be used. The instance is as it was.
        """

        def change(quantizer: Quantizer) -> bool:
            quantizer.calibrate(arrays, channel_dim)
            return True

        return self._changed(id, change, revision)

    def load(self, id: str, parameters: dict[str, Any], revision: int | None = None) -> Instance:
        """Takes over exported parameters; see `Quantizer.load_parameters`.

        Raises:
            MissingError: There is none of this name.
            RevisionError: It has another revision.
            ValueError: They are impossible. The instance is as it was.
        """

        def change(quantizer: Quantizer) -> bool:
            quantizer.load_parameters(parameters)
            return True

        return self._changed(id, change, revision)

    def put(self, id: str, quantizer: Quantizer) -> Instance:
        """An instance like a given quantizer, in the place of the one of this name, if there is one."""
        record = self.store.get(id)
        config, parameters = _text(quantizer.config), json.dumps(quantizer.export_parameters())
        if record is None:
            self.check_id(id)
            record = self.store.create(id, config, parameters, limit=self.max_instances)
        else:
            record = self.store.replace(Record(id, record.revision, config, parameters))
        return self._keep(Instance.of(record, self.store, self._counters()))

    def _changed(self, id: str, change: Callable[[Quantizer], bool], revision: int | None) -> Instance:
        """Applies a change to a copy and stores it; again where another change came first.

        Args:
            id: Of which instance.
            change: Changes a quantizer, and tells whether its parameters are worth keeping even if they aren't fixed.
            revision: The instance must have it; None: any.
        """
        for attempt in range(_ATTEMPTS):
            instance = self.get(id)
            if revision is not None and revision != instance.revision:
                raise RevisionError(f"expected revision {revision} of instance {id}; received {instance.revision}")
            quantizer = _made(instance.config, instance.record.parameters, Statistics())
            keep = change(quantizer)
            exported = quantizer.export_parameters()
            parameters = json.dumps(exported) if keep or exported["is_calibrated"] else None
            record = Record(id, instance.revision, _text(quantizer.config), parameters)
            try:
                record = self.store.replace(record)
            except RevisionError:
                if attempt + 1 == _ATTEMPTS:
                    raise
                continue
            return self._keep(Instance.of(record, self.store, instance.statistics))
        raise missing(id)

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
        quantizer.load_parameters(json.loads(parameters))
    return quantizer


def _text(config: QuantizationConfig) -> str:
    return json.dumps(config.to_dict())
