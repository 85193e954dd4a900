"""The clauses on the forward pass catch what differs from the converted quantizer, and between engines."""

from __future__ import annotations

import numpy as np

from qi.core.namespace import namespace_of
from qi.quantizers import (
    ActivationPOTInferableQuantizer,
    LSQQuantizer,
    QuantizerVariable,
    STEQuantizer,
    TQTQuantizer,
    WeightsSymmetricInferableQuantizer,
)
from qi.testing.cases import cases_of
from qi.testing.forward import points, uniform_noise
from tests.testing.broken import assert_caught


def test_a_converted_scale_that_is_off_by_little():
    def to_inferable(self, variables):
        return LSQQuantizer.to_inferable(self, {"step": variables["step"] * np.float32(1.001)})

    assert_caught(
        "forward",
        r"forward pass of convert2inferable\(\), bit for bit; received .* differ\)",
        to_inferable=to_inferable,
    )


def test_another_result_in_training():
    def apply(self, x, variables, *, training=False, noise=None):
        return STEQuantizer.apply(self, x * np.float32(0.9) if training else x, variables)

    assert_caught("forward", "in training, too, bit for bit", STEQuantizer, apply=apply)


def test_a_converted_quantizer_of_the_wrong_kind():
    wrong = ActivationPOTInferableQuantizer(4, 1.0)
    assert_caught("forward", "inferable quantizer of weights; received Act", convert2inferable=lambda self: wrong)
    assert_caught("forward", "inferable quantizer of weights; received None", convert2inferable=lambda self: None)
    wrong = WeightsSymmetricInferableQuantizer(4, 1.0)
    assert_caught("forward", "quantizer of activation; received Weights", TQTQuantizer, **of_activations_only(wrong))


def of_activations_only(wrong):
    right = TQTQuantizer.convert2inferable
    pick = lambda self: right(self) if self.quantization_target.value == "weights" else wrong
    return {"convert2inferable": pick}


def test_a_scale_through_exp_which_every_engine_computes_in_its_own_way():
    def declare(self, shape, x=None):
        scale, _ = self.initial(shape, x)
        return [QuantizerVariable("step", np.log(scale) * np.float32(1.0371), trainable=True)]

    def scale_zero_point(self, variables):
        xp = namespace_of(variables["step"])
        return xp.tanh(xp.tanh(variables["step"]) * np.float32(0.3) + np.float32(0.5)), None

    assert_caught("engines", "numpy's result", declare=declare, scale_zero_point=scale_zero_point)


def test_the_points_differ_in_their_variables_and_the_noise_does_not():
    found = list(points(cases_of(LSQQuantizer, (4,))))
    assert len(found) == 16
    (_, quantizer, first, x), (_, _, moved, _) = found[:2]
    assert x.dtype == np.float32
    assert not np.array_equal(first["step"], moved["step"])
    u = x.astype(np.float64) / quantizer.scale_zero_point(first)[0]
    assert np.any(np.abs(u) > 100)
    assert np.any(np.isclose(u, -8.5, rtol=1e-6))
    np.testing.assert_array_equal(uniform_noise(x), uniform_noise(x))
    assert 0 <= uniform_noise(x).min() <= uniform_noise(x).max() < 1
