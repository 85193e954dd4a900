from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from qi.engine import QuantizationConfig, Quantizer
from qi.service import latest, operations
from qi.service.formats import Limits
from qi.service.instances import DEFAULT, Instance, Instances
from qi.service.store import Store

X = np.array([[1.2, 3.4, 5.6], [7.8, 9.0, 2.1]], np.float32)


def quantized(instance: Instance, array: np.ndarray, **options: Any) -> np.ndarray:
    result = operations.quantize(instance, array, remember=True, **options)
    assert result.kept is not None
    latest.keep(instance, result.kept)
    return result.array


def exported(instance: Instance) -> dict[str, Any]:
    return latest.exported(instance, instance.store.recall_all(instance.record))


@pytest.fixture
def instances(store: Store) -> Instances:
    return Instances(store)


def test_layers_without_parameters_get_those_of_any(instances: Instances) -> None:
    instance = instances.put(
        DEFAULT, Quantizer(QuantizationConfig(enable_mixed_precision=True, mixed_precision_layers=["own"]))
    )
    assert latest.recall(instance, None) is None
    quantized(instance, X)
    assert [getattr(latest.recall(instance, name), "layer", None) for name in (None, "a", "own")] == ["", "", None]
    quantized(instance, X, layer_name="own")
    assert [getattr(latest.recall(instance, name), "layer", None) for name in (None, "a", "own")] == ["", "", "own"]
    quantized(instance, X, layer_name="a")
    assert getattr(latest.recall(instance, "a"), "layer", None) == "a"


def test_what_the_quantizer_has_itself_is_not_made_again(store: Store) -> None:
    here, there = Instances(store).get(), Instances(store).get()
    quantized(here, X)
    found = latest.recall(here, None)
    assert found is not None
    assert latest.params_of(found, here, here.config, 2, None) is None
    params = latest.params_of(found, there, there.config, 2, None)
    assert params is not None
    assert float(params.scale) == here.quantizer.scale


def test_parameters_of_a_changed_instance_are_gone(instances: Instances) -> None:
    before = instances.get()
    quantized(before, X)
    after = instances.commit(instances.changed(before, operations.configuring(QuantizationConfig())))
    quantized(before, X)
    assert latest.recall(after, None) is None


@pytest.mark.parametrize("fields", [{}, {"per_channel": True}, {"quantization_type": "uint8"}])
def test_an_export_reads_codes_elsewhere(fields: dict[str, Any], store: Store) -> None:
    instances, others = Instances(store), Instances(store)
    instance = instances.put(DEFAULT, Quantizer(QuantizationConfig(**fields)))
    codes = quantized(instance, X, layer_name="l")
    plain = json.loads(json.dumps(exported(instance), allow_nan=False))
    assert set(plain["layers"]) == {"l"}
    assert exported(others.get()) == plain
    other = instances.create("other", QuantizationConfig())
    other = instances.commit(instances.changed(other, operations.loading(plain, Limits())))
    assert np.array_equal(other.quantizer.dequantize(codes), instance.quantizer.dequantize(codes))
