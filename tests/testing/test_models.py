"""The clauses on Keras models catch quantizers that don't train, or don't go on training as they were."""

from __future__ import annotations

import numpy as np

from qi.core.gradients import scale_gradient
from qi.core.namespace import namespace_of
from qi.quantizers import DoReFaWeightsQuantizer, STEQuantizer
from tests.backends import needs_tensorflow
from tests.testing.broken import assert_caught

SMALL = DoReFaWeightsQuantizer  # of weights, one method: the smallest models


def test_a_gradient_of_the_wrong_sign_makes_the_loss_rise():
    def apply(self, x, variables, **more):
        return STEQuantizer.apply(self, scale_gradient(x, -1.0, xp=namespace_of(x)), variables, **more)

    assert_caught("training", "expected the loss to fall; received", SMALL, apply=apply)


def test_an_argument_that_a_file_loses():
    def init(self, quantization_config, gain=1.0, **options):
        SMALL.__init__(self, quantization_config, **options)
        self.gain = gain

    transform = lambda self, x, variables: x * np.float32(self.gain)
    members = {"__init__": init, "transform": transform}
    assert_caught(
        "saving", "the original 1 steps after reloading, bit for bit", SMALL, options={"gain": 0.5}, **members
    )


def test_a_converted_layer_with_other_results():
    def to_inferable(self, variables):
        return SMALL.to_inferable(self, {"scale": variables["scale"] * np.float32(0.9)})

    assert_caught("saving", "the layer's result of the converted layer", SMALL, to_inferable=to_inferable)


@needs_tensorflow
def test_a_quantizer_that_looks_at_how_it_is_run():
    def transform(self, x, variables):
        import tensorflow as tf

        return x * np.float32(0.5 if tf.executing_eagerly() else 1.0)

    assert_caught("modes", "as trained eagerly to be", SMALL, transform=transform)


def test_a_result_of_another_precision():
    def apply(self, x, variables, **more):
        found = SMALL.apply(self, x, variables, **more)
        return namespace_of(found).cast(found, "float32")

    assert_caught("mixed", r"in float16: float16\(12, 3\); received float32", SMALL, apply=apply)
