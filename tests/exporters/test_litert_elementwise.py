from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qi.errors import UnsupportedError
from qi.exporters import litert
from qi.ir import Op, run
from qi.ir.elementwise import FUNCTIONS
from qi.ir.kinds import KINDS
from qi.ir.routing import route
from tests.ir.graphs import codes_of, graph_of, real, weight

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(0, 2, (3, 4, 5, 6)).astype(np.float32)


def in_float(
    kind: str, *arrays: np.ndarray, constants: tuple[Any, ...] = (), target: str = "litert", **attrs: Any
) -> None:
    """LiteRT gives what the kind means, on real numbers."""
    inputs = [real(f"x{i}", *array.shape[1:]) for i, array in enumerate(arrays)]
    op = Op(kind, [*inputs, *constants], [real("y")], attrs, "layer")
    expected = KINDS.get(kind).real(op, *arrays, *(c.values() for c in constants))
    op.y.shape = (None, *expected.shape[1:])
    graph = route(graph_of(op, inputs=inputs), target)
    found = litert.run(litert.write(graph), list(arrays), reference=target == "reference")["y"]
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("target", ["litert", "reference"])
@pytest.mark.parametrize("function", FUNCTIONS.names())
def test_functions_in_float(function: str, target: str) -> None:
    x = np.abs(IMAGE) + 0.1 if function in ("log", "sqrt", "rsqrt") else IMAGE
    alpha = {"elu": 1.0, "leaky_relu": 0.2}.get(function)
    in_float("unary", x, target=target, function=function, alpha=alpha)


def test_elu_of_another_alpha() -> None:
    in_float("unary", IMAGE, function="elu", alpha=0.3)


@pytest.mark.parametrize("kind", ["add", "sub", "mul", "div"])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_two_tensors_in_float(kind: str, activation: str) -> None:
    in_float(kind, IMAGE, np.abs(IMAGE[::-1]) + 1, activation=activation)
    in_float(kind, IMAGE, constants=(weight("c", np.float32([1, 2, 3, 4, 5, 6])),), activation=activation)


@pytest.mark.parametrize("top", [None, 6.0, 1.5])
def test_relu_in_float(top: float | None) -> None:
    in_float("relu", IMAGE, max_value=top)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_softmax_along_any_axis(axis: int) -> None:
    in_float("softmax", IMAGE, axis=axis)


@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [0, 1, 1, 1], [1, 0, 0, 2]])
def test_max_pool_in_float(pads: list[int]) -> None:
    in_float("max_pool2d", -np.abs(IMAGE), pool=[2, 3], strides=[2, 1], pads=pads)


def test_avg_pool_in_float() -> None:
    in_float("avg_pool2d", IMAGE, pool=[2, 3], strides=[1, 1], pads=[0, 1, 1, 1])


def test_average_pools_with_other_pads_are_refused() -> None:
    with pytest.raises(
        UnsupportedError, match=r"pads \[1, 0, 0, 0\], of layer 'layer'; do use padding='same' or 'valid'"
    ):
        in_float("avg_pool2d", IMAGE, pool=[2, 3], strides=[1, 1], pads=[1, 0, 0, 0])


def test_the_others_in_float() -> None:
    in_float("prelu", IMAGE, constants=(weight("a", RNG.normal(size=(1, 1, 6))),))
    in_float("maximum", IMAGE, IMAGE[::-1])
    in_float("minimum", IMAGE, constants=(weight("c", np.zeros((1,), np.int8), [0.1], 0),))
    in_float("mean", IMAGE, axes=[1, 2], keepdims=False)
    in_float("max", IMAGE, axes=[3], keepdims=True)
    in_float("resize_bilinear", IMAGE, size=[8, 15])
    in_float("batch_matmul", IMAGE, IMAGE, transpose_a=False, transpose_b=True)


def test_integers_become_real_numbers() -> None:
    x, y = real("x", 3, dtype="int32"), real("y", 3)
    graph = route(graph_of(Op("cast", [x], [y], {"to": "float32"}, "c"), inputs=[x]), "litert")
    given = np.int32([[1, -2, 70000]])
    np.testing.assert_array_equal(litert.run(litert.write(graph), [given])["y"], run(graph, [given])["y"])


@pytest.mark.parametrize(
    ("kind", "attrs"),
    [
        ("unary", {"function": "softplus", "alpha": None}),
        ("unary", {"function": "elu", "alpha": 0.5}),
        ("relu", {"max_value": 3.0}),
    ],
)
def test_what_has_no_integer_operator_is_refused(kind: str, attrs: dict[str, Any]) -> None:
    x = codes_of("x", 4)
    graph = graph_of(Op(kind, [x], [codes_of("y", 4)], attrs, "layer"), inputs=[x], target="litert")
    with pytest.raises(UnsupportedError, match=r"'layer'.*leave its activations in float"):
        litert.write(graph)
