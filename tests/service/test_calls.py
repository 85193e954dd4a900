"""Changes of several at once, limits before the work, and which threads wait for what."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from qi.engine import QuantizationConfig
from qi.errors import InputError, NotCalibratedError
from qi.service import calls, operations
from qi.service.admission import Admission, Memory
from qi.service.instances import DEFAULT, Instances
from qi.service.operations import Result
from qi.service.problems import Problem
from qi.service.service import Service
from qi.service.settings import Settings
from qi.service.store import ExistsError, MissingError, RevisionError

X = np.array([[1.2, 3.4, 5.6], [7.8, 9.0, 2.1]], np.float32)


@pytest.fixture
def service(store_url: str) -> Any:
    service = Service(Settings(store=store_url))
    yield service
    service.close()


def operate(service: Service, operation: str, array: np.ndarray, **options: Any) -> Any:
    async def run() -> Result:
        instance = await calls.snapshot(service, DEFAULT)
        return await calls.operate(service, instance, operation, array, options, lambda result: result)

    return asyncio.run(run())


def test_codes_are_read_by_what_was_kept(service: Service) -> None:
    with pytest.raises(NotCalibratedError):
        operate(service, "dequantize", np.zeros((2, 2), np.int8))
    codes = operate(service, "quantize", X, remember=True).array
    operate(service, "quantize", 100 * X, remember=False)
    assert np.allclose(operate(service, "dequantize", codes).array, X, atol=0.02)


def test_the_work_waits_for_no_store(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever asks the store does so in the store's turn, whatever computes in the other."""
    turns: list[str] = []
    asked: list[tuple[str, str]] = []
    store, work = service.store, service.work

    async def in_turn(name: str, run: Callable[..., Any], *args: Any) -> Any:
        turns.append(name)
        try:
            return await run(*args)
        finally:
            turns.pop()

    monkeypatch.setattr(service, "store", partial(in_turn, "store", store))
    monkeypatch.setattr(service, "work", partial(in_turn, "work", work))
    for name in ("get", "revision", "replace", "remember", "recall", "create"):
        method = getattr(service.instances.store, name)

        def spied(*args: Any, name: str = name, method: Any = method, **kwargs: Any) -> Any:
            asked.append((name, turns[-1]))
            return method(*args, **kwargs)

        monkeypatch.setattr(service.instances.store, name, spied)
    codes = operate(service, "quantize", X, remember=True).array
    operate(service, "dequantize", codes)
    asyncio.run(calls.change(service, DEFAULT, operations.calibrating([X])))
    asyncio.run(calls.create(service, "a", QuantizationConfig))
    assert {name for name, _ in asked} >= {"revision", "replace", "remember", "recall", "create"}
    assert {turn for _, turn in asked} == {"store"}


def test_changes_of_several_are_all_applied(service: Service) -> None:
    """The optimistic lock: each adds one layer to what is there."""

    def adding(name: str) -> Any:
        add = lambda config: config.replace(skip_layers=(*config.skip_layers, name))
        return calls.change(service, DEFAULT, operations.configuring(add))

    async def run() -> None:
        await asyncio.gather(*(adding(f"l{i}") for i in range(6)))

    asyncio.run(run())
    assert sorted(service.instances.get().config.skip_layers) == [f"l{i}" for i in range(6)]


def test_a_change_can_ask_for_a_revision(service: Service) -> None:
    change = operations.configuring(QuantizationConfig(quantization_type="int16"))
    revision = service.instances.get().revision
    with pytest.raises(RevisionError, match="If-Match"):
        asyncio.run(calls.change(service, DEFAULT, change, {revision + 1}))
    changed = asyncio.run(calls.change(service, DEFAULT, change, {revision + 1, revision}))
    assert (changed.config.quantization_type, service.instances.get()) == ("int16", changed)
    with pytest.raises(RevisionError):
        asyncio.run(calls.change(service, DEFAULT, change, {revision}))


def test_a_change_that_never_comes_first(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(self: Instances, changed: Any) -> Any:
        raise RevisionError("somebody else")

    monkeypatch.setattr(Instances, "commit", late)
    with pytest.raises(RevisionError, match="somebody else"):
        asyncio.run(calls.change(service, DEFAULT, operations.configuring(QuantizationConfig())))


def test_creation(service: Service) -> None:
    made = asyncio.run(calls.create(service, "a", lambda: QuantizationConfig(quantization_type="uint8")))
    assert asyncio.run(calls.snapshot(service, "a", {made.revision})) is made
    with pytest.raises(ExistsError):
        asyncio.run(calls.create(service, "a", QuantizationConfig))
    with pytest.raises(InputError):
        asyncio.run(calls.create(service, "a b", QuantizationConfig))
    with pytest.raises(MissingError):
        asyncio.run(calls.snapshot(service, "b"))


def test_changes_are_not_made_on_the_loop() -> None:
    """With a store in memory, too: tables of a thousand layers take a while."""
    service = Service(Settings(store="memory"))
    threads: list[int] = []

    def change(quantizer: Any) -> bool:
        threads.append(threading.get_ident())
        return False

    def config() -> QuantizationConfig:
        threads.append(threading.get_ident())
        return QuantizationConfig()

    asyncio.run(calls.change(service, DEFAULT, change))
    asyncio.run(calls.create(service, "a", config))
    assert len(threads) == 2
    assert threading.get_ident() not in threads


def test_arrays_are_looked_at_before_the_work() -> None:
    service = Service(Settings(store="memory"))
    instance = service.instances.put(DEFAULT, operations.Quantizer(QuantizationConfig(per_channel=True)))
    admission = Admission(memory_budget=100 << 20)
    memory = Memory(admission)
    calls.admit(service, memory, instance, "quantize", [np.zeros((1 << 16, 1), np.int8)])
    assert admission.memory > 64 << 20
    with pytest.raises(InputError, match="at most 65536 channels"):
        calls.admit(service, memory, instance, "quantize", [np.zeros(((1 << 16) + 1, 1), np.int8)])
    with pytest.raises(InputError, match="at most 65536 channels"):
        calls.admit(service, memory, instance, "calibrate", [X, np.zeros((1, 1 << 17))], {"channel_dim": 1})
    calls.admit(service, memory, instance, "compute_params", [np.zeros((1 << 17, 1), np.int8)])
    other = Memory(admission)
    with pytest.raises(Problem) as caught:
        calls.admit(service, other, instance, "quantize", [np.zeros((4, 1 << 20), np.float32)])
    assert caught.value.status_code == 503
