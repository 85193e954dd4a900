"""What runtimes do on codes in real numbers so that the twin has the very same bits: norms, softmax, functions of one number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from qi.exporters import litert, onnx_file, onnx_runtime
from qi.ir import Op, QGraph, Tensor, run
from qi.ir.elementwise import FUNCTIONS
from qi.ir.routing import route
from tests.ir.graphs import act, codes_of, graph_of, real, weight
from tests.ir.test_norms import norm, samples

RUNTIMES = {"litert": (litert.write, litert.run), "onnxruntime": (onnx_file.write, onnx_runtime.run)}
RNG = np.random.default_rng(0)
PROBABILITY = act(1 / 256, -128)

pytestmark = pytest.mark.parametrize("target", sorted(RUNTIMES))


def check(graph: QGraph, target: str, arrays: Sequence[np.ndarray], island: str = "") -> None:
    """Every code of the runtime's is the twin's, with one thread and with two."""
    routed = route(graph, target)
    if island:
        assert island in [op.kind for op in routed.ops]
    write, answer = RUNTIMES[target]
    y, expected, data = routed.outputs[0], run(routed, arrays)[routed.outputs[0].name], write(routed)
    for threads in (1, 2):
        found = answer(data, arrays, threads=threads)[y.name]
        np.testing.assert_array_equal(np.rint(found / y.scale) + y.zero_point, expected)


def behind(op: Op, x: Tensor) -> QGraph:
    """An operation on codes of real numbers."""
    real_x = real("x", *x.shape[1:])
    return graph_of(Op("quantize", [real_x], [x], source="x"), op, inputs=[real_x])


def drawn(x: Tensor, batch: int) -> list[np.ndarray]:
    """Real numbers that become all kinds of codes."""
    spread = RNG.uniform(2, 60, (batch, *[1] * (len(x.shape) - 1)))
    codes = np.rint(RNG.normal(RNG.uniform(-40, 40), spread, (batch, *x.shape[1:]))).clip(-128, 127)
    return [((codes - x.zero_point) * x.scale).astype(np.float32)]


@pytest.mark.parametrize(("weights", "width"), [(0, 48), (1, 32), (2, 48), (2, 7)])
@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
def test_layer_normalization(weights: int, width: int, epsilon: float, target: str) -> None:
    check(norm(weights=weights, width=width, epsilon=epsilon), target, [samples(256, width)], "layer_norm_of_codes")


def test_rms_normalization(target: str) -> None:
    check(norm(weights=1, kind="rms_norm"), target, [samples(256)], "rms_norm_of_codes")


@pytest.mark.parametrize("axes", [[1], [1, 2], [2, 4], [1, 2, 4]])
def test_normalization_over_any_axes(axes: list[int], target: str) -> None:
    x, y = codes_of("q", 5, 4, 3, 6, qparams=act(0.04, 5)), codes_of("y", 5, 4, 3, 6, qparams=act(0.03, -2))
    constants = [weight(name, RNG.normal(1, 0.3, (3, 6))) for name in ("gamma", "beta")]
    op = Op("layer_norm", [x, *constants], [y], {"axes": axes, "epsilon": 1e-3}, "norm")
    check(behind(op, x), target, drawn(x, 60))


@pytest.mark.parametrize("sizes", [(40, 64), (6, 200), (3, 1500)])
@pytest.mark.parametrize("scale", [0.004, 0.03, 0.2])
@pytest.mark.parametrize("masked", [False, True])
def test_softmax(sizes: tuple[int, int], scale: float, masked: bool, target: str) -> None:
    x, y = codes_of("q", *sizes, qparams=act(scale, 9)), codes_of("y", *sizes, qparams=PROBABILITY)
    softmax = Op("softmax", [x], [y], {"axis": 2}, "softmax")
    graph = behind(softmax, x)
    if masked:
        hidden = np.where(np.tri(*sizes, sizes[1] - sizes[0]) > 0, np.float32(0), np.float32(-1e9))
        scores = real("masked", *sizes)
        graph.ops.insert(1, Op("add", [x, weight("mask", hidden)], [scores], {"activation": "none"}, "softmax"))
        softmax.inputs = [scores]
    check(graph, target, drawn(x, 20), "softmax_of_codes" if masked else "")


@pytest.mark.parametrize("axis", [1, 2])
def test_softmax_along_other_axes(axis: int, target: str) -> None:
    x, y = (codes_of(name, 90, 30, 5, qparams=q) for name, q in (("q", act(0.05, -4)), ("y", PROBABILITY)))
    check(behind(Op("softmax", [x], [y], {"axis": axis}, "softmax"), x), target, drawn(x, 8), "softmax_of_codes")


@pytest.mark.parametrize("count", [2, 10, 77, 200])
def test_softmax_in_integers(count: int, target: str) -> None:
    x, y = (codes_of(name, 4, count, qparams=q) for name, q in (("q", act(0.07, -4)), ("y", PROBABILITY)))
    check(behind(Op("softmax", [x], [y], {"axis": 2}, "softmax"), x), target, drawn(x, 8000 // count), "softmax")


@pytest.mark.parametrize("function", FUNCTIONS.names())
def test_functions_of_every_code(function: str, target: str) -> None:
    fixed = {"sigmoid": act(1 / 256, -128), "tanh": act(1 / 128, 0)}.get(function)
    for scale, zero_point, into in ((0.031, -128, 0.02), (0.0117, -128, 0.0071), (0.05, -128, 0.0313)):
        positive = function in ("sqrt", "rsqrt", "log")
        x = codes_of("q", 256, qparams=act(scale, zero_point if positive else 3))
        y = codes_of("y", 256, qparams=fixed or act(into, -7))
        given = ((np.arange(-128, 128) - x.zero_point) * x.scale).astype(np.float32)[None]
        given[:, :1] = given[:, 1:2] if positive else given[:, :1]
        op = Op("unary", [x], [y], {"function": function, "alpha": 1.0 if function == "elu" else 0.2}, "f")
        check(behind(op, x), target, [given])
