from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qi.core import IntGrid, LutGrid, PerChannel, PerGroup, PerTensor, QParams, blocked, compiled, pack
from qi.core.kernels import NumpyKernels
from qi.errors import MissingDependencyError
from tests.core.engine_cases import DTYPES, bits_of, expected, forms, how_to, random_bits

pytestmark = pytest.mark.usefixtures("eager_threads")

pytest.importorskip("numba")

INT8 = QParams(0.05, 3, IntGrid(8))
SHAPES = [(1,), (5, 3), (70_001,), (300, 301), (9000, 10), (10, 9000), (40, 3, 700), (9000, 3, 5), (3, 40, 5, 160)]


@given(st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.integers(0, 2**32), st.integers(1, 3), st.data())
@settings(max_examples=60)
def test_arrays_of_any_bits_are_those_of_the_formula(shape, dtype, seed, num_threads, data):
    x = data.draw(st.sampled_from(list(forms(random_bits(np.random.default_rng(seed), shape, dtype)))))
    x.flags.writeable = False
    params = data.draw(how_to(x.shape))
    codes, fake, counts = expected(x, params)
    found, met = blocked.quantize(x, params, body="numba", num_threads=num_threads)
    assert np.array_equal(found, codes)
    assert met == counts
    values, met = blocked.fake_quantize(x, params, body="numba", num_threads=num_threads)
    assert bits_of(values) == bits_of(fake)
    assert met == counts
    reals = blocked.dequantize(codes, params, body="numba", num_threads=num_threads)
    assert bits_of(reals) == bits_of(blocked.dequantize(codes, params, body="numpy"))
    packed = blocked.quantize_packed(x, params, body="numba", num_threads=num_threads)
    assert np.array_equal(packed[0], blocked.quantize_packed(x, params, body="numpy")[0])
    assert packed[1] == counts


@pytest.mark.parametrize("grid", [IntGrid(8), IntGrid(8, signed=False), IntGrid(16), IntGrid(12, signed=False)])
@pytest.mark.parametrize("scale", [np.finfo(np.float32).tiny, 1.0, 0.1, 3e38])
def test_a_million_random_bits(grid, scale):
    x = random_bits(np.random.default_rng(0), (1_000_000,), np.dtype(np.float32))
    params = QParams(scale, grid.qmin // 2 + 3, grid)
    codes, fake, counts = expected(x, params)
    found, met = blocked.quantize(x, params, body="numba")
    assert np.array_equal(found, codes)
    assert met == counts
    assert bits_of(blocked.fake_quantize(x, params, body="numba")[0]) == bits_of(fake)


@pytest.mark.parametrize(
    ("own", "shape"),
    [
        ((1, 1, 1), (2, 3, 4)),
        ((2, 3, 4), (2, 3, 4)),
        ((1, 3, 4), (2, 3, 4)),
        ((2, 3, 1), (2, 3, 4)),
        ((1, 3, 1), (2, 3, 4)),
        ((1, 3, 1), (2, 3, 100)),
        ((2, 1, 4), (2, 3, 4)),
        ((1, 3, 1, 5), (2, 3, 4, 5)),
        ((2, 1, 4, 1), (2, 3, 4, 5)),
        ((1, 2, 1, 4, 1), (3, 2, 3, 4, 5)),
        ((1, 1, 3), (5, 1, 3)),
    ],
)
@pytest.mark.parametrize("zeros", ["shared", "each"])
def test_parameters_lie_beside_a_tile_in_any_way(own, shape, zeros):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    s = rng.uniform(0.01, 0.1, own).astype(np.float32)
    z = rng.integers(-9, 9, own).astype(np.float32) if zeros == "each" else None
    kernels = compiled.CompiledKernels(IntGrid(8), 5 if z is None else None)
    codes, plain = np.empty(shape, np.int8), NumpyKernels(IntGrid(8), 5 if z is None else None)
    wanted = np.empty(shape, np.int8)
    assert kernels.quantize(x, s, z, codes) == plain.quantize(x, s, z, wanted)
    assert np.array_equal(codes, wanted)


def test_codes_of_another_type_and_misaligned_arrays_are_read_too():
    codes = np.arange(-500, 500, dtype=np.int32)
    assert np.array_equal(blocked.dequantize(codes, INT8, body="numba"), blocked.dequantize(codes, INT8, body="numpy"))
    data = np.random.default_rng(0).standard_normal(1000).astype(np.float32).tobytes()
    x = np.frombuffer(b"." + data, np.float32, offset=1)
    assert not x.flags.aligned
    assert np.array_equal(blocked.quantize(x, INT8, body="numba")[0], blocked.quantize(x, INT8, body="numpy")[0])


def test_in_place_counts_what_was_there():
    x = np.float32([np.nan, np.inf, 99, 0.07] * 50_000)
    wanted, counts = blocked.fake_quantize(x, INT8, body="numpy")
    assert blocked.fake_quantize(x, INT8, out=x, body="numba")[1] == counts
    assert bits_of(x) == bits_of(wanted)


@pytest.mark.parametrize("grid", [IntGrid(4), IntGrid(4, signed=False), IntGrid(2), IntGrid(5), IntGrid(12)])
@pytest.mark.parametrize("size", [7, 8, 400_001])
def test_packing_is_that_of_numpy(grid, size):
    codes = np.random.default_rng(0).integers(grid.qmin, grid.qmax + 1, size).astype(grid.storage_dtype)
    x = codes.astype(np.float32)
    found, _ = blocked.quantize_packed(x, QParams(1.0, 0, grid), body="numba")
    assert np.array_equal(found, pack(codes, grid.bits))


def test_a_table_stays_generic():
    x = np.linspace(-9, 9, 20_000, dtype=np.float32)
    table = QParams(1.0, 0, LutGrid([-7, 1, 5]))
    assert np.array_equal(blocked.quantize(x, table, body="numba")[0], blocked.quantize(x, table, body="numpy")[0])


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1), PerGroup(0, 64, 1), PerGroup(1, 48, 0)])
def test_a_mebibyte_is_all_that_is_taken_beside_the_output(granularity):
    x = np.random.default_rng(0).standard_normal((1500, 1000)).astype(np.float32)
    params = QParams(np.full(granularity.param_shape(x.shape), 0.03), 0, IntGrid(8), granularity)
    int4 = QParams(params.scale, 0, IntGrid(4), granularity)
    codes, values, packed = np.empty(x.shape, np.int8), np.empty_like(x), np.empty(x.size // 2, np.uint8)
    for action in (
        lambda: blocked.quantize_packed(x, int4, out=packed, body="numba"),
        lambda: blocked.quantize(x, params, out=codes, body="numba"),
        lambda: blocked.fake_quantize(x, params, out=values, body="numba"),
        lambda: blocked.dequantize(codes, params, out=values, body="numba"),
        lambda: blocked.quantize(x[:, ::-1].T[::2], INT8, out=codes.T[::2], body="numba"),
    ):
        action()
        tracemalloc.start()
        action()
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert taken < 2**20


def test_auto_takes_what_is_loaded_and_loads_for_a_huge_array(monkeypatch):
    monkeypatch.setattr(compiled, "_LOADED", {})
    monkeypatch.setattr(compiled, "_SEEN", Counter())
    int8 = np.dtype(np.int8)
    assert not compiled.worth("quantize", int8, 1 << 20)
    assert compiled.worth("quantize", int8, 1 << 26)
    compiled.load(IntGrid(8))
    assert compiled.worth("quantize", int8, 1 << 20)
    assert compiled.worth("fake_quantize", np.dtype(np.uint16), 1 << 20)  # it has no codes
    assert not compiled.worth("quantize", int8, 1 << 10)
    assert not compiled.worth("quantize", np.dtype(np.uint16), 1 << 20)


def test_auto_loads_for_many_arrays_that_are_as_much_together(monkeypatch):
    monkeypatch.setattr(compiled, "_LOADED", {})
    monkeypatch.setattr(compiled, "_SEEN", Counter())
    asked = [compiled.worth("quantize", np.dtype(np.int8), 1 << 25) for _ in range(9)]
    assert asked == [False] * 8 + [True]
    assert not compiled.worth("dequantize", np.dtype(np.int8), 1 << 25)


def test_without_numba_auto_is_numpy_and_numba_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(compiled, "_LOADED", {})
    monkeypatch.setattr(compiled, "_installed", lambda: False)
    assert not compiled.worth("quantize", np.dtype(np.int8), 1 << 30)
    with pytest.raises(
        MissingDependencyError, match=r"body='numba' needs numba; do: pip install 'quantizers.*\[fast\]'"
    ):
        blocked.quantize(np.zeros(10, np.float32), INT8, body="numba")


def test_where_no_folder_can_be_written_functions_are_compiled_all_the_same(monkeypatch):
    import numba

    njit, asked = numba.njit, []

    def refuse(signature, **options):
        asked.append(options.get("cache", False))
        if asked[-1]:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(signature, **options)

    monkeypatch.setattr(numba, "njit", refuse)
    made = compiled._compiled(compiled._not_finite, "UniTuple(int32, 2)(float32[::1])")
    assert made(np.float32([np.nan, np.inf, 1, -np.inf])) == (1, 2)
    assert asked == [True, False]


def test_numba_is_imported_by_its_use_alone():
    code = (
        "import sys, numpy as np; from qi.core import *; from qi.core import blocked\n"
        "blocked.quantize(np.zeros(100000, np.float32), QParams(1.0, 0, IntGrid(8)))\n"
        "sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
