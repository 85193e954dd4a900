from __future__ import annotations

import copy

import pytest

from qi.errors import ConfigError, InputError
from qi.observers import CalibratedStatistics, Moments, TensorStatistics

SEEN = {"a": TensorStatistics(), "b": TensorStatistics(axis=1)}


def test_they_are_a_dict_that_knows_its_origin():
    found = CalibratedStatistics(SEEN, samples=3, model="m")
    assert found == SEEN
    assert (found.samples, found.model) == (3, "m")
    assert (CalibratedStatistics(SEEN).samples, CalibratedStatistics({}).model) == (None, "")


def test_what_is_changed_no_longer_claims_an_origin():
    found = CalibratedStatistics(SEEN, samples=3, model="m")
    assert type(found | {"c": TensorStatistics()}) is dict
    assert type({**found}) is dict
    with pytest.raises(AttributeError):
        found.samples = 500


def test_a_copy_keeps_it():
    found = copy.copy(CalibratedStatistics(SEEN, samples=3, model="m"))
    assert (found.samples, found.model, list(found)) == (3, "m", ["a", "b"])
    assert list(copy.deepcopy(CalibratedStatistics(SEEN, inputs={"c": Moments()})).inputs) == ["c"]


def test_they_hold_the_moments_of_inputs_and_the_statistics_of_channels():
    inputs, channels = {"conv": Moments(2)}, {"a": TensorStatistics(axis=-1)}
    found = CalibratedStatistics(SEEN, inputs=inputs, channels=channels)
    assert (found.inputs, found.channels) == (inputs, channels)
    assert list(found) == ["a", "b"]
    assert (CalibratedStatistics(SEEN).inputs, CalibratedStatistics(SEEN).channels) == ({}, {})
    inputs.clear()
    assert list(found.inputs) == ["conv"]
    with pytest.raises(TypeError):
        found.inputs["other"] = Moments()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inputs": {"a": TensorStatistics()}}, "expected Moments by name"),
        ({"inputs": {1: Moments()}}, "expected Moments by name"),
        ({"channels": {"a": Moments()}}, "expected TensorStatistics by name"),
        ({"channels": {"a": TensorStatistics()}}, "axis=None"),
        ({"channels": {"a": TensorStatistics(axis=1)}}, "axis=1"),
    ],
)
def test_other_inputs_and_channels_are_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        CalibratedStatistics(SEEN, **wrong)


@pytest.mark.parametrize("bad", [{"a": 3}, {1: TensorStatistics()}])
def test_other_things_are_refused(bad):
    with pytest.raises(InputError, match="expected TensorStatistics by name"):
        CalibratedStatistics(bad)


@pytest.mark.parametrize("wrong", [{"samples": -1}, {"samples": 2.0}, {"samples": True}, {"model": None}])
def test_an_illegal_origin_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CalibratedStatistics(SEEN, **wrong)
