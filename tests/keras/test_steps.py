from __future__ import annotations

import keras
import numpy as np

from qi.keras.steps import factor_step, swish_steps


def test_the_steps_of_swish_give_swish() -> None:
    x = np.linspace(-5, 5, 21, dtype=np.float32)[None]
    gate, times = swish_steps("gate", "times")
    np.testing.assert_allclose(times([x, gate(x)]), keras.ops.silu(x), rtol=1e-6)
    assert (gate.name, times.name) == ("gate", "times")


def test_a_factor_is_no_more() -> None:
    layer = factor_step(0.25, "factor")
    assert (layer.name, np.asarray(layer(np.float32([4]))).tolist()) == ("factor", [1.0])
