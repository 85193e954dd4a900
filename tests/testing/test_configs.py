"""The clauses on configuration catch what a file would lose, and nonsense that is taken."""

from __future__ import annotations

import numpy as np

from qi.errors import InputError
from qi.quantizers import (
    BaseTrainableQuantizer,
    LSQQuantizer,
    STEQuantizer,
    StochasticQuantizer,
)
from tests.testing.broken import assert_caught


def with_power(self, quantization_config, power=2.0, **options):
    LSQQuantizer.__init__(self, quantization_config, **options)
    self.power = power


def test_an_argument_that_get_config_forgets():
    assert_caught("config", r"expected get_config\(\) to hold power=3.0", __init__=with_power)
    assert_caught("config", r"to hold power=7; received \['est", options={"power": 7}, __init__=with_power)


def test_a_configuration_that_is_no_json():
    config = lambda self: LSQQuantizer.get_config(self) | {"power": np.float32(self.power)}
    assert_caught("config", "expected plain JSON of get_config", __init__=with_power, get_config=config)


def test_a_quantizer_that_is_another_after_reading():
    def from_config(cls, config):
        record = config["quantization_config"] | {f"{config['quantization_config']['target']}_n_bits": 3}
        return super(cls, cls).from_config(config | {"quantization_config": record})

    assert_caught("config", "expected an equal quantizer back", from_config=classmethod(from_config))


def test_equal_configurations_that_behave_differently():
    def transform(self, x, variables):
        return x * np.float32(getattr(self, "gain", 1.0))

    def from_config(cls, config):
        found = super(cls, cls).from_config(config)
        found.gain = 0.5
        return found

    members = {"transform": transform, "from_config": classmethod(from_config)}
    assert_caught("config", "the result of its original, bit for bit", STEQuantizer, **members)


def test_a_placeholder_of_another_class():
    assert_caught("config", r"of placeholder\(\)", placeholder=lambda self: LSQQuantizer(self.quantization_config))


def test_nonsense_that_is_taken():
    def init(self, quantization_config, **options):
        if quantization_config is not None:
            BaseTrainableQuantizer.__init__(self, quantization_config, **options)

    assert_caught("refusals", "expected ConfigError for quantization_config=None; received", __init__=init)


def test_nonsense_that_is_refused_with_a_strange_error():
    def init(self, quantization_config, **options):
        self.bits = quantization_config.spec.bits
        BaseTrainableQuantizer.__init__(self, quantization_config, **options)

    assert_caught(
        "refusals", "expected ConfigError for quantization_config=None; received AttributeError", __init__=init
    )


def test_a_message_that_does_not_help():
    def to_inferable(self, variables):
        raise InputError("bad")

    assert_caught(
        "refusals", "expected a message 'expected ...; received ...' for NaN in 'step'", to_inferable=to_inferable
    )


def test_nan_that_is_converted():
    convert = lambda self: "anything"
    assert_caught(
        "refusals", "expected NotCalibratedError for no variables; received 'anything'", convert2inferable=convert
    )


def test_training_that_does_without_its_noise():
    def apply(self, x, variables, *, training=False, noise=None):
        noise = noise or (lambda x: np.zeros(x.shape, np.float32))
        return StochasticQuantizer.apply(self, x, variables, training=training, noise=noise)

    assert_caught("refusals", "InputError for training without a source of noise", StochasticQuantizer, apply=apply)
