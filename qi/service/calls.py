"""The steps of a call: what the store is asked before the work and told after it, each where it can wait.

Waiting for a store takes threads of `Service.store`, computing those of `Service.work`: neither holds up the other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from qi.engine import QuantizationConfig
from qi.service import latest, operations
from qi.service.admission import Memory
from qi.service.conditions import check_revision
from qi.service.costs import work_bytes
from qi.service.formats import JSON
from qi.service.instances import Change, Instance
from qi.service.latest import Recalled
from qi.service.operations import Result
from qi.service.service import SMALL, Service
from qi.service.store import RevisionError

__all__ = ["admit", "change", "create", "operate", "snapshot"]

T = TypeVar("T")

_ATTEMPTS = 16  # changes of others that may come before ours
_LARGE = SMALL + 1  # in a thread: rare, and nobody knows how long it takes


async def snapshot(service: Service, id: str, revisions: Collection[int] | None = None) -> Instance:
    """An instance as it is now.

    Args:
        service: Where.
        id: Its name.
        revisions: It must have one of these; None: any.

    Raises:
        MissingError: There is none of this name.
        RevisionError: It has another revision.
    """
    instance = await service.store(partial(service.instances.get, id))
    check_revision(id, instance.revision, revisions)
    return instance


async def create(service: Service, id: str, config: Callable[[], QuantizationConfig]) -> Instance:
    """A new instance.

    Args:
        service: Where.
        id: Its name.
        config: Gives its configuration.

    Raises:
        InputError: Instances can't have this name.
        ExistsError: There is one of this name already.
        FullError: There are as many as there may be.
    """
    instances = service.instances
    draft = await service.work(lambda: instances.draft(id, config()), _LARGE)
    return await service.store(partial(instances.add, draft))


async def change(service: Service, id: str, change: Change, revisions: Collection[int] | None = None) -> Instance:
    """Changes an instance; once more where somebody else's change came first.

    Args:
        service: Where.
        id: Its name.
        change: What to do to a copy of its quantizer.
        revisions: It must have one of these; None: any.

    Raises:
        MissingError: There is none of this name.
        RevisionError: It has another revision.
        ValueError: What the change raises. The instance is as it was.
    """
    for _ in range(_ATTEMPTS):
        instance = await snapshot(service, id, revisions)
        changed = await service.work(partial(service.instances.changed, instance, change), _LARGE)
        try:
            return await service.store(partial(service.instances.commit, changed))
        except RevisionError as error:
            problem = error
    raise problem


async def operate(
    service: Service,
    instance: Instance,
    operation: str,
    array: np.ndarray,
    options: Mapping[str, Any],
    answer: Callable[[Result], T],
) -> T:
    """Works on an array, and keeps its parameters where `dequantize` is to use them.

    Args:
        service: Where.
        instance: What works.
        operation: A name of `operations.OPERATIONS`.
        array: What `admit` has let in.
        options: Of the operation.
        answer: Makes the answer, in the same thread.
    """
    own = dict(options)
    if operation == "dequantize" and operations.reads_latest(instance, **options):
        own["recalled"] = await service.store(partial(latest.recall, instance, options.get("layer_name") or None))

    def work() -> tuple[Result, T]:
        result = operations.OPERATIONS[operation](instance, array, **own)
        return result, answer(result)

    recalled: Recalled | None = own.get("recalled")
    more = 0 if recalled is None else len(recalled.latest.parameters)
    result, answered = await service.work(work, array.nbytes + instance.nbytes + more)
    if result.kept is not None:
        await service.store(partial(latest.keep, instance, result.kept))
    return answered


def admit(
    service: Service,
    memory: Memory,
    instance: Instance,
    operation: str,
    arrays: Sequence[np.ndarray],
    options: Mapping[str, Any] | None = None,
    media_type: str = JSON,
) -> None:
    """Lets work begin, if its arrays aren't too large and there is memory for it and its answer.

    Args:
        service: Whose limits count.
        memory: What the request has taken so far.
        instance: What is to work.
        operation: See `work_bytes`.
        arrays: Its input.
        options: Of the operation.
        media_type: Of the answer.

    Raises:
        InputError: An array is too large.
        Problem: 503, there isn't enough memory now.
    """
    channels = 1
    for array in arrays:
        if operation != "compute_params":
            channels = operations.channels_of(instance, array, **(options or {}))
        operations.check_array(array, service.limits, channels)
    memory.need(work_bytes(operation, arrays, media_type=media_type, channels=channels))
