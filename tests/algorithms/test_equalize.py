from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qi.algorithms.equalize import absorb_high_bias, equalization_factors, equalize, equalize_chain
from qi.algorithms.factors import scale_axis
from qi.algorithms.registry import ALGORITHMS
from qi.errors import ConfigError, InputError
from tests.algorithms.digits import digits, rounded, rounded_activations, squared

seeds = st.integers(0, 10_000)


def relu(x):
    return np.maximum(x, 0.0)


def chain(seed, kinds=("dense", "depthwise", "dense", "dense")):
    """Weights and biases of layers as matrices; a depthwise one is a diagonal."""
    generator = np.random.default_rng(seed)
    width = [int(generator.integers(1, 7))]
    for kind in kinds:
        width.append(width[-1] if kind == "depthwise" else int(generator.integers(1, 7)))
    weights = []
    for kind, inputs, outputs in zip(kinds, width, width[1:], strict=False):
        magnitudes = 10.0 ** generator.uniform(-1, 1, outputs)
        full = generator.normal(size=(inputs, outputs)) * magnitudes
        weights.append(np.diag(np.diag(full)) if kind == "depthwise" else full)
    return weights, [generator.normal(size=weight.shape[1]) for weight in weights]


def scaled(weights, biases, factors):
    weights, biases = list(weights), list(biases)
    for i, s in enumerate(factors):
        weights[i], biases[i] = scale_axis(weights[i], 1 / s, 1), biases[i] / s
        weights[i + 1] = scale_axis(weights[i + 1], s, 0)
    return weights, biases


def forward(x, weights, biases, between=relu):
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = x @ weight + bias
        if i < len(weights) - 1:
            x = between(x, i) if between is not relu else relu(x)
    return x


def magnitudes(weights):
    return [np.abs(weight) for weight in weights]


@settings(max_examples=40)
@given(seeds)
def test_it_changes_no_function_through_relu(seed):
    weights, biases = chain(seed)
    x = np.random.default_rng(seed).normal(size=(20, len(weights[0])))
    before = forward(x, weights, biases)
    after = forward(x, *scaled(weights, biases, equalize_chain(magnitudes(weights))))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-10 * max(1.0, np.abs(before).max()))


@settings(max_examples=40)
@given(seeds)
def test_powers_of_two_change_no_bit_of_float32(seed):
    weights, biases = chain(seed)
    weights, biases = [w.astype(np.float32) for w in weights], [b.astype(np.float32) for b in biases]
    x = np.random.default_rng(seed).normal(size=(20, len(weights[0]))).astype(np.float32)
    factors = [s.astype(np.float32) for s in equalize_chain(magnitudes(weights), power_of_two=True)]
    changed = scaled(weights, biases, factors)
    assert changed[0][0].dtype == np.float32
    product = lambda x, weight: np.sum(x[:, :, None] * weight, axis=1)  # in one order, whatever the library
    first, second = x, x
    for i in range(len(weights)):
        first = product(first, weights[i]) + biases[i]
        second = product(second, changed[0][i]) + changed[1][i]
        first, second = (relu(first), relu(second)) if i < len(weights) - 1 else (first, second)
    np.testing.assert_array_equal(first, second)


def test_prelu_is_exact_and_relu6_with_a_cap_per_channel():
    weights, biases = chain(3, ("dense", "dense"))
    weights[0] = weights[0] * 5
    x = np.random.default_rng(0).normal(size=(200, len(weights[0])))
    (s,) = equalize_chain(magnitudes(weights))
    assert np.abs(np.log(s)).max() > 0.5
    changed = scaled(weights, biases, [s])
    slopes = np.linspace(-0.5, 0.9, len(s))
    prelu = lambda x, i: np.where(x > 0, x, slopes * x)
    np.testing.assert_allclose(forward(x, *changed, prelu), forward(x, weights, biases, prelu), rtol=1e-10, atol=1e-10)
    before = forward(x, weights, biases, lambda x, i: np.clip(x, 0, 6))
    np.testing.assert_allclose(forward(x, *changed, lambda x, i: np.clip(x, 0, 6 / s)), before, rtol=1e-10, atol=1e-10)
    assert squared(forward(x, *changed, lambda x, i: np.clip(x, 0, 6)), before) > 0.01 * squared(before, 0)


@settings(max_examples=40)
@given(seeds)
def test_ranges_agree_afterwards_and_stay(seed):
    weights, biases = chain(seed)
    factors = equalize_chain(magnitudes(weights), limit=1e12, steps=1000, tolerance=1e-9)
    changed = scaled(weights, biases, factors)[0]
    for first, second in pairwise(changed):
        np.testing.assert_allclose(np.abs(first).max(axis=0), np.abs(second).max(axis=1), rtol=1e-6)
    for again in equalize_chain(magnitudes(changed), limit=1e12):
        np.testing.assert_allclose(again, 1.0, rtol=1e-6)


def test_two_layers_have_the_closed_form():
    first, second = np.array([[8.0, 1.0], [-2.0, 0.5]]), np.array([[2.0, 1.0], [4.0, 0.0]])
    (factors,) = equalize_chain(magnitudes([first, second]))
    assert factors.tolist() == equalization_factors([8.0, 1.0], [2.0, 4.0]).tolist() == [2.0, 0.5]


def test_dead_channels_keep_the_factor_one():
    weights, biases = chain(5, ("dense", "dense", "dense"))
    weights[0][:, 0] = 0.0
    weights[2][-1] = 0.0
    factors = equalize_chain(magnitudes(weights))
    assert factors[0][0] == 1.0
    assert factors[1][-1] == 1.0
    assert equalization_factors(np.zeros(2), np.ones(2)).tolist() == [1, 1]
    assert all(np.isfinite(s).all() for s in equalize_chain([np.zeros((2, 3)), np.zeros((3, 1))]))
    x = np.random.default_rng(0).normal(size=(9, len(weights[0])))
    np.testing.assert_allclose(
        forward(x, *scaled(weights, biases, factors)), forward(x, weights, biases), rtol=1e-9, atol=1e-9
    )


def test_factors_are_bounded():
    factors = equalize_chain([np.array([[1e9, 1.0, 1e-9]]), np.ones((3, 1))], limit=50.0)[0]
    assert factors.tolist() == [50.0, 1.0, pytest.approx(1 / 50)]


def test_branches_that_are_added_share_their_factors():
    generator = np.random.default_rng(0)
    a, b, c = (
        generator.normal(size=(3, 4)) * [1, 10, 0.1, 1],
        generator.normal(size=(2, 4)),
        generator.normal(size=(4, 5)),
    )
    (s,) = equalize([np.abs(a), np.abs(b), np.abs(c)], [([0, 1], [2])])
    x, y = generator.normal(size=(7, 3)), generator.normal(size=(7, 2))
    np.testing.assert_allclose(relu(x @ (a / s) + y @ (b / s)) @ (c * s[:, None]), relu(x @ a + y @ b) @ c)
    makers = np.maximum(np.abs(a / s).max(axis=0), np.abs(b / s).max(axis=0))
    np.testing.assert_allclose(makers, np.abs(c * s[:, None]).max(axis=1))


def test_no_joint_is_no_factor():
    assert equalize_chain([np.ones((2, 2))]) == equalize([], []) == []


@pytest.mark.parametrize(
    "joints", [[([0], [2])], [([], [1])], [([0], [])], [([0, 0], [1])], [([0], [1]), ([0], [1])], [([-1], [1])]]
)
def test_other_joints_are_refused(joints):
    with pytest.raises(ConfigError, match="joints"):
        equalize([np.ones((2, 2)), np.ones((2, 2))], joints)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": True}, {"tolerance": -1.0}, {"limit": 0.0}])
def test_other_options_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        equalize_chain([np.ones((2, 2)), np.ones((2, 2))], **wrong)


@pytest.mark.parametrize(
    "wrong", [np.ones(2), -np.ones((2, 2)), np.full((2, 2), np.nan), np.ones((3, 2)), np.ones((0, 2))]
)
def test_other_magnitudes_are_refused(wrong):
    with pytest.raises(InputError, match=r"magnitudes|channels"):
        equalize_chain([np.ones((2, 2)), wrong])


def test_other_ranges_are_refused():
    for wrong in ([1.0], [1.0, -1.0], [1.0, np.inf]):
        with pytest.raises(InputError, match="second_ranges"):
            equalization_factors([1.0, 1.0], wrong)


@pytest.mark.parametrize("spread", [0.0, 1.0])
@pytest.mark.parametrize(("share", "works"), [(1.0, True), (0.0, False)])
def test_it_helps_four_bits_per_tensor(spread, share, works):
    """On real data, with the channels that training gave and with those of batch normalization; 1s as a control."""
    net = digits(spread)
    factors = [s**share for s in equalize_chain(magnitudes(net.weights))]
    weights, biases = scaled(net.weights, net.biases, factors)
    np.testing.assert_allclose(net.outputs(weights, biases), net.outputs(), atol=1e-9)
    before = squared(net.outputs([rounded(weight) for weight in net.weights]), net.outputs())
    after = squared(net.outputs([rounded(weight) for weight in weights], biases), net.outputs())
    assert (after < 0.8 * before) == works  # 0.71 of it, and 0.01 where channels are spread


@settings(max_examples=40)
@given(seeds)
def test_absorbing_is_exact_above_what_is_absorbed(seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(30, 4)) + generator.uniform(-2, 6, 4)
    weight, after = generator.normal(size=(4, 3)), generator.normal(size=3)
    deviations = (x.mean(axis=0) - x.min(axis=0)) / x.std(axis=0)
    bias, delta = absorb_high_bias(np.zeros(4), x.mean(axis=0), x.std(axis=0), weight, n_std=deviations.max() + 1e-9)
    assert (bias <= 0).all()
    np.testing.assert_allclose(relu(x + bias) @ weight + after + delta, relu(x) @ weight + after, atol=1e-12)


def test_absorbing_too_much_changes_the_function():
    x = np.random.default_rng(0).normal(size=(1000, 1)) + 4
    for n_std, share in ((0.0, 0.3), (3.0, 0.0)):
        bias, delta = absorb_high_bias([0.0], x.mean(axis=0), x.std(axis=0), [[1.0]], n_std=n_std)
        changed = np.abs(relu(x + bias) + delta - relu(x)) > 1e-9
        assert share <= changed.mean() <= share + 0.3
    assert x.min() < 1.3  # so that even 3 deviations would not be exact for every x


@pytest.mark.parametrize(("n_std", "works"), [(3.0, True), (1e9, False)])
def test_absorbing_helps_four_bit_activations(n_std, works):
    """Channels of real data that never come near 0, as a batch normalization with a great beta makes them."""
    net = digits()
    weight, bias, after = net.weights[0], net.biases[0], net.weights[1]
    beta = np.where(np.arange(len(bias)) % 2, 6.0, 0.0) * (net.x @ weight).std(axis=0)
    z = net.x @ weight + bias + beta
    wanted = relu(z) @ after
    new_bias, delta = absorb_high_bias(bias + beta, z.mean(axis=0), z.std(axis=0), after, n_std=n_std)
    h = relu(net.x @ weight + new_bias)
    assert squared(h @ after + delta, wanted) < 1e-3 * squared(wanted, 0)
    error = squared(rounded_activations(h, 4) @ after + delta, wanted)
    assert (error < 0.8 * squared(rounded_activations(relu(z), 4) @ after, wanted)) == works


def test_what_cannot_be_absorbed_is_refused():
    with pytest.raises(ConfigError, match="n_std"):
        absorb_high_bias([1.0], [1.0], [1.0], [[1.0]], n_std=-1.0)
    with pytest.raises(InputError, match="std"):
        absorb_high_bias([1.0], [1.0], [-1.0], [[1.0]])
    with pytest.raises(InputError, match="next_weight_sums"):
        absorb_high_bias([1.0], [1.0], [1.0], [1.0])


def test_it_is_registered():
    found = ALGORITHMS.get("equalize")
    assert (found.stage, found.needs, set(found.options)) == (
        "scaling",
        "weights",
        {"limit", "steps", "tolerance", "power_of_two"},
    )
    assert ALGORITHMS.get("absorb").options == {"n_std": 3.0}
