from __future__ import annotations

import numpy as np
import pytest

from qi.errors import ConfigError
from qi.quantizers import (
    AdaRoundQuantizer,
    QuantizationMethod,
    QuantizationTarget,
    TrainableQuantizerActivationConfig,
    WeightsSymmetricInferableQuantizer,
    WeightsUniformInferableQuantizer,
    get_quantizer_class,
)
from qi.quantizers.trainables import TrainingMethods, trainable_quantizer
from tests.quantizers.common import POT, SYMMETRIC, UNIFORM, UPSTREAM, X, declared, gradients, weights

GIVEN = {SYMMETRIC: {"threshold": 2.0}, POT: {"threshold": 2.0}, UNIFORM: {"min_range": -1.0, "max_range": 2.0}}


def sigmoid_part(v: np.ndarray) -> np.ndarray:
    """h(v) in float64, from the formula as it is written."""
    return np.clip(1.2 * (1 + v / (1 + np.abs(v))) / 2 - 0.1, 0, 1)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("method", [SYMMETRIC, POT, UNIFORM])
def test_it_starts_as_rounding_to_nearest_and_softly_as_the_weight_itself(method, per_channel):
    quantizer = weights(AdaRoundQuantizer, method, 4, per_channel=per_channel)
    variables = declared(quantizer)
    nearest = quantizer.initialize(X).convert2inferable()(X)
    np.testing.assert_array_equal(quantizer.apply(X, variables), nearest)
    scale, zero = variables["scale"], variables.get("zero_point", 0)
    clipped = np.clip(X, (quantizer.grid.qmin - zero) * scale, (quantizer.grid.qmax - zero) * scale)
    np.testing.assert_allclose(quantizer.apply(X, variables, training=True), clipped, rtol=1e-5, atol=1e-6)


def test_ties_and_unknown_values_are_rounded_to_nearest():
    quantizer = weights(AdaRoundQuantizer, SYMMETRIC, 4, threshold=8.0)
    ties = np.float32([[0.5], [1.5], [-0.5], [-1.5], [2.5]])
    assert quantizer.apply(ties, declared(quantizer, ties)).ravel().tolist() == [0, 2, 0, -2, 2]
    unknown = {item.name: item.value for item in quantizer.declare(X.shape)}
    assert not unknown["rounding"].any()
    np.testing.assert_array_equal(quantizer.apply(X, unknown), np.clip(np.rint(X), -8, 7))


def test_the_variable_decides_which_way():
    quantizer = weights(AdaRoundQuantizer, SYMMETRIC, 4, threshold=8.0)
    x = np.float32([[2.2], [2.2], [-2.2], [-2.2], [7.9], [-9.0]])
    variables = declared(quantizer, x) | {"rounding": np.float32([[0.1], [-0.1], [0.1], [-0.1], [3], [-3]])}
    assert quantizer.apply(x, variables).ravel().tolist() == [3, 2, -2, -3, 7, -8]
    np.testing.assert_array_equal(quantizer.transform(x, variables), quantizer.apply(x, variables))


def test_soft_values_and_their_gradients_follow_the_formula():
    quantizer = weights(AdaRoundQuantizer, SYMMETRIC, 4, threshold=16.0)
    v = np.random.default_rng(3).uniform(-7, 7, X.shape).astype(np.float32)
    variables = declared(quantizer) | {"rounding": v}
    expected = 2 * (np.floor(X / 2.0) + sigmoid_part(v.astype(np.float64)))
    np.testing.assert_allclose(quantizer.apply(X, variables, training=True), expected, rtol=1e-5, atol=1e-5)
    for_x, found = gradients(quantizer, variables)
    slope = np.where(np.abs(v) < 5, 0.6 / (1 + np.abs(v.astype(np.float64))) ** 2, 0)
    np.testing.assert_allclose(found["rounding"], UPSTREAM * 2 * slope, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(for_x, UPSTREAM)  # straight through: nothing is beyond the range
    assert not np.any(found["scale"])


def test_soft_outside_of_training_where_asked():
    quantizer = weights(AdaRoundQuantizer, SYMMETRIC, 3, threshold=4.0)
    variables = declared(quantizer)
    hard = quantizer.apply(X, variables)
    quantizer.soft = True
    soft = quantizer.apply(X, variables)
    assert np.any(soft != hard)
    np.testing.assert_array_equal(soft, quantizer.apply(X, variables, training=True))


@pytest.mark.parametrize(
    "inferable",
    [
        WeightsSymmetricInferableQuantizer(
            4, [[0.5, 0.6, 0.7], [0.8, 0.9, 1.0]], True, channel_axis=1, group_size=20, group_axis=0
        ),
        WeightsUniformInferableQuantizer(4, [-0.5, -1.0, 0.0], [1.5, 0.2, 2.0], True, 1),
    ],
    ids=["groups", "uniform"],
)
def test_conversion_bakes_the_decisions_in(inferable):
    quantizer = trainable_quantizer(inferable, X.shape, TrainingMethods("adaround", "lsq")).initialize(X)
    np.testing.assert_array_equal(quantizer(X), inferable(X))
    v = np.random.default_rng(5).normal(size=X.shape).astype(np.float32)
    quantizer.bind(dict(quantizer.variables) | {"rounding": v})
    baked = quantizer.transform(X, quantizer.variables)
    back = quantizer.convert2inferable()
    assert type(back) is type(inferable)
    np.testing.assert_array_equal(quantizer(X), back(baked))
    np.testing.assert_array_equal(back(baked), baked)
    assert np.any(baked != inferable(X))
    np.testing.assert_array_equal(
        back.qparams(X.shape).scale, inferable.qparams(X.shape).scale
    )  # the grid stays as it was


def test_it_is_a_training_method_for_weights_alone():
    assert get_quantizer_class(QuantizationTarget.WEIGHTS, SYMMETRIC, "adaround") is AdaRoundQuantizer
    with pytest.raises(ConfigError, match="received one for activation"):
        AdaRoundQuantizer(TrainableQuantizerActivationConfig(QuantizationMethod.UNIFORM, 4))
    with pytest.raises(ConfigError, match=r"expected estimator='clipped_ste' .*received estimator='ewgs'"):
        AdaRoundQuantizer(weights(AdaRoundQuantizer, UNIFORM).quantization_config, estimator="ewgs")
