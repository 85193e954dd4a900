"""What goes wrong where models are deployed, each trap by name: how ours avoids it, shown by the real runtime where that can.

`ELSEWHERE` names the tests of those that have one already, and `NOT_OURS` the traps of tools that nothing here uses. The traps of
ONNX Runtime's kernels are in `test_onnx_traps`.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qi.core import IntGrid, QParams
from qi.errors import FileFormatError, InputError, UnsupportedError
from qi.exporters import litert, onnx_file, onnx_runtime
from qi.exporters.litert_file import Draft, schema
from qi.ir import Op, QGraph, Tensor, run, validate
from qi.ir.dynamic import KIND as DYNAMIC
from qi.ir.passes import fuse
from qi.ir.routing import route
from tests.ir.graphs import act, codes_of, graph_of, per_channel, real, weight, weight_only
from tests.parity.operations import case

TESTS = Path(__file__).parent.parent
LITERT = ("litert", "reference")
TARGETS = (*LITERT, "onnxruntime")

ELSEWHERE = {
    "a scale that is one float32 ulp off": "exporters/test_read_litert.py::test_our_own_file_comes_back",
    "Dense has a scale for each channel, also where one would do": (
        "exporters/test_litert_linear.py::test_a_scale_for_each_channel_even_where_all_are_one"
    ),
    "FULLY_CONNECTED is stamped with a version that old runtimes refuse": (
        "exporters/test_litert_linear.py::test_fully_connected_is_of_version_4"
    ),
    "scales lie along another axis in each operation": "exporters/test_litert_linear.py::test_layouts",
    "convolutions have no weights of 2 bits": "exporters/test_litert_linear.py::test_int2_convolutions_are_refused",
    "depthwise convolutions and odd rows have no dynamic kernel": (
        "exporters/test_litert_linear.py::test_bits_of_weights_beside_real_numbers"
    ),
    "ReLU is left out where the codes end there": (
        "exporters/test_litert_ops.py::test_no_activation_where_the_codes_end_there"
    ),
    "ReLU before the quantizer keeps ONNX Runtime in float": (
        "parity/test_onnx_traps.py::test_no_relu_is_kept_in_real_numbers"
    ),
    "an average pool rounds half away": "ir/test_litert.py::test_pools_round_half_away",
    "a real input is multiplied by 1 / s, or divided by s": (
        "ir/test_borders.py::test_runtimes_divide_by_a_scale_each_in_its_own_way"
    ),
    "concatenations, pools and padding share a scale": (
        "keras/test_plan.py::test_concatenation_pooling_padding_and_reshaping_share_one_scale"
    ),
    "softmax, sigmoid and tanh have fixed scales": (
        "keras/test_plan.py::test_softmax_sigmoid_and_tanh_have_fixed_grids"
    ),
    "no quantizer stands before a fused activation": (
        "keras/test_plan.py::test_one_quantizer_sits_after_a_fused_activation_and_none_before"
    ),
    "zero padding of its own is an island": "ir/test_passes.py::test_padding_becomes_the_convolutions_own",
    "a bias beyond int32": "ir/test_passes.py::test_weights_get_coarser_where_int32_cannot_hold_the_bias",
    "sums beyond 2**24 on float32 carriers": (
        "keras/test_exact.py::test_sums_beyond_what_float32_counts_are_added_up_in_halves"
    ),
    "S8S8 and mixed graphs in ONNX Runtime": (
        "parity/test_onnx_traps.py::test_activations_are_uint8_for_int8_ones_leave_parts_in_float"
    ),
    "scalars of rank 1": "parity/test_onnx_traps.py::test_scales_of_activations_have_rank_zero",
    "Dense of rank 3 with an open batch": (
        "parity/test_onnx_traps.py::test_products_of_rank_three_with_an_open_batch_are_done_in_integers"
    ),
    "QLinearSoftmax of another scale": (
        "parity/test_onnx_traps.py::test_a_softmax_of_another_scale_than_1_256_is_done_in_real_numbers"
    ),
    "packed weights are dequantized, and real sums depend on their order": (
        "exporters/test_onnx_packed.py::test_codes_near_a_tie_are_those_of_integer_kernels"
    ),
    "unoptimized graphs are computed in real numbers": (
        "exporters/test_onnx_runtime.py::test_without_optimization_all_is_done_in_real_numbers"
    ),
    "GELU needs opset 20, packed weights and 16 bits 21": (
        "exporters/test_onnx_file.py::test_opset_is_the_least_that_serves"
    ),
    "16-bit activations have no fast kernel in ONNX Runtime": (
        "exporters/test_onnx_elementwise.py::test_activations_of_sixteen_bits_are_real_numbers_inside"
    ),
    "MatMulNBits rounds activations to 8 bits": "exporters/test_onnx_linear.py::test_weights_alone_are_coded",
    "recurrent layers end the converter's process": (
        "exporters/test_litert_recurrent.py::test_it_is_one_operator_on_real_numbers_of_integer_weights"
    ),
    "a GRU has no fused operator": "exporters/test_litert_unrolled.py::test_sequences_without_an_end_are_refused",
    "the last bit of a normalization": "parity/test_islands.py::test_layer_normalization",
    "sums of two tensors round otherwise in each runtime": "ir/test_onnxruntime.py::test_sums_round_once",
    "products add the zero point before they round": (
        "ir/test_onnxruntime.py::test_products_add_the_zero_point_before_they_round"
    ),
    "two threads": "parity/test_onnx_fuzz.py::test_two_threads",
    "the batch is open": "parity/test_litert_fuzz.py::test_the_batch_is_open",
    "layers that are always 0 overflow": "parity/test_onnx_graphs.py::test_layers_that_are_always_zero",
}
NOT_OURS = {
    "NaN from from_concrete_functions": "no converter of TensorFlow is used",
    "round and clip are no fake quantization to the converter": "no converter of TensorFlow is used",
    "names of tensors joined by the converter": "files are written operation by operation, under the graph's names",
    "models exported before they were called": "Keras' own exports aren't used",
    "saturation of pairs of products on x64 without VNNI": "can't be shown on a processor with it; `proof` would tell",
}


@pytest.mark.parametrize("place", sorted(set(ELSEWHERE.values())))
def test_traps_have_their_tests(place: str) -> None:
    path, _, name = place.partition("::")
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def twins_and_files(graph: QGraph, codes: np.ndarray) -> dict[str, np.ndarray]:
    """What each runtime gives on codes; its twin gives the same."""
    found = {}
    for target in TARGETS:
        routed = route(graph, target, integer_only=True)
        expected = run(routed, [codes])["y"]
        if target == "onnxruntime":
            given = [(codes + 128).astype(np.uint8)]
            found[target] = onnx_runtime.run(onnx_file.write(routed, integer_io=True), given)["y"].astype(int) - 128
        else:
            data = litert.write(routed, integer_io=True)
            found[target] = litert.run(data, [codes.astype(np.int8)], reference=target == "reference")["y"].astype(int)
        np.testing.assert_array_equal(found[target], expected, err_msg=target)
    return found


def linear(kind: str, w: Tensor, x: Tensor, y: Tensor) -> QGraph:
    attrs: dict[str, Any] = {"activation": "none"}
    if kind != "dense":
        attrs |= {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilation": [1, 1]} | (
            {"groups": 1} if kind == "conv2d" else {}
        )
    return graph_of(Op(kind, [x, w], [y], attrs, f"layer_{kind}"), inputs=[x])


def types(data: bytes) -> dict[str, int]:
    """LiteRT's type of each tensor."""
    return {t.name.decode(): t.type for t in schema().ModelT.InitFromPackedBuf(data).subgraphs[0].tensors}


# Bits --------------------------------------------------------------------------------------------------------------------------


def few_bits(weights: int, activations: int) -> QGraph:
    x, y = (codes_of(name, 3, 3, 2, qparams=act(scale, 0, activations)) for name, scale in (("x", 0.1), ("y", 0.05)))
    w = weight("w", [[[[1, -2], [-7, 5]]]], [0.1, 0.2])
    w.qparams = per_channel([0.1, 0.2], 3, 4, weights)
    return linear("conv2d", w, x, y)


@pytest.mark.parametrize("weights", [4, 8])
@pytest.mark.parametrize("target", LITERT)
def test_litert_activations_of_16_bits_are_refused(weights: int, target: str) -> None:
    """A convolution of them gives garbage with int4 weights, and numbers that are off with int8 ones and an int32 bias."""
    with pytest.raises(UnsupportedError, match=r"activations of at most 8 bits.* of layer 'layer_conv2d'"):
        litert.write(route(few_bits(weights, 16), target, packed=True))


@pytest.mark.parametrize("weights", [4, 8])
def test_activations_of_4_bits_end_where_their_grid_does(weights: int) -> None:
    """The converter can't write them; as bytes they must be clipped to what they may be."""
    codes = np.random.default_rng(0).integers(-8, 8, (50, 3, 3, 2))
    for found in twins_and_files(few_bits(weights, 4), codes).values():
        assert (found.min(), found.max()) == (-8, 7)


@pytest.mark.parametrize("kind", ["conv2d_int4", "depthwise_conv2d_int4"])
def test_int4_convolutions_lie_in_bytes_unless_size_counts(kind: str) -> None:
    """No fast kernel has packed ones, and the one that there is rounds half up."""
    kinds = schema().TensorType
    for packed, stored in ((False, kinds.INT8), (True, kinds.INT4)):
        assert types(litert.write(route(case(kind, 3), "litert", packed=packed)))["w"] == stored


@pytest.mark.parametrize("target", TARGETS)
def test_convolutions_are_never_dynamic(target: str) -> None:
    """Runtimes are slower with activations rounded on the way than without; products alone are."""
    kinds = {kind: {op.kind for op in route(weight_only(case(kind, 2)), target).ops} for kind in ("conv2d", "dense")}
    assert DYNAMIC not in kinds["conv2d"]
    assert (DYNAMIC in kinds["dense"]) == (target == "litert")


@pytest.mark.parametrize("target", LITERT)
def test_weights_that_are_not_narrow_are_refused(target: str) -> None:
    """Those of full range have a zero point of -1 with the converter, which fails at run time."""
    w = weight("w", np.ones((4, 2)), [0.1, 0.2])
    w.qparams = QParams(np.float32([[0.1, 0.2]]), np.array([[-1, -1]]), IntGrid(8), w.qparams.granularity)  # type: ignore[union-attr]
    graph = linear("dense", w, codes_of("x", 4), codes_of("y", 2))
    with pytest.raises(UnsupportedError, match=r"weights with zero point 0.* layer 'layer_dense'"):
        route(graph, target)


def test_litert_activations_are_int8() -> None:
    """Its kernels with int8 weights reject uint8."""
    data = litert.write(route(case("conv2d", 3), "litert"), integer_io=True)
    assert set(types(data).values()) <= {schema().TensorType.INT8, schema().TensorType.INT32}


# Scales ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["litert", "onnxruntime"])
def test_scales_are_in_the_file_bit_for_bit(target: str) -> None:
    """Where a tool computes them anew from a range, some are one float32 ulp off, and 2 % of the outputs with them."""
    rng, anew = np.random.default_rng(0), 0
    for _ in range(40):
        scale = np.float32(rng.uniform(0.001, 0.1))
        low, high = np.float32(-128 * scale), np.float32(127 * scale)
        anew += int(np.float32((high - low) / np.float32(255)) != scale)
        x, y = codes_of("x", 4, qparams=act(float(scale), 0)), codes_of("y", 4, qparams=act(0.1))
        graph = route(graph_of(Op("relu", [x], [y], {"max_value": None}), inputs=[x]), target, integer_only=True)
        if target == "litert":
            tensors = schema().ModelT.InitFromPackedBuf(litert.write(graph, integer_io=True)).subgraphs[0].tensors
            found = {float(t.quantization.scale[0]) for t in tensors if t.quantization and t.name == b"x"}
        else:
            import onnx

            stored = onnx.load_from_string(onnx_file.write(graph)).graph.initializer
            arrays = [onnx.numpy_helper.to_array(t) for t in stored]
            found = {float(a) for a in arrays if a.dtype == np.float32 and a.shape == ()}
        assert float(scale) in found
    assert anew > 0


def test_concatenations_of_different_ranges_are_refused() -> None:
    parts = [codes_of("a", 2, qparams=act(0.1)), codes_of("b", 2, qparams=act(0.2))]
    graph = graph_of(Op("concat", parts, [codes_of("y", 4)], {"axis": 1}, "layer"), inputs=parts)
    with pytest.raises(InputError, match="one scale for all that 'concat' moves"):
        validate(graph)


@pytest.mark.parametrize(
    ("code", "kind", "target"), [("SOFTMAX", "softmax", "litert"), ("LOGISTIC", "sigmoid", "reference")]
)
def test_litert_functions_of_another_scale_are_done_in_real_numbers(code: str, kind: str, target: str) -> None:
    """The kernels refuse an output scale that isn't theirs."""
    q, y = act(0.1, 3), act(1 / 255, -128)
    draft = Draft()
    made = [draft.tensor(codes_of(name, 4, qparams=p)) for name, p in (("x", q), ("y", y))]
    options = draft.options("SoftmaxOptions", beta=1.0) if kind == "softmax" else None
    draft.operator(code, made[:1], made[1:], 2, options)
    codes = np.arange(-128, 128, 4).astype(np.int8).reshape(16, 4)
    data = draft.finish("trap", [("x", made[0])], [("y", made[1])], {})
    with pytest.raises(FileFormatError, match="activations"):
        litert.run(data, [codes], reference=target == "reference")
    x, output = codes_of("x", 4, qparams=q), codes_of("y", 4, qparams=y)
    attrs: dict[str, Any] = {"axis": 1} if kind == "softmax" else {"function": kind, "alpha": None}
    op = Op("softmax" if kind == "softmax" else "unary", [x], [output], attrs, "layer")
    routed = route(graph_of(op, inputs=[x]), target, integer_only=True)
    found = litert.run(litert.write(routed, integer_io=True), [codes], reference=target == "reference")["y"]
    assert np.abs(found.astype(int) - run(routed, [codes])["y"]).max() <= 1


def test_a_pool_without_a_quantizer_leaves_the_next_convolution_in_float_and_that_is_told() -> None:
    x, a, b = real("x", 4, 4, 2), real("a", 2, 2, 2), real("b", 2, 2, 3)
    w = weight("w", np.ones((1, 1, 2, 3)), [0.1, 0.2, 0.3])
    window = {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilation": [1, 1], "groups": 1, "activation": "none"}
    for between in (True, False):
        codes, y, mean = codes_of("codes", 4, 4, 2), codes_of("y", 2, 2, 3), codes_of("mean", 2, 2, 2)
        pool = Op("avg_pool2d", [codes], [a], {"pool": [2, 2], "strides": [2, 2], "pads": [0, 0, 0, 0]}, "pool")
        held = [Op("quantize", [a], [mean])] if between else []
        conv = Op("conv2d", [mean if between else a, w], [b], dict(window), "conv")
        graph = fuse(graph_of(Op("quantize", [x], [codes]), pool, *held, conv, Op("quantize", [b], [y]), inputs=[x]))
        assert [op.quantized for op in graph.ops if op.kind == "conv2d"] == [between]
        data = onnx_file.write(route(graph, "onnxruntime"), integer_io=True)
        assert bool(onnx_runtime.float_kernels(data)) != between


@pytest.mark.parametrize("kind", ["conv2d", "depthwise_conv2d", "conv2d_transpose", "dense"])
def test_scales_belong_to_output_channels(kind: str) -> None:
    """Along another axis, a transposed convolution fails or is wrong: channels here differ by a factor of 300."""
    shape = {"conv2d": (2, 2, 3, 3), "depthwise_conv2d": (2, 2, 3), "conv2d_transpose": (2, 2, 3, 3), "dense": (3, 3)}[
        kind
    ]
    axis = {"conv2d": 3, "depthwise_conv2d": 2, "conv2d_transpose": 2, "dense": 1}[kind]
    w = weight("w", np.random.default_rng(0).integers(-127, 128, shape), [0.0003, 0.005, 0.09], axis)
    size = {"conv2d": (4, 4, 3), "depthwise_conv2d": (4, 4, 3), "conv2d_transpose": (6, 6, 3), "dense": (3,)}[kind]
    x, y = codes_of("x", *((5, 5, 3) if kind != "dense" else (3,))), codes_of("y", *size, qparams=act(0.7))
    codes = np.random.default_rng(1).integers(-128, 128, (4, *x.shape[1:]))  # type: ignore[misc]
    found = twins_and_files(linear(kind, w, x, y), codes)["onnxruntime"]
    spread = np.abs(found.reshape(-1, 3)).max(axis=0)
    assert spread[0] < spread[1] < spread[2]


# Rounding ----------------------------------------------------------------------------------------------------------------------


def test_quantize_from_codes_to_codes_has_eight_bits() -> None:
    """LiteRT's QUANTIZE is off by one for some codes; we write a product with one."""
    x, y = codes_of("x", 256, qparams=act(0.1, 3)), codes_of("y", 256, qparams=act(0.1303, -5))
    codes = np.arange(-128, 128)[None]
    exact = np.clip(np.rint((codes - 3) * (np.float32(0.1) / np.float32(0.1303))) - 5, -128, 127)
    draft = Draft()
    made = [draft.tensor(t) for t in (x, y)]
    draft.operator("QUANTIZE", made[:1], made[1:], 2)
    trap = litert.run(draft.finish("trap", [("x", made[0])], [("y", made[1])], {}), [codes.astype(np.int8)])["y"]
    assert (trap != exact).mean() > 0.02
    found = twins_and_files(graph_of(Op("quantize", [x], [y], {}, "layer"), inputs=[x]), codes)
    assert all(np.array_equal(codes_found, exact) for codes_found in found.values())


def test_average_pools_round_otherwise_in_each_runtime() -> None:
    """Half away from zero of the codes' mean in LiteRT; in ONNX Runtime half to even, the zero point added before."""
    x, y = (codes_of(name, *size, 1, qparams=act(0.1, 4)) for name, size in (("x", (1, 512)), ("y", (1, 256))))
    attrs = {"pool": [1, 2], "strides": [1, 2], "pads": [0, 0, 0, 0]}
    pairs = np.stack([np.arange(-128, 128), np.r_[np.arange(-127, 128), 127]], axis=-1)  # means between two codes
    found = twins_and_files(
        graph_of(Op("avg_pool2d", [x], [y], attrs, "layer"), inputs=[x]), pairs.reshape(1, 1, 512, 1)
    )
    assert np.array_equal(found["litert"], found["reference"])
    assert (found["litert"] != found["onnxruntime"]).mean() > 0.3


def test_products_and_convolutions_round_otherwise_in_reference_kernels() -> None:
    """FULLY_CONNECTED once, CONV_2D twice; XNNPACK's and ONNX Runtime's are alike."""
    rng = np.random.default_rng(0)
    codes, weights, scales = (
        rng.integers(-128, 128, (20000, 8)),
        rng.integers(-127, 128, (8, 4)),
        rng.uniform(0.01, 0.02, 4),
    )
    dense = twins_and_files(
        linear("dense", weight("w", weights, scales), codes_of("x", 8), codes_of("y", 4, qparams=act(4.1))), codes
    )
    w, x, y = weight("w", weights[None, None], scales), codes_of("x", 1, 1, 8), codes_of("y", 1, 1, 4, qparams=act(4.1))
    conv = twins_and_files(linear("conv2d", w, x, y), codes.reshape(-1, 1, 1, 8))
    assert np.array_equal(dense["litert"], conv["litert"].reshape(-1, 4))
    assert np.array_equal(dense["litert"], dense["onnxruntime"])
    assert (dense["reference"] != conv["reference"].reshape(-1, 4)).any()


def test_sums_beyond_what_float32_counts() -> None:
    """Up to 2**27: exact in int32, and rounded to float32 once, for what is added in float32 is off by steps."""
    rng, count = np.random.default_rng(0), 4096
    weights = rng.integers(64, 128, (count, 3))
    x, y = codes_of("x", count, qparams=act(0.1, -128)), codes_of("y", 3, qparams=act(float(np.float32(0.001) * 2**20)))
    codes = rng.integers(-128, 128, (64, count))
    twins_and_files(linear("dense", weight("w", weights, [0.01, 0.02, 0.03]), x, y), codes)
    assert np.abs((codes + 128) @ weights).max() > 2**24


def test_the_bias_of_a_convolution_is_int32_at_the_scale_of_its_sums() -> None:
    graph = next(g for g in (case("conv2d", seed) for seed in range(9)) if len(g.ops[-1].inputs) == 3)
    op = graph.ops[-1]
    tensors = schema().ModelT.InitFromPackedBuf(litert.write(route(graph, "litert"))).subgraphs[0].tensors
    bias = next(t for t in tensors if t.name == b"b")
    assert bias.type == schema().TensorType.INT32
    np.testing.assert_array_equal(bias.quantization.scale, op.x.scale * op.inputs[1].scales())
    assert not np.any(bias.quantization.zeroPoint)
