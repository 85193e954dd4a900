"""Gradient estimators against their papers' formulas, on numpy; tests/core/test_training.py runs them on frameworks."""

from __future__ import annotations

import numpy as np
import pytest

from qi.core.estimators import ESTIMATORS, check_estimator
from qi.core.namespace import NUMPY
from qi.errors import ConfigError

U = np.float32([-9.0, -4.3, -4.0, -1.49, -0.5, 0.0, 0.26, 2.75, 3.0, 3.4])
LO, HI = -4, 3
CLIPPED = np.clip(U, LO, HI)
INSIDE = (U >= LO) & (U <= HI)
VALUE = np.rint(CLIPPED)
G = np.float32([1.0, -2.0, 0.5, 3.0, -1.0, 2.0, -0.25, 4.0, 1.5, 1.0])


def estimate(name, **options):
    return ESTIMATORS.get(name)(G, U, CLIPPED, VALUE, xp=NUMPY, **options)


def test_the_names():
    assert ESTIMATORS.names() == ("clipped_ste", "dsq", "ewgs", "ste")
    assert all(function.__doc__ and "arXiv" in function.__doc__ for _, function in ESTIMATORS.items())


def test_straight_through_with_and_without_the_clip():
    np.testing.assert_array_equal(estimate("clipped_ste"), np.where(INSIDE, G, 0))
    np.testing.assert_array_equal(estimate("ste"), G)


@pytest.mark.parametrize("delta", [0.0, 0.1, 1.0])
def test_ewgs_is_equation_4(delta):
    expected = np.where(INSIDE, G * (1 + delta * np.sign(G) * (U - VALUE)), 0)
    np.testing.assert_allclose(estimate("ewgs", delta=delta), expected, rtol=1e-6, atol=1e-7)


def test_dsq_is_the_slope_of_its_staircase():
    alpha, step = 0.3, 1e-5

    def staircase(u):  # equations 3 to 6 with codes one apart
        k = np.log(2 / alpha - 1)
        lower = np.floor(u)
        return lower + 0.5 + np.tanh(k * (u - lower - 0.5)) / (2 * np.tanh(k / 2))

    inner = np.where(np.abs(U - np.rint(U)) < 1e-6, U + 1e-3, U).astype(np.float64)  # its slope jumps at the codes
    slope = (staircase(inner + step) - staircase(inner - step)) / (2 * step)
    at_inner = ESTIMATORS.get("dsq")(G, inner, np.clip(inner, LO, HI), VALUE, xp=NUMPY, alpha=alpha)
    inside = (inner >= LO) & (inner <= HI)
    np.testing.assert_allclose(at_inner, np.where(inside, G * slope, 0), rtol=1e-4, atol=1e-6)


def test_dsq_averages_to_1_over_a_step():
    u = ((np.arange(10_000) + 0.5) / 10_000).astype(np.float32)
    ones = np.ones_like(u)
    slope = ESTIMATORS.get("dsq")(ones, u, u, np.rint(u), xp=NUMPY)
    np.testing.assert_allclose(slope.mean(), 1.0, rtol=1e-4)
    assert slope.argmax() in (4999, 5000)


@pytest.mark.parametrize(
    ("name", "options"), [("ste", {}), ("ewgs", {"delta": 0}), ("ewgs", {"delta": 1.0}), ("dsq", {"alpha": 0.5})]
)
def test_known_options_pass(name, options):
    check_estimator(name, options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("steps", {}, "gradient estimator; received 'steps'. Did you mean 'ste'"),
        (None, {}, "gradient estimator; received None"),
        ("ste", {"delta": 0.1}, r"options of 'ste' out of \[\]; received delta=0.1"),
        ("ewgs", {"alpha": 0.1}, r"options of 'ewgs' out of \['delta'\]; received alpha"),
        ("ewgs", {"delta": -0.1}, "expected delta from 0 to 1; received delta=-0.1"),
        ("ewgs", {"delta": True}, "received delta=True"),
        ("ewgs", {"delta": float("nan")}, "received delta=nan"),
        ("dsq", {"alpha": 0}, "expected alpha from 1e-06 to 0.999; received alpha=0"),
        ("dsq", {"alpha": "0.2"}, "received alpha='0.2'"),
    ],
)
def test_nonsense_is_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        check_estimator(name, options)
