from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.errors import ConfigError, FileFormatError
from qi.ledger import Row

QUANTIZED = {"layer": "a", "layer_type": "Dense", "name": "kernel", "status": "quantized", "bits": 8}
FLOAT = {"kind": "weight", "layer": "a", "layer_type": "Dense", "name": "bias", "status": "float"}

numbers = st.none() | st.floats(allow_nan=False)
counts = st.none() | st.integers(0, 2**40)
any_row = st.builds(
    Row,
    kind=st.just("activation"),
    layer=st.text(max_size=8),
    layer_type=st.text(max_size=8),
    name=st.text(max_size=8),
    status=st.just("quantized"),
    bits=st.integers(1, 16),
    method=st.sampled_from(["symmetric", "uniform"]),
    shape=st.none() | st.lists(counts, max_size=4).map(tuple),
    scale_min=numbers,
    range_hi=numbers,
    macs=counts,
    sqnr_db=numbers,
    total_sqnr_db=numbers,
    clipped_share=st.none() | st.floats(0, 1),
)


@given(any_row)
def test_every_row_survives_strict_json(row):
    assert Row.from_dict(json.loads(json.dumps(row.to_dict(), allow_nan=False))) == row


def test_what_is_not_known_is_left_out():
    row = Row(kind="weight", **QUANTIZED, method="symmetric", sqnr_db=math.inf, size_after=0)
    assert row.to_dict() == {
        "kind": "weight", **QUANTIZED, "method": "symmetric", "sqnr_db": "inf", "size_after": 0
    }  # fmt: skip


def test_numpy_numbers_become_python_numbers():
    numpy = {"shape": np.array([2, 3]), "macs": np.int64(6), "scale_min": np.float32(0.5)}
    row = Row(kind="weight", **QUANTIZED, method="symmetric", **numpy)
    assert json.dumps(row.to_dict(), allow_nan=False)
    assert row.shape == (2, 3)
    assert type(row.macs) is int
    assert type(row.scale_min) is float


def test_path_and_stored_bytes():
    row = Row(kind="weight", **QUANTIZED, method="symmetric", size_before=400, size_after=110)
    assert (row.path, row.stored_bytes) == ("a/kernel", 110)
    assert Row(**FLOAT, reason="r", size_before=40, size_after=7).stored_bytes == 40
    assert Row(**FLOAT, reason="r").stored_bytes == 0
    unmeasured = Row(kind="weight", **{**QUANTIZED, "layer": ""}, method="symmetric", size_before=400)
    assert (unmeasured.path, unmeasured.stored_bytes) == ("kernel", 400)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "bias"}, "kind='bias'"),
        ({"status": "int8"}, "status='int8'"),
        ({"reason": "because"}, "expected no reason"),
        ({"bits": None}, "expected bits and method"),
        ({"method": None}, "expected bits and method"),
        ({"status": "float"}, "expected a reason why a/kernel"),
        ({"total_sqnr_db": 1.0}, "expected no total_sqnr_db for the weight"),
        ({"clipped_share": 1.5}, r"clipped_share of a/kernel in \[0, 1\]"),
        ({"clipped_share": math.nan}, "received nan"),
        ({"layer": None}, "layer=None"),
        ({"grid": 8}, "grid=8"),
        ({"bits": 8.0}, r"bits=8\.0"),
        ({"macs": -1}, "macs=-1"),
        ({"macs": True}, "macs=True"),
        ({"shape": (2, -1)}, "shape=-1"),
        ({"sqnr_db": "40"}, "sqnr_db='40'"),
        ({"scale_min": [1.0, 2.0]}, "scale_min="),
    ],
)
def test_rows_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Row(**{"kind": "weight", **QUANTIZED, "method": "symmetric", **changes})


@pytest.mark.parametrize(
    "values",
    [
        3,
        {"kind": "weight"},
        {**FLOAT, "reason": "r", "code": "x"},
        {**FLOAT, "reason": "r", "sqnr_db": "40"},
        {**FLOAT, "reason": "r", "macs": "many"},
        {**FLOAT, "reason": "r", "shape": 3},
        {**FLOAT},
    ],
)
def test_junk_is_refused(values):
    with pytest.raises(FileFormatError):
        Row.from_dict(values)
