from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.core.affine import fake_quantize, quantize
from qi.core.grid import IntGrid
from qi.core.namespace import NUMPY, namespace_of
from qi.core.rounding import ROUNDINGS, floor, nearest, stochastic
from qi.errors import ConfigError, InputError
from tests.backends import BACKENDS
from tests.strategies import int_grids, params, values

AWKWARD = np.float32([-2.5, -1.5, -0.5, -0.0, 0.0, 0.49999997, 0.5, 1.5, 2.5, 8388607.5, 2.0**24])


def test_three_roundings_are_known_by_name():
    assert ROUNDINGS.names() == ("floor", "nearest", "stochastic")
    assert ROUNDINGS.get("floor") is floor


def test_nearest_rounds_half_to_even():
    assert nearest(AWKWARD, xp=NUMPY).tolist() == [-2, -2, 0, 0, 0, 0, 0, 2, 2, 8388608, 2**24]


def test_floor_rounds_down():
    assert floor(AWKWARD, xp=NUMPY).tolist() == [-3, -2, -1, 0, 0, 0, 0, 1, 2, 8388607, 2**24]


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("name", ["nearest", "floor", "stochastic"])
def test_tensors_round_like_numpy(backend, name):
    noise = np.linspace(0, 0.99, AWKWARD.size, dtype=np.float32)
    tensor = backend.tensor(AWKWARD)
    expected = ROUNDINGS.get(name)(AWKWARD, xp=NUMPY, noise=noise)
    for given_noise in (noise, noise.astype(np.float64), backend.tensor(noise)):
        rounded = ROUNDINGS.get(name)(tensor, xp=namespace_of(tensor), noise=given_noise)
        np.testing.assert_array_equal(backend.numpy(rounded), expected)


def test_stochastic_rounds_up_where_the_noise_is_below_the_fraction():
    u = np.float32([0.25, 0.25, -0.25, -0.25, 3.0])
    noise = np.float32([0.24, 0.25, 0.74, 0.75, 0.0])
    assert stochastic(u, xp=NUMPY, noise=noise).tolist() == [1, 0, 0, -1, 3]


def test_stochastic_rounding_is_unbiased():
    # Noise on a regular grid is a quadrature of the expectation: exact to one grid step.
    noise = (np.arange(4096, dtype=np.float32) + np.float32(0.5)) / np.float32(4096)
    for u in (-1.7, -0.3, 0.0, 0.1, 0.5, 100.9):
        mean = stochastic(np.full(noise.shape, u, np.float32), xp=NUMPY, noise=noise).mean(dtype=np.float64)
        assert abs(mean - u) <= 1 / 4096


@given(st.data())
def test_stochastic_codes_are_one_of_the_two_neighbours_and_never_move_a_code(data):
    grid = data.draw(int_grids())
    scale, zero_point = data.draw(params(grid, st.sampled_from([np.float32(0.5), np.float32(2.0**-10)])))
    x = data.draw(values(scale, zero_point, grid))
    noise = data.draw(st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=x.size, max_size=x.size))
    noise = np.float32(noise)
    codes = quantize(x, scale, zero_point, grid, rounding="stochastic", noise=noise).astype(np.int64)
    lower = quantize(x, scale, zero_point, grid, rounding="floor").astype(np.int64)
    with np.errstate(over="ignore"):
        u = np.clip(x / scale, grid.qmin - zero_point, grid.qmax - zero_point)
    whole = u == np.rint(u)
    np.testing.assert_array_equal(codes[whole], lower[whole])
    assert np.all((codes - lower >= 0) & (codes - lower <= 1))
    fake = fake_quantize(x, scale, zero_point, grid, rounding="stochastic", noise=noise)
    np.testing.assert_array_equal(fake, (codes - zero_point).astype(np.float32) * scale)


def test_a_large_code_survives_noise_close_to_1():
    almost = np.float32([1 - 2.0**-24])
    grid = IntGrid(16, signed=False)
    assert quantize(np.float32([65534]), 1.0, 0, grid, rounding="stochastic", noise=almost) == 65534


def test_stochastic_saturates_infinities_and_stores_nan_as_0():
    x = np.float32([np.inf, -np.inf, np.nan])
    codes = quantize(x, 1.0, 3, IntGrid(4, signed=False), rounding="stochastic", noise=np.zeros(3))
    assert codes.tolist() == [15, 0, 3]


@pytest.mark.parametrize("function", [quantize, fake_quantize])
def test_stochastic_needs_its_noise(function):
    with pytest.raises(InputError, match=r"for rounding='stochastic'; received noise=None"):
        function(np.zeros(3), 1.0, 0, IntGrid(4), rounding="stochastic")
    with pytest.raises(InputError, match=r"shaped like the input.*; received noise=\(2, 3\)"):
        function(np.zeros(3), 1.0, 0, IntGrid(4), rounding="stochastic", noise=np.zeros((2, 3)))


@pytest.mark.parametrize("function", [quantize, fake_quantize])
def test_an_unknown_rounding_names_the_nearest(function):
    with pytest.raises(ConfigError, match=r"received 'neareste'\. Did you mean 'nearest'\?"):
        function(np.zeros(3), 1.0, 0, IntGrid(4), rounding="neareste")
