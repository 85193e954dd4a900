from __future__ import annotations

import gc
import threading
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qi.core import IntGrid, LutGrid, PerChannel, PerGroup, PerTensor, QParams, blocked, compiled, pack
from qi.core.packing import packed_nbytes
from qi.errors import InputError
from tests.core.engine_cases import DTYPES, bits_of, expected, forms, how_to, random_bits
from tests.strategies import shapes

pytestmark = pytest.mark.usefixtures("eager_threads")

INT8 = QParams(0.05, 3, IntGrid(8))


@pytest.fixture(autouse=True)
def _numpy(monkeypatch):
    """Leaves "auto" to numpy, whatever other tests have loaded; numba's turn is in test_compiled.py."""
    monkeypatch.setattr(compiled, "_LOADED", {})


LARGE = [(70_001,), (300, 301), (9000, 10), (10, 9000), (40, 3, 700), (3, 40, 5, 160)]


def same(found, wanted):
    return found.dtype == wanted.dtype and found.shape == wanted.shape and bits_of(found) == bits_of(wanted)


def check(x, params, **how):
    codes, fake, counts = expected(x, params)
    found, met = blocked.quantize(x, params, **how)
    assert same(found, codes)
    assert met == counts
    found, met = blocked.fake_quantize(x, params, **how)
    assert same(found, fake)
    assert met == counts
    with np.errstate(over="ignore"):
        reals = blocked.dequantize(codes, params, **how)
    finite = ~np.isnan(fake.astype(np.float32))
    assert reals.dtype == np.float32
    with np.errstate(over="ignore"):
        assert np.array_equal(reals.astype(fake.dtype)[finite], fake[finite])
    bits = params.grid.bits if isinstance(params.grid, IntGrid) else params.grid.index_bits
    packed, met = blocked.quantize_packed(x, params, **how)
    assert np.array_equal(packed, pack(codes, bits))
    assert met == counts
    threads = {name: value for name, value in how.items() if name != "block"}
    assert same(blocked.dequantize_packed(packed, x.shape, params, **threads), blocked.dequantize(codes, params))


@given(shapes, st.sampled_from(DTYPES), st.integers(0, 2**32), st.data())
def test_small_arrays_of_any_bits_are_those_of_the_formula(shape, dtype, seed, data):
    for x in forms(random_bits(np.random.default_rng(seed), shape, dtype)):
        check(x, data.draw(how_to(x.shape)))


@given(st.sampled_from(LARGE), st.sampled_from(DTYPES), st.integers(0, 2**32), st.integers(1, 3), st.data())
@settings(max_examples=25)
def test_large_arrays_of_any_bits_are_those_of_the_formula(shape, dtype, seed, num_threads, data):
    x = data.draw(st.sampled_from(list(forms(random_bits(np.random.default_rng(seed), shape, dtype)))))
    x.flags.writeable = False
    check(x, data.draw(how_to(x.shape)), num_threads=num_threads, body="numpy")


@given(st.sampled_from([(), (0,), (3, 0, 2), (1,), (1, 1)]), st.sampled_from(DTYPES), st.data())
def test_scalars_and_empty_arrays_keep_their_shape(shape, dtype, data):
    check(np.ones(shape, dtype), data.draw(how_to(shape)))


@pytest.mark.parametrize("grid", [IntGrid(8), IntGrid(8, signed=False), IntGrid(3), LutGrid([-7, 1, 5])])
def test_every_float16_and_bfloat16(grid):
    for dtype in (np.float16, ml_dtypes.bfloat16):
        check(np.arange(2**16, dtype=np.uint16).view(dtype), QParams(0.37, 0, grid))


@pytest.mark.parametrize("zero_point", [-3, 0, 2])
def test_ties_go_to_even_before_the_zero_point_is_added(zero_point):
    x = np.arange(-40_000, 40_000, dtype=np.float32) * np.float32(0.5)
    for bits in (4, 8, 16):
        check(x, QParams(1.0, zero_point, IntGrid(bits)))


def test_clipped_are_codes_off_the_grid_and_not_those_that_round_onto_it():
    x = np.float32([127.49, 127.5, -128.5, -128.51, np.inf, -np.inf, np.nan, 3e38])
    codes, counts = blocked.quantize(x, QParams(1.0, 0, IntGrid(8)))
    assert codes.tolist() == [127, 127, -128, -128, 127, -128, 0, 127]
    assert counts == (5, 1, 2)
    assert blocked.quantize(np.array([1e300]), QParams(1.0, 0, IntGrid(8)))[1] == (1, 0, 1)
    assert all(type(count) is int for count in counts)


@given(shapes, st.sampled_from(DTYPES), st.integers(0, 2**32), st.data())
def test_minmax_is_that_of_the_finite_values(shape, dtype, seed, data):
    for x in forms(random_bits(np.random.default_rng(seed), shape, dtype)):
        granularity = data.draw(how_to(x.shape)).granularity
        with np.errstate(over="ignore", invalid="ignore"):  # of signalling NaN
            narrow, wide = x.astype(np.float32), x.astype(np.float64)
        finite = np.isfinite(narrow)
        lo = granularity.reduce(np.min, np.where(finite, wide, np.inf), np.inf)
        hi = granularity.reduce(np.max, np.where(finite, wide, -np.inf), -np.inf)
        none = lo > hi
        lo[none] = hi[none] = 0
        found = blocked.minmax(x, granularity, num_threads=data.draw(st.integers(1, 2)))
        assert np.array_equal(found[0], lo)
        assert np.array_equal(found[1], hi)
        assert found[2:] == (np.isnan(narrow).sum(), np.isinf(narrow).sum())


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerChannel(1), PerGroup(0, 70, 1)])
def test_minmax_of_a_large_array_in_threads(granularity):
    x = np.random.default_rng(0).standard_normal((700, 800)).astype(np.float32)
    lo, hi, nans, infs = blocked.minmax(x, granularity, num_threads=3)
    assert np.array_equal(lo, granularity.minmax(x)[0])
    assert np.array_equal(hi, granularity.minmax(x)[1])
    assert (nans, infs) == (0, 0)
    empty = blocked.minmax(np.zeros((0, 3)), PerChannel(1))
    assert empty[0].tolist() == empty[1].tolist() == [[0.0] * 3]


def test_outputs_are_written_where_asked_and_keep_the_memory_order():
    x = np.asfortranarray(np.random.default_rng(0).standard_normal((200, 300)), np.float32)
    codes, _ = blocked.quantize(x, INT8)
    assert codes.flags.f_contiguous
    space = np.zeros((200, 600), np.int8)
    found, _ = blocked.quantize(x, INT8, out=space[:, ::2])
    assert found.base is space
    assert np.array_equal(space[:, ::2], codes)
    assert not space[:, 1::2].any()
    for dtype in ("float32", "float16", "bfloat16", "float64"):
        reals = blocked.dequantize(codes, INT8, dtype=dtype)
        out = np.empty_like(reals)
        assert blocked.dequantize(codes, INT8, out=out, dtype=dtype) is out
        assert bits_of(out) == bits_of(blocked.dequantize(codes, INT8).astype(out.dtype))


@pytest.mark.parametrize("size", [100, 100_000])
@pytest.mark.parametrize("grid", [IntGrid(8), LutGrid([-7, 1, 5])])
def test_fake_quantize_in_place_counts_what_was_there(size, grid):
    x = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    x[::10], x[1::10] = np.inf, np.nan
    params = QParams(0.1, 0, grid)
    values, counts = blocked.fake_quantize(x.copy(), params)
    found, met = blocked.fake_quantize(x.copy(), params)
    assert met == counts
    again, met = blocked.fake_quantize(x, params, out=x)
    assert again is x
    assert met == counts
    assert bits_of(x) == bits_of(values) == bits_of(found)


X = np.zeros((4, 6), np.float32)
FROZEN = np.zeros((4, 6), np.int8)
FROZEN.flags.writeable = False


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((4, 6), np.uint8), "dtype int8 and shape .4, 6.; received"),
        (np.zeros((6, 4), np.int8), "dtype int8 and shape .4, 6.; received"),
        ([0], "dtype int8 and shape .4, 6.; received list"),
        (FROZEN, "out to be writable"),
        (X.view(np.int8)[:, :6], "not to overlap the input"),
    ],
)
def test_an_output_that_does_not_fit_is_refused(out, message):
    with pytest.raises(InputError, match=message):
        blocked.quantize(X, INT8, out=out)


def test_an_output_that_is_part_of_the_input_is_refused():
    buffer = np.zeros(100, np.float32)
    with pytest.raises(InputError, match="not to overlap"):
        blocked.fake_quantize(buffer[:-1], INT8, out=buffer[1:])
    blocked.fake_quantize(buffer[::2], INT8, out=buffer[1::2])  # beside each other
    with pytest.raises(InputError, match="writable and apart"):
        blocked.quantize_packed(buffer, INT8, out=buffer.view(np.uint8)[:100])
    with pytest.raises(InputError, match=r"uint8 and shape \(50,\)"):
        blocked.quantize_packed(buffer, QParams(1.0, 0, IntGrid(4)), out=np.zeros(51, np.uint8))


@pytest.mark.parametrize("x", [np.zeros(3, complex), np.array(["a"]), np.array([None]), np.zeros(2, "f4,i4")])
def test_what_is_no_array_of_real_numbers_is_refused(x):
    for call in (blocked.quantize, blocked.fake_quantize, blocked.quantize_packed):
        with pytest.raises(InputError, match="array of real numbers; received dtype="):
            call(x, INT8)
    with pytest.raises(InputError, match="real numbers"):
        blocked.minmax(x, PerTensor())
    with pytest.raises(InputError, match="integer codes; received dtype="):
        blocked.dequantize(x, INT8)


@pytest.mark.parametrize("size", [10, 100_000])
def test_other_arguments_that_are_off_are_refused(size):
    x = np.zeros(size, np.float32)
    for call in (blocked.quantize, blocked.fake_quantize, blocked.quantize_packed):
        with pytest.raises(InputError, match="body to be 'auto', 'numpy' or 'numba'; received body='cuda'"):
            call(x, INT8, body="cuda")
        with pytest.raises(InputError, match="expected scales of shape"):
            call(x, QParams([1.0, 2.0], 0, IntGrid(8), PerChannel(0)))
        with pytest.raises(InputError, match="num_threads"):
            call(x, INT8, num_threads=0)
    with pytest.raises(InputError, match="codes from 0 to 2; received"):
        blocked.dequantize(np.full(size, 3, np.uint8), QParams(1.0, 0, LutGrid([0, 1, 5])))


def peak(action):
    """The most bytes that an action takes at a time."""
    action()
    gc.collect()
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "granularity", [PerTensor(), PerChannel(0), PerChannel(1), PerGroup(0, 64, 1), PerGroup(1, 48, 0)]
)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_a_mebibyte_is_all_that_is_taken_beside_the_output(granularity, dtype):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1500, 1000)).astype(dtype)
    own = granularity.param_shape(x.shape)
    params = QParams(np.full(own, 0.03), rng.integers(-3, 3, own), IntGrid(8), granularity)
    int4 = QParams(np.full(own, 0.3), 0, IntGrid(4), granularity)
    codes, values, packed = np.empty(x.shape, np.int8), np.empty_like(x), np.empty(x.size // 2, np.uint8)
    for action in (
        lambda: blocked.quantize(x, params, out=codes),
        lambda: blocked.quantize(x[:, ::-1].T[::2], INT8, out=codes.T[::2]),
        lambda: blocked.fake_quantize(x, params, out=values),
        lambda: blocked.dequantize(codes, params, out=values, dtype=dtype),
        lambda: blocked.quantize_packed(x, int4, out=packed),
        lambda: blocked.dequantize_packed(packed, x.shape, int4, out=values, dtype=dtype),
    ):
        assert peak(action) < 2**20
    assert peak(lambda: blocked.minmax(x, granularity)) < 2**20 + 2 * 8 * params.scale.size


def test_a_file_mapped_to_memory_is_quantized_as_it_is(tmp_path):
    x = np.random.default_rng(0).standard_normal((300, 400)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    out = np.lib.format.open_memmap(tmp_path / "codes.npy", "w+", np.int8, x.shape)
    blocked.quantize(mapped, INT8, out=out)
    out.flush()
    assert np.array_equal(np.load(tmp_path / "codes.npy"), blocked.quantize(x, INT8)[0])
    assert type(blocked.quantize(mapped, INT8)[0]) is np.ndarray


def test_calls_of_many_threads_do_not_mix():
    rng = np.random.default_rng(0)
    tasks = [
        (rng.standard_normal(50_000).astype(np.float32) * (i + 1), QParams(0.01 * (i + 1), 0, IntGrid(8)))
        for i in range(6)
    ]
    wanted = [blocked.quantize(*task) for task in tasks]
    wrong = []

    def run(i):
        for _ in range(10):
            codes, counts = blocked.quantize(*tasks[i])
            if counts != wanted[i][1] or not np.array_equal(codes, wanted[i][0]):
                wrong.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@given(
    st.sampled_from([(70_001,), (5000, 30), (7, 9001), (30, 40, 60)]), st.integers(1, 16), st.integers(1, 3), st.data()
)
@settings(max_examples=30)
def test_packed_codes_are_the_codes_packed(shape, bits, num_threads, data):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    params = data.draw(how_to(shape, tables=False))
    grid = IntGrid(bits)
    params = QParams(params.scale, np.clip(params.zero_point, grid.qmin, grid.qmax), grid, params.granularity)
    packed, counts = blocked.quantize_packed(x, params, num_threads=num_threads)
    codes, met = blocked.quantize(x, params)
    assert np.array_equal(packed, pack(codes, bits))
    assert counts == met
    out = np.empty(packed_nbytes(x.size, bits), np.uint8)
    assert blocked.quantize_packed(x, params, out=out)[0] is out
    assert np.array_equal(out, packed)
