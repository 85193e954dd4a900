from __future__ import annotations

import inspect

import numpy as np
import pytest

from qi.errors import ConfigError
from qi.quantizers import (
    ActivationLutPOTInferableQuantizer,
    ActivationPOTInferableQuantizer,
    ActivationSymmetricInferableQuantizer,
    ActivationUniformInferableQuantizer,
    QuantizationTarget,
)

TABLE = [0, 60, 90]
ARGUMENTS = {
    ActivationSymmetricInferableQuantizer: {"num_bits": 8, "threshold": [1.5], "signed": False},
    ActivationPOTInferableQuantizer: {"num_bits": 8, "threshold": [2.0], "signed": True},
    ActivationUniformInferableQuantizer: {"num_bits": 8, "min_range": [-1.0], "max_range": [3.0]},
    ActivationLutPOTInferableQuantizer: {
        "num_bits": 2,
        "lut_values": TABLE,
        "threshold": [4.0],
        "signed": True,
        "lut_values_bitwidth": 8,
        "eps": 1e-8,
    },
}
each_class = pytest.mark.parametrize("cls", ARGUMENTS)


@each_class
def test_the_successors_call_by_keyword_and_by_position(cls):
    q = cls(**ARGUMENTS[cls])
    assert q == cls(*ARGUMENTS[cls].values())
    assert list(inspect.signature(cls).parameters) == list(ARGUMENTS[cls])
    assert q.quantization_target is QuantizationTarget.ACTIVATION


@each_class
def test_scalars_are_taken_as_well(cls):
    scalars = {k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in ARGUMENTS[cls].items()}
    x = np.linspace(-9, 9, 50, dtype=np.float32)
    np.testing.assert_array_equal(cls(**scalars)(x), cls(**ARGUMENTS[cls])(x))


@each_class
def test_one_scale_a_tensor(cls):
    for name, value in ARGUMENTS[cls].items():
        if isinstance(value, list) and len(value) == 1:
            with pytest.raises(ConfigError, match=f"expected one {name} .*received {name}="):
                cls(**ARGUMENTS[cls] | {name: value * 2})
            with pytest.raises(ConfigError, match=f"expected {name} to be .*received {name}="):
                cls(**ARGUMENTS[cls] | {name: [[1], [2, 3]]})
    assert cls(**ARGUMENTS[cls]).qparams((2, 3, 4)).scale.shape == (1, 1, 1)


@each_class
def test_configuration_has_the_constructors_arguments_only(cls):
    assert set(cls(**ARGUMENTS[cls]).get_config()) == set(inspect.signature(cls).parameters)


@each_class
@pytest.mark.parametrize("bits", [2.5, 0, 17, True, "8"])
def test_num_bits(cls, bits):
    with pytest.raises(ConfigError, match=f"received num_bits={bits!r}"):
        cls(**ARGUMENTS[cls] | {"num_bits": bits})


@pytest.mark.parametrize("cls", [c for c in ARGUMENTS if "threshold" in ARGUMENTS[c]])
@pytest.mark.parametrize("threshold", [0, -1.0, np.nan, np.inf, [], "a", True])
def test_thresholds_are_positive_numbers(cls, threshold):
    with pytest.raises(ConfigError, match=r"expected threshold to be .*; received threshold="):
        cls(**ARGUMENTS[cls] | {"threshold": threshold})


@pytest.mark.parametrize("cls", [ActivationPOTInferableQuantizer, ActivationLutPOTInferableQuantizer])
def test_thresholds_are_powers_of_two(cls):
    with pytest.raises(ConfigError, match=r"power of 2; received threshold=3\.0"):
        cls(**ARGUMENTS[cls] | {"threshold": 3})


@each_class
def test_signed_is_a_boolean(cls):
    if "signed" in ARGUMENTS[cls]:
        with pytest.raises(ConfigError, match="received signed=1"):
            cls(**ARGUMENTS[cls] | {"signed": 1})


def test_min_is_not_above_max():
    with pytest.raises(ConfigError, match=r"received min_range=2\.0, max_range=1\.0"):
        ActivationUniformInferableQuantizer(8, 2, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 0.5], r"received lut_values=\[0, 0\.5\]"),
        ([0, 256], "received a range of 0 to 256"),
        ([1, 1], "without repetitions"),
        ([], r"received lut_values=\[\]"),
        ([0, 1, 2, 3, 4], "at most 4 lut_values for num_bits=2; received 5"),
    ],
)
def test_bad_tables(values, message):
    with pytest.raises(ConfigError, match=message):
        ActivationLutPOTInferableQuantizer(2, values, 1.0, signed=False)


def test_entries_are_as_wide_as_indices():
    with pytest.raises(ConfigError, match="lut_values_bitwidth=2; received num_bits=3"):
        ActivationLutPOTInferableQuantizer(3, [0, 1], 1.0, lut_values_bitwidth=2)


def test_values():
    x = np.float32([-9, -0.6, 0.0, 0.3, 1.4, 9])
    assert ActivationSymmetricInferableQuantizer(2, 2.0, signed=False)(x).tolist() == [0, 0, 0, 0.5, 1.5, 1.5]
    assert ActivationSymmetricInferableQuantizer(2, 2.0)(x).tolist() == [-2, -1, 0, 0, 1, 1]
    assert ActivationPOTInferableQuantizer(2, 2.0)(x).tolist() == [-2, -1, 0, 0, 1, 1]
    assert ActivationUniformInferableQuantizer(2, -1, 2)(x).tolist() == [-1, -1, 0, 0, 1, 2]
    assert ActivationLutPOTInferableQuantizer(2, TABLE, 128.0)(x * 10).tolist() == [0, 0, 0, 0, 0, 90]
