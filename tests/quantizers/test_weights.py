from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qi.errors import ConfigError
from qi.quantizers import (
    QuantizationTarget,
    WeightsLUTPOTInferableQuantizer,
    WeightsLUTSymmetricInferableQuantizer,
    WeightsPOTInferableQuantizer,
    WeightsSymmetricInferableQuantizer,
    WeightsUniformInferableQuantizer,
)

TABLE = [-60, -10, 0, 90]
# The arguments of the library whose names these classes carry: positional order and defaults are part of them.
SUCCESSORS = {
    WeightsSymmetricInferableQuantizer: (8, [1.0], False, None, None),
    WeightsPOTInferableQuantizer: (8, [1.0], False, None, None),
    WeightsUniformInferableQuantizer: (8, [-1.0], [1.0], False, None, None),
    WeightsLUTSymmetricInferableQuantizer: (2, TABLE, [1.0], False, None, None, 8, 1e-8),
    WeightsLUTPOTInferableQuantizer: (2, TABLE, [1.0], False, None, None, 8, 1e-8),
}
WEIGHTS = list(SUCCESSORS)
POWERS = [WeightsPOTInferableQuantizer, WeightsLUTPOTInferableQuantizer]
each_class = pytest.mark.parametrize("cls", WEIGHTS)


def with_one_per_channel(cls: type, values: list[float], kind: Callable[..., Any] = list, **more: object):
    """A quantizer of `cls` with these thresholds, or these upper ends, in a sequence of a kind."""
    first = {"lut_values": TABLE} if "LUT" in cls.__name__ else {}
    if cls is WeightsUniformInferableQuantizer:
        first = {"min_range": kind([-v for v in values]), "max_range": kind(values)}
    else:
        first["threshold"] = kind(values)
    return cls(num_bits=2, **first, **{"per_channel": True} | more)


@each_class
def test_successors_positional_call(cls):
    q = cls(*SUCCESSORS[cls])
    names = list(inspect.signature(cls).parameters)[: len(SUCCESSORS[cls])]
    assert q == cls(**dict(zip(names, SUCCESSORS[cls], strict=True)))
    assert q.quantization_target is QuantizationTarget.WEIGHTS


@each_class
@pytest.mark.parametrize("kind", [list, tuple, np.array, np.float32])
def test_one_value_a_channel_in_any_sequence(cls, kind):
    q = with_one_per_channel(cls, [1.0, 2.0], kind)
    assert q == with_one_per_channel(cls, [1.0, 2.0])
    x = np.float32([[-9, -9], [0, 0], [9, 9]])
    y = q(x)
    np.testing.assert_array_equal(2 * y[:, 0], y[:, 1])


@each_class
def test_a_scalar_is_broadcast_to_all_channels(cls):
    q = with_one_per_channel(cls, [2.0])
    x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(4, 3)
    whole = type(q).from_config(q.get_config() | {"per_channel": False})
    np.testing.assert_array_equal(q(x), whole(x))
    assert q.qparams(x.shape).scale.shape == (1, 3)


@each_class
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_any_axis(cls, axis):
    q = with_one_per_channel(cls, [0.5, 1.0, 2.0], channel_axis=axis, input_rank=3)
    x = np.moveaxis(np.full((5, 4, 3), 9.0, np.float32), -1, axis)
    first, second, third = np.moveaxis(q(x), axis, 0)
    np.testing.assert_array_equal(2 * first, second)
    np.testing.assert_array_equal(2 * second, third)


@each_class
def test_lists_need_channels(cls):
    with pytest.raises(ConfigError, match=r"with per_channel=False; received \w+=\[-?1\.0, -?2\.0\]"):
        with_one_per_channel(cls, [1.0, 2.0], per_channel=False)


@each_class
@pytest.mark.parametrize("axis", [1.5, "0", True])
def test_axes_are_integers(cls, axis):
    with pytest.raises(
        ConfigError, match=f"expected channel_axis to be an integer or None; received channel_axis={axis!r}"
    ):
        with_one_per_channel(cls, [1.0, 2.0], channel_axis=axis)


@each_class
@pytest.mark.parametrize("bits", [2.5, 0, 17, True, "8"])
def test_num_bits(cls, bits):
    names = list(inspect.signature(cls).parameters)
    arguments = dict(zip(names, SUCCESSORS[cls], strict=False)) | {"num_bits": bits}
    with pytest.raises(ConfigError, match=f"received num_bits={bits!r}"):
        cls(**arguments)


@pytest.mark.parametrize("cls", POWERS)
@pytest.mark.parametrize("threshold", [3.0, 1.0000001, [1.0, 3.0]])
def test_thresholds_are_powers_of_two(cls, threshold):
    table = {"lut_values": TABLE} if "LUT" in cls.__name__ else {}
    received = threshold[1] if isinstance(threshold, list) else threshold
    with pytest.raises(ConfigError, match=f"expected threshold to be a power of 2; received threshold={received}"):
        cls(num_bits=2, threshold=threshold, per_channel=True, **table)


@each_class
def test_keywords_are_ours_alone(cls):
    keywords = {p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY}
    groups = set() if "LUT" in cls.__name__ else {"group_size", "group_axis"}
    signed = set() if cls is WeightsUniformInferableQuantizer else {"signed"}
    narrow = {"narrow_range"} if signed and groups else set()
    assert keywords == groups | signed | narrow


def test_symmetric_values():
    q = WeightsSymmetricInferableQuantizer(num_bits=3, threshold=1.0)
    assert q(np.float32([-2, -1, -0.126, -0.125, 0.1, 0.375, 0.6, 2])).tolist() == [-1, -1, -0.25, 0, 0, 0.5, 0.5, 0.75]


def test_unsigned_values():
    q = WeightsSymmetricInferableQuantizer(num_bits=2, threshold=1.0, signed=False)
    assert q(np.float32([-2, 0.1, 0.4, 0.7, 2])).tolist() == [0, 0, 0.5, 0.75, 0.75]


def test_uniform_values():
    q = WeightsUniformInferableQuantizer(num_bits=2, min_range=-1, max_range=2)
    assert q(np.float32([-5, -0.4, 0.6, 1.7, 5])).tolist() == [-1, 0, 1, 2, 2]


def test_table_values():
    q = WeightsLUTSymmetricInferableQuantizer(num_bits=2, lut_values=TABLE, threshold=1.28)
    assert q(np.float32([-9, -0.2, 0.2, 9])).tolist() == pytest.approx([-0.6, -0.1, 0, 0.9])
    unsigned = WeightsLUTPOTInferableQuantizer(1, [0, 128], 1.0, signed=False)
    assert unsigned(np.float32([0.2, 0.3, 9])).tolist() == [0, 0.5, 0.5]


def test_one_bit():
    q = WeightsSymmetricInferableQuantizer(num_bits=1, threshold=1.0)
    assert q(np.float32([-2, -0.6, 0.0, 2])).tolist() == [-1, -1, 0, 0]


def test_groups():
    q = WeightsSymmetricInferableQuantizer(
        3, [[1.0, 2.0], [4.0, 8.0]], per_channel=True, channel_axis=-1, group_size=2, group_axis=0
    )
    assert q(np.full((3, 2), 99.0)).tolist() == [[0.75, 1.5], [0.75, 1.5], [3, 6]]
    assert q.get_config()["group_size"] == 2
