from __future__ import annotations

import copy

import pytest

from qi.errors import ConfigError, InputError
from qi.observers import CalibratedStatistics, TensorStatistics

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


@pytest.mark.parametrize("bad", [{"a": 3}, {1: TensorStatistics()}])
def test_other_things_are_refused(bad):
    with pytest.raises(InputError, match="expected TensorStatistics by name"):
        CalibratedStatistics(bad)


@pytest.mark.parametrize("wrong", [{"samples": -1}, {"samples": 2.0}, {"samples": True}, {"model": None}])
def test_an_illegal_origin_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CalibratedStatistics(SEEN, **wrong)
