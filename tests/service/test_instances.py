from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import pytest

from qi.engine import QuantizationConfig, Quantizer
from qi.errors import ConfigError, InputError, NotCalibratedError
from qi.service.formats import Limits
from qi.service.instances import DEFAULT, Change, Counters, ForbiddenError, Instance, Instances
from qi.service.operations import calibrating, configuring, loading
from qi.service.store import (
    ExistsError,
    FullError,
    MemoryStore,
    MissingError,
    Record,
    RevisionError,
    Store,
    UnavailableError,
)

X = np.linspace(-1, 3, 12, dtype=np.float32).reshape(3, 4)


def changed(instances: Instances, id: str, change: Change) -> Instance:
    return instances.commit(instances.changed(instances.get(id), change))


def configure(instances: Instances, id: str, config: QuantizationConfig) -> Instance:
    return changed(instances, id, configuring(config))


@pytest.fixture
def instances(store: Store) -> Instances:
    return Instances(store, QuantizationConfig(symmetric=False), max_instances=4)


def test_the_default_instance_is_always_there(instances: Instances, store: Store) -> None:
    assert instances.ids() == [DEFAULT]
    assert instances.get().config.symmetric is False
    again = Instances(store, QuantizationConfig(symmetric=True))
    assert again.get().revision == instances.get().revision
    with pytest.raises(ForbiddenError):
        instances.delete(DEFAULT)


def test_a_snapshot_is_the_same_until_something_changes(instances: Instances) -> None:
    before = instances.get()
    assert instances.get() is before
    after = configure(instances, DEFAULT, QuantizationConfig(quantization_type="int16"))
    assert instances.get() is after
    assert before.config.quantization_type == "int8"
    assert after.revision > before.revision
    assert after.statistics is before.statistics


@pytest.mark.parametrize("name", ["", "a b", "a\n", "-a", "ä", "a/b", "x" * 129, ".."])
def test_a_name_has_its_form(name: str, instances: Instances) -> None:
    with pytest.raises(InputError, match="name of 1 to 128"):
        instances.create(name, QuantizationConfig())


def test_create_and_delete(instances: Instances) -> None:
    instances.create("a", QuantizationConfig())
    with pytest.raises(ExistsError):
        instances.create("a", QuantizationConfig())
    for name in ("b", "c"):
        instances.create(name, QuantizationConfig())
    with pytest.raises(FullError):
        instances.create("d", QuantizationConfig())
    with pytest.raises(RevisionError):
        instances.delete("a", {1})
    instances.delete("a", {1, instances.get("a").revision})
    with pytest.raises(MissingError):
        instances.get("a")


def test_calibration_stays_through_changes_where_it_can(instances: Instances) -> None:
    first = changed(instances, DEFAULT, calibrating([X]))
    assert (first.fixed, first.config.quantization_mode) == (True, "calibrated")
    wider = configure(instances, DEFAULT, first.config.replace(quantization_type="int16"))
    assert wider.fixed
    assert wider.quantizer.scale == pytest.approx(4 / 65535)
    channels = configure(instances, DEFAULT, first.config.replace(per_channel=True))
    assert not channels.fixed
    with pytest.raises(NotCalibratedError):
        channels.quantizer.quantize(X)


def test_a_failed_change_changes_nothing(instances: Instances) -> None:
    before = instances.get()
    with pytest.raises(InputError):
        changed(instances, DEFAULT, calibrating([np.array([np.nan])]))
    with pytest.raises(ValueError, match="scale"):
        changed(instances, DEFAULT, loading({"global_scale": 0}, Limits()))
    assert instances.get() is before


def test_a_change_is_of_what_was_seen(instances: Instances) -> None:
    seen = instances.get()
    copies = [instances.changed(seen, change) for change in (calibrating([X]), configuring(QuantizationConfig()))]
    assert instances.get() is seen
    kept = instances.commit(copies[0])
    with pytest.raises(RevisionError):
        instances.commit(copies[1])
    assert instances.get() is kept
    assert kept.fixed


def test_another_process_sees_a_change_at_once(store: Store) -> None:
    here, there = Instances(store), Instances(store)
    here.create("a", QuantizationConfig())
    assert there.get("a").config.symmetric
    configure(here, "a", QuantizationConfig(symmetric=False))
    assert not there.get("a").config.symmetric
    changed(here, "a", calibrating([X]))
    assert there.get("a").quantizer.scale == here.get("a").quantizer.scale
    assert np.array_equal(there.get("a").quantizer.quantize(X), here.get("a").quantizer.quantize(X))
    here.delete("a")
    with pytest.raises(MissingError):
        there.get("a")
    there.create("a", QuantizationConfig(quantization_type="uint8"))
    assert here.get("a").config.quantization_type == "uint8"


def test_every_call_works_on_one_snapshot() -> None:
    instances = Instances(MemoryStore(), QuantizationConfig())
    configs = [QuantizationConfig(quantization_type=kind) for kind in ("int8", "int16")]
    allowed = {Quantizer(config).quantize_dequantize(X).tobytes() for config in configs}
    found: set[bytes] = set()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def use() -> None:
        for _ in range(50):
            found.add(instances.get().quantizer.quantize_dequantize(X).tobytes())

    threads = [threading.Thread(target=use) for _ in range(3)]
    try:
        for thread in threads:
            thread.start()
        for i in range(40):
            configure(instances, DEFAULT, configs[i % 2])
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert found <= allowed
    assert found


def test_variants_share_counters_and_leave_the_rest_alone(instances: Instances) -> None:
    instance = instances.get()
    instance.quantizer.quantize(X)
    scale = instance.quantizer.scale
    instance.silent.quantize(10 * X)
    instance.lenient.quantize(np.array([np.nan, 100.0]))
    assert instance.quantizer.scale == scale
    assert instance.quantizer.get_stats()["quantize_calls"] == 3


def test_a_given_quantizer_takes_a_place(instances: Instances) -> None:
    quantizer = Quantizer(QuantizationConfig(quantization_type="uint8"))
    quantizer.calibrate([X])
    for name in (DEFAULT, "new"):
        instance = instances.put(name, quantizer)
        assert instance.config == quantizer.config
        assert np.array_equal(instance.quantizer.quantize(X), quantizer.quantize(X))


def test_kept_results_have_a_budget() -> None:
    instances = Instances(MemoryStore(), max_cache_bytes=20_000)
    for name in ("a", "b"):
        quantizer = instances.create(name, QuantizationConfig()).quantizer
        quantizer.dequantize(quantizer.quantize(np.linspace(-1, 1, 3000, dtype=np.float32)))
    used = [instances.get(name).quantizer for name in ("a", "b")]
    assert all(quantizer.cache_bytes > 10_000 for quantizer in used)
    for _ in range(64):
        instances.get("b")
    assert used[0].cache_bytes == 0
    assert used[1].cache_bytes > 10_000


def test_counters_tell_what_they_count() -> None:
    told: list[Any] = []
    counters = Counters(lambda counts: told.append(dict(counts)))
    counters.add(0.0, 0.5, quantize_calls=1)
    assert told == [{"quantize_calls": 1}]
    assert counters.snapshot()["quantize_calls"] == 1


@pytest.mark.parametrize("name", ["a\0", "", "a/b", "\ud800", "ä"])
def test_what_is_no_name_is_not_asked_for(name: str, instances: Instances) -> None:
    for call in (instances.get, instances.delete):
        with pytest.raises(MissingError):
            call(name)


@pytest.mark.parametrize("first", [{"symmetric": True}, {"quantization_mode": "asymmetric"}])
def test_settings_that_contradict_each_other_are_no_damage(first: dict[str, Any], store: Store) -> None:
    """It is who asks for them that made a mistake, not the store."""
    instances = Instances(store, QuantizationConfig(symmetric=False))
    changed(instances, DEFAULT, calibrating([np.array([1.0, -2.0])]))
    before = changed(instances, DEFAULT, configuring(lambda config: config.replace(**first)))
    both = {"symmetric": True, "quantization_mode": "asymmetric"}
    with pytest.raises(ConfigError, match=r"go together.*zero points of 0"):
        instances.changed(instances.get(), configuring(lambda config: config.replace(**both)))
    assert instances.get() is before


@pytest.mark.parametrize("record", [("{", None), ("{}", "{"), ("[]", None), ("{}", "{}"), ('{"num_bits": 99}', None)])
def test_a_record_that_nobody_can_read(record: tuple[str, str | None], store: Store) -> None:
    instances = Instances(store)
    store.create("a", record[0], record[1], limit=9)
    with pytest.raises(UnavailableError, match="damaged"):
        instances.get("a")
    instances.delete("a")


def test_a_store_that_has_become_older(instances: Instances) -> None:
    """It was restored, or its server lost the latest changes."""

    class Older(MemoryStore):
        def lose(self, id: str, record: Record) -> None:
            self._records[id] = record

    store = Older()
    instances = Instances(store, QuantizationConfig())
    before = instances.get()
    configure(instances, DEFAULT, QuantizationConfig(quantization_type="int16"))
    store.lose(DEFAULT, before.record)
    assert instances.get().config.quantization_type == "int8"
    assert instances.get().revision == before.revision


def test_the_default_instance_comes_back(store: Store) -> None:
    """After a server of the store was emptied."""
    instances = Instances(store, QuantizationConfig(symmetric=False))
    store.delete(DEFAULT)
    assert instances.get().config.symmetric is False
    assert instances.ids() == [DEFAULT]
