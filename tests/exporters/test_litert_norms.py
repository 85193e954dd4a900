from __future__ import annotations

import numpy as np
import pytest

from qi.errors import UnsupportedError
from qi.exporters import litert
from qi.ir import Op
from qi.ir.routing import route
from tests.exporters.test_litert_elementwise import IMAGE, RNG, in_float
from tests.ir.graphs import act, codes_of, graph_of, weight


@pytest.mark.parametrize("weights", [0, 1, 2])
def test_layer_norm(weights: int) -> None:
    constants = tuple(weight(f"w{i}", RNG.normal(size=6)) for i in range(weights))
    in_float("layer_norm", IMAGE, constants=constants, axes=[3], epsilon=1e-3)


@pytest.mark.parametrize("axes", [[3], [1, 2]])
def test_rms_norm(axes: list[int]) -> None:
    in_float("rms_norm", IMAGE, constants=(weight("scale", RNG.normal(size=6)),), axes=axes, epsilon=1e-3)
    in_float("rms_norm", IMAGE, axes=axes, epsilon=1e-3)


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_they_have_no_integer_operator(kind: str) -> None:
    x = codes_of("x", 4)
    op = Op(kind, [x], [codes_of("y", 4)], {"axes": [1], "epsilon": 1e-3}, "layer")
    with pytest.raises(UnsupportedError, match=r"'layer'.*leave its activations in float"):
        litert.write(graph_of(op, inputs=[x], target="litert"))


@pytest.mark.parametrize(("epsilon", "guarded"), [(1e-6, True), (1.0, False)])
def test_a_large_epsilon_needs_no_guard(epsilon: float, guarded: bool) -> None:
    """Roundings can't take the variance below 0 then, so there is one operator less."""
    x, y = codes_of("x", 8, qparams=act(0.1)), codes_of("y", 8, qparams=act(0.02))
    op = Op("layer_norm", [x], [y], {"axes": [1], "epsilon": epsilon}, "layer")
    data = litert.write(route(graph_of(op, inputs=[x]), "litert"))
    assert (b"relu" in data) is guarded
    found = litert.run(data, [np.repeat(np.arange(-64, 64, dtype=np.int8), 8).reshape(128, 8)])["y"]
    assert not found.any()  # rows of one number
