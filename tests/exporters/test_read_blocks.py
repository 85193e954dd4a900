from __future__ import annotations

import numpy as np
import pytest

from qi.errors import InputError
from qi.exporters.read_blocks import block_weight

ATTRS = {"N": 2, "K": 20, "bits": 4, "block_size": 16}
CODES = np.arange(2 * 2 * 8, dtype=np.uint8).reshape(2, 2, 8)
SCALES = np.float32([1, 2, 3, 4])


def test_the_lower_half_of_a_byte_comes_first() -> None:
    weight = block_weight("w", np.full((2, 2, 8), 0x1F, np.uint8), SCALES, None, ATTRS)
    assert weight is not None
    assert (weight.data.shape, weight.bits) == ((20, 2), 4)
    assert weight.data[:4, 0].tolist() == [15, 1, 15, 1]
    np.testing.assert_array_equal(weight.scale, np.repeat([[1, 3], [2, 4]], [16, 4], 0))
    np.testing.assert_array_equal(weight.zero_point, np.full((20, 2), 8))


@pytest.mark.parametrize(
    ("codes", "scales", "attrs"),
    [
        (None, SCALES, ATTRS),
        (CODES, None, ATTRS),
        (CODES.astype(np.int8), SCALES, ATTRS),
        (CODES, SCALES[:3], ATTRS),
        (CODES, SCALES, ATTRS | {"bits": 3}),
    ],
)
def test_what_is_no_such_weight(codes: np.ndarray | None, scales: np.ndarray | None, attrs: dict[str, int]) -> None:
    assert block_weight("w", codes, scales, None, attrs) is None


def test_too_few_bytes_are_refused() -> None:
    with pytest.raises(InputError, match="expected 32 bytes for 64 codes"):
        block_weight("w", CODES[:, :, :7], SCALES, None, ATTRS)
    with pytest.raises(InputError, match="bytes"):
        block_weight("w", CODES, SCALES, np.zeros(5, np.uint8), ATTRS)
