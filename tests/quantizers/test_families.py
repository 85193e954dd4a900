from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, LutGrid
from qi.errors import ConfigError
from qi.quantizers.families import LutQuantizer, SymmetricQuantizer, UniformQuantizer, check_power_of_two

FAMILIES = {
    "symmetric": lambda **k: SymmetricQuantizer(**{"num_bits": 4, "threshold": 1.0, "signed": True} | k),
    "uniform": lambda **k: UniformQuantizer(**{"num_bits": 4, "min_range": -1.0, "max_range": 2.0} | k),
    "table": lambda **k: LutQuantizer(
        **{"num_bits": 2, "lut_values": [-5, 0, 9], "threshold": 1.0, "signed": True} | k
    ),
}


def refused(family: str, message: str, **arguments: object) -> None:
    with pytest.raises(ConfigError, match=message):
        FAMILIES[family](**arguments)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [2.5, 0, 17, True, "8", None, -1, 8.0])
def test_num_bits_is_an_integer_from_1_to_16(family, bits):
    refused(family, rf"num_bits to be an integer from 1 to 16; received num_bits={bits!r}", num_bits=bits)


@pytest.mark.parametrize("family", ["symmetric", "table"])
@pytest.mark.parametrize(
    ("threshold", "received"),
    [(0, r"0\.0"), (-2.0, r"-2\.0"), (np.nan, "nan"), (np.inf, "inf"), ([], r"\[\]"), ("a", "'a'"), (True, "True")],
)
def test_thresholds_are_positive_numbers(family, threshold, received):
    refused(family, f"expected threshold to be .*; received threshold={received}", threshold=threshold)


@pytest.mark.parametrize("family", ["symmetric", "table"])
def test_one_threshold_without_channels(family):
    refused(family, r"one threshold with per_channel=False; received threshold=\[1\.0, 2\.0\]", threshold=[1.0, 2.0])
    assert FAMILIES[family](threshold=[1.0]).threshold.tolist() == [1.0]


@pytest.mark.parametrize("family", ["symmetric", "table"])
@pytest.mark.parametrize("signed", [1, "False", None])
def test_signed_is_a_boolean(family, signed):
    refused(family, f"expected signed to be True or False; received signed={signed!r}", signed=signed)


@pytest.mark.parametrize("threshold", [1.0, 0.25, 2.0**-30, 1024.0])
def test_powers_of_two(threshold):
    check_power_of_two(np.array([threshold]))
    for other in (np.nextafter(threshold, 0), np.nextafter(threshold, np.inf), threshold * 3):
        with pytest.raises(ConfigError, match=f"power of 2; received threshold={other}"):
            check_power_of_two(np.array([threshold, other]))


# --- by threshold ---


@pytest.mark.parametrize(("signed", "step"), [(True, 1.9 / 128), (False, 1.9 / 256)])
def test_symmetric_step(signed, step):
    q = FAMILIES["symmetric"](num_bits=8, threshold=1.9, signed=signed)
    assert q.qparams(()).scale == np.float32(step)
    assert q.qparams(()).zero_point == 0
    assert q.max_range == pytest.approx(1.9 - step)
    assert q.min_range == pytest.approx(-1.9 if signed else 0)


def test_narrow_range_drops_the_lowest_code():
    q = FAMILIES["symmetric"](num_bits=3, threshold=4.0, narrow_range=True)
    assert q(np.float32([-9, -4, 9])).tolist() == [-3, -3, 3]
    assert q.get_config()["narrow_range"] is True
    assert "narrow_range" not in FAMILIES["symmetric"]().get_config()
    refused("symmetric", "expected narrow_range only for a signed grid", signed=False, narrow_range=True)
    refused("symmetric", "expected narrow_range to be True or False; received narrow_range=1", narrow_range=1)


# --- by range ---


@pytest.mark.parametrize(
    ("lo", "hi", "expected"),
    [
        (-1.0, 2.0, (-1.0, 2.0)),
        (0.5, 6.0, (0.0, 6.0)),  # stretched to contain 0
        (-4.0, -0.5, (-4.0, 0.0)),
        (0.0, 0.0, (0.0, 15.0)),  # a zero range has step 1
    ],
)
def test_range_contains_zero(lo, hi, expected):
    q = FAMILIES["uniform"](min_range=lo, max_range=hi)
    assert (q.min_range.item(), q.max_range.item()) == pytest.approx(expected)
    assert q(0.0) == 0


def test_range_shifts_so_that_zero_is_a_code():
    q = FAMILIES["uniform"](num_bits=8, min_range=-1.1, max_range=2.3)
    scale, zero_point = q.qparams(()).scale.item(), q.qparams(()).zero_point.item()
    assert scale == np.float32(3.4 / 255)
    assert zero_point == 83  # 82.5 rounds up
    assert q.min_range == pytest.approx(-83 * scale)


@pytest.mark.parametrize("end", ["min_range", "max_range"])
@pytest.mark.parametrize("value", [np.nan, np.inf, "a", [], None, True])
def test_ends_are_finite_numbers(end, value):
    refused("uniform", f"expected {end} to be .*; received {end}=", **{end: value})


def test_ends_fit_together():
    refused("uniform", r"received min_range=3\.0, max_range=2\.0", min_range=3.0)
    refused("uniform", r"one min_range with per_channel=False; received min_range=\[0\.0, 1\.0\]", min_range=[0, 1])
    refused(
        "uniform",
        r"min_range=2\.5, max_range=2\.0",
        min_range=[0, 2.5],
        max_range=[1, 2],
        per_channel=True,
    )
    refused("uniform", r"of one shape; received \(2,\) and \(\)", min_range=[0, 0], per_channel=True)


# --- by table ---


def test_table_takes_the_nearest_entry_the_lower_at_a_tie():
    q = FAMILIES["table"](lut_values=[9, -5, 0], threshold=128.0)
    assert q(np.float32([-99, -2.6, -2.5, -2.4, 4.5, 4.6, 99])).tolist() == [-5, -5, -5, 0, 0, 9, 9]
    assert isinstance(q.grid, LutGrid)
    assert q.get_config()["lut_values"] == [-5, 0, 9]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 1.5], r"integers.*lut_values=\[0, 1\.5\]"),
        ([256], "from 0 to 255 .*received a range of 256 to 256"),
        ([-1, 3], "from 0 to 255 .*received a range of -1 to 3"),
        ([7, 3, 7], r"without repetitions; received lut_values=\[7, 3, 7\]"),
        ([], r"received lut_values=\[\]"),
        ("abc", "received lut_values='abc'"),
        ([True, False], "received lut_values="),
        ([np.nan], "received lut_values=nan"),
        ([0, 1, 2, 3, 4], "expected at most 4 lut_values for num_bits=2; received 5"),
    ],
)
def test_bad_tables_are_refused(values, message):
    refused("table", message, lut_values=values, signed=False)


@pytest.mark.parametrize("width", [2.5, 0, 17, True, "8"])
def test_width_of_entries_is_an_integer_from_1_to_16(width):
    refused("table", f"received lut_values_bitwidth={width!r}", lut_values_bitwidth=width)


def test_an_index_is_not_wider_than_an_entry():
    refused(
        "table",
        "expected num_bits <= lut_values_bitwidth=3; received num_bits=4",
        num_bits=4,
        lut_values_bitwidth=3,
        lut_values=[0],
    )


@pytest.mark.parametrize("eps", ["x", [1e-8, 1e-8], np.nan])
def test_eps_is_a_number(eps):
    refused("table", "eps", eps=eps)
    assert FAMILIES["table"](eps=1e-3).get_config()["eps"] == 1e-3


def test_grids():
    assert FAMILIES["symmetric"](num_bits=5).grid == IntGrid(5)
    assert FAMILIES["uniform"](num_bits=5).grid == IntGrid(5, signed=False)
    assert FAMILIES["table"](lut_values_bitwidth=6).grid == LutGrid([-5, 0, 9], 6)
    assert FAMILIES["table"](num_bits=3, lut_values=[0]).num_bits == 3
