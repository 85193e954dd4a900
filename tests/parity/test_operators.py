"""The operators of TensorFlow, torch and ONNX Runtime, by name, as independent oracles: where they agree with us, to
the bit, and where they don't, and why.

================================================  ==========================  ======================  ==============
operator                                          ties on the grid            division                NaN becomes
================================================  ==========================  ======================  ==============
qi                                                half to even, before the    exact                   NaN (codes:
                                                  zero point is added                                 zero point)
tf.quantization.fake_quant_with_min_max_vars      half up, after it           by the reciprocal       NaN
tf.quantization.quantize_and_dequantize_v2        half to even                by the reciprocal       not tested
torch.fake_quantize_per_*_affine                  half to even, before it     by the reciprocal       lowest code
torch.quantize_per_*                              half to even, after it      by the reciprocal       undefined
ONNX QuantizeLinear (ONNX Runtime)                half to even, before it     exact                   lowest code
================================================  ==========================  ======================  ==============
"""

from __future__ import annotations

import numpy as np
import pytest

from qi.core import IntGrid, LutGrid, PerGroup, QParams, SymmetricRule, asymmetric_params, pack, symmetric_scale
from qi.core.affine import dequantize, fake_quantize, quantize

INT8, UINT8 = IntGrid(8), IntGrid(8, signed=False)


def probe(grid: IntGrid, scale: np.ndarray, zero_point: np.ndarray | int, rows: int = 2000) -> np.ndarray:
    """Ties and random numbers in and around the range, ``[2 * rows, channels]``."""
    rng = np.random.default_rng(0)
    scale = np.atleast_1d(np.asarray(scale, np.float64))
    shape = (rows, scale.size)
    ties = rng.integers(grid.qmin - 4, grid.qmax + 4, shape) + 0.5
    plain = rng.uniform(grid.qmin - 4, grid.qmax + 4, shape)
    x = (np.concatenate([ties, plain]) - zero_point) * scale
    return x.astype(np.float32)


def ulps_from_tie(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | int, grid: IntGrid) -> np.ndarray:
    """How far ``x / scale`` is from a tie, in float32's precision of the greatest step of the grid."""
    u = x.astype(np.float64) / np.asarray(scale, np.float64)
    distance = np.abs(np.abs(u - np.floor(u)) - 0.5)
    span = np.maximum(np.abs(u), np.maximum(np.abs(grid.qmin - zero_point), np.abs(grid.qmax - zero_point)))
    return distance / np.spacing(span.astype(np.float32))


def steps_apart(theirs: np.ndarray, ours: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The difference of two fake-quantized arrays in whole steps; the rest is rounding noise."""
    steps = (theirs.astype(np.float64) - ours) / np.asarray(scale, np.float64)
    assert np.all(np.abs(steps - np.rint(steps)) < 1e-3)
    return np.rint(steps)


def assert_same_but_next_to_ties(theirs, ours, x, scale, zero_point, grid):
    """Equal to rounding noise, except by one step within 4 ulps of a tie."""
    steps = steps_apart(theirs, ours, scale)
    moved = steps != 0
    distance = np.broadcast_to(ulps_from_tie(x, scale, zero_point, grid), moved.shape)
    assert distance[moved].max(initial=0) <= 4
    assert np.abs(steps).max() <= 1


# TensorFlow: fake_quant_with_min_max_vars(_per_channel)

RANGES = [
    (-1.0, 1.55, 8, False),
    (0.0, 6.0, 8, False),
    (-3.0, 0.0, 8, False),
    (-1.28, 1.27, 8, True),
    (-0.4, 2.6, 4, False),
]


@pytest.mark.parametrize(("lo", "hi", "bits", "narrow"), RANGES)
def test_tf_fake_quant_with_min_max_vars(lo, hi, bits, narrow):
    import tensorflow as tf

    grid = IntGrid(bits, signed=True, narrow=narrow)
    scale, zero_point = asymmetric_params(lo, hi, grid)
    x = probe(grid, scale, zero_point)
    theirs = tf.quantization.fake_quant_with_min_max_vars(x, lo, hi, num_bits=bits, narrow_range=narrow).numpy()
    assert_same_but_next_to_ties(theirs, fake_quantize(x, scale, zero_point, grid), x, scale, zero_point, grid)


def test_tf_fake_quant_with_min_max_vars_per_channel():
    import tensorflow as tf

    lo, hi = np.float32([-1.0, 0.0, -3.0, -0.4]), np.float32([1.55, 6.0, 0.0, 2.6])
    scale, zero_point = asymmetric_params(lo, hi, UINT8)
    x = probe(UINT8, scale, zero_point)
    theirs = tf.quantization.fake_quant_with_min_max_vars_per_channel(x, lo, hi).numpy()
    assert_same_but_next_to_ties(theirs, fake_quantize(x, scale, zero_point, UINT8), x, scale, zero_point, UINT8)


def test_tf_fake_quant_rounds_ties_up_where_we_round_to_even():
    import tensorflow as tf

    scale, zero_point = asymmetric_params(-16.0, 47.75, UINT8)  # the scale is 1/4, so ties are exact for both
    k = np.arange(UINT8.qmin, UINT8.qmax) - int(zero_point)
    x = np.float32((k + 0.5) * 0.25)
    theirs = tf.quantization.fake_quant_with_min_max_vars(x, -16.0, 47.75).numpy()
    ours = fake_quantize(x, scale, zero_point, UINT8)
    np.testing.assert_array_equal(theirs, (k + 1) * 0.25)
    np.testing.assert_array_equal(ours, np.where(k % 2 == 0, k, k + 1) * 0.25)


def test_tf_fake_quant_nudges_in_float32_so_a_tied_zero_point_may_fall():
    import tensorflow as tf

    # -lo / s is 127.5: exactly half, and half up is 128; in float32 it comes out just below, and TensorFlow takes 127.
    scale, zero_point = asymmetric_params(-1.0, 1.0, UINT8)
    lowest, highest = tf.quantization.fake_quant_with_min_max_vars([-9.0, 9.0], -1.0, 1.0).numpy() / scale
    assert int(zero_point) == 128
    assert (round(float(lowest)), round(float(highest))) == (-127, 128)


def test_tf_fake_quant_has_our_gradient():
    import tensorflow as tf

    scale, zero_point = asymmetric_params(-16.0, 47.75, UINT8)
    x = tf.constant([-16.0, 47.75, -16.00001, 47.75001, -99.0, -16.1, 0.0, 3.14, 47.8, 99.0])
    gradients = []
    for function in (
        lambda x: tf.quantization.fake_quant_with_min_max_vars(x, -16.0, 47.75),
        lambda x: fake_quantize(x, scale, zero_point, UINT8),
    ):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        gradients.append(tape.gradient(y, x).numpy().tolist())
    assert gradients[0] == gradients[1] == [1, 1, 0, 0, 0, 0, 1, 1, 0, 0]


# TensorFlow: quantize_and_dequantize_v2


def quantize_and_dequantize(x, threshold, grid):
    import tensorflow as tf

    return tf.quantization.quantize_and_dequantize_v2(
        x,
        -threshold,
        threshold,
        num_bits=grid.bits,
        range_given=True,
        round_mode="HALF_TO_EVEN",
        narrow_range=grid.narrow,
    ).numpy()


@pytest.mark.parametrize("grid", [INT8, IntGrid(8, narrow=True), IntGrid(4, narrow=True), IntGrid(4)])
@pytest.mark.parametrize("exact", [True, False])
def test_tf_quantize_and_dequantize_v2_is_the_qmax_rule(grid, exact):
    threshold = grid.qmax / 64 if exact else 1.3
    scale = symmetric_scale(threshold, grid, SymmetricRule.QMAX)
    x = probe(grid, scale, 0)
    theirs, ours = quantize_and_dequantize(x, threshold, grid), fake_quantize(x, scale, 0, grid)
    if exact:  # a power of two as scale: its reciprocal is exact too
        np.testing.assert_array_equal(theirs, ours)
    assert_same_but_next_to_ties(theirs, ours, x, scale, 0, grid)


# torch: fake_quantize_per_tensor_affine, fake_quantize_per_channel_affine, quantize_per_tensor

TORCH_CASES = [(0.1, 0, INT8), (0.0371, 5, INT8), (1 / 3, 7, IntGrid(4, signed=False)), (0.7, 200, UINT8)]


def torch_fake_quantize(x, scale, zero_point, grid):
    import torch

    return torch.fake_quantize_per_tensor_affine(
        torch.tensor(x), float(scale), zero_point, grid.qmin, grid.qmax
    ).numpy()


@pytest.mark.parametrize(("scale", "zero_point", "grid"), TORCH_CASES)
def test_torch_fake_quantize_per_tensor_affine(scale, zero_point, grid):
    scale = np.float32(scale)
    x = probe(grid, scale, zero_point)
    theirs, ours = torch_fake_quantize(x, scale, zero_point, grid), fake_quantize(x, scale, zero_point, grid)
    codes = np.clip(np.rint(x * (np.float32(1) / scale)) + zero_point, grid.qmin, grid.qmax)
    np.testing.assert_array_equal(theirs, np.float32(codes - zero_point) * scale)  # by the reciprocal, to the bit
    assert_same_but_next_to_ties(theirs, ours, x, scale, zero_point, grid)


@pytest.mark.parametrize("zero_point", [0, 5])
def test_torch_fake_quantize_is_ours_to_the_bit_where_the_reciprocal_is_exact(zero_point):
    x = probe(INT8, 0.0625, zero_point)
    np.testing.assert_array_equal(
        torch_fake_quantize(x, 0.0625, zero_point, INT8), fake_quantize(x, 0.0625, zero_point, INT8)
    )


def test_torch_fake_quantize_per_channel_affine():
    import torch

    scale, zero_point = np.float32([0.1, 0.0371, 0.25]), np.int32([0, 5, -9])
    x = probe(INT8, scale, zero_point)
    theirs = torch.fake_quantize_per_channel_affine(
        torch.tensor(x), torch.tensor(scale), torch.tensor(zero_point), 1, INT8.qmin, INT8.qmax
    ).numpy()
    ours = fake_quantize(x, scale, zero_point, INT8)
    assert_same_but_next_to_ties(theirs, ours, x, scale, zero_point, INT8)
    np.testing.assert_array_equal(theirs[:, 2], ours[:, 2])


def test_torch_fake_quantize_masks_by_the_code_and_we_by_the_value():
    import torch

    # Between an edge and half a step beyond it the code is still unclipped: torch passes the gradient on, we don't.
    x = np.float32([-64.3, -64.1, -64.0, 0.0, 63.5, 63.6, 63.8])
    ours, theirs = torch.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    fake_quantize(ours, 0.5, 0, INT8).sum().backward()
    torch.fake_quantize_per_tensor_affine(theirs, 0.5, 0, -128, 127).sum().backward()
    assert ours.grad.tolist() == [0, 0, 1, 1, 1, 0, 0]
    assert theirs.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_torch_learnable_fake_quantize_has_our_gradient_for_the_scale():
    import torch

    grid = IntGrid(4)
    x = np.random.default_rng(0).normal(0, 2, 4000).astype(np.float32)
    u = x / np.float32(0.3)
    # Without the two half steps beyond the edges, where the masks differ.
    x = x[(u >= grid.qmin) & (u <= grid.qmax) | (u < grid.qmin - 0.5) | (u > grid.qmax + 0.5)]
    gradients = []
    for function in (
        lambda s: torch._fake_quantize_learnable_per_tensor_affine(
            torch.tensor(x), s, torch.zeros(1), grid.qmin, grid.qmax, 1.0
        ),
        lambda s: fake_quantize(torch.tensor(x), s, 0, grid),
    ):
        scale = torch.tensor([0.3], requires_grad=True)
        function(scale).sum().backward()
        gradients.append(float(scale.grad))
    assert gradients[1] == pytest.approx(gradients[0], rel=1e-5)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel:UserWarning")
@pytest.mark.parametrize(("scale", "zero_point", "grid"), [(0.1, 0, INT8), (0.0371, 4, INT8), (0.7, 200, UINT8)])
def test_torch_quantize_per_tensor(scale, zero_point, grid):
    import torch

    dtype = torch.qint8 if grid.signed else torch.quint8
    for step in (np.float32(scale), np.float32(0.25)):
        x = probe(grid, step, zero_point)
        quantized = torch.quantize_per_tensor(torch.tensor(x), float(step), zero_point, dtype)
        theirs, ours = quantized.int_repr().numpy(), quantize(x, step, zero_point, grid)
        moved = theirs != ours
        assert ulps_from_tie(x, step, zero_point, grid)[moved].max(initial=0) <= 4
        if step == 0.25:  # with an even zero point and an exact reciprocal nothing differs
            np.testing.assert_array_equal(theirs, ours)
        np.testing.assert_array_equal(quantized.dequantize().numpy(), dequantize(theirs, step, zero_point, grid))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, torch.quantize_per_channel:UserWarning")
def test_torch_quantize_per_tensor_rounds_after_adding_the_zero_point_so_with_an_odd_one_every_tie_differs():
    import torch

    k = np.arange(-100, 100)
    x = np.float32((k + 0.5) * 0.25)
    theirs = torch.quantize_per_tensor(torch.tensor(x), 0.25, 5, torch.qint8).int_repr().numpy()
    np.testing.assert_array_equal(theirs, np.rint(k + 0.5 + 5))
    assert np.all(theirs != quantize(x, 0.25, 5, INT8))


# ml_dtypes: narrow integers and floats


@pytest.mark.parametrize("grid", [IntGrid(4), IntGrid(4, signed=False), IntGrid(2), IntGrid(2, signed=False)])
def test_ml_dtypes_narrow_integers_hold_our_codes_as_we_pack_them(grid):
    import ml_dtypes

    kind = getattr(ml_dtypes, f"{'' if grid.signed else 'u'}int{grid.bits}")
    info = ml_dtypes.iinfo(kind)
    assert (info.min, info.max) == (grid.qmin, grid.qmax)
    x = np.linspace(-2, 2, 64, dtype=np.float32)
    codes = quantize(x, 0.25, 0, grid)
    small = np.clip(np.rint(x / 0.25), grid.qmin, grid.qmax).astype(kind)
    assert small.astype(np.int8).tolist() == codes.tolist()
    # Their byte holds one code in its low bits: joined by hand, low bits first, they are our packed bytes.
    low = small.view(np.uint8).reshape(-1, 8 // grid.bits) & (2**grid.bits - 1)
    joined = sum(low[:, i].astype(int) << (i * grid.bits) for i in range(low.shape[1]))
    assert pack(codes, grid.bits).tolist() == joined.tolist()
    assert quantize(small, 1.0, 0, grid).tolist() == codes.tolist()


def test_bfloat16_results_round_as_ml_dtypes_and_tensorflow_do():
    import ml_dtypes
    import tensorflow as tf

    x = np.linspace(-3, 3, 999).astype(ml_dtypes.bfloat16)
    wide = fake_quantize(x.astype(np.float32), 0.0371, 0, INT8)
    narrow = fake_quantize(x, 0.0371, 0, INT8)
    np.testing.assert_array_equal(narrow, wide.astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(narrow, tf.cast(wide, tf.bfloat16).numpy())


# ONNX Runtime: QuantizeLinear, DequantizeLinear


def onnx_quantize(x, scale, zero_point, grid, **attributes):
    """(codes, values) of QuantizeLinear and DequantizeLinear, run without graph optimization."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    helper, types = onnx.helper, onnx.TensorProto
    kind = getattr(types, f"{'' if grid.signed else 'U'}INT{grid.bits}")
    codes = np.asarray(zero_point, grid.storage_dtype)
    zero = helper.make_tensor("z", kind, codes.shape, pack(codes, grid.bits).tobytes(), raw=True)
    wide = types.INT32
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
        helper.make_node("Cast", ["q"], ["codes"], to=wide),  # 4-bit outputs can't leave the runtime
    ]
    inputs = [helper.make_tensor_value_info("x", types.FLOAT, x.shape)]
    outputs = [helper.make_tensor_value_info(*v, x.shape) for v in (("codes", wide), ("y", types.FLOAT))]
    constants = [onnx.numpy_helper.from_array(np.asarray(scale, np.float32), "s"), zero]
    model = helper.make_model(
        helper.make_graph(nodes, "qdq", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


ONNX_GRIDS = [IntGrid(bits, signed) for bits in (4, 8, 16) for signed in (True, False)]


@pytest.mark.parametrize("grid", ONNX_GRIDS, ids=str)
@pytest.mark.parametrize("scale", [0.1, 1 / 3, 0.0371, 0.25])
def test_onnx_runtime_quantize_linear_is_ours_to_the_bit(grid, scale):
    scale, zero_point = np.float32(scale), 3
    special = np.float32([[np.inf], [-np.inf], [3e38], [-3e38], [0.0], [-0.0], [1e-45]])  # NaN: see above
    x = np.concatenate([probe(grid, scale, zero_point), special])
    codes, values = onnx_quantize(x, scale, zero_point, grid)
    ours = quantize(x, scale, zero_point, grid)
    np.testing.assert_array_equal(codes, ours)
    np.testing.assert_array_equal(values.view(np.int32), dequantize(ours, scale, zero_point, grid).view(np.int32))


def test_onnx_runtime_quantizes_per_channel_as_we_do():
    scale = np.float32([0.1, 0.0371, 0.25])
    x = probe(INT8, scale, 0)
    codes, values = onnx_quantize(x, scale, np.zeros(3), INT8, axis=1)
    np.testing.assert_array_equal(codes, quantize(x, scale, 0, INT8))
    np.testing.assert_array_equal(values, fake_quantize(x, scale, 0, INT8))


@pytest.mark.parametrize("rows", [8, 7])
def test_onnx_runtime_quantizes_blocks_as_our_groups_also_a_partial_one(rows):
    grid = IntGrid(4)
    scale = np.float32([[0.1, 0.0371, 0.25], [0.3, 0.05, 0.125]])
    x = probe(grid, [0.2, 0.1, 0.2], 0, rows)[:rows]
    codes, values = onnx_quantize(x, scale, np.zeros((2, 3)), grid, axis=0, block_size=4)
    ours = QParams(scale, 0, grid, PerGroup(0, 4)).quantize(x)
    np.testing.assert_array_equal(codes, ours.codes)
    np.testing.assert_array_equal(values, ours.dequantize())


@pytest.mark.parametrize("kind", ["INT4", "UINT4", "INT2", "UINT2", "INT8", "UINT16"])
def test_onnx_reads_our_packed_bytes(kind):
    onnx = pytest.importorskip("onnx")
    if not hasattr(onnx.TensorProto, kind):
        pytest.skip(f"this onnx has no {kind}")
    grid = IntGrid(int(kind.lstrip("UINT")), signed=kind[0] == "I")
    codes = np.resize(np.arange(grid.qmin, grid.qmax + 1), 37)
    tensor = onnx.helper.make_tensor(
        "codes", getattr(onnx.TensorProto, kind), codes.shape, pack(codes, grid.bits).tobytes(), raw=True
    )
    assert onnx.numpy_helper.to_array(tensor).astype(int).tolist() == codes.tolist()


# Look-up tables have no operator of that kind; the integers themselves are one.


def test_a_table_of_all_integers_is_the_integer_grid_but_at_ties_which_go_down():
    table = LutGrid(range(-128, 128), 8)
    k = np.arange(-128, 127)
    np.testing.assert_array_equal(fake_quantize(np.float32(k + 0.5), 1.0, 0, table), k)
    x = probe(INT8, 0.25, 0)
    theirs, ours = fake_quantize(x, 0.25, 0, table), fake_quantize(x, 0.25, 0, INT8)
    assert_same_but_next_to_ties(theirs, ours, x, 0.25, 0, INT8)
