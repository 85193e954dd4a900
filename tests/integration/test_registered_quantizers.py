"""Every registered inferable quantizer in a layer: numpy's numbers, straight-through gradients, and the same once saved."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from qi.keras import (
    KerasActivationQuantizationHolder,
    KerasNodeQuantizationDispatcher,
    KerasQuantizationWrapper,
)
from qi.quantizers import QuantizationTarget
from qi.testing.engines import model_gradients
from tests.examples import CHANNELS, Case, cases

pytestmark = pytest.mark.backend

CASES = {str(case): case for case in cases((4,)) if case.layout in ("tensor", "channel")}
INPUTS = 6
X = np.random.default_rng(0).normal(0, 2, (32, INPUTS)).astype(np.float32)


def of_weights(case: Case) -> bool:
    return case.quantizer().quantization_target is QuantizationTarget.WEIGHTS


def kernel_of(case: Case) -> np.ndarray:
    """Numbers within the quantizer's range, in each channel; the last row beyond it."""
    quantizer = case.quantizer()
    lo, hi = (np.asarray(end, np.float64) for end in (quantizer.min_range, quantizer.max_range))
    part = np.random.default_rng(1).uniform(0.05, 0.95, (INPUTS, CHANNELS))
    part[-1] = 3.0
    return (lo + part * (hi - lo)).astype(np.float32)


def network() -> keras.Model:
    """A branch for each case; what is quantized is a kernel or the input."""
    inputs, outputs = keras.Input((INPUTS,)), []
    for index, case in enumerate(CASES.values()):
        if of_weights(case):
            dense = keras.layers.Dense(CHANNELS, use_bias=False)
            dense.build((None, INPUTS))
            dense.kernel.assign(kernel_of(case))
            dispatcher = KerasNodeQuantizationDispatcher(case.quantizer())
            outputs.append(KerasQuantizationWrapper(dense, dispatcher, name=f"q{index}")(inputs))
        else:
            outputs.append(KerasActivationQuantizationHolder(case.quantizer(), name=f"q{index}")(inputs))
    return keras.Model(inputs, outputs)


def predicted(model: keras.Model) -> list[np.ndarray]:
    return [np.asarray(array) for array in model.predict(X, verbose=0)]


def test_a_layer_has_numpys_numbers_before_and_after_it_was_saved(tmp_path: Path) -> None:
    model = network()
    model.save(tmp_path / "unfrozen.keras")
    before = predicted(model)
    for index, case in enumerate(CASES.values()):
        layer = model.get_layer(f"q{index}")
        if of_weights(case):
            layer.freeze()
            expected = case.quantizer()(kernel_of(case))
            np.testing.assert_array_equal(layer.get_quantized_weights()["kernel"], expected, err_msg=str(case))
        else:
            np.testing.assert_array_equal(before[index], case.quantizer()(X), err_msg=str(case))
    model.save(tmp_path / "frozen.keras")
    for name in ("unfrozen", "frozen"):
        again = keras.models.load_model(tmp_path / f"{name}.keras")
        for case, found, expected in zip(CASES, predicted(again), before, strict=True):
            np.testing.assert_array_equal(found, expected, err_msg=f"{name}: {case}")


def test_gradients_of_weights_pass_within_the_range_alone() -> None:
    model = network()
    _, gradients = model_gradients(model, X, lambda results: sum(keras.ops.sum(result) for result in results))
    found = {id(variable): gradient for variable, gradient in zip(model.trainable_variables, gradients, strict=True)}
    passed = np.broadcast_to(X.sum(axis=0)[:, None], (INPUTS, CHANNELS))
    for index, case in enumerate(CASES.values()):
        if of_weights(case):
            gradient = found[id(model.get_layer(f"q{index}").layer.kernel)]
            np.testing.assert_allclose(gradient[:-1], passed[:-1], rtol=1e-5, err_msg=str(case))
            np.testing.assert_array_equal(gradient[-1], 0, err_msg=str(case))
