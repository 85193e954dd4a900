from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, strategies as st

from qi.errors import FileFormatError
from qi.ledger.numbers import (
    decode_number,
    encode_number,
    format_bytes,
    format_count,
    format_db,
    format_number,
    format_relative,
    format_share,
)


@given(st.floats() | st.integers(-(2**53), 2**53) | st.none())
def test_every_number_survives_strict_json(value):
    back = decode_number(json.loads(json.dumps(encode_number(value), allow_nan=False)))
    assert back == value or (math.isnan(value) and math.isnan(back))


@pytest.mark.parametrize("junk", ["1.5", "Infinity", True, [1], {}, "NaN"])
def test_other_values_are_no_numbers(junk):
    with pytest.raises(FileFormatError, match="expected a number"):
        decode_number(junk)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (1_234_567_890, "1.23 GB"),
        (5e15, "5000 TB"),
    ],
)
def test_sizes_have_three_digits(count, text):
    assert format_bytes(count) == text


def test_counts_have_no_unit_below_a_thousand():
    assert [format_count(count) for count in (7, 12_500, None)] == ["7", "12.5 k", "-"]


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (0.5, "50.0 %"), (0.99999, "99.9 %"), (1e-9, "<0.1 %"), (0.0012, "0.1 %")],
)
def test_a_share_reads_as_all_or_nothing_only_if_it_is(share, text):
    assert format_share(share) == text


def test_what_is_missing_is_a_dash():
    assert {format_db(None), format_db(math.nan), format_share(None), format_share(math.nan)} == {"-"}
    assert format_number(None) == format_bytes(None) == "-"


def test_infinite_ratios_are_words():
    assert (format_db(math.inf), format_db(-math.inf), format_db(-3.04)) == ("exact", "lost", "-3.0")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (math.nan, "-"),
        (0.0, "0.0 %"),
        (0.0009, "<0.1 %"),
        (0.304, "30.4 %"),
        (1.0, "100.0 %"),
        (2.5, "250.0 %"),
    ],
)
def test_what_is_compared_may_be_more(value, text):
    assert format_relative(value) == text
