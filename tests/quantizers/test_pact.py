from __future__ import annotations

import numpy as np
import pytest

from qi.errors import ConfigError
from qi.quantizers import PACTQuantizer
from tests.quantizers.common import SYMMETRIC, UNIFORM, UPSTREAM, X, activations, declared, gradients, weights


def test_alpha_learns_by_what_lies_above_it():
    quantizer = activations(PACTQuantizer, UNIFORM, 4, min_range=0.0, max_range=1.2)
    for_x, found = gradients(quantizer, {"alpha": np.float32([1.2])})
    np.testing.assert_allclose(found["alpha"], [np.sum(UPSTREAM[X > 1.2])], rtol=1e-4)
    np.testing.assert_array_equal(for_x, np.where((X >= 0) & (X <= 1.2), UPSTREAM, 0))


def test_golden_numbers_and_the_inferable_quantizer():
    quantizer = activations(PACTQuantizer, UNIFORM, 2, min_range=0.0, max_range=3.0)
    quantizer.bind(declared(quantizer, np.zeros(1)))
    assert quantizer(np.float32([-1, 0.4, 0.6, 1.5, 2.5, 9])).tolist() == [0, 0, 1, 2, 2, 3]
    inferable = quantizer.convert2inferable()
    assert (inferable.min_range, inferable.max_range) == (0, 3)


def test_a_range_of_negative_values_starts_with_one_step():
    alpha = declared(activations(PACTQuantizer, UNIFORM, 2, min_range=-3.0, max_range=0.0), np.zeros(1))["alpha"]
    assert alpha.tolist() == [1.0]


@pytest.mark.parametrize(
    "make", [lambda: weights(PACTQuantizer, UNIFORM), lambda: activations(PACTQuantizer, SYMMETRIC)]
)
def test_of_activations_and_uniform_only(make):
    with pytest.raises(ConfigError, match=r"expected a .* PACTQuantizer"):
        make()
