"""The shift of means that goes into a bias."""

from __future__ import annotations

import numpy as np
import pytest

from qi.algorithms import ALGORITHMS, empirical_bias_correction
from qi.errors import ConfigError, InputError


def test_the_means_are_those_of_float_afterwards() -> None:
    rng = np.random.default_rng(0)
    wanted, now = rng.normal(size=5), rng.normal(size=5)
    np.testing.assert_allclose(now + empirical_bias_correction(wanted, now), wanted)
    np.testing.assert_array_equal(empirical_bias_correction(wanted, wanted), 0)


def test_it_is_registered_as_one_that_needs_samples() -> None:
    found = ALGORITHMS.get("empirical_bias_correction")
    assert (found.stage, found.needs, dict(found.options)) == ("correction", "data", {"samples": 256})


def test_means_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="mean_quantized"):
        empirical_bias_correction([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="mean_float"):
        empirical_bias_correction([np.nan], [1.0])


@pytest.mark.parametrize("samples", [0, -1, True, 2.5])
def test_other_numbers_of_samples_are_refused(samples: object) -> None:
    with pytest.raises(ConfigError, match="samples"):
        empirical_bias_correction([1.0], [1.0], samples=samples)  # type: ignore[arg-type]
