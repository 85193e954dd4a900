"""Quantizers on what the layers within a layer give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import qi
from qi.errors import ConfigError
from qi.keras.inner import distinct, unfuse
from qi.keras.variables import to_numpy


def grid(bits: int = 3, threshold: float = 1.0) -> Any:
    return qi.ActivationSymmetricInferableQuantizer(bits, threshold=threshold, signed=True)


def x(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def wrapped(layer: keras.layers.Layer, inner: Any, shape: tuple[int, ...]) -> Any:
    wrapper = qi.KerasQuantizationWrapper(layer, qi.KerasNodeQuantizationDispatcher({}, None, inner))
    wrapper.build(shape)
    return wrapper


def by_hand(lstm: layers.LSTM, data: np.ndarray, state: Any, carry: Any) -> np.ndarray:
    """The states of an LSTM, step by step in plain numpy-like operations."""
    cell = lstm.cell
    h = c = ops.zeros((len(data), lstm.units))
    steps = []
    for t in range(data.shape[1]):
        z = ops.matmul(data[:, t], cell.kernel) + ops.matmul(h, cell.recurrent_kernel) + cell.bias
        i, f, g, o = ops.split(z, 4, axis=-1)
        c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
        h = ops.sigmoid(o) * ops.tanh(c)
        h, c = state(h), c if carry is None else carry(c)
        steps.append(to_numpy(h))
    return np.stack(steps, 1)


@pytest.mark.backend
@pytest.mark.parametrize("carry", [None, grid(6, 2.0)])
def test_states_are_quantized_at_every_step(carry: Any) -> None:
    lstm, data = layers.LSTM(4, return_sequences=True), x(2, 5, 3)
    wrapper = wrapped(lstm, {"lstm_cell": [grid(), carry]}, (2, 5, 3))
    found = to_numpy(wrapper(data))
    np.testing.assert_allclose(found, by_hand(lstm, data, grid(), carry), atol=1e-6)
    assert set(np.unique(found * 4)) <= set(range(-4, 4))
    np.testing.assert_allclose(
        to_numpy(lstm(data)), by_hand(lstm, data, lambda h: h, None), atol=1e-5
    )  # alone: in float


@pytest.mark.backend
def test_gated_units_leave_the_fused_loop() -> None:
    gru, data = layers.GRU(4, return_sequences=True), x(2, 5, 3)
    found = to_numpy(wrapped(gru, {"gru_cell": grid()}, (2, 5, 3))(data))
    assert set(np.unique(found * 4)) <= set(range(-4, 4))


@pytest.mark.backend
def test_gradients_reach_the_steps_within() -> None:
    x_, recipe = (
        x(16, 5, 3),
        qi.recipes.get_recipe("w8").with_rules(
            qi.recipes.Rule(layer_type="LSTMCell", activations=qi.recipes.TensorSpec(bits=4, method="symmetric"))
        ),
    )
    model = keras.Sequential([keras.Input((5, 3)), layers.LSTM(4), layers.Dense(2)])
    qat = qi.prepare_qat(model, recipe, x_, progress=False)
    bounds = {name: b for layer in qat.layers for name, b in getattr(layer, "bounds", {}).items() if "output" in name}
    assert set(bounds) == {"lstm_cell/output_0", "lstm_cell/output_1"}
    before = {name: to_numpy(bound.variables["step"]) for name, bound in bounds.items()}
    qat.compile(keras.optimizers.SGD(0.1), "mse")
    qat.fit(x_, np.ones((16, 2), "float32"), epochs=1, verbose=0)
    assert all(to_numpy(bound.variables["step"]) != before[name] for name, bound in bounds.items())
    done = qi.convert(qat)
    np.testing.assert_array_equal(done.predict(x_, verbose=0), qat.predict(x_, verbose=0))


def test_a_wrapper_with_inner_quantizers_saves_and_reloads(tmp_path: Path) -> None:
    wrapper = wrapped(layers.LSTM(4), {"lstm_cell": [grid(), None]}, (None, 5, 3))
    model = keras.Sequential([keras.Input((5, 3)), wrapper])
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(to_numpy(again(x(2, 5, 3))), to_numpy(model(x(2, 5, 3))))
    assert [q and q.num_bits for q in again.layers[0].inner_quantizers["lstm_cell"]] == [3, None]
    wrapper._inner.bounds["lstm_cell/output_0"].variables["scale"].assign(1e-3)
    assert np.abs(to_numpy(again(x(2, 5, 3))) - to_numpy(model(x(2, 5, 3)))).max() > 0


def test_a_path_that_the_layer_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"path of a layer within 'memory'; received 'cell'.*'lstm_cell'"):
        wrapped(layers.LSTM(4, name="memory"), {"cell": grid()}, (None, 5, 3))


def test_another_number_of_outputs_is_refused() -> None:
    wrapper = wrapped(layers.LSTM(4), {"lstm_cell": [grid()]}, (None, 5, 3))
    with pytest.raises(ConfigError, match="each of the 2 outputs of 'lstm_cell'; received 1"):
        wrapper(x(2, 5, 3))


def test_each_is_taken_once() -> None:
    a, b = object(), object()
    assert distinct([a, b, a]) == [a, b]


def test_only_the_layers_of_these_cells_run_unfused() -> None:
    both = layers.Bidirectional(layers.GRU(2))
    both.build((None, 4, 3))
    unfuse(both, [both.forward_layer.cell])
    assert (both.forward_layer.use_cudnn, both.backward_layer.use_cudnn) == (False, "auto")
