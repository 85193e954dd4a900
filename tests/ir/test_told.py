from __future__ import annotations

import pytest

from qi.ir.told import told


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/b", "'a/b'"), ("raw", "'raw'"), ("_raw", "'_raw'"), ("a/b_raw", "'a/b' ('a/b_raw' once quantized)")],
)
def test_layers_are_told_by_the_name_that_their_user_gave(name: str, expected: str) -> None:
    assert told(name) == expected
