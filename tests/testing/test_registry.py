"""How clauses compare and complain."""

from __future__ import annotations

import numpy as np
import pytest

from qi.errors import ContractError
from qi.testing.registry import CLAUSES, expect, expect_close, expect_same, fail


def test_the_clauses():
    names = {
        "forward",
        "engines",
        "gradients",
        "finite",
        "positive",
        "config",
        "refusals",
        "saving",
        "training",
        "modes",
        "mixed",
    }
    assert set(CLAUSES.names()) == names
    assert all(clause.__doc__ for _, clause in CLAUSES.items())


def test_failing_names_the_clause_the_place_and_the_problem():
    with pytest.raises(ContractError, match=r"^clause 'c', here: no good$"):
        fail("c", "here", "no good")
    with pytest.raises(AssertionError):
        expect(0, "c", "here", "no good")
    expect(1, "c", "here", "fine")


@pytest.mark.parametrize(
    ("found", "wanted", "message"),
    [
        (
            np.float32([1, 2]),
            np.float32([1, 3]),
            r"expected y, bit for bit; received .*2.* in place of .*3.* at \(1,\) \(1 of 2",
        ),
        (np.float32([-0.0]), np.float32([0.0]), "received .*-0.0.* in place of"),
        (np.float32([0]), np.float64([0]), r"expected y: float64\(1,\); received float32\(1,\)"),
        (np.float32([0]), np.float32([[0]]), r"expected y: float32\(1, 1\); received"),
        (np.float32([np.nan]), np.float32([0]), "received .*nan"),
    ],
)
def test_bit_for_bit(found, wanted, message):
    with pytest.raises(ContractError, match=message):
        expect_same(found, wanted, "c", "here", "y")
    expect_same(wanted, wanted.copy(), "c", "here", "y")
    expect_same(np.float32([np.nan]), np.float32([np.nan]), "c", "here", "y")


def test_close():
    expect_close([1.0, 1000.0], [1.9, 1000.0], "c", "here", "y", slack=0.0)
    for found in ([3.0, 1000.0], [np.nan, 1000.0]):
        with pytest.raises(ContractError, match=r"expected y to be 1\.9; received .* at \(0,\)"):
            expect_close(found, [1.9, 1000.0], "c", "here", "y", slack=0.0)
    expect_close([3.0], [1.9], "c", "here", "y", slack=1.2)
