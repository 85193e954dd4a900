from __future__ import annotations

import numpy as np
import pytest

from qi.errors import UnsupportedError
from qi.ir import Op, run
from qi.ir.elementwise import FUNCTIONS
from qi.ir.fixed_functions import INTEGER_FUNCTIONS
from tests.ir.graphs import act, codes_of, graph_of, weight

CODES = np.arange(-128, 128)[None]


def codes(
    kind: str, target: str, x_scale: float, y_scale: float, zeros: tuple[int, int] = (0, 0), **attrs: object
) -> np.ndarray:
    x, y = codes_of("x", 256, qparams=act(x_scale, zeros[0])), codes_of("y", 256, qparams=act(y_scale, zeros[1]))
    return run(graph_of(Op(kind, [x], [y], attrs, "layer"), inputs=[x]), [CODES], target)["y"][0]


@pytest.mark.parametrize("target", sorted(INTEGER_FUNCTIONS))
def test_each_is_within_a_step_of_the_real_function(target: str) -> None:
    for name in sorted(INTEGER_FUNCTIONS[target]):
        alpha = {"elu": 1.0, "leaky_relu": 0.2}.get(name)
        found = codes("unary", target, 0.05, 0.06, (4, -7), function=name, alpha=alpha)
        op = Op("unary", [], [], {"function": name, "alpha": alpha})
        exact = np.clip(FUNCTIONS.get(name)((CODES[0] - 4) * 0.05, op) / 0.06 - 7, -128, 127)
        assert np.abs(found - exact).max() <= 1.01, name


def test_ties() -> None:
    """Half a step: XNNPACK's tables go to the even code, LiteRT's own away from zero."""
    found = codes("unary", "litert", 0.5, 1.0, function="elu", alpha=1.0)
    assert found[[129, 131, 133]].tolist() == [0, 2, 2]
    found = codes("unary", "reference", 0.5, 1.0, function="leaky_relu", alpha=0.5)
    assert found[[129, 131, 133]].tolist() == [1, 2, 3]


def test_xnnpacks_leaky_relu_has_eight_bits_behind_the_point() -> None:
    coarse = codes("unary", "litert", 0.1, 0.1, function="leaky_relu", alpha=0.01)
    fine = codes("unary", "reference", 0.1, 0.1, function="leaky_relu", alpha=0.01)
    assert coarse[0] == -1.0  # -128 * 3 / 256, where 0.01 * 256 = 2.56
    assert fine[0] == -1
    assert (coarse != fine).any()


@pytest.mark.parametrize("target", ["litert", "reference"])
def test_relu(target: str) -> None:
    found = codes("relu", target, 0.1, 0.05, (0, -128), max_value=6.0)
    assert found.min() == -128
    assert found.max() == -128 + 120
    assert found[128 + 10] == -128 + 20


@pytest.mark.parametrize("target", ["litert", "reference"])
def test_prelu(target: str) -> None:
    x, y = codes_of("x", 2, qparams=act(0.1)), codes_of("y", 2, qparams=act(0.1))
    alpha = weight("alpha", [64, -64], [1 / 128, 1 / 128])
    alpha.qparams = act(1 / 128)
    graph = graph_of(Op("prelu", [x, alpha], [y], {}, "p"), inputs=[x])
    assert run(graph, [np.array([[-10, -10], [7, 7]])], target)["y"].tolist() == [[-5, 5], [7, 7]]


def test_what_has_none() -> None:
    with pytest.raises(UnsupportedError, match="'softplus' of layer 'layer'"):
        codes("unary", "litert", 0.1, 0.1, function="softplus", alpha=None)
    with pytest.raises(UnsupportedError, match="'elu'"):
        codes("unary", "reference", 0.1, 0.1, function="elu", alpha=1.0)
