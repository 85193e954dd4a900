from __future__ import annotations

import json

import numpy as np
import pytest

from qi.errors import ConfigError
from qi.quantizers import (
    BaseQuantizerConfig,
    QuantizationMethod,
    QuantizationTarget,
    TrainableQuantizerActivationConfig,
    TrainableQuantizerWeightsConfig,
)

SYMMETRIC, POT, UNIFORM = (
    QuantizationMethod.SYMMETRIC,
    QuantizationMethod.POWER_OF_TWO,
    QuantizationMethod.UNIFORM,
)
W, A = TrainableQuantizerWeightsConfig, TrainableQuantizerActivationConfig


def test_what_a_quantizer_reads_of_weights_and_activations():
    spec = W(POT, 9, {"threshold": 2.0}, False, 1, False, 0.5).spec
    assert (spec.target, spec.method, spec.bits, spec.params) == (
        QuantizationTarget.WEIGHTS,
        POT,
        9,
        {"threshold": 2.0},
    )
    assert (spec.enabled, spec.channel_axis, spec.per_channel, spec.min_threshold) == (False, 1, False, 0.5)
    spec = A(UNIFORM, 4, {"min_range": -1, "max_range": 2}).spec
    assert (spec.target, spec.enabled, spec.channel_axis, spec.per_channel) == (
        QuantizationTarget.ACTIVATION,
        True,
        None,
        False,
    )


@pytest.mark.parametrize(
    "config",
    [
        W(SYMMETRIC, 4),
        W(POT, np.int64(9), {"threshold": np.float32([1, 2]), "narrow_range": True}, min_threshold=0.25),
        W(UNIFORM, 16, {"min_range": [-1.0, 0.0], "max_range": [1.0, 3.5]}, True, -1, True),
        A(SYMMETRIC, 2, {"threshold": 1.5, "signed": False}, False),
    ],
    ids=repr,
)
def test_configurations_survive_json(config):
    record = json.loads(json.dumps(config.to_dict(), default=int))
    assert BaseQuantizerConfig.from_dict(record) == config
    assert isinstance(config, BaseQuantizerConfig)


def test_changed_copies():
    config = W(SYMMETRIC, 4, {"threshold": 1.0})
    assert config.with_bits(3).spec.bits == 3
    assert config.with_axis(2).spec.channel_axis == 2
    assert config.with_params({"signed": False}).spec.params == {"signed": False}
    assert A(SYMMETRIC, 4).with_axis(2) == A(SYMMETRIC, 4)
    assert config == W(SYMMETRIC, 4, {"threshold": 1.0})  # itself unchanged
    with pytest.raises(AttributeError):
        config.weights_n_bits = 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("symmetric", 4), "weights_quantization_method to be one of .*; received 'symmetric'"),
        ((QuantizationMethod.LUT_SYM, 4), "weights_quantization_method to be one of"),
        ((SYMMETRIC, 0), "expected weights_n_bits to be an integer from 1 to 16; received weights_n_bits=0"),
        ((SYMMETRIC, 17), "received weights_n_bits=17"),
        ((SYMMETRIC, 4.0), "received weights_n_bits=4.0"),
        ((SYMMETRIC, True), "received weights_n_bits=True"),
        ((SYMMETRIC, 4, [1.0]), "expected weights_quantization_params to be a mapping"),
        ((SYMMETRIC, 4, {"treshold": 1.0}), r"received 'treshold'\. Did you mean 'threshold'"),
        ((SYMMETRIC, 4, {"min_range": 0, "max_range": 1}), "expected threshold with method 'symmetric'"),
        ((UNIFORM, 4, {"threshold": 1}), "expected min_range and max_range with method 'uniform'"),
        ((UNIFORM, 4, {"signed": False}), "expected min_range and max_range with method 'uniform'"),
        ((UNIFORM, 4, {"min_range": 1}), "expected min_range and max_range together"),
        ((UNIFORM, 4, {"min_range": 1, "max_range": 0}), "expected min_range <= max_range"),
        ((SYMMETRIC, 4, {"threshold": 0}), r"\['threshold'\] to be positive and finite; received 0"),
        ((SYMMETRIC, 4, {"threshold": [1.0, -1.0]}), "to be positive and finite"),
        ((SYMMETRIC, 4, {"threshold": []}), "to be positive and finite"),
        ((UNIFORM, 4, {"min_range": 0, "max_range": float("inf")}), r"\['max_range'\] to be finite"),
        ((SYMMETRIC, 4, {"signed": 1}), r"\['signed'\] to be True or False"),
        ((SYMMETRIC, 4, {}, "yes"), "expected enable_weights_quantization to be True or False; received .*='yes'"),
        ((SYMMETRIC, 4, {}, True, -1, None), "expected weights_per_channel_threshold to be True or False"),
        (
            (SYMMETRIC, 4, {}, True, -1, True, -0.1),
            "expected min_threshold to be finite and at least 0; received min_threshold=-0.1",
        ),
        ((SYMMETRIC, 4, {}, True, -1, True, float("nan")), "received min_threshold=nan"),
        ((SYMMETRIC, 4, {}, True, -1, True, "0"), "received min_threshold='0'"),
    ],
)
def test_nonsense_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        W(*arguments)


def test_the_channel_axis_is_an_integer_or_none():
    for axis in ("last", 1.0, True):
        with pytest.raises(ConfigError, match="axis"):
            W(SYMMETRIC, 4, weights_channels_axis=axis)


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"target": "bias"},
        {"target": "weights"},
        W(SYMMETRIC, 4).to_dict() | {"colour": 1},
        A(SYMMETRIC, 4).to_dict() | {"target": "weights"},
    ],
)
def test_records_that_are_no_configurations(record):
    with pytest.raises(ConfigError, match=r"expected (a record with target in|the fields of)"):
        BaseQuantizerConfig.from_dict(record)


def test_an_unknown_method_in_a_record():
    with pytest.raises(ConfigError, match="expected the fields of TrainableQuantizerWeightsConfig"):
        BaseQuantizerConfig.from_dict(W(SYMMETRIC, 4).to_dict() | {"weights_quantization_method": "CUBIC"})
