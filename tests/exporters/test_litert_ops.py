from __future__ import annotations

import numpy as np
import pytest

from qi.errors import UnsupportedError
from qi.exporters import litert
from qi.exporters.litert_check import check
from qi.exporters.litert_file import Draft, schema
from qi.exporters.litert_ops import WRITERS, activation, padding, refuse
from qi.ir import Op, QGraph, run
from qi.ir.kinds import KINDS
from qi.ir.routing import route
from tests.ir.graphs import act, codes_of, graph_of, real, weight


def conv(pads: list[int], size: int = 6, stride: int = 2, kernel: int = 3, dilation: int = 1) -> Op:
    attrs = {"strides": [stride] * 2, "pads": pads, "dilation": [dilation] * 2, "groups": 1, "activation": "none"}
    w = weight("w", np.ones((kernel, kernel, 1, 1)), [0.1])
    return Op("conv2d", [codes_of("x", size, size, 1), w], [codes_of("y", 3, 3, 1)], attrs, "layer")


def operators(graph: QGraph, target: str = "litert") -> list[str]:
    names = {v: k for k, v in vars(schema().BuiltinOperator).items() if not k.startswith("_")}
    contents = check(litert.write(route(graph, target, integer_only=True), integer_io=True))
    return [names[code] for code, _, _ in contents.operators]


def test_every_kind_has_a_writer() -> None:
    assert set(KINDS.names()) <= set(WRITERS.names())


@pytest.mark.parametrize(
    ("pads", "size", "expected"),
    [
        ([0, 0, 0, 0], 6, "VALID"),
        ([0, 1, 0, 1], 6, "SAME"),
        ([1, 1, 1, 1], 5, "SAME"),
        ([1, 1, 1, 1], 6, ""),
        ([1, 0, 1, 0], 6, ""),
    ],
)
def test_padding(pads: list[int], size: int, expected: str) -> None:
    assert padding(conv(pads, size), (3, 3)) == expected


def test_pads_on_an_open_image_are_refused() -> None:
    op = conv([0, 1, 0, 1])
    op.x.shape = (None, None, 6, 1)
    with pytest.raises(UnsupportedError, match="open size"):
        padding(op, (3, 3))


def test_other_pads_are_an_operator() -> None:
    op = conv([1, 1, 1, 1])
    assert operators(graph_of(op, inputs=[op.x])) == ["PAD", "CONV_2D"]
    op = conv([0, 1, 0, 1])
    assert operators(graph_of(op, inputs=[op.x])) == ["CONV_2D"]


@pytest.mark.parametrize(
    ("name", "scale", "zero_point", "expected"),
    [
        ("relu", 0.1, -128, "NONE"),
        ("relu", 0.1, -100, "RELU"),
        ("relu6", 0.02, -128, "NONE"),
        ("relu6", 0.1, -128, "RELU6"),
        ("none", 0.1, 0, "NONE"),
    ],
)
def test_no_activation_where_the_codes_end_there(name: str, scale: float, zero_point: int, expected: str) -> None:
    op = Op(
        "add",
        [codes_of("a", 3), codes_of("b", 3)],
        [codes_of("y", 3, qparams=act(scale, zero_point))],
        {"activation": name},
    )
    assert activation(Draft(), op) == getattr(schema().ActivationFunctionType, expected)


def test_real_numbers_keep_their_activation() -> None:
    op = Op("add", [real("a", 3), real("b", 3)], [real("y", 3)], {"activation": "relu6"})
    assert activation(Draft(), op) == schema().ActivationFunctionType.RELU6


def test_a_refusal_names_layer_target_and_way_out() -> None:
    error = refuse(conv([0] * 4), "of some kind", "something else")
    assert (
        str(error)
        == "expected operations that LiteRT carries; received 'conv2d' of some kind, of layer 'layer'; do something else"
    )


def test_codes_of_another_scale_are_multiplied_by_one() -> None:
    x, y = codes_of("x", 4, qparams=act(0.1, 3)), codes_of("y", 4, qparams=act(0.27, -20))
    graph = graph_of(Op("quantize", [x], [y], {}, "border"), inputs=[x])
    assert operators(graph) == ["MUL"]  # int8-to-int8 QUANTIZE knows ratios to eight bits only


@pytest.mark.parametrize(
    ("zero_point", "fused", "expected"),
    [
        (0, "none", ["MAXIMUM", "MINIMUM"]),
        (0, "relu", ["MINIMUM"]),  # the clamp that the kernel has is enough below
        (-8, "relu", ["MINIMUM"]),
    ],
)
@pytest.mark.parametrize("target", ["litert", "reference"])
def test_codes_of_few_bits_are_cut_off(zero_point: int, fused: str, expected: list[str], target: str) -> None:
    """Kernels clip to int8: without the operators, codes beyond the grid come out, which the test also sees."""
    a, b = codes_of("a", 300, qparams=act(0.1, 2, bits=4)), codes_of("b", 300, qparams=act(0.2, -1, bits=4))
    y = codes_of("y", 300, qparams=act(0.12, zero_point, bits=4))
    graph = graph_of(Op("add", [a, b], [y], {"activation": fused}, "sum"), inputs=[a, b])
    assert operators(graph, target) == ["ADD", *expected]
    rng = np.random.default_rng(0)
    arrays = [rng.integers(-8, 8, (4, 300)).astype(np.int8) for _ in range(2)]
    routed = route(graph, target, integer_only=True)
    data, codes = litert.write(routed, integer_io=True), run(routed, arrays)["y"]
    reference = target == "reference"
    found = litert.run(data, arrays, reference=reference, tensors=["y", "y/whole"])
    np.testing.assert_array_equal(found["y"], codes)
    assert codes.max() == 7
    assert found["y/whole"].max() > 7


def test_what_only_moves_codes_of_few_bits_is_left_alone() -> None:
    x, y = (codes_of(name, 4, 4, 2, qparams=act(0.1, 2, bits=4)) for name in "xy")
    y.shape = (None, 2, 2, 2)
    attrs = {"pool": [2, 2], "strides": [2, 2], "pads": [0] * 4}
    for kind, code in (("max_pool2d", "MAX_POOL_2D"), ("avg_pool2d", "AVERAGE_POOL_2D")):
        assert operators(graph_of(Op(kind, [x], [y], attrs, "pool"), inputs=[x])) == [code]
