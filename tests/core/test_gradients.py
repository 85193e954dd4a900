from __future__ import annotations

import numpy as np
import pytest

from qi.core.affine import fake_quantize
from qi.core.gradients import ceil_ste, round_ste, scale_gradient, straight_through, surrogate
from qi.core.grid import IntGrid, LutGrid
from qi.core.namespace import NUMPY, namespace_of
from tests.backends import BACKENDS

each_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)

# Both ends of the clip, half a step and an ulp beyond them, ties, the middle, and far outside; the scale is 0.5.
GRID, SCALE = IntGrid(3), np.float32(0.5)
LO, HI = np.float32(-2.0), np.float32(1.5)
BEYOND = np.nextafter(np.float32([LO, HI]), np.float32([-9, 9]))
X = np.float32([-50, LO - 0.25, BEYOND[0], LO, -1.25, -0.3, 0, 0.25, 0.6, HI, BEYOND[1], HI + 0.25, 50])
INSIDE = (X >= LO) & (X <= HI)


def on(tensor):
    return namespace_of(tensor)


def upstream_of(x):
    """Distinct weights, so that no two gradients can be mistaken for each other."""
    return np.linspace(0.5, 2.0, x.size, dtype=np.float32).reshape(x.shape)


@each_backend
def test_the_gradient_for_x_is_the_clip_mask_with_1_at_both_edges(backend):
    # The chain rule multiplies by the scale and divides by it: exact for 1, an ulp at most for any other number.
    for scale in (SCALE, np.float32(0.1), np.float32(1 / 3)):
        x = (X / SCALE) * scale
        u = x / scale
        (gradient,) = backend.gradients(lambda x, scale=scale: fake_quantize(x, scale, 0, GRID), x)
        np.testing.assert_array_equal(gradient, (u >= GRID.qmin) & (u <= GRID.qmax))
    upstream = upstream_of(X)
    (gradient,) = backend.gradients(lambda x: fake_quantize(x, SCALE, 0, GRID), X, upstream=upstream)
    np.testing.assert_array_equal(gradient, np.where(INSIDE, upstream, 0))


@each_backend
def test_the_clip_mask_moves_with_the_zero_point_and_the_narrow_grid(backend):
    x = np.float32([-1.5, -1.0, 0.0, 6.5, 7.0])
    (gradient,) = backend.gradients(lambda x: fake_quantize(x, 0.5, 2, IntGrid(4, signed=False)), x)
    assert gradient.tolist() == [0, 1, 1, 1, 0]
    x = np.float32([-2.0, -1.5, 1.5, 2.0])
    (gradient,) = backend.gradients(lambda x: fake_quantize(x, 0.5, 0, IntGrid(3, narrow=True)), x)
    assert gradient.tolist() == [0, 1, 1, 0]


def lsq(x, scale, zero_point, grid):
    """Oracle: the gradient of arXiv:1902.08153, equation 3, for each element, in float64."""
    u = x.astype(np.float64) / scale
    lowest, highest = grid.qmin - zero_point, grid.qmax - zero_point
    return np.where(u < lowest, lowest, np.where(u > highest, highest, np.rint(u) - u))


@each_backend
@pytest.mark.parametrize(("grid", "zero_point"), [(GRID, 0), (IntGrid(4, signed=False), 3), (IntGrid(8), -7)])
def test_the_gradient_for_the_scale_is_that_of_lsq(backend, grid, zero_point):
    upstream = upstream_of(X)
    function = lambda s: fake_quantize(backend.tensor(X), s, zero_point, grid)
    (gradient,) = backend.gradients(function, SCALE, upstream=upstream)
    expected = np.sum(lsq(X, SCALE, zero_point, grid) * upstream)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    assert gradient.shape == ()


@each_backend
def test_scales_per_channel_collect_the_gradients_of_their_channel(backend):
    rng = np.random.default_rng(0)
    x, scale = rng.normal(size=(50, 3)).astype(np.float32), np.float32([[0.1, 0.5, 0.02]])
    for_x, for_scale = backend.gradients(lambda x, s: fake_quantize(x, s, 0, GRID), x, scale)
    expected = np.sum(lsq(x, scale, 0, GRID), axis=0, keepdims=True)
    np.testing.assert_allclose(for_scale, expected, rtol=1e-5)
    u = x / scale
    np.testing.assert_array_equal(for_x, (u >= GRID.qmin) & (u <= GRID.qmax))


@each_backend
def test_outside_the_range_the_zero_point_has_a_gradient_of_minus_the_scale(backend):
    function = lambda z: fake_quantize(backend.tensor(X), SCALE, z, GRID)
    upstream = upstream_of(X)
    (gradient,) = backend.gradients(function, np.float32(0), upstream=upstream)
    np.testing.assert_allclose(gradient, -SCALE * np.sum(upstream[~INSIDE]), rtol=1e-6)


@each_backend
@pytest.mark.parametrize("rounding", ["floor", "stochastic"])
def test_every_rounding_is_straight_through(backend, rounding):
    noise = np.linspace(0, 0.9, X.size, dtype=np.float32)
    function = lambda x: fake_quantize(x, SCALE, 0, GRID, rounding=rounding, noise=noise)
    (gradient,) = backend.gradients(function, X)
    np.testing.assert_array_equal(gradient, INSIDE.astype(np.float32))


@each_backend
def test_a_table_is_straight_through_between_its_ends(backend):
    grid = LutGrid([-4, 1, 3])
    for_x, for_scale = backend.gradients(lambda x, s: fake_quantize(x, s, 0, grid), X, SCALE)
    u = X / SCALE
    inside = (u >= -4) & (u <= 3)
    np.testing.assert_array_equal(for_x, inside.astype(np.float32))
    value = fake_quantize(X, SCALE, 0, grid) / SCALE
    np.testing.assert_allclose(for_scale, np.sum(np.where(inside, value - u, value)), rtol=1e-6)


@each_backend
@pytest.mark.parametrize("grid", [GRID, LutGrid([-4, 1, 3])])
def test_nothing_but_the_values_of_numpy_is_computed_forward(backend, grid):
    special = np.concatenate([X, np.float32([np.nan, np.inf, -np.inf, -0.0])])
    tensor = backend.tensor(special)
    expected = fake_quantize(special, SCALE, 0, grid)
    np.testing.assert_array_equal(backend.numpy(fake_quantize(tensor, SCALE, 0, grid)), expected)


@each_backend
@pytest.mark.parametrize(("function", "exact"), [(round_ste, np.rint), (ceil_ste, np.ceil)])
def test_rounding_with_gradient_1(backend, function, exact):
    u = np.float32([-2.5, -1e-10, -0.0, 0.0, 1e-10, 0.49999997, 0.5, 1.5, 8388607.5, 2.0**30])
    result = function(backend.tensor(u), xp=on(backend.tensor(u)))
    np.testing.assert_array_equal(backend.numpy(result), exact(u))
    assert not np.signbit(backend.numpy(result)[exact(u) == 0]).any()  # +0 where rounding gives -0
    np.testing.assert_array_equal(function(u, xp=NUMPY), exact(u))
    (gradient,) = backend.gradients(lambda u: function(u, xp=on(u)), u)
    assert gradient.tolist() == [1] * u.size


@each_backend
def test_the_gradient_of_one_with_the_value_of_the_other(backend):
    x = np.float32([0.1, 3.0, -7.3])
    for combine in (
        lambda x: straight_through(x * 3, on(x).round(x), xp=on(x)),
        lambda x: surrogate(on(x).tanh(x), x * 3, xp=on(x)),
    ):
        (gradient,) = backend.gradients(combine, x)
        assert gradient.tolist() == [3, 3, 3]
    value = surrogate(backend.tensor(x) / 3, backend.tensor(x) * 1e8, xp=on(backend.tensor(x)))
    np.testing.assert_array_equal(backend.numpy(value), x / np.float32(3))  # exact, however large the other is


@each_backend
def test_a_gradient_is_scaled_and_the_value_is_not(backend):
    x = np.float32([0.1, 3.0, -7.3])
    np.testing.assert_array_equal(backend.numpy(scale_gradient(backend.tensor(x), 0.25, xp=on(backend.tensor(x)))), x)
    (gradient,) = backend.gradients(lambda x: scale_gradient(x, 0.25, xp=on(x)), x)
    assert gradient.tolist() == [0.25] * 3


def test_on_numpy_only_the_value_is_left():
    x = np.float32([0.3, -1.7])
    np.testing.assert_array_equal(straight_through(x, np.rint(x), xp=NUMPY), [0, -2])
    np.testing.assert_array_equal(surrogate(np.tanh(x), x, xp=NUMPY), np.tanh(x))
    np.testing.assert_array_equal(scale_gradient(x, 0.5, xp=NUMPY), x)
