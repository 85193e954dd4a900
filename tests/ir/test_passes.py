from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qi.errors import InputError
from qi.ir import TARGETS, Op, QGraph, Tensor, run, validate
from qi.ir.passes import PASSES, fuse
from tests.ir.graphs import act, graph_of, per_channel, real, weight


class Draft:
    """A graph as a front end makes it."""

    def __init__(self, *shape: int, dtype: str = "float32") -> None:
        self.graph = QGraph("draft", [Tensor("x", (None, *shape), dtype)], [], [])
        self.last = self.graph.inputs[0]

    def add(self, kind: str, gives: Any = None, /, *others: Tensor, x: Tensor | None = None, **attrs: Any) -> Tensor:
        """An operation on the last tensor (or x) and others; `gives` is its shape without the batch."""
        x = self.last if x is None else x
        gives = x.shape[1:] if gives is None else gives
        self.last = Tensor(self.graph.unique(kind), (None, *gives))
        self.graph.ops.append(Op(kind, [x, *others], [self.last], attrs, kind))
        return self.last

    def quantize(self, scale: float = 0.1, zero_point: int = 0, x: Tensor | None = None) -> Tensor:
        """A quantizer."""
        self.add("quantize", x=x)
        self.last.qparams = act(scale, zero_point)
        return self.last

    def dense(self, units: int, x: Tensor | None = None) -> Tensor:
        """A product with weights and a bias that stays in real numbers yet."""
        x = self.last if x is None else x
        n = x.shape[-1] or 0
        rng = np.random.default_rng(units)
        w = weight(self.graph.unique("w"), rng.integers(-127, 128, (n, units)), rng.uniform(0.001, 0.01, units))
        bias = weight(self.graph.unique("b"), rng.normal(size=units))
        return self.add("dense", (*x.shape[1:-1], units), w, bias, x=x, activation="none")

    def conv(self, x: Tensor | None = None, pads: tuple[int, ...] = (0, 0, 0, 0), kind: str = "conv2d") -> Tensor:
        """A 1x1 convolution."""
        x = self.last if x is None else x
        _, height, width, channels = (n or 0 for n in x.shape)
        shape = (1, 1, channels) if kind == "depthwise_conv2d" else (1, 1, channels, channels)
        w = weight(self.graph.unique("w"), np.arange(1, 1 + np.prod(shape)).reshape(shape), np.full(channels, 0.01))
        out = (height + pads[0] + pads[1], width + pads[2] + pads[3], channels)
        attrs = {"strides": [1, 1], "pads": list(pads), "dilation": [1, 1], "activation": "none"}
        return self.add(kind, out, w, x=x, **attrs, **({} if "depth" in kind else {"groups": 1}))

    def done(self, *outputs: Tensor) -> QGraph:
        """The fused graph."""
        self.graph.outputs = list(outputs or [self.last])
        return fuse(self.graph)


def kinds(graph: QGraph) -> list[str]:
    return [op.kind for op in graph.ops]


def test_a_product_between_quantizers_becomes_one_operation_on_codes() -> None:
    draft = Draft(4)
    draft.quantize(0.02, 5)
    draft.dense(3)
    real_bias = draft.graph.ops[-1].inputs[2].data
    draft.add("relu", max_value=None)
    y = draft.quantize(0.05, -128)
    graph = draft.done()
    assert kinds(graph) == ["quantize", "dense"]
    dense = graph.ops[1]
    assert dense.quantized
    assert dense.y is y is graph.outputs[0]
    assert dense.attrs == {"activation": "relu"}
    w, bias = dense.inputs[1:]
    steps = np.float32(0.02) * w.qparams.scale.reshape(-1)
    assert (np.abs(bias.data * steps.astype(np.float64) - real_bias) <= 0.5001 * steps).all()
    assert (bias.dtype, bias.data.dtype, bias.qparams) == ("int32", np.int32, None)


@pytest.mark.parametrize(("top", "fused"), [(None, "relu"), (6, "relu6"), (6.0, "relu6"), (4.0, None)])
@pytest.mark.parametrize("kind", ["dense", "add", "sub", "mul"])
def test_relu_and_relu6_are_fused_others_are_not(kind: str, top: float | None, fused: str | None) -> None:
    draft = Draft(4)
    x = draft.quantize()
    draft.dense(4) if kind == "dense" else draft.add(kind, None, x, activation="none")
    draft.add("relu", max_value=top)
    graph = draft.done()
    assert kinds(graph) == (["quantize", kind] if fused else ["quantize", kind, "relu"])
    assert graph.ops[1].attrs["activation"] == (fused or "none")


def test_relu_is_fused_into_what_nothing_else_takes() -> None:
    draft = Draft(4)
    y = draft.dense(4)
    draft.add("relu", max_value=None)
    z = draft.add("mul", None, y, activation="none")
    assert kinds(draft.done(z)) == ["dense", "relu", "mul"]
    draft = Draft(4)
    y = draft.dense(4)
    assert kinds(draft.done(draft.add("relu", max_value=None), y)) == ["dense", "relu"]


def test_relu_is_not_fused_over_another_or_a_quantizer() -> None:
    draft = Draft(4)
    draft.dense(4)
    draft.add("relu", max_value=6)
    draft.add("relu", max_value=None)
    assert kinds(draft.done()) == ["dense", "relu"]
    draft = Draft(4)
    draft.quantize()
    draft.dense(4)
    draft.quantize()
    draft.add("relu", max_value=None)
    draft.quantize(0.05, -128)
    assert kinds(draft.done()) == ["quantize", "dense", "relu"]


def test_a_quantizer_is_fused_where_all_inputs_are_codes() -> None:
    draft = Draft(4)
    real_x = draft.last
    a = draft.quantize()
    draft.add("add", None, real_x, x=a, activation="none")
    draft.quantize()
    graph = draft.done()
    assert kinds(graph) == ["quantize", "add", "quantize"]
    assert not graph.ops[1].quantized


def test_real_numbers_that_something_else_takes_stay() -> None:
    draft = Draft(4)
    draft.quantize()
    y = draft.dense(4)
    q = draft.quantize()
    graph = draft.done(y, q)
    assert kinds(graph) == ["quantize", "dense", "quantize"]
    assert graph.ops[1].inputs[2].dtype == "float32"  # so the bias is real as well


def test_without_a_quantizer_behind_it_a_product_is_real() -> None:
    draft = Draft(4)
    draft.quantize()
    draft.dense(4)
    graph = draft.done()
    assert not graph.ops[1].quantized
    assert graph.ops[1].inputs[1].quantized
    assert graph.ops[1].inputs[2].dtype == "float32"


@pytest.mark.parametrize("kind", ["conv2d", "depthwise_conv2d"])
def test_padding_becomes_the_convolutions_own(kind: str) -> None:
    draft = Draft(3, 4, 2)
    draft.quantize(0.1, -7)
    draft.add("pad", (6, 11, 2), pads=[[0, 0], [1, 2], [3, 4], [0, 0]])
    draft.conv(pads=(1, 0, 0, 2), kind=kind)
    draft.quantize()
    graph = draft.done()
    assert kinds(graph) == ["quantize", kind]
    assert graph.ops[1].attrs["pads"] == [2, 2, 3, 6]


@pytest.mark.parametrize("why", ["twice", "output", "channels", "pooling", "transposed"])
def test_padding_stays_where_it_means_more(why: str) -> None:
    draft = Draft(3, 4, 2)
    q = draft.quantize()
    pads = [[0, 0], [1, 1], [1, 1], [0, 1] if why == "channels" else [0, 0]]
    pad = draft.add("pad", (5, 6, 3 if why == "channels" else 2), pads=pads, x=q)
    if why == "pooling":
        draft.add("avg_pool2d", (4, 5, 2), pool=[2, 2], strides=[1, 1], pads=[0] * 4)
    elif why == "transposed":
        w = weight("w", np.ones((1, 1, 2, 2)), np.ones(2), axis=2)
        draft.add("conv2d_transpose", (5, 6, 2), w, strides=[1, 1], pads=[0] * 4, dilation=[1, 1], activation="none")
    else:
        draft.conv()
    y = draft.last
    if why == "twice":
        y = draft.add("mul", None, pad, activation="none")
    graph = draft.done(y, pad) if why == "output" else draft.done(y)
    assert kinds(graph)[:2] == ["quantize", "pad"]


def test_what_moves_codes_gives_codes_of_the_same_scale() -> None:
    draft = Draft(2, 2, 2)
    q = draft.quantize(0.3, 7)
    draft.add("transpose", perm=[0, 2, 1, 3])
    draft.add("max_pool2d", (1, 1, 2), pool=[2, 2], strides=[2, 2], pads=[0] * 4)
    draft.add("reshape", (2,), shape=[None, 2])
    draft.quantize(0.3, 7)
    graph = draft.done()
    assert kinds(graph) == ["quantize", "transpose", "max_pool2d", "reshape"]
    assert all(op.y.qparams == q.qparams for op in graph.ops)


def test_joined_codes_share_their_scale_or_become_real() -> None:
    for scale, expected in (
        (0.3, ["quantize", "quantize", "concat"]),
        (0.2, ["quantize", "quantize", "concat", "quantize"]),
    ):
        draft = Draft(4)
        x = draft.last
        a, b = draft.quantize(0.3, x=x), draft.quantize(scale, x=x)
        draft.add("concat", (8,), b, x=a, axis=1)
        draft.quantize(0.3)
        graph = draft.done()
        assert kinds(graph) == expected
        assert graph.ops[2].y.quantized == (scale == 0.3)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_change_of_scale_is_an_operation_of_its_own(target: str) -> None:
    draft = Draft(4)
    draft.quantize(0.3, 7)
    draft.add("slice", begin=[0, 0], end=[None, 4], strides=[1, 1])
    draft.quantize(0.1, 0)
    graph = draft.done()
    assert kinds(graph) == ["quantize", "slice", "quantize"]
    assert graph.ops[2].quantized
    found = run(graph, [np.float32([[0.3, 0.6, -0.3, 100]])], target)
    np.testing.assert_array_equal(next(iter(found.values())), [[3, 6, -3, 127]])


def test_quantizing_twice_alike_is_quantizing_once() -> None:
    draft = Draft(4)
    q = draft.quantize(0.3, 7)
    draft.quantize(0.3, 7)
    graph = draft.done()
    assert kinds(graph) == ["quantize"]
    assert graph.outputs == [q]


def test_relu_and_quantizers_go_in_front_of_a_reshape() -> None:
    draft = Draft(1, 6, 2)
    draft.quantize()
    draft.conv()
    draft.add("reshape", (6, 2), shape=[None, 6, 2])
    draft.add("relu", max_value=None)
    y = draft.quantize(0.05, -128)
    graph = draft.done()
    assert kinds(graph) == ["quantize", "conv2d", "reshape"]
    assert graph.ops[1].quantized
    assert graph.ops[1].y.shape == (None, 1, 6, 2)
    assert graph.outputs == [y]
    assert y.shape == (None, 6, 2)


def test_relu_and_quantizers_go_in_front_of_a_transpose() -> None:
    draft = Draft(4, 6)
    draft.quantize()
    draft.dense(3)
    draft.add("transpose", (3, 4), perm=[0, 2, 1])
    draft.add("relu", max_value=6)
    draft.quantize(0.05, -128)
    graph = draft.done()
    assert kinds(graph) == ["quantize", "dense", "transpose"]
    assert [op.y.shape for op in graph.ops] == [(None, 4, 6), (None, 4, 3), (None, 3, 4)]
    assert graph.ops[1].attrs == {"activation": "relu6"}


def test_a_reshape_that_something_else_takes_stays_in_front() -> None:
    draft = Draft(1, 6, 2)
    draft.conv()
    flat = draft.add("reshape", (6, 2), shape=[None, 6, 2])
    graph = draft.done(draft.add("relu", max_value=None), flat)
    assert kinds(graph) == ["conv2d", "reshape", "relu"]


def test_reshapes_that_undo_each_other_go_and_padding_between_them_folds() -> None:
    draft = Draft(6, 2)
    draft.quantize()
    for there, back in (((1, 6, 2), (6, 2)), ((1, 8, 2), (8, 2))):
        draft.add("reshape", there, shape=[None, *there])
        draft.conv()
        draft.add("reshape", back, shape=[None, *back])
        draft.quantize(0.2)
        if back == (6, 2):
            draft.add("reshape", (1, 6, 2), shape=[None, 1, 6, 2])
            draft.add("pad", (1, 8, 2), pads=[[0, 0], [0, 0], [1, 1], [0, 0]])
            draft.add("reshape", (8, 2), shape=[None, 8, 2])
    graph = draft.done()
    assert kinds(graph) == ["quantize", "reshape", "conv2d", "conv2d", "reshape"]
    assert graph.ops[3].attrs["pads"] == [0, 0, 1, 1]


def test_a_reshape_that_changes_nothing_stays_only_as_an_output() -> None:
    draft = Draft(4)
    draft.add("reshape", (4,), shape=[None, 4])
    draft.add("relu", max_value=None)
    assert kinds(draft.done()) == ["relu"]
    draft = Draft(4)
    assert kinds(draft.done(draft.add("reshape", (4,), shape=[None, 4]))) == ["reshape"]


@pytest.mark.parametrize("kind", ["add", "sub", "mul", "maximum", "minimum"])
def test_a_number_beside_codes_gets_a_scale_of_its_own(kind: str) -> None:
    draft = Draft(3)
    draft.quantize()
    attrs = {} if "imum" in kind else {"activation": "none"}
    draft.add(kind, None, weight("c", [0.5, -2.0, 0.0]), **attrs)
    draft.quantize()
    graph = draft.done()
    constant = graph.ops[1].inputs[1]
    assert graph.ops[1].quantized
    assert (constant.scale, constant.zero_point) == (np.float32(2 / 127), 0)
    np.testing.assert_array_equal(constant.data, [32, -127, 0])


def test_a_constant_of_zeros_has_a_scale_too() -> None:
    draft = Draft(3)
    draft.quantize()
    draft.add("mul", None, weight("c", [0.0]), activation="none")
    draft.quantize()
    constant = draft.done().ops[1].inputs[1]
    np.testing.assert_array_equal(constant.values(), [0])


def test_a_number_beside_real_numbers_stays() -> None:
    draft = Draft(3)
    draft.add("mul", None, weight("c", [0.5]), activation="none")
    draft.quantize()
    graph = draft.done()
    assert not graph.ops[0].inputs[1].quantized


def test_weights_get_coarser_where_int32_cannot_hold_the_bias() -> None:
    draft = Draft(3)
    draft.quantize(1e-4)
    draft.dense(2)
    before = draft.graph.ops[-1].inputs[1]
    draft.graph.ops[-1].inputs[2].data = np.float32([1e4, 0])
    draft.quantize()
    x, weights, bias = draft.done().ops[-1].inputs
    assert bias.data is not None
    np.testing.assert_allclose(bias.data, [2**30, 0], rtol=1e-6)
    np.testing.assert_allclose(bias.data * (x.scale * weights.scales()), [1e4, 0], rtol=1e-6)
    assert weights.scales()[1] == before.scales()[-1]


def test_biases_that_are_no_numbers_are_refused() -> None:
    draft = Draft(3)
    draft.quantize(1e-4)
    draft.dense(2)
    draft.graph.ops[-1].inputs[2].data = np.float32([np.nan, 0])
    draft.quantize()
    with pytest.raises(InputError, match=r"expected finite biases; .* in layer 'dense'"):
        draft.done()


def test_a_bias_is_rounded_at_the_scale_of_the_sums() -> None:
    draft = Draft(2)
    draft.quantize(0.5)
    x = draft.last
    w = Tensor("w", (2, 3), qparams=per_channel([0.5, 1, 2], 1, 2), data=np.ones((2, 3), np.int8))
    draft.add("dense", (3,), w, weight("b", [0.375, 0.75, -1.4]), x=x, activation="none")
    draft.quantize()
    np.testing.assert_array_equal(draft.done().ops[1].inputs[2].data, [2, 2, -1])  # 1.5, 1.5, -1.4


def test_the_result_is_valid_or_refused() -> None:
    draft = Draft(2)
    draft.add("softmax")
    with pytest.raises(InputError, match="attributes"):
        draft.done()


def test_passes_can_run_again_without_effect() -> None:
    draft = Draft(6, 2)
    draft.quantize()
    draft.add("reshape", (1, 6, 2), shape=[None, 1, 6, 2])
    draft.conv()
    draft.add("reshape", (6, 2), shape=[None, 6, 2])
    draft.add("relu", max_value=6)
    draft.quantize(0.1, -128)
    draft.dense(3)
    draft.quantize(0.2)
    draft.add("mul", None, weight("c", [0.5]), activation="none")
    draft.quantize()
    graph = draft.done()
    before = str(graph)
    assert str(fuse(graph)) == before


def test_fusing_changes_no_real_number() -> None:
    draft = Draft(6, 2)
    draft.add("reshape", (1, 6, 2), shape=[None, 1, 6, 2])
    draft.add("pad", (3, 8, 2), pads=[[0, 0], [1, 1], [1, 1], [0, 0]])
    draft.conv()
    draft.add("reshape", (24, 2), shape=[None, 24, 2])
    draft.add("relu", max_value=6)
    draft.dense(3)
    draft.graph.outputs = [draft.last]
    validate(draft.graph)
    x = [np.random.default_rng(0).normal(size=(4, 6, 2)).astype(np.float32)]
    before = run(draft.graph, x, "litert")["dense"]
    assert len(fuse(draft.graph).ops) == 4
    np.testing.assert_array_equal(run(draft.graph, x, "litert")["dense"], before)


@pytest.mark.parametrize("step", PASSES, ids=lambda step: step.__name__)
def test_a_pass_leaves_alone_what_it_has_no_business_with(step: Callable[[QGraph], None]) -> None:
    x = real("x", 4)
    graph = graph_of(Op("softmax", [x], [real("y", 4)], {"axis": 1}), inputs=[x])
    before = str(graph)
    step(graph)
    assert str(graph) == before
