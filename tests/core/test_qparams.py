from __future__ import annotations

import copy
import dataclasses
import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.core import IntGrid, LutGrid, PerChannel, PerGroup, PerTensor, QParams, QTensor, blocked
from qi.core.affine import fake_quantize, quantize
from qi.errors import ConfigError, InputError
from tests.backends import BACKENDS
from tests.strategies import TINY, arrays, granularities, int_grids, params, shapes

INT4, INT8, TABLE = IntGrid(4), IntGrid(8), LutGrid([-3, 0, 2])


@st.composite
def tensors(draw):
    """(x, parameters that fit it)"""
    x = draw(arrays(shapes))
    granularity, grid = draw(granularities(x.ndim)), draw(int_grids())
    shape = granularity.param_shape(x.shape)
    pairs = [draw(params(grid)) for _ in range(int(np.prod(shape)))]
    scale, zero_point = (np.array([pair[i] for pair in pairs]).reshape(shape) for i in (0, 1))
    return x, QParams(scale, zero_point, grid, granularity)


def entry_of(index, granularity):
    """Oracle: which entry of the scale an element uses."""
    key = [0] * len(index)
    if isinstance(granularity, PerChannel):
        key[granularity.axis] = index[granularity.axis]
    elif isinstance(granularity, PerGroup):
        key[granularity.axis] = index[granularity.axis] // granularity.size
        key[granularity.channel_axis] = index[granularity.channel_axis]
    return tuple(key)


@given(tensors())
def test_channels_and_groups_also_partial_ones_are_quantized_as_if_alone(tensor):
    x, qparams = tensor
    quantized, fake = qparams.quantize(x), qparams.fake_quantize(x)
    assert quantized.shape == fake.shape == x.shape
    for index in np.ndindex(x.shape):
        entry = entry_of(index, qparams.granularity)
        how = qparams.scale[entry], qparams.zero_point[entry], qparams.grid
        assert quantized.codes[index] == quantize(x[index], *how)
        assert fake[index] == fake_quantize(x[index], *how)


@given(tensors())
def test_dequantize_gives_what_fake_quantize_gives(tensor):
    x, qparams = tensor
    assert qparams.quantize(x).dequantize().tobytes() == qparams.fake_quantize(x).tobytes()


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_a_tensor_is_fake_quantized_in_its_own_framework(backend):
    x = np.linspace(-2, 2, 15, dtype=np.float32).reshape(5, 3)
    qparams = QParams(np.float32([[0.1, 0.2, 0.3]] * 3), 0, INT4, PerGroup(0, 2))
    tensor = backend.tensor(x)
    result = qparams.fake_quantize(tensor)
    assert isinstance(result, type(tensor))
    np.testing.assert_array_equal(backend.numpy(result), qparams.fake_quantize(x))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_a_quantized_tensor_remembers_the_dtype_and_counts_nan(dtype):
    x = np.array([np.nan, 1.0, np.inf, np.nan], dtype)
    tensor = QParams(0.5, 2, INT4).quantize(x)
    assert tensor.nan_count == 2
    assert tensor.codes.tolist() == [2, 4, 7, 2]
    assert tensor.dequantize().dtype == x.dtype
    assert tensor.dequantize().tolist() == [0.0, 1.0, 2.5, 0.0]


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool", ml_dtypes.int4])
def test_integers_come_back_as_float32(dtype):
    tensor = QParams(0.5, 0, INT4).quantize(np.array([0, 1], dtype))
    assert (tensor.dequantize().dtype, tensor.nan_count) == (np.float32, 0)


def test_roundings_pass_through():
    qparams = QParams(1.0, 0, INT4)
    assert qparams.quantize([0.9, -0.1], rounding="floor").codes.tolist() == [0, -1]
    noise = np.float32([0.95, 0.5])
    assert qparams.quantize([0.9, -0.1], rounding="stochastic", noise=noise).codes.tolist() == [0, 0]


def test_a_scalar_scale_fits_every_tensor_and_a_tensors_own_scale_its_rank():
    assert QParams(0.5, 0, INT4).expanded((3, 4))[0].shape == ()
    assert QParams([[0.5]], [[1]], INT4).expanded((3, 4))[1] == 1
    assert QParams(np.full((1, 1), 0.5), 0, INT4, PerChannel(-1)).expanded((3, 1))[0].shape == ()


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [(PerChannel(-1), (3,)), (PerChannel(0), (1, 3)), (PerGroup(0, 2), (3, 3)), (PerTensor(), (1, 3))],
)
def test_scales_that_do_not_fit_the_tensor_are_refused(granularity, shape):
    qparams = QParams(np.ones(shape), 0, INT4, granularity)
    name = type(granularity).__name__
    expected = rf"scales of shape .* for a tensor of shape \(4, 3\) \({name}.*received \({shape[0]}"
    for call in (qparams.check_shape, qparams.expanded):
        with pytest.raises(InputError, match=expected):
            call((4, 3))
    for call in (qparams.quantize, qparams.fake_quantize, lambda x: QTensor(x.astype(np.int8), qparams)):
        with pytest.raises(InputError, match=expected):
            call(np.zeros((4, 3)))


@pytest.mark.parametrize("scale", [0.0, -0.5, np.nan, np.inf, -np.inf, 1e39, 1e-46, 1e-40])
def test_a_scale_is_a_positive_normal_float32(scale):
    with pytest.raises(ConfigError, match=f"positive and finite.* received scale={re.escape(str(scale))}"):
        QParams([[1.0, scale]], 0, INT4, PerChannel(1))


def test_the_smallest_scale_is_the_smallest_normal_number():
    assert QParams(TINY, 0, INT4).scale == TINY
    with pytest.raises(ConfigError, match="smallest normal number"):
        QParams(np.nextafter(np.float32(TINY), np.float32(0)), 0, INT4)


@pytest.mark.parametrize("zero_point", [0.5, np.nan, np.inf, -np.inf])
def test_a_zero_point_is_an_integer(zero_point):
    with pytest.raises(ConfigError, match=f"zero points to be integers; received zero_point={zero_point}"):
        QParams(0.5, zero_point, INT4)


@pytest.mark.parametrize(
    ("grid", "zero_point", "message"),
    [
        (INT4, 8, "from -8 to 7; received 8 to 8"),
        (INT4, -9, "from -8 to 7; received -9 to -9"),
        (IntGrid(4, narrow=True), -8, "from -7 to 7"),
        (IntGrid(4, signed=False), -1, "from 0 to 15"),
        (INT8, 1e20, r"from -128 to 127; received 1e\+20"),
        (TABLE, 1, "from 0 to 0; received 1 to 1"),
    ],
)
def test_a_zero_point_is_on_the_grid(grid, zero_point, message):
    with pytest.raises(ConfigError, match=f"expected zero points {message}"):
        QParams(0.5, zero_point, grid)


def test_a_zero_point_is_shaped_like_the_scale_or_a_scalar():
    with pytest.raises(ConfigError, match=r"zero_point shaped like scale \(1, 2\); received \(2,\)"):
        QParams([[0.5, 0.25]], [1, 2], INT4, PerChannel(1))
    assert QParams([[0.5, 0.25]], 3, INT4, PerChannel(1)).zero_point.tolist() == [[3, 3]]


def test_parameters_are_private_read_only_copies():
    scale, zero_point, codes = np.float32([[0.5]]), np.int32([[1]]), np.int8([[3]])
    tensor = QTensor(codes, QParams(scale, zero_point, INT4))
    scale[:], zero_point[:], codes[:] = 9, 9, 9
    assert (tensor.qparams.scale, tensor.qparams.zero_point, tensor.codes) == (0.5, 1, 3)
    for array in (tensor.qparams.scale, tensor.qparams.zero_point, tensor.codes):
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0
    for thing, name in ((tensor, "codes"), (tensor.qparams, "scale")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, 0)
    assert (tensor.qparams.scale.dtype, tensor.qparams.zero_point.dtype) == (np.float32, np.int32)


def test_parameters_are_equal_by_value_and_hash_alike():
    one = QParams(np.float32([[0.5, 1.0]]), 0, INT4, PerChannel(1))
    assert one == QParams([[0.5, 1.0]], [[0, 0]], INT4, PerChannel(1))
    assert hash(one) == hash(QParams([[0.5, 1.0]], [[0, 0]], INT4, PerChannel(1)))
    others = [
        QParams([[0.5, 2.0]], 0, INT4, PerChannel(1)),
        QParams([[0.5, 1.0]], 1, INT4, PerChannel(1)),
        QParams([[0.5, 1.0]], 0, INT8, PerChannel(1)),
        QParams([[0.5, 1.0]], 0, INT4, PerChannel(-1)),
        "a string",
    ]
    assert all(one != other for other in others)


@pytest.mark.parametrize("codes", [[8], [-9], [0, 100]])
def test_codes_are_on_the_grid(codes):
    with pytest.raises(ConfigError, match=f"codes from -8 to 7; received {min(codes)} to {max(codes)}"):
        QTensor(np.int32(codes), QParams(0.5, 0, INT4))


def test_the_lowest_code_is_off_a_narrow_grid_and_a_tables_codes_are_its_indices():
    with pytest.raises(ConfigError, match="codes from -7 to 7"):
        QTensor(np.int8([-8]), QParams(0.5, 0, IntGrid(4, narrow=True)))
    with pytest.raises(ConfigError, match="codes from 0 to 2"):
        QTensor(np.int8([-1]), QParams(0.5, 0, TABLE))
    assert QTensor(np.int8([2, 0]), QParams(0.5, 0, TABLE)).dequantize().tolist() == [1.0, -1.5]


@pytest.mark.parametrize("dtype", ["float32", "bool", "object"])
def test_codes_are_integers(dtype):
    with pytest.raises(ConfigError, match=f"integer codes from -8 to 7; received dtype={dtype}"):
        QTensor(np.zeros(2, dtype), QParams(0.5, 0, INT4))


def test_codes_are_stored_in_the_grids_dtype():
    assert QTensor(np.int64([1, 2]), QParams(0.5, 0, INT4)).codes.dtype == np.int8
    assert QTensor(np.int64([1, 2]), QParams(0.5, 0, IntGrid(9))).codes.dtype == np.int16


@pytest.mark.parametrize(
    ("qparams", "shape", "nbytes", "bits"),
    [
        (QParams(0.5, 0, INT4), (5,), 3 + 4, 4),
        (QParams(0.5, 1, INT4), (5,), 3 + 4 + 4, 4),
        (QParams(np.ones((1, 3)), 0, IntGrid(3), PerChannel(1)), (8, 3), 9 + 12, 3),
        (QParams(0.5, 0, TABLE), (8,), 2 + 4, 2),
        (QParams(0.5, 0, IntGrid(16)), (0, 3), 4, 16),
    ],
)
def test_the_stored_size_counts_packed_codes_and_parameters(qparams, shape, nbytes, bits):
    tensor = QTensor(np.zeros(shape, np.int32), qparams)
    assert (tensor.nbytes, tensor.bits, tensor.shape) == (nbytes, bits, shape)


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1), PerGroup(0, 48, 1)])
@pytest.mark.parametrize("grid", [INT4, IntGrid(3, signed=False), IntGrid(12), TABLE])
def test_large_tensors_are_packed_and_unpacked_in_pieces(granularity, grid):
    x = np.random.default_rng(0).standard_normal((500, 90)).astype(np.float32)
    qparams = QParams(np.full(granularity.param_shape(x.shape), 0.25), 0, grid, granularity)
    tensor, counts = qparams.quantize_counted(x, num_threads=2)
    plain = QTensor(quantize(x, *qparams.expanded(x.shape), grid), qparams)
    assert np.array_equal(tensor.codes, plain.codes)
    assert (tensor.nbytes, tensor.shape, counts.nans) == (plain.nbytes, plain.shape, 0)
    expected = plain.codes if grid is not TABLE else np.array([-3, 0, 2])[plain.codes]
    assert np.array_equal(tensor.dequantize(num_threads=2), np.float32(expected * 0.25))
    out = np.empty(x.shape, np.float64)
    assert tensor.dequantize(out=out, dtype="float64") is out
    assert np.array_equal(out, tensor.dequantize())
    twin = copy.deepcopy(tensor)
    assert twin.nbytes == tensor.nbytes
    assert np.array_equal(twin.dequantize(), tensor.dequantize())


def test_packed_bytes_that_do_not_fit_are_refused():
    qparams = QParams(0.5, 0, TABLE)
    with pytest.raises(InputError, match="expected 2 bytes; received uint8, shape"):
        blocked.dequantize_packed(np.zeros(3, np.uint8), (8,), qparams)
    with pytest.raises(InputError, match="expected codes from 0 to 2; received 0 to 3"):
        blocked.dequantize_packed(np.uint8([3, 0]), (8,), qparams)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: QParams("x", 0, INT8), "expected scales to be numbers"),
        (lambda: QParams(None, 0, INT8), "expected scales to be"),
        (lambda: QParams(1.0, "x", INT8), "expected zero points to be integers"),
        (lambda: QParams(1.0, 0, None), "expected a grid"),
        (lambda: QParams(1.0, 0, INT8, "per_tensor"), "expected a grid and a granularity"),
        (lambda: QTensor(np.int8([1]), None), "expected QParams"),
    ],
)
def test_arguments_of_another_type_are_refused(make, told):
    with pytest.raises(ConfigError, match=told):
        make()
