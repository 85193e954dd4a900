from __future__ import annotations

from typing import Any

import pytest

from qi.engine import QuantizationConfig
from qi.errors import InputError, QiError
from qi.service import operations
from qi.service.formats import Limits
from qi.service.instances import Change, Instance, Instances
from qi.service.store import MemoryStore


@pytest.fixture
def instances() -> Instances:
    return Instances(MemoryStore())


def take(instances: Instances, change: Change) -> Instance:
    return instances.commit(instances.changed(instances.get(), change))


LISTS: dict[str, Any] = {"scale": [1.0] * 5, "zero_point": [0] * 5, "channel_dim": 0}


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"layers": {"\ud800": {"scale": 1}}}, "names of layers"),
        ({"layers": {"a\0": {"scale": 1}}}, "names of layers"),
        ({"layers": {"a" * 513: {"scale": 1}}}, "names of layers"),
        ({"layers": {"a": {"scale": [], "zero_point": [], "channel_dim": 0}}}, "at least one channel"),
        ({"layers": {"a": LISTS}}, "at most 4 channels"),
        ({"per_channel_scales": LISTS["scale"]}, "at most 4 channels"),
        ({"per_channel_scales": {str(i): 1.0 for i in range(5)}}, "at most 4 channels"),
        ({"calibration": {"min": [0.0] * 5, "max": [1.0] * 5, "channel_dim": 0}}, "at most 4 channels"),
        ({"calibration": {"min": [], "max": [], "channel_dim": 0}}, "at least one channel"),
    ],
)
def test_parameters_that_are_not_taken_over(parameters: Any, told: str, instances: Instances) -> None:
    load = operations.loading({"global_scale": 1.0, "channel_dim": None, **parameters}, Limits(max_channels=4))
    with pytest.raises(InputError, match=told):
        take(instances, load)


@pytest.mark.parametrize(
    "parameters",
    [
        {"qmax": {}},
        {"qmin": True},
        {"qmin": 0.5},
        {"channel_dim": "0"},
        {"num_bits": "AAA"},
        {"has_parameters": None},
        {"symmetric": 1},
        {"global_scale": "a"},
        {"global_scale": -1},
        {"global_zero_point": None},
        {"per_channel_scales": "x"},
        {"per_channel_scales": [None]},
        {"per_channel_zero_points": {"0": True}},
        {"layers": {"a": 1}},
    ],
)
@pytest.mark.parametrize("kind", ["int8", "float16", "none"])
def test_parameters_are_of_their_kind_whatever_the_type(kind: str, parameters: Any, instances: Instances) -> None:
    take(instances, operations.configuring(QuantizationConfig(quantization_type=kind)))
    with pytest.raises(QiError):
        take(instances, operations.loading({"global_scale": 1.0, "is_calibrated": False, **parameters}, Limits()))
    load = operations.loading({"global_scale": 1.0, "is_calibrated": False, "qmin": None, "qmax": None}, Limits())
    if kind != "int8":
        take(instances, load)


@pytest.mark.parametrize("layers", [{"a" * 512: {"scale": 1.0}}, {"ä/b": {**LISTS, "scale": [1.0], "zero_point": [0]}}])
def test_parameters_that_are(layers: Any, instances: Instances) -> None:
    load = operations.loading({"global_scale": 1.0, "layers": layers}, Limits())
    assert set(take(instances, load).quantizer.export_parameters()["layers"]) == set(layers)
