"""How the contract runs a quantizer on Keras' backend."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from qi.errors import ConfigError, MissingDependencyError, UnsupportedError
from qi.quantizers import LSQQuantizer, StochasticQuantizer
from qi.testing.cases import cases_of
from qi.testing.engines import (
    ENGINES,
    as_numpy,
    engines_here,
    evaluate,
    gradients_of,
    keras_here,
    model_gradients,
    running_on,
    torch_here,
    ways_to_train,
)
from qi.testing.forward import uniform_noise

pytestmark = pytest.mark.backend


@pytest.mark.parametrize("engine", engines_here())
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


def test_what_has_no_influence_has_gradients_of_zero():
    case = cases_of(LSQQuantizer, (4,))[0]
    quantizer, variables = case.start()
    x = case.values()
    _, found, _ = gradients_of((quantizer, variables | {"idle": np.ones(2, np.float32)}, x, x), np.ones_like(x))
    np.testing.assert_array_equal(found["idle"], [0, 0])
    assert found["step"].any()


def test_gradients_of_a_model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.float32([[2], [3]])])
    x = np.float32([[1, 0], [1, 10]])
    outputs, (gradient,) = model_gradients(model, x, lambda results: keras.ops.sum(keras.ops.square(results[0])))
    np.testing.assert_array_equal(as_numpy(outputs[0]), [[2], [32]])
    np.testing.assert_array_equal(gradient, [[2 * (2 + 32)], [2 * 320]])


def test_the_ways_of_a_backend():
    backend = keras.backend.backend()
    assert keras_here() == (keras, backend)
    assert engines_here() == ENGINES[backend]
    assert len(ways_to_train()) > 1


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "openvino")
    with pytest.raises(UnsupportedError, match=r"expected Keras on one of .*; received backend='openvino'"):
        engines_here()


def test_torch_tensors_are_engines_of_their_own_for_a_while():
    import torch

    before = engines_here()
    with running_on("torch"):
        assert engines_here() == ENGINES["torch tensors"]
        assert torch_here() is torch
        np.testing.assert_array_equal(as_numpy(torch.ones(2, requires_grad=True)), [1, 1])
    assert engines_here() == before


@pytest.mark.parametrize("engine", ENGINES["torch tensors"])
def test_results_of_torch_tensors(engine):
    case = cases_of(StochasticQuantizer, (4,))[0]
    quantizer, variables = case.start()
    x = case.values()
    with running_on("torch"):
        ((inference, training, _),) = evaluate(engine, [(quantizer, variables, x, uniform_noise(x))])
    np.testing.assert_array_equal(inference, quantizer.apply(x, variables))
    np.testing.assert_array_equal(training, quantizer.apply(x, variables, training=True, noise=uniform_noise))


def test_gradients_of_torch_tensors():
    case = cases_of(LSQQuantizer, (4,))[0]
    quantizer, variables = case.start()
    x = case.values()
    with running_on("torch"):
        for_x, found, _ = gradients_of((quantizer, variables | {"idle": np.ones(2, np.float32)}, x, x), np.ones_like(x))
    assert set(np.unique(for_x)) <= {0, 1}
    assert found["step"].any()
    assert not found["idle"].any()


def test_other_frameworks_are_refused_and_missing_ones_named(monkeypatch):
    with (
        pytest.raises(ConfigError, match=r"expected on='keras' or on='torch'; received on='mxnet'"),
        running_on("mxnet"),
    ):
        pass
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(MissingDependencyError, match="needs torch"), running_on("torch"):
        pass
