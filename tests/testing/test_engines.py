"""How the contract runs a quantizer on TensorFlow."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from qi.errors import UnsupportedError
from qi.quantizers import StochasticQuantizer
from qi.testing.cases import cases_of
from qi.testing.engines import ENGINES, evaluate, gradients_of, tensorflow_backend
from qi.testing.forward import uniform_noise


@pytest.mark.parametrize("engine", ENGINES)
def test_results_in_and_out_of_training(engine):
    case = cases_of(StochasticQuantizer, (4,))[0]
    quantizer, variables = case.start()
    x = case.values()
    ((inference, training, transformed),) = evaluate(engine, [(quantizer, variables, x, uniform_noise(x))])
    np.testing.assert_array_equal(inference, quantizer.apply(x, variables))
    np.testing.assert_array_equal(training, quantizer.apply(x, variables, training=True, noise=uniform_noise))
    np.testing.assert_array_equal(transformed, x)
    assert not np.array_equal(inference, training)


def test_gradients_are_of_the_training_step():
    case = cases_of(StochasticQuantizer, (4,))[0]
    quantizer, variables = case.start()
    x = case.values()
    for_x, for_variables, result = gradients_of((quantizer, variables, x, uniform_noise(x)), np.full_like(x, 3))
    np.testing.assert_array_equal(result, quantizer.apply(x, variables, training=True, noise=uniform_noise))
    assert set(np.unique(for_x)) <= {0, 3}
    assert set(for_variables) == {"scale"}
    assert for_variables["scale"].shape == variables["scale"].shape


def test_another_backend_is_refused(monkeypatch):
    assert tensorflow_backend()[1] is keras
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(UnsupportedError, match="expected Keras on TensorFlow for the contract; received backend='jax'"):
        tensorflow_backend()
