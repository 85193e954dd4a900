"""The clauses on numbers that hurt catch quantizers that divide by 0, overflow, or take negative scales."""

from __future__ import annotations

import numpy as np
import pytest

from qi.core.namespace import namespace_of
from qi.quantizers import LSQPlusQuantizer, LSQQuantizer, STEQuantizer
from tests.testing.broken import assert_caught


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_division_by_the_greatest_magnitude_of_nothing():
    def transform(self, x, variables):
        xp = namespace_of(x)
        return xp.divide(x, xp.max(xp.abs(x)))

    message = "on a tensor of 0.0 only: expected finite numbers; received .nan. in the result for x="
    assert_caught("finite", message, STEQuantizer, transform=transform)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_gradients_that_are_not_finite():
    def transform(self, x, variables):
        xp = namespace_of(x)
        return xp.where(x == 0, xp.zeros_like(x), xp.divide(x, xp.abs(x)))  # 0 times the slope there is NaN

    assert_caught("finite", "in the gradient of the tensor", STEQuantizer, transform=transform)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(
    ("scale_of", "message"),
    [
        (lambda xp, v: v, "with step = -1.0: expected a positive and finite scale; received .*-1"),
        (lambda xp, v: xp.abs(v), "with step = 0.0: expected a positive and finite scale; received .*0"),
        (lambda xp, v: xp.abs(v) + np.float32(1e-45), "with step = "),
        (
            lambda xp, v: xp.maximum(xp.abs(v * v), np.float32(1e-20)),
            "with step = 1e.30: expected a positive and fin.*inf",
        ),
    ],
    ids=["negative", "zero", "tiny", "infinite"],
)
def test_a_scale_that_is_not_positive(scale_of, message):
    def scale_zero_point(self, variables):
        return scale_of(namespace_of(variables["step"]), variables["step"]), None

    assert_caught("positive", message, scale_zero_point=scale_zero_point)


def test_a_zero_point_beyond_the_grid():
    def scale_zero_point(self, variables):
        scale, _ = LSQQuantizer.scale_zero_point(self, variables)
        return scale, scale * 0 - variables["offset"]

    assert_caught("positive", "expected a zero point on the grid", LSQPlusQuantizer, scale_zero_point=scale_zero_point)
