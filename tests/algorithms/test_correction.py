from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.algorithms.correction import bias_correction, clipped_normal, clipped_normal_mean, match_norms, output_moments
from qi.algorithms.registry import ALGORITHMS
from qi.errors import ConfigError, InputError
from qi.observers import Moments
from tests.algorithms.digits import digits, rounded, squared


def moments_of(x):
    """Of rows [n, G, K]."""
    seen = Moments(x.shape[1])
    seen.update(x)
    return seen


def problem(seed):
    generator = np.random.default_rng(seed)
    groups, inputs, outputs = generator.integers(1, 5, 3)
    x = generator.normal(size=(50, groups, inputs)).astype(np.float32) + generator.normal(size=(groups, inputs))
    weight = generator.normal(size=(groups, inputs, outputs))
    return x, weight, weight + 0.1 * generator.normal(size=weight.shape)


def outputs(x, weight):
    return np.einsum("ngk,gkm->ngm", x, weight)


@given(st.integers(0, 1000))
def test_corrected_outputs_have_the_mean_they_had(seed):
    x, weight, values = problem(seed)
    bias = bias_correction(weight, values, moments_of(x).mean)
    np.testing.assert_allclose((outputs(x, values) + bias).mean(axis=0), outputs(x, weight).mean(axis=0), atol=1e-6)


@given(st.integers(0, 1000))
def test_output_moments_are_those_of_the_outputs(seed):
    x, weight, _ = problem(seed)
    seen = moments_of(x)
    mean, variance = output_moments(weight, seen.mean, seen.second)
    y = outputs(x, weight)
    np.testing.assert_allclose(mean, y.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(variance, y.var(axis=0), rtol=1e-4, atol=1e-4)


@given(st.integers(0, 1000))
def test_matched_outputs_have_the_mean_and_deviation_they_had(seed):
    generator = np.random.default_rng(seed)
    y, q = generator.normal(size=(2, 50, 3)) * [1.0, 1.2, 0.9] + generator.normal(size=3)
    factor, shift = match_norms(y.mean(0), y.std(0), q.mean(0), q.std(0), limit=10.0)
    matched = q * factor + shift
    np.testing.assert_allclose(matched.mean(0), y.mean(0), atol=1e-12)
    np.testing.assert_allclose(matched.std(0), y.std(0), rtol=1e-12)


def test_dead_channels_keep_the_factor_one_and_factors_are_bounded():
    factor, shift = match_norms(np.zeros(4), [0.0, 1.0, 9.0, 1.0], np.ones(4), [1.0, 0.0, 1.0, 9.0])
    assert factor.tolist() == [1.0, 1.0, 2.0, 0.5]
    assert shift.tolist() == [-1.0, -1.0, -2.0, -0.5]


def test_weights_that_are_exact_need_nothing():
    x, weight, _ = problem(0)
    seen = moments_of(x)
    assert not bias_correction(weight, weight, seen.mean).any()
    mean, variance = output_moments(weight, seen.mean, seen.second)
    factor, shift = match_norms(mean[0], variance[0] ** 0.5, mean[0], variance[0] ** 0.5)
    assert (set(factor), set(shift)) == ({1.0}, {0.0})


@pytest.mark.parametrize(("lo", "hi"), [(0.0, np.inf), (0.0, 2.0), (-np.inf, 1.0), (-np.inf, np.inf)])
def test_the_mean_error_of_what_an_activation_lets_through_is_corrected(lo, hi):
    """Normal inputs: the conditional mean of the samples; and no other shift leaves a smaller error behind the activation."""
    random = np.random.default_rng(0)
    mix, weight = random.normal(size=(2, 4, 4)), random.normal(size=(2, 4, 3))
    x = np.einsum("ngk,gkm->ngm", random.normal(size=(200_000, 2, 4)), mix) + random.normal(size=(2, 4))
    values, bias = weight + 0.1 * random.normal(size=weight.shape), random.normal(size=(2, 3))
    seen = moments_of(x)
    found = bias_correction(weight, values, seen.mean, seen.second, bias, lo, hi)
    y = np.einsum("ngk,gkm->ngm", x, weight) + bias
    error = np.einsum("ngk,gkm->ngm", x, weight - values)
    inside = (lo < y) & (y < hi)
    assert inside.mean(axis=0).min() > 0.01
    np.testing.assert_allclose(found, (error * inside).sum(axis=0) / inside.sum(axis=0), atol=0.02)

    def left(shift):
        return np.mean((np.clip(y - error + shift, lo, hi) - np.clip(y, lo, hi)) ** 2, axis=0)

    plain = bias_correction(weight, values, seen.mean)
    assert left(found).sum() <= left(plain).sum() * (1 + 1e-9)
    assert (left(found) < left(0)).all()
    if np.isfinite(lo) or np.isfinite(hi):
        assert left(found).sum() < 0.98 * left(plain).sum()


def test_outputs_that_are_never_let_through_stay_as_they_are():
    x, weight, values = problem(0)
    seen = moments_of(x)
    plain = bias_correction(weight, values, seen.mean)
    shut = bias_correction(weight, values, seen.mean, seen.second, -1e6, 0.0)
    assert plain.any()
    assert not shut.any()
    always = bias_correction(weight, values, seen.mean, seen.second, 1e6, 0.0)
    np.testing.assert_allclose(always, plain, rtol=1e-9)
    some = np.where(np.arange(weight.shape[2]) == 0, 0.0, -np.inf)[None]
    mixed = bias_correction(weight, values, seen.mean, seen.second, -1e6, some)
    assert mixed[0, 0] == 0
    np.testing.assert_array_equal(mixed[:, 1:], plain[:, 1:])
    still = bias_correction(
        weight, values, seen.mean, 0 * seen.second + seen.mean[:, :, None] * seen.mean[:, None], 0.0, 0.0
    )
    np.testing.assert_array_equal(still, plain)  # outputs that never change
    with pytest.raises(InputError, match="second"):
        bias_correction(weight, values, seen.mean, None, 0.0, 0.0)


@pytest.mark.parametrize(
    ("lo", "hi"), [(0.0, np.inf), (0.0, 6.0), (-np.inf, np.inf), (-1.0, 1.0), (-np.inf, 0.5), (2.0, 2.0)]
)
def test_clipped_normals_have_the_moments_of_samples(lo, hi):
    mean, std = np.array([-4.0, -1.0, 0.0, 0.5, 3.0, 7.0, 2.0]), np.array([1.0, 2.0, 1.0, 0.1, 4.0, 1.0, 0.0])
    # The quantiles of 200,000 equal shares: samples without chance.
    from scipy.stats import norm

    z = norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    samples = np.clip(mean + std * z[:, None], lo, hi)
    found = clipped_normal(mean, std, lo, hi)
    np.testing.assert_allclose(found[0], samples.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(found[1], samples.var(axis=0), atol=2e-3)
    np.testing.assert_array_equal(clipped_normal_mean(mean, std, lo, hi), found[0])


def test_far_tails_stay_exact():
    mean, variance = clipped_normal([100.0, -100.0, 1e6], [1.0, 1.0, 1e-3], 0.0, np.inf)
    np.testing.assert_allclose(mean, [100.0, 0.0, 1e6], rtol=1e-12)
    np.testing.assert_allclose(variance, [1.0, 0.0, 1e-6], rtol=1e-9)


@pytest.mark.parametrize("bounds", [(1.0, 0.0), (np.nan, 1.0), (np.inf, np.inf), (-np.inf, -np.inf)])
def test_other_bounds_are_refused(bounds):
    with pytest.raises(InputError, match="bounds"):
        clipped_normal([0.0], [1.0], *bounds)


def test_other_arrays_are_refused():
    one = np.ones((1, 2, 3))
    for wrong in ((one[0], one, np.ones((1, 2))), (one, one[:, :1], np.ones((1, 2))), (one, one, np.ones((1, 3)))):
        with pytest.raises(InputError, match="expected"):
            bias_correction(*wrong)
    with pytest.raises(InputError, match="second"):
        output_moments(one, np.ones((1, 2)), np.ones((1, 2, 3)))
    with pytest.raises(InputError, match="std_q"):
        match_norms([0.0], [1.0], [0.0], [-1.0])
    with pytest.raises(ConfigError, match="limit"):
        match_norms([0.0], [1.0], [0.0], [1.0], limit=0.5)
    with pytest.raises(InputError, match="std"):
        clipped_normal([0.0], [-1.0], 0.0, 6.0)


def errors(correct, bits, axis):
    """Of every layer of real data: the output error before and after ``correct(net, layer, x, weight, values)``."""
    net = digits()
    found = []
    for layer, weight in enumerate(net.weights):
        x = net.inputs(layer)
        values, wanted = rounded(weight, bits, axis), x @ weight
        factor, shift = correct(net, layer, moments_of(x[:, None]), weight[None], values[None])
        found.append((squared(x @ values, wanted), squared(x @ values * factor + shift, wanted)))
    return np.array(found).T


def mean_shift(net, layer, moments, weight, values):
    return 1.0, bias_correction(weight, values, moments.mean)[0]


def data_free_shift(net, layer, moments, weight, values):
    """With the means that normal pre-activations of the layer before would have; those of the pixels are known."""
    if layer == 0:
        return mean_shift(net, layer, moments, weight, values)
    before = net.inputs(layer - 1) @ net.weights[layer - 1] + net.biases[layer - 1]
    mean = clipped_normal_mean(before.mean(axis=0), before.std(axis=0), 0.0, np.inf)
    return 1.0, bias_correction(weight, values, mean[None])[0]


def no_shift(net, layer, moments, weight, values):
    return 1.0, bias_correction(weight, values, 0 * moments.mean)[0]


def both(net, layer, moments, weight, values):
    (mean, variance), (mean_q, variance_q) = (output_moments(w, moments.mean, moments.second) for w in (weight, values))
    return match_norms(mean[0], variance[0] ** 0.5, mean_q[0], variance_q[0] ** 0.5)


def neither(net, layer, moments, weight, values):
    mean, variance = output_moments(weight, moments.mean, moments.second)
    return match_norms(mean[0], variance[0] ** 0.5, mean[0], variance[0] ** 0.5)


@pytest.mark.parametrize(("bits", "axis"), [(4, None), (4, 0), (3, 0)])
@pytest.mark.parametrize(
    ("correct", "works"),
    [(mean_shift, True), (data_free_shift, True), (no_shift, False), (both, True), (neither, False)],
)
def test_they_help_few_bits(correct, works, bits, axis):
    before, after = errors(correct, bits, axis)
    assert (after <= before).all()
    assert (after.sum() < 0.8 * before.sum()) == works


def test_matching_deviations_helps_beyond_the_means():
    _, shifted = errors(mean_shift, 2, None)
    _, matched = errors(both, 2, None)
    assert matched.sum() < 0.9 * shifted.sum()


def test_they_are_registered():
    for name, options in (("bias_correction", {}), ("norm_correction", {"limit": 2.0})):
        found = ALGORITHMS.get(name)
        assert (found.stage, found.needs, found.options) == ("correction", "moments", options)
