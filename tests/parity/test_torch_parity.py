"""torch's own quantization operators as oracles: where they agree with ours, where they differ, and why.

* torch multiplies by the reciprocal of the scale, ours divides: the same where the scale is a power of two; otherwise codes
  differ by one step, where ``x / scale`` is within rounding noise of a tie.
* ``fake_quantize_*`` adds the zero point after rounding, as ours; ``quantize_per_*`` before it: ties go the other way for odd
  zero points, and for any but 0 a tie's neighbours in float32 become ties.
* NaN becomes the lowest code there (or the highest); ours keeps it.
* The gradient is 1 there for whatever rounds into the range, half a step beyond its ends included; ours ends at the ends.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qi.core import IntGrid
from qi.core.affine import fake_quantize, quantize

SCALES = [np.float32(2.0**-4), np.float32(0.1), np.float32(1 / 3), np.float32(0.0371)]
GRIDS = [
    (IntGrid(8), 0),
    (IntGrid(8), -5),
    (IntGrid(4, signed=False), 7),
    (IntGrid(8, narrow=True), 0),
    (IntGrid(2), 0),
]
each_scale = pytest.mark.parametrize("scale", SCALES, ids=str)
each_grid = pytest.mark.parametrize(("grid", "zero_point"), GRIDS, ids=str)


def numbers(scale, grid, zero_point):
    """float32 numbers: codes, ties, their neighbours, values beyond both ends, both zeros."""
    rng = np.random.default_rng(0)
    steps = rng.integers(grid.qmin - 3, grid.qmax + 4, 3000) - zero_point + rng.choice([0.0, 0.5, 0.3], 3000)
    x = (steps * float(scale)).astype(np.float32)
    x = np.where(rng.random(3000) < 0.3, np.nextafter(x, np.float32(1e9)), x)
    x[:4] = [0.0, -0.0, 1e9 * scale, -1e9 * scale]
    return x


def ours(x, scale, zero_point, grid):
    return fake_quantize(torch.tensor(x), torch.tensor(scale), torch.tensor(np.float32(zero_point)), grid).numpy()


def theirs(x, scale, zero_point, grid):
    return torch.fake_quantize_per_tensor_affine(
        torch.tensor(x), float(scale), zero_point, grid.qmin, grid.qmax
    ).numpy()


@each_grid
@each_scale
def test_fake_quantize_differs_by_the_reciprocal_alone(scale, grid, zero_point):
    x = numbers(scale, grid, zero_point)
    mine, other = ours(x, scale, zero_point, grid), theirs(x, scale, zero_point, grid)
    reciprocal = np.clip(np.rint(x * (np.float32(1) / scale)) + zero_point, grid.qmin, grid.qmax) - zero_point
    np.testing.assert_array_equal(other, reciprocal.astype(np.float32) * scale)
    different = mine != other
    if scale == SCALES[0]:
        assert not different.any()
    u = x.astype(np.float64) / scale
    assert np.all(np.abs(u - np.floor(u) - 0.5)[different] <= 2 * np.spacing(np.abs(u[different]).astype(np.float32)))
    np.testing.assert_allclose(np.abs(mine - other)[different], scale, rtol=1e-5)


def test_the_reciprocal_moves_codes_at_all():
    for scale in SCALES[2:]:
        x = numbers(scale, *GRIDS[0])
        assert (ours(x, scale, 0, GRIDS[0][0]) != theirs(x, scale, 0, GRIDS[0][0])).any()  # if not: torch divides now


@each_grid
def test_fake_quantize_per_channel_is_the_same_operator(grid, zero_point):
    x = np.stack([numbers(scale, grid, zero_point) for scale in SCALES])
    mine = ours(x, np.float32(SCALES)[:, None], zero_point, grid)
    other = torch.fake_quantize_per_channel_affine(
        torch.tensor(x), torch.tensor(SCALES), torch.full((4,), zero_point, dtype=torch.int32), 0, grid.qmin, grid.qmax
    ).numpy()
    for row, scale in enumerate(SCALES):
        np.testing.assert_array_equal(mine[row], ours(x[row], scale, zero_point, grid))
        np.testing.assert_array_equal(other[row], theirs(x[row], scale, zero_point, grid))


@pytest.mark.parametrize("zero_point", [0, -4, 6])
@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8], ids=str)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch is about to drop these types
def test_codes_are_those_of_quantize_per_tensor_and_per_channel(zero_point, dtype):
    grid, scale = IntGrid(8, signed=dtype is torch.qint8), SCALES[0]
    zero_point += 0 if grid.signed else 128
    x = numbers(scale, grid, zero_point)
    x[2:4] = 1e3, -1e3
    x = x if zero_point == 0 else np.rint(x / scale * 2) / 2 * scale  # without the neighbours of ties
    codes = quantize(torch.tensor(x), torch.tensor(scale), torch.tensor(np.float32(zero_point)), grid)
    tensor = torch.quantize_per_tensor(torch.tensor(x), float(scale), zero_point, dtype).int_repr()
    channel = torch.quantize_per_channel(
        torch.tensor(x[:, None]), torch.tensor([float(scale)]), torch.tensor([zero_point]), 1, dtype
    ).int_repr()[:, 0]
    assert torch.equal(codes, tensor)
    assert torch.equal(codes, channel)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_an_odd_zero_point_moves_their_ties():
    x = torch.tensor([0.5, 1.5, 2.5])
    mine = quantize(x, torch.tensor(1.0), torch.tensor(3.0), IntGrid(8))
    other = torch.quantize_per_tensor(x, 1.0, 3, torch.qint8).int_repr()
    assert mine.tolist() == [3, 5, 5]  # rint(x) + 3
    assert other.tolist() == [4, 4, 6]  # rint(x + 3)


def test_nan_is_a_number_to_them_and_infinities_saturate():
    x = torch.tensor([float("nan"), float("inf"), -float("inf")])
    mine = fake_quantize(x, torch.tensor(0.5), torch.tensor(0.0), IntGrid(3))
    assert mine.isnan().tolist() == [True, False, False]
    assert mine[1:].tolist() == [1.5, -2.0]
    other = torch.fake_quantize_per_tensor_affine(x, 0.5, 0, -4, 3)
    assert not other.isnan().any()
    assert other[1:].tolist() == [1.5, -2.0]


def test_gradients_agree_but_for_half_a_step_beyond_the_ends():
    grid, scale = IntGrid(3), 0.5
    x = np.float32([-9, -2.26, -2.25, -2.1, -2.0, -0.3, 0.0, 0.7, 1.5, 1.6, 1.74, 1.76, 9])
    found = []
    for function in (
        lambda x: fake_quantize(x, torch.tensor(scale), torch.tensor(0.0), grid),
        lambda x: torch.fake_quantize_per_tensor_affine(x, scale, 0, grid.qmin, grid.qmax),
    ):
        leaf = torch.tensor(x, requires_grad=True)
        function(leaf).sum().backward()
        found.append(leaf.grad.numpy())
    u = x / scale
    np.testing.assert_array_equal(found[0], (u >= grid.qmin) & (u <= grid.qmax))
    np.testing.assert_array_equal(found[1], (np.rint(u) >= grid.qmin) & (np.rint(u) <= grid.qmax))
    assert (found[0] != found[1]).sum() == 4
