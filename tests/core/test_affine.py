from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from qi.core.affine import dequantize, fake_quantize, quantize, requantize
from qi.core.grid import IntGrid, LutGrid
from qi.core.scaling import range_of
from qi.errors import InputError
from tests.strategies import any_scale, common_scale, int_grids, lut_grids, params, scales, values

INT8, UINT4 = IntGrid(8), IntGrid(4, signed=False)
FLOATS = [np.dtype(kind) for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]


def bits(x: np.ndarray) -> bytes:
    """All of an array's bits, every NaN alike."""
    x = np.asarray(x)
    return np.where(np.isnan(x), x.dtype.type(np.nan), x).astype(x.dtype).tobytes()


def code_of(x: float, scale: float, zero_point: int, grid: IntGrid) -> int:
    """Oracle in Python's own numbers: one float32 division, banker's rounding, an unbounded integer, a clip."""
    if np.isnan(x):
        return zero_point
    if np.isinf(x):
        return grid.qmax if x > 0 else grid.qmin
    # Dividing in float64 and rounding once more is exact for float32: 53 >= 2 * 24 + 2 bits.
    with np.errstate(over="ignore"):
        u = float(np.float32(float(x) / float(scale)))
    q = (grid.qmax - zero_point if u > 0 else grid.qmin - zero_point) if np.isinf(u) else round(u)
    return min(max(q + zero_point, grid.qmin), grid.qmax)


@st.composite
def problems(draw, scale=scales, finite=False):
    """(x, scale, zero_point, grid)"""
    grid = draw(int_grids())
    chosen, zero_point = draw(params(grid, scale))
    return draw(values(chosen, zero_point, grid, finite=finite)), chosen, zero_point, grid


@st.composite
def lut_problems(draw, finite=False):
    grid = draw(lut_grids())
    scale = draw(scales)
    return draw(values(scale, 0, IntGrid(grid.bits, grid.signed), finite=finite)), scale, 0, grid


every_problem = problems() | lut_problems()


@given(problems())
def test_codes_are_those_of_exact_arithmetic(problem):
    x, *how = problem
    codes = quantize(x, *how)
    assert codes.dtype == how[-1].storage_dtype
    assert codes.tolist() == [code_of(v, *how) for v in x]


@given(lut_problems())
def test_a_table_gives_the_nearest_entry_and_the_lower_one_at_a_tie(problem):
    x, scale, _, grid = problem
    for value, index in zip(x, quantize(x, scale, 0, grid).tolist(), strict=True):
        with np.errstate(over="ignore"):
            u = float(np.float32(0.0 if np.isnan(value) else value) / scale)
        u = min(max(u, grid.values[0]), grid.values[-1])
        distances = [
            abs(Fraction(u) - entry) for entry in grid.values
        ]  # in floats, a subnormal is as far from -1 as from 1
        assert index == distances.index(min(distances))


@given(every_problem, st.sampled_from(FLOATS))
def test_fake_quantize_is_dequantize_of_quantize_bit_for_bit(problem, dtype):
    x, *how = problem
    with np.errstate(over="ignore"):
        x = x.astype(dtype)
    fake = fake_quantize(x, *how)
    real = dequantize(quantize(x, *how), *how, dtype=dtype.name)
    assert fake.dtype == real.dtype == x.dtype
    nan = np.isnan(x)
    assert np.isnan(fake[nan]).all()
    assert bits(fake[~nan]) == bits(real[~nan])


@given(problems(scale=common_scale.map(np.float32), finite=True))
def test_the_error_is_at_most_half_a_step_in_range(problem):
    x, scale, zero_point, grid = problem
    lo, hi = range_of(scale, zero_point, grid)
    inside = x[(x >= lo) & (x <= hi)].astype(np.float64)
    assume(inside.size)
    error = np.abs(fake_quantize(inside.astype(np.float32), scale, zero_point, grid) - inside)
    # The division and the product each round by 2**-24 of their result: up to 2**16 steps.
    steps = np.abs(inside) / float(scale) + 1
    assert np.all(error <= float(scale) * (0.5 + steps * 2.0**-23))


@given(every_problem)
def test_quantizing_twice_changes_nothing(problem):
    x, *how = problem
    once = fake_quantize(x, *how)
    assert bits(fake_quantize(once, *how)) == bits(once)


@given(every_problem)
def test_codes_rise_with_the_values(problem):
    x, *how = problem
    x = np.sort(x[~np.isnan(x)])
    assert np.all(np.diff(quantize(x, *how).astype(np.int64)) >= 0)
    with np.errstate(invalid="ignore"):  # inf - inf where a scale near float32's end overflows
        assert not np.any(np.diff(fake_quantize(x, *how)) < 0)


@given(params(INT8, any_scale.map(np.float32)))
def test_zero_is_exact_and_positive(how):
    for zero in (0.0, -0.0):
        assert quantize(np.float32(zero), *how, INT8) == how[1]
        assert fake_quantize(np.float32(zero), *how, INT8).tobytes() == bytes(4)


@given(st.data())
def test_a_scale_per_channel_is_a_scale_per_slice(data):
    grid = data.draw(int_grids())
    channels = [data.draw(params(grid)) for _ in range(3)]
    columns = [np.resize(data.draw(values(*how, grid, finite=False)), 5) for how in channels]
    x = np.stack(columns, axis=1)
    scale, zero_point = (np.array([how[i] for how in channels]).reshape(1, 3) for i in (0, 1))
    codes, fake = quantize(x, scale, zero_point, grid), fake_quantize(x, scale, zero_point, grid)
    for i, how in enumerate(channels):
        assert codes[:, i].tolist() == quantize(columns[i], *how, grid).tolist()
        assert bits(fake[:, i]) == bits(fake_quantize(columns[i], *how, grid))


@pytest.mark.parametrize("grid", [INT8, UINT4, LutGrid([-7, 0, 5])])
@pytest.mark.parametrize("function", [quantize, fake_quantize])
def test_special_values_and_overflow_are_no_warnings(function, grid):
    x = np.float32([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -0.0])
    for dtype in FLOATS:
        with np.errstate(over="ignore"):
            special = x.astype(dtype)
        for scale in (np.finfo(np.float32).tiny, 0.1, np.finfo(np.float32).max):
            assert function(special, scale, 0, grid).shape == x.shape
    assert function(np.array([1e300, -1e300]), 0.1, 0, grid).shape == (2,)


def test_infinities_saturate_and_nan_is_the_zero_point():
    x = np.array([np.nan, np.inf, -np.inf])
    assert quantize(x, 0.1, 3, UINT4).tolist() == [3, 15, 0]
    np.testing.assert_array_equal(fake_quantize(x.astype(np.float32), 0.5, 3, UINT4), [np.nan, 6.0, -1.5])
    table = LutGrid([-7, 1, 5])
    assert quantize(x, 0.5, 0, table).tolist() == [1, 2, 0]  # the entry nearest to 0
    np.testing.assert_array_equal(fake_quantize(x, 0.5, 0, table), [np.nan, 2.5, -3.5])


def test_a_product_beyond_the_dtype_is_infinite():
    assert dequantize(np.int8([127, -1]), np.float32(3e38), 0, INT8).tolist() == [np.inf, -np.float32(3e38)]
    assert fake_quantize(np.float16([6e4]), 4e4, 0, INT8).tolist() == [np.inf]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floats_keep_their_dtype_and_round_once(dtype):
    x = np.linspace(-2, 2, 41).astype(dtype)
    fake = fake_quantize(x, 0.1, 0, INT8)
    expected = fake_quantize(x.astype(np.float32), 0.1, 0, INT8)
    assert fake.dtype == x.dtype
    np.testing.assert_array_equal(fake, expected.astype(x.dtype))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64", "bool"])
def test_integers_are_computed_and_answered_in_float32(dtype):
    x = np.array([0, 1, 1, 100], dtype)
    assert fake_quantize(x, 0.5, 0, INT8).dtype == np.float32
    assert quantize(x, 0.5, 0, INT8).tolist() == [0, 2, 2, 2 if dtype == "bool" else 127]


def test_small_and_foreign_dtypes_are_numbers_too():
    assert quantize(np.array([-3, 3], ml_dtypes.int4), 1.0, 0, INT8).tolist() == [-3, 3]
    assert fake_quantize(np.array([1.25], ml_dtypes.float8_e4m3fn), 0.5, 0, INT8).dtype == ml_dtypes.float8_e4m3fn
    swapped = fake_quantize(np.array([1.3], ">f8"), 0.5, 0, INT8)
    assert (swapped.dtype, swapped[0]) == (np.float64, 1.5)
    assert quantize([0.6, -99], 0.5, 0, INT8).tolist() == [1, -128]


@pytest.mark.parametrize("grid", [INT8, LutGrid([0, 1])])
def test_scalars_and_empty_arrays_keep_their_shape(grid):
    for x in (np.float32(0.5), np.zeros((), np.float32), np.zeros((0, 3), np.float32)):
        for result in (quantize(x, 1.0, 0, grid), fake_quantize(x, 1.0, 0, grid)):
            assert isinstance(result, np.ndarray)
            assert result.shape == np.shape(x)
        assert dequantize(quantize(x, 1.0, 0, grid), 1.0, 0, grid).shape == np.shape(x)
    assert requantize(np.zeros((0, 3), np.int8), 1.0, 0, 2.0, 0, INT8).shape == (0, 3)
    assert requantize(np.int32(3), 1.0, 0, 2.0, 0, INT8).shape == ()


@pytest.mark.parametrize("grid", [INT8, LutGrid([-1, 0, 1])])
def test_arguments_are_never_written(readonly, grid):
    x, scale, zero_point = (
        readonly([0.5, -3.0, np.nan], np.float32),
        readonly(0.5, np.float32),
        readonly(0, "int32"),
    )
    codes = quantize(x, scale, zero_point, grid)
    assert fake_quantize(x, scale, zero_point, grid).flags.writeable
    codes.flags.writeable = False
    dequantize(codes, scale, zero_point, grid)
    requantize(codes, scale, zero_point, scale, zero_point, INT8)


@pytest.mark.parametrize(
    ("x", "dtype"),
    [
        (np.array([1j]), "complex128"),
        (np.array(["1"]), "str32"),
        (np.array([b"1"]), "bytes8"),
        (np.array([None]), "object"),
        (np.array(["2020-01-01"], "datetime64[D]"), "datetime64"),
        (np.zeros(2, "V8"), "void64"),
        (np.zeros(2, [("a", "i4")]), "void32"),
        (np.array(["1"], np.dtypes.StringDType()), "StringDType"),
    ],
    ids=str,
)
def test_what_is_no_real_number_is_refused(x, dtype):
    for function in (quantize, fake_quantize):
        with pytest.raises(InputError, match=f"expected an array of real numbers; received dtype={dtype}"):
            function(x, 1.0, 0, INT8)


def test_dequantize_reads_codes_into_any_float_dtype():
    codes = np.array([0, 3, 15], np.uint8)
    for dtype in FLOATS:
        real = dequantize(codes, 0.5, 3, UINT4, dtype=dtype.name)
        assert real.dtype == dtype
        assert real.tolist() == [-1.5, 0.0, 6.0]
    assert dequantize(np.uint8([1, 0]), 0.5, 0, LutGrid([-3, 8])).tolist() == [4.0, -1.5]


def requantized(code: int, scale: float, zero_point: int, new_scale: float, new_zero_point: int, grid) -> int:
    """Oracle: every float32 rounding written as one float64 operation and a cast, which is exact."""
    multiplier = np.float32(float(scale) / float(new_scale))
    product = np.float32(float(np.float32(code - zero_point)) * float(multiplier))
    return min(max(round(float(product)) + new_zero_point, grid.qmin), grid.qmax)


@given(st.data())
def test_requantize_is_one_float32_multiplication(data):
    grid = data.draw(int_grids())
    old, new = data.draw(params(IntGrid(16), common_scale)), data.draw(params(grid, common_scale))
    codes = data.draw(st.lists(st.integers(-(2**30), 2**30) | st.integers(-300, 300), min_size=1))
    result = requantize(np.int32(codes), np.float32(old[0]), old[1], np.float32(new[0]), new[1], grid)
    assert result.dtype == grid.storage_dtype
    assert result.tolist() == [
        requantized(c, np.float32(old[0]), old[1], np.float32(new[0]), new[1], grid) for c in codes
    ]


@given(params(INT8, common_scale), params(INT8, common_scale))
@settings(max_examples=50)
def test_requantize_is_quantize_of_dequantize_to_one_step(old, new):
    codes = np.arange(-128, 128, dtype=np.int8)
    direct = quantize(dequantize(codes, *old, INT8), *new, INT8).astype(int)
    assert np.abs(requantize(codes, *old, *new, INT8).astype(int) - direct).max() <= 1


def test_requantize_to_the_same_parameters_changes_nothing():
    codes = np.arange(-128, 128, dtype=np.int8)
    assert np.array_equal(requantize(codes, 0.1, 5, 0.1, 5, INT8), codes)


def test_requantize_by_a_multiplier_beyond_float32_saturates_and_keeps_0():
    codes = np.int8([-1, 0, 1])
    assert requantize(codes, np.float32(1e38), 0, np.float32(1e-38), 3, UINT4).tolist() == [0, 3, 15]
    assert requantize(codes, np.float32(1e-38), 0, np.float32(1e38), 3, UINT4).tolist() == [3, 3, 3]
