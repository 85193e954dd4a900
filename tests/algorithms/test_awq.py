from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qi.algorithms.awq import Reader, awq_factors, joint_awq_factors
from qi.algorithms.registry import ALGORITHMS
from qi.errors import ConfigError, InputError
from qi.observers import Moments
from tests.algorithms.digits import digits, rounded, squared


def moments_of(x):
    seen = Moments()
    seen.update(x[:, None])
    return seen


def error_of(x, weight, s, bits, axis):
    return squared(x @ (rounded(weight * s[:, None], bits, axis) / s[:, None]), x @ weight)


def layer(seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(40, 6)) * 10.0 ** generator.uniform(-1, 1, 6)
    return x, generator.normal(size=(6, 4))


@settings(max_examples=40)
@given(st.integers(0, 1000), st.sampled_from([2, 3, 4]))
def test_it_is_never_worse_than_none_and_changes_nothing_in_float(seed, bits):
    x, weight = layer(seed)
    seen = moments_of(x)
    s = awq_factors(weight, seen.second[0], seen.absmean[0], lambda w: rounded(w, bits, 0))
    one = np.ones(6)
    assert error_of(x, weight, s, bits, 0) <= error_of(x, weight, one, bits, 0) * (1 + 1e-4)
    np.testing.assert_allclose((x / s) @ (weight * s[:, None]), x @ weight, atol=1e-11)


def trained():
    """The input and weight of a layer of real data, with channels as batch normalization makes them, all alive."""
    net = digits(1.0)
    x = net.inputs(2)
    alive = x.any(axis=0)
    return x[:, alive], net.weights[2][alive]


def test_the_best_exponent_is_found():
    x, weight = trained()
    seen = moments_of(x)
    means = seen.absmean[0]
    s = awq_factors(weight, seen.second[0], means, lambda w: rounded(w, 3), steps=10)
    logs = np.log(means)
    center = (logs.max() + logs.min()) / 2
    candidates = [np.exp(e * (logs - center)) for e in np.linspace(0, 1, 11)]
    best = int(np.argmin([error_of(x, weight, candidate, 3, None) for candidate in candidates]))
    assert best > 0
    np.testing.assert_allclose(s, candidates[best])


def test_weights_that_are_exact_stay_as_they_are():
    x, weight = layer(2)
    seen = moments_of(x)
    assert awq_factors(weight, seen.second[0], seen.absmean[0], lambda w: w).tolist() == [1.0] * 6


def test_dead_channels_keep_the_factor_one():
    x, weight = layer(3)
    x[:, 0] = 0.0
    weight[1] = 0.0
    seen = moments_of(x)
    s = awq_factors(weight, seen.second[0], seen.absmean[0], lambda w: rounded(w, 3))
    assert s[:2].tolist() == [1, 1]
    assert (s[2:] != 1).any()
    dead = awq_factors(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros(2), lambda w: rounded(w, 3))
    assert dead.tolist() == [1, 1]


def test_places_of_a_kernel_share_the_factor_of_their_channel():
    x, weight = trained()
    x, weight = x[:, :24], weight[:24].copy()
    weight[0] = 0.0  # of channel 0, whose other place keeps it alive
    seen, sharing = moments_of(x), np.arange(24) % 12
    s = awq_factors(weight, seen.second[0], seen.absmean[0], lambda w: rounded(w, 3), sharing)
    np.testing.assert_array_equal(s[:12], s[12:])
    assert len(set(s)) == 12
    assert s[0] != 1


def test_layers_of_other_kernels_share_the_factors_of_their_joint_input():
    """One reads single pixels, one pairs of them, one each channel by itself."""
    x, weight = layer(7)
    pairs, wide = np.concatenate([x[1:], x[:-1]], axis=1), layer(8)[1]
    deep = np.random.default_rng(9).normal(size=(6, 2, 1))
    layers = [
        (x[:, None], weight[None], np.arange(6)[None]),
        (pairs[:, None], np.concatenate([wide, -wide])[None], np.tile(np.arange(6), 2)[None]),
        (np.stack([x[1:], x[:-1]], axis=2), deep, np.tile(np.arange(6)[:, None], 2)),
    ]

    def rounded_groups(w):
        return rounded(w.reshape(-1, w.shape[2]), 3).reshape(w.shape)

    def error(s):
        taken = [(rows, w, s[channels]) for rows, w, channels in layers]
        values = [
            rounded((w * f[:, :, None]).reshape(-1, w.shape[2]), 3).reshape(w.shape) / f[:, :, None]
            for _, w, f in taken
        ]
        return sum(
            np.sum((np.einsum("ngk,gkm->ngm", rows, v - w)) ** 2) / len(rows)
            for (rows, w, _), v in zip(layers, values, strict=True)
        )

    readers = []
    for rows, w, channels in layers:
        seen = Moments(*w.shape[:2])
        seen.update(rows)
        round_it = lambda v: rounded(v.reshape(-1, v.shape[2]), 3).reshape(v.shape)
        readers.append(Reader(w, seen.second, seen.absmean, channels, round_it))
    s = joint_awq_factors(readers)
    assert s.shape == (6,)
    np.testing.assert_allclose(sum(reader.error(s) for reader in readers), error(s), rtol=1e-6)
    assert error(s) < error(np.ones(6))


def test_powers_of_two():
    x, weight = layer(5)
    seen = moments_of(x)
    s = awq_factors(weight, seen.second[0], seen.absmean[0], lambda w: rounded(w, 3), power_of_two=True, limit=4.0)
    assert set(np.frexp(s)[0]) == {0.5}
    assert 1 < s.max() <= 4


@pytest.mark.parametrize("steps", [0, 2.0, True])
def test_other_steps_are_refused(steps):
    with pytest.raises(ConfigError, match="steps"):
        awq_factors(np.ones((1, 1)), np.ones((1, 1)), np.ones(1), lambda w: w, steps=steps)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight": np.ones(2)}, "weight"),
        ({"weight": np.full((2, 2), np.nan)}, "weight"),
        ({"second": np.ones((3, 3))}, "second"),
        ({"absmean": -np.ones(2)}, "absmean"),
        ({"quantize": lambda w: w[:1]}, "quantize"),
        ({"sharing": np.ones(3, int)}, "sharing"),
        ({"sharing": np.ones(2)}, "sharing"),
    ],
)
def test_other_problems_are_refused(wrong, message):
    problem = {"weight": np.ones((2, 2)), "second": np.eye(2), "absmean": np.ones(2), "quantize": lambda w: w}
    with pytest.raises(InputError, match=message):
        awq_factors(**problem | wrong)


@pytest.mark.parametrize(("bits", "axis"), [(3, None), (4, 0)])
@pytest.mark.parametrize("works", [True, False])
def test_it_helps_few_bits(bits, axis, works):
    """Every layer of real data; a control is told that all channels have the same magnitudes."""
    net, before, after = digits(), [], []
    for number, weight in enumerate(net.weights):
        x = net.inputs(number)
        seen = moments_of(x)
        means = seen.absmean[0] if works else np.ones(len(weight))
        s = awq_factors(weight, seen.second[0], means, lambda w: rounded(w, bits, axis))
        before.append(error_of(x, weight, np.ones(len(weight)), bits, axis))
        after.append(error_of(x, weight, s, bits, axis))
    assert all(a <= b * (1 + 1e-9) for a, b in zip(after, before, strict=True))
    assert (sum(after) < 0.8 * sum(before)) == works


def test_it_is_registered():
    found = ALGORITHMS.get("awq")
    assert (found.stage, found.needs, set(found.options)) == ("scaling", "moments", {"steps", "limit", "power_of_two"})
