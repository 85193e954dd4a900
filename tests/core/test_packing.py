from __future__ import annotations

import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.core.packing import Packer, pack, packed_nbytes, unpack
from qi.errors import InputError


def stream_of(codes, bits):
    """Oracle: the whole stream as one Python integer, code i shifted up by i * bits."""
    number = sum((int(code) % 2**bits) << (i * bits) for i, code in enumerate(codes))
    return number.to_bytes(-(-len(codes) * bits // 8), "little")


@st.composite
def streams(draw):
    bits, signed = draw(st.integers(1, 16)), draw(st.booleans())
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    codes = draw(st.lists(st.integers(lowest, highest) | st.sampled_from([lowest, highest]), max_size=40))
    return codes, bits, signed


@given(streams(), st.sampled_from(["int32", "int64"]))
def test_bytes_are_the_documented_bit_stream_and_come_back(stream, dtype):
    codes, bits, signed = stream
    packed = pack(np.array(codes, dtype), bits)
    assert packed.dtype == np.uint8
    assert packed.tobytes() == stream_of(codes, bits)
    assert packed.size == packed_nbytes(len(codes), bits)
    back = unpack(packed, bits, (len(codes),), signed=signed)
    assert back.tolist() == codes
    assert back.dtype == f"{'' if signed else 'u'}int{8 if bits <= 8 else 16}"


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("signed", [True, False])
def test_every_code_of_every_width_comes_back(bits, signed):
    lowest = -(2 ** (bits - 1)) if signed else 0
    codes = np.arange(lowest, lowest + 2**bits)
    assert np.array_equal(unpack(pack(codes, bits), bits, codes.shape, signed=signed), codes)


def test_the_low_nibble_comes_first():
    assert pack(np.int8([0x1, 0x2, 0x3]), 4).tolist() == [0x21, 0x03]
    assert pack(np.int8([-1, 0]), 4).tolist() == [0x0F]
    assert pack(np.uint8([1, 0, 0, 0, 0, 0, 0, 1, 1]), 1).tolist() == [0b10000001, 0b00000001]


def test_whole_bytes_are_plain_little_endian_integers():
    codes = np.arange(-128, 128)
    assert pack(codes, 8).tobytes() == codes.astype("i1").tobytes()
    wide = np.arange(0, 65536, 37)
    assert pack(wide, 16).tobytes() == wide.astype("<u2").tobytes()


@pytest.mark.parametrize(("kind", "signed"), [(ml_dtypes.int4, True), (ml_dtypes.uint4, False)])
def test_four_bits_are_those_of_ml_dtypes(kind, signed):
    codes = np.arange(16, dtype=np.int8) - 8 * signed
    # One code a byte there: the low half of each byte is the code.
    nibbles = codes.astype(kind).view(np.uint8) & 0xF
    assert pack(codes, 4).tolist() == (nibbles[0::2] | nibbles[1::2] << 4).tolist()
    assert unpack(pack(codes, 4), 4, (16,), signed=signed).astype(kind).tolist() == codes.tolist()


def test_arrays_are_packed_in_c_order_whatever_their_strides(readonly):
    codes = readonly(np.arange(-12, 12).reshape(2, 3, 4) // 2, np.int8)
    for view in (codes, codes.transpose(2, 0, 1), codes[:, ::-1, ::2]):
        packed = pack(view, 4)
        assert packed.tobytes() == stream_of(view.ravel(order="C"), 4)
        packed.flags.writeable = False
        assert np.array_equal(unpack(packed, 4, view.shape, signed=True), view)


def test_byte_order_of_the_machine_plays_no_part():
    codes = np.array([1, -2, 300], ">i4" if sys.byteorder == "little" else "<i4")
    assert pack(codes, 10).tobytes() == stream_of([1, -2, 300], 10)


@pytest.mark.parametrize("bits", [1, 5, 8, 11, 16])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3)])
def test_any_shape_even_an_empty_one_comes_back(bits, shape):
    codes = -np.ones(shape, np.int8)
    back = unpack(pack(codes, bits), bits, shape, signed=True)
    assert back.shape == shape
    assert np.array_equal(back, codes)


@pytest.mark.parametrize(
    ("count", "bits", "nbytes"), [(0, 3, 0), (1, 1, 1), (8, 1, 1), (9, 1, 2), (3, 3, 2), (5, 16, 10)]
)
def test_packed_nbytes(count, bits, nbytes):
    assert packed_nbytes(count, bits) == nbytes


@pytest.mark.parametrize("bits", [0, 17, -1, 4.0, True, None])
def test_a_width_that_is_no_integer_from_1_to_16_is_refused(bits):
    codes = np.zeros(1, np.uint8)
    for call in (
        lambda: packed_nbytes(1, bits),
        lambda: pack(codes, bits),
        lambda: unpack(codes, bits, (1,), signed=True),
    ):
        with pytest.raises(InputError, match=f"bits to be an integer from 1 to 16; received bits={bits}"):
            call()


@pytest.mark.parametrize("dtype", ["float32", "bool", "complex64", "object"])
def test_only_integers_are_packed(dtype):
    with pytest.raises(InputError, match=f"expected integer codes; received dtype={dtype}"):
        pack(np.zeros(3, dtype), 4)


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        ([16], 4, "codes that fit 4 bits; received 16 to 16"),
        ([-9, 0], 4, "codes that fit 4 bits; received -9 to 0"),
        ([-(2**31), 2**31], 16, "codes that fit 16 bits; received -2147483648 to 2147483648"),
        ([-1, 8], 4, "codes all signed or all unsigned; received -1 to 8 for 4 bits"),
    ],
)
def test_codes_that_do_not_fit_are_refused(codes, bits, message):
    with pytest.raises(InputError, match=message):
        pack(np.array(codes, np.int64), bits)


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (np.zeros(2, np.uint8), (3, 2)),
        (np.zeros(4, np.uint8), (3, 2)),
        (np.zeros(3, np.int8), (3, 2)),
        (np.zeros((1, 3), np.uint8), (3, 2)),
        (np.zeros(0, np.uint8), (2**32, 2**32)),  # the product is 0 in 64 bits
    ],
)
def test_bytes_that_do_not_fit_the_shape_are_refused(data, shape):
    with pytest.raises(InputError, match=rf"expected \d+ bytes for .* codes of 4 bits; received {data.size} of dtype"):
        unpack(data, 4, shape, signed=True)


@pytest.mark.parametrize("shape", [(-1,), (-2, -4)])
def test_a_negative_size_is_refused(shape):
    with pytest.raises(InputError, match="without negative sizes"):
        unpack(np.zeros(max(0, int(np.prod(shape)) // 2), np.uint8), 4, shape, signed=True)


@given(st.integers(1, 16), st.lists(st.integers(0, 20), max_size=8), st.sampled_from(["int8", "int16", "int64"]))
def test_codes_that_come_piece_by_piece_are_packed_as_one(bits, sizes, dtype):
    codes = (np.arange(sum(sizes)) % 2 ** (min(bits, 8) - 1)).astype(dtype)
    packer = Packer(bits, np.empty(packed_nbytes(codes.size, bits), np.uint8))
    for piece in np.split(codes, np.cumsum(sizes)[:-1]) if sizes else []:
        packer.add(piece)
    assert packer.finish().tobytes() == stream_of(codes, bits)


@pytest.mark.parametrize("bits", range(1, 17))
def test_large_arrays_take_a_mebibyte_beside_the_result(bits):
    codes = np.random.default_rng(0).integers(0, 2**bits, 300_007).astype("uint8" if bits <= 8 else "uint16")
    packed = pack(codes, bits)
    assert packed[: 1000 * bits].tobytes() == stream_of(codes[:8000], bits)
    assert np.array_equal(unpack(packed, bits, codes.shape, signed=False), codes)
    signed = unpack(packed, bits, codes.shape, signed=True)
    assert np.array_equal(pack(signed, bits), packed)
    for action, result in (
        (lambda: pack(codes, bits), packed),
        (lambda: unpack(packed, bits, codes.shape, signed=True), codes),
    ):
        tracemalloc.start()
        action()
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert taken < result.nbytes + 2**20
