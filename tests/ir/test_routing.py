from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, PerChannel, QParams
from qi.errors import ConfigError, UnsupportedError
from qi.ir import TARGETS, Op, QGraph, Tensor, run, validate
from qi.ir.kinds import KINDS, kernel, real_kind
from qi.ir.routing import ISLANDS, island, route
from tests.ir.graphs import act, codes_of, graph_of, per_channel, perceptron, real, weight

X = np.random.default_rng(0).uniform(-2, 2, (5, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def _no_preferences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qi.ir.routing.ISLANDS", {})


@pytest.fixture
def mystery(monkeypatch: pytest.MonkeyPatch) -> str:
    """A kind that "litert" alone does in integers: x + 1 in real numbers, twice the code in integers."""
    monkeypatch.setattr(KINDS, "_entries", dict(KINDS._entries))
    real_kind("mystery", (1, 3))(lambda op, x, *more: x + np.float32(1))
    kernel("mystery", "litert")(lambda op, x, *more: 2 * x)
    return "mystery"


def chain(*kinds: str) -> QGraph:
    """Operations of one input one after the other, on codes of one scale."""
    tensors = [codes_of(f"t{i}", 4, qparams=act(0.5)) for i in range(len(kinds) + 1)]
    attrs = {"reshape": {"shape": [None, 4]}}
    ops = [
        Op(kind, [x], [y], attrs.get(kind, {}), kind) for kind, x, y in zip(kinds, tensors, tensors[1:], strict=False)
    ]
    return graph_of(*ops, inputs=tensors[:1])


def kinds(graph: QGraph) -> list[str]:
    return [op.kind for op in graph.ops]


def mixed(graph: QGraph) -> list[Op]:
    """Operations with codes beside real numbers, constants apart."""
    rest = [op for op in graph.ops if op.kind not in ("quantize", "dequantize")]
    return [op for op in rest if len({t.quantized for t in (*op.inputs, *op.outputs) if not t.constant}) > 1]


@pytest.mark.parametrize("target", ["litert", "onnxruntime"])
def test_what_has_kernels_stays_as_it_is(target: str) -> None:
    graph = perceptron()
    routed = route(graph, target)
    assert kinds(routed) == kinds(graph)
    assert routed.target == target
    assert str(routed).replace(f" for {target}", "") == str(graph)
    np.testing.assert_array_equal(run(routed, [X])["y"], run(graph, [X], target)["y"])


def test_what_has_no_kernel_stands_between_borders(mystery: str) -> None:
    graph = chain("reshape", mystery, "reshape")
    routed = route(graph, "onnxruntime")
    validate(routed)
    assert kinds(routed) == ["reshape", "dequantize", mystery, "quantize", "reshape"]
    assert not mixed(routed)
    assert [t.name for t in routed.tensors()] == ["t0", "t1", "t1/dequantized", "t2/real", "t2", "t3"]
    assert all(op.source == mystery for op in routed.ops[1:4])
    np.testing.assert_array_equal(run(routed, [np.int8([[1, 2, 3, 4]])])["t3"], [[3, 4, 5, 6]])
    assert kinds(route(graph, "litert")) == kinds(graph)
    np.testing.assert_array_equal(run(route(graph, "litert"), [np.int8([[1, 2, 3, 4]])])["t3"], [[2, 4, 6, 8]])


def test_the_given_graph_is_left_alone(mystery: str) -> None:
    graph = chain(mystery, mystery)
    before, tensors, ops = str(graph), graph.tensors(), list(graph.ops)
    route(graph, "reference")
    assert str(graph) == before
    assert (graph.target, graph.tensors(), graph.ops) == ("", tensors, ops)


def test_codes_become_real_once_for_all_that_take_them(mystery: str) -> None:
    x, a, b, c = (codes_of(name, 4, qparams=act(0.5)) for name in "xabc")
    ops = [Op(mystery, [x], [a]), Op(mystery, [x, x], [b]), Op(mystery, [b, x, a], [c])]
    routed = route(graph_of(*ops, inputs=[x]), "reference")
    validate(routed)
    sources = {op.x.name: op.y for op in routed.ops if op.kind == "dequantize"}
    assert sorted(sources) == ["a", "b", "x"]
    assert kinds(routed).count("dequantize") == 3
    taken = [op.inputs for op in routed.ops if op.kind == mystery]
    a, b, x = (sources[name] for name in "abx")
    assert taken == [[x], [x, x], [b, x, a]]
    assert not mixed(routed)


def test_islands_next_to_each_other_still_meet_in_codes(mystery: str) -> None:
    routed = route(chain(mystery, mystery), "reference")
    assert kinds(routed) == ["dequantize", mystery, "quantize"] * 2
    x = np.int8([[120, 126, 127, -128]])  # 127.5 steps is beyond the codes: what follows sees 127
    np.testing.assert_array_equal(run(routed, [x])["t2"], [[124, 127, 127, -124]])


def test_a_target_may_prefer_real_numbers(mystery: str) -> None:
    island("litert")(lambda op: op.kind == mystery)
    graph = chain(mystery, "reshape")
    assert kinds(route(graph, "litert")) == ["dequantize", mystery, "quantize", "reshape"]
    assert kinds(route(graph, "litert", integer_only=True)) == [mystery, "reshape"]
    assert kinds(route(graph, "reference", integer_only=True)) == ["dequantize", mystery, "quantize", "reshape"]


def test_an_operation_on_mixed_tensors_becomes_real(mystery: str) -> None:
    q, x, y = codes_of("q", 4, qparams=act(0.5)), real("x", 4), codes_of("y", 4, qparams=act(0.5))
    gain = weight("gain", [1, 2, 3, 4])
    ops = [Op("mul", [q, gain], [x], {"activation": "none"}), Op("add", [x, q], [y], {"activation": "none"})]
    routed = route(graph_of(*ops, inputs=[q]), "litert")
    validate(routed)
    assert kinds(routed) == ["dequantize", "mul", "add", "quantize"]
    assert not mixed(routed)
    np.testing.assert_array_equal(run(routed, [np.int8([[1, 2, 3, -4]])])["y"], [[2, 6, 12, -20]])


def test_real_operations_and_moved_codes_are_left_alone() -> None:
    x, y, z = real("x", 4), real("y", 4), real("z", 2, 2)
    ops = [Op("relu", [x], [y], {"max_value": None}), Op("reshape", [y], [z], {"shape": [None, 2, 2]})]
    assert kinds(route(graph_of(*ops, inputs=[x]), "litert")) == ["relu", "reshape"]
    assert kinds(route(chain("reshape", "reshape"), "reference")) == ["reshape", "reshape"]


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_bias_of_an_island_is_real(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = perceptron()
    expected = run(graph, [X], "litert", every=True)
    monkeypatch.delitem(KINDS.get("dense").kernels, target, raising=False)
    routed = route(graph, target)
    validate(routed)
    assert kinds(routed) == ["quantize", *["dequantize", "dense", "quantize"] * 2]
    w, bias = routed.ops[2].inputs[1:]
    assert w.quantized
    assert (bias.dtype, bias.data.dtype) == ("float32", np.float32)
    found = run(routed, [X], every=True)
    for name in ("hidden", "y"):
        assert np.abs(found[name] - expected[name]).max() <= 1


@pytest.mark.parametrize(
    ("target", "packed", "bits"),
    [("litert", False, 4), ("reference", True, 4), ("onnxruntime", False, 8), ("onnxruntime", True, 4)],
)
def test_weights_of_few_bits_stay_packed_where_that_is_exact(target: str, packed: bool, bits: int) -> None:
    graph = perceptron()
    w = graph.ops[1].inputs[1]
    w.qparams = per_channel(w.scales(), 1, 2, bits=4)
    w.data = np.clip(w.data, -7, 7)
    routed = route(graph, target, packed=packed)
    assert routed.ops[1].inputs[1].grid.bits == bits
    assert kinds(routed) == kinds(graph)
    graph.ops[1].inputs[2].data = np.int32([2**24, 0, 0])  # float32 can't add to that
    assert route(graph, target, packed=packed).ops[1].inputs[1].grid.bits == (8 if target == "onnxruntime" else 4)


def test_names_that_are_taken_are_not_given_again(mystery: str) -> None:
    graph = chain(mystery)
    graph.inputs[0].name, graph.outputs[0].name = "t1/real", "t1"
    graph.ops.append(Op("relu", [graph.outputs[0]], [Tensor("t1/dequantized", (None, 4))], {"max_value": None}))
    validate(route(graph, "reference"))


@pytest.mark.parametrize("target", ["", "xnnpack"])
def test_targets_are_known(target: str) -> None:
    with pytest.raises(ConfigError, match=f"received target='{target}'"):
        route(perceptron(), target)


def test_preferences_are_of_known_targets() -> None:
    assert set(ISLANDS) <= set(TARGETS)


@pytest.mark.parametrize("target", ["litert", "reference"])
def test_weights_with_a_zero_point_are_refused_by_name(target: str) -> None:
    graph = perceptron()
    w = graph.ops[2].inputs[1]
    graph.ops[2].inputs[1] = Tensor("w", w.shape, qparams=act(0.1, 5), data=w.data)
    with pytest.raises(
        UnsupportedError, match=f"zero point 0, as '{target}'.* received layer 'dense1' with zero points from 5"
    ):
        route(graph, target)
    assert kinds(route(graph, "onnxruntime")) == kinds(graph)


def test_a_convolution_has_one_zero_point_for_all_channels() -> None:
    qparams = QParams(
        np.full((1, 1, 1, 2), np.float32(0.1)), np.array([3, 4]).reshape(1, 1, 1, 2), IntGrid(8), PerChannel(3)
    )
    w = Tensor("w", (1, 1, 3, 2), qparams=qparams, data=np.ones((1, 1, 3, 2), np.int8))
    attrs = {"strides": [1, 1], "pads": [0] * 4, "dilation": [1, 1], "groups": 1, "activation": "none"}
    x, y = codes_of("x", 4, 4, 3), codes_of("y", 4, 4, 2)
    graph = graph_of(Op("conv2d", [x, w], [y], attrs, "conv"), inputs=[x])
    with pytest.raises(
        UnsupportedError, match=r"one zero point for all channels .* layer 'conv' with zero points from 3 to 4"
    ):
        route(graph, "onnxruntime")
