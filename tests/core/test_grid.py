from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from qi.core.grid import IntGrid, LutGrid
from qi.errors import ConfigError
from tests.strategies import int_grids, lut_grids


@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "qmin", "qmax", "dtype"),
    [
        (1, True, False, -1, 0, "int8"),
        (1, False, False, 0, 1, "uint8"),
        (2, True, True, -1, 1, "int8"),
        (4, True, False, -8, 7, "int8"),
        (8, True, False, -128, 127, "int8"),
        (8, True, True, -127, 127, "int8"),
        (8, False, False, 0, 255, "uint8"),
        (9, True, False, -256, 255, "int16"),
        (9, False, False, 0, 511, "uint16"),
        (16, True, True, -32767, 32767, "int16"),
        (16, False, False, 0, 65535, "uint16"),
    ],
)
def test_codes_of_an_integer_grid(bits, signed, narrow, qmin, qmax, dtype):
    grid = IntGrid(bits, signed, narrow)
    assert (grid.qmin, grid.qmax, grid.storage_dtype.name) == (qmin, qmax, dtype)
    assert grid.levels == qmax - qmin + 1
    assert grid.edge == qmax + 1


@given(int_grids())
def test_every_code_fits_the_storage_and_a_zero_exists(grid):
    info = np.iinfo(grid.storage_dtype)
    assert info.min <= grid.qmin <= 0 <= grid.qmax <= info.max
    assert grid.levels == 2**grid.bits - grid.narrow


@pytest.mark.parametrize("bits", [0, 17, -1, 4.0, True, "8", None, np.float32(8)])
def test_a_width_that_is_no_integer_from_1_to_16_is_refused(bits):
    with pytest.raises(ConfigError, match=r"num_bits to be an integer from 1 to 16; received num_bits="):
        IntGrid(bits)


@pytest.mark.parametrize(("bits", "signed"), [(8, False), (1, True), (1, False)])
def test_a_narrow_grid_is_signed_and_has_codes_beside_0(bits, signed):
    with pytest.raises(ConfigError, match=f"narrow_range only for .* received num_bits={bits}, signed={signed}"):
        IntGrid(bits, signed, narrow=True)


def test_numpy_integers_and_flags_become_plain_so_grids_compare_and_hash_alike():
    grid = IntGrid(np.int64(4), np.True_, 0)
    assert grid == IntGrid(4)
    assert hash(grid) == hash(IntGrid(4))
    assert type(grid.bits) is int
    assert type(grid.signed) is bool
    assert type(grid.narrow) is bool


def test_a_grid_is_immutable():
    with pytest.raises(AttributeError):
        IntGrid(4).bits = 8


@given(lut_grids())
def test_a_table_is_sorted_and_its_indices_fit(grid):
    assert list(grid.values) == sorted(set(grid.values))
    assert grid.levels == len(grid.values) <= 2**grid.index_bits
    assert grid.index_bits == 1 or grid.levels > 2 ** (grid.index_bits - 1)
    assert grid.edge == IntGrid(grid.bits, grid.signed).edge


def test_tables_with_the_same_entries_are_equal_whatever_their_order():
    assert LutGrid([3, -1, 0], 4) == LutGrid(np.array([0.0, 3.0, -1.0]), 4)
    assert hash(LutGrid([3, -1, 0], 4)) == hash(LutGrid([-1, 0, 3], 4))


def test_large_tables_are_indexed_with_16_bits():
    assert LutGrid(range(256), 8, signed=False).storage_dtype == np.uint8
    assert LutGrid(range(257), 9, signed=False).storage_dtype == np.uint16


@pytest.mark.parametrize(
    ("lut_values", "message"),
    [
        ([], "integers, at least one; received lut_values=\\[\\]"),
        ([0.5, 1], "integers, at least one"),
        ([0, np.nan], "integers, at least one"),
        ([0, np.inf], "integers, at least one"),
        ([1, 0, 1], "without repetitions; received lut_values=\\[1, 0, 1\\]"),
        ([0, 8], "from -8 to 7 .*received a range of 0 to 8"),
        ([0, -9], "from -8 to 7 .*received a range of -9 to 0"),
    ],
)
def test_a_bad_table_is_refused(lut_values, message):
    with pytest.raises(ConfigError, match=message):
        LutGrid(lut_values, bits=4)


def test_the_width_of_the_entries_is_checked():
    with pytest.raises(ConfigError, match="received num_bits=17"):
        LutGrid([0], bits=17)
    with pytest.raises(ConfigError, match=r"from 0 to 15 \(lut_values_bitwidth=4, signed=False\)"):
        LutGrid([-1], bits=4, signed=False)
