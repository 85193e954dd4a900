from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from qi.core import IntGrid, PerChannel, PerGroup, PerTensor, QParams
from qi.engine.channels import check_channel_dim, check_read_channel_dim, sharing_of, warn_without_effect
from qi.engine.config import QuantizationConfig
from qi.errors import InputError, QuantizationWarning

SINGLE = QParams(1.0, 0, IntGrid(8))
LAST = QParams(np.ones((1, 2)), np.zeros((1, 2)), IntGrid(8), PerChannel(-1))


@pytest.mark.parametrize("dim", [None, 0, 1, -1, -2, np.int64(1)], ids=str)
def test_dimensions_that_there_are(dim: Any) -> None:
    check_channel_dim(dim, 2)
    check_channel_dim(None, 0)


@pytest.mark.parametrize("dim", [2, -3, 10**30, True, 0.0, "0", [0], object], ids=str)
def test_dimensions_that_there_are_not(dim: Any) -> None:
    with pytest.raises(
        InputError, match="expected channel_dim to be an integer from -2 to 1 for an array of rank 2; rec"
    ):
        check_channel_dim(dim, 2)
    with pytest.raises(InputError, match="expected channel_dim to be None for an array of rank 0"):
        check_channel_dim(0, 0)


def test_a_dimension_without_effect_warns() -> None:
    with pytest.warns(QuantizationWarning, match="channel_dim=1 has no effect: reason") as caught:
        warn_without_effect(1, "reason", stacklevel=1)
    assert caught[0].filename == __file__
    for config in (QuantizationConfig(), QuantizationConfig(granularity=PerGroup(0, 4))):
        with pytest.warns(QuantizationWarning, match="the configuration isn't per channel, but ") as caught:
            assert sharing_of(config, 1, 2, stacklevel=1) == config.sharing()
        assert caught[0].filename == __file__
    for params, dim in ((SINGLE, 0), (LAST, 0), (LAST, -2)):
        with pytest.warns(
            QuantizationWarning, match=rf"channel_dim={dim} has no effect: the parameters are Per"
        ) as caught:
            check_read_channel_dim(dim, 2, params, stacklevel=1)
        assert caught[0].filename == __file__


def test_a_dimension_with_an_effect_does_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sharing_of(QuantizationConfig(per_channel=True), 1, 2, stacklevel=1) == PerChannel(1)
        assert sharing_of(QuantizationConfig(per_channel=True), None, 0, stacklevel=1) == PerTensor()
        assert sharing_of(QuantizationConfig(), None, 2, stacklevel=1) == PerTensor()
        for dim in (None, 1, -1):
            check_read_channel_dim(dim, 2, LAST, stacklevel=1)
        check_read_channel_dim(None, 0, SINGLE, stacklevel=1)
    with pytest.raises(InputError, match="received channel_dim=5"):
        check_read_channel_dim(5, 2, LAST, stacklevel=1)
