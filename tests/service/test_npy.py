"""The reader of uploads: what is right comes out with the right values, everything else is one FileFormatError."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from qi.errors import FileFormatError, UnsupportedError
from qi.service.npy import check_shape, npy_parts, read_npy, write_npy

DTYPES = [f"{order}{kind}" for order in "<>" for kind in ("f2", "f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8")]


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def npy(header: str, data: bytes = b"\0" * 4, version: tuple[int, int] = (1, 0)) -> bytes:
    text = header.encode("latin-1")
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + data


def described(descr: str = "'<f4'", shape: str = "(1,)", data: bytes = b"\0" * 4, order: str = "False") -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n", data)


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", b"\0" * 1_000_000)
    return file.getvalue()


GOOD = saved(np.arange(4, dtype=np.float32))
ATTACKS = {
    # not the format
    "empty file": b"",
    "text": b"1,2,3\n",
    "zip named npy": zipped(),
    "bare pickle": b"\x80\x04K\x01.",
    "magic alone": GOOD[:6],
    "no header length": GOOD[:8],
    "half a header": GOOD[:40],
    "version 3.0": GOOD[:6] + b"\x03\x00" + GOOD[8:],
    "version 9.9": GOOD[:6] + b"\x09\x09" + GOOD[8:],
    # the length
    "truncated data": GOOD[:-1],
    "no data": GOOD[:-16],
    "trailing byte": GOOD + b"\0",
    "trailing megabyte": GOOD + b"\0" * 1_000_000,
    # shapes that lie
    "1e9 elements of 4 bytes": described(shape="(1000000000,)"),
    "4e9 elements of 4 bytes": described(shape="(4000000000,)"),
    "1e12 elements": described(shape="(1000000000000,)"),
    "product overflows to 0": described(shape="(4294967296, 4294967296)", data=b""),
    "dimension of 300 digits": described(shape=f"({'9' * 300},)"),
    "negative dimension": described(shape="(-1,)"),
    "two negative dimensions": described(shape="(-2, -2)"),
    "dimension True": described(shape="(True,)"),
    "dimension 1.0": described(shape="(1.0,)"),
    "shape without a comma": described(shape="(1)"),
    "shape of a comma": described(shape="(,)"),
    "shape of a list": described(shape="[1]"),
    "100 dimensions": described(shape=f"({'1, ' * 100})"),
    "60 dimensions": described(shape=f"({'1, ' * 60})"),
    "9 dimensions": described(shape=f"({'1, ' * 9})"),
    "zero by 1e18": described(shape="(0, 1000000000000000000)", data=b""),
    "zero size V0 times 1e9": described("'|V0'", "(1000000000,)", b""),
    "zero size S0 times 1e9": described("'|S0'", "(1000000000,)", b""),
    # dtypes
    "objects": described("'|O'", data=b"\x80\x04K\x01."),
    "objects in a structure": described("[('a', '|O')]", data=b"\x80\x04K\x01."),
    "structure": described("[('a', '<f4')]"),
    "subarray": described("('<f4', (2,))", data=b"\0" * 8),
    "bytes": described("'|S4'"),
    "text dtype": described("'<U1'"),
    "void": described("'|V4'"),
    "datetime": described("'<M8[s]'", data=b"\0" * 8),
    "complex": described("'<c8'", data=b"\0" * 8),
    "long double": described("'<f16'", data=b"\0" * 16),
    "float without an order": described("'f4'"),
    "float of no order": described("'|f4'"),
    # headers that attack a parser of Python
    "header of code": npy("__import__('os').getcwd()\n"),
    "9000 parentheses": npy("(" * 9000 + ")" * 9000 + "\n"),
    "2000 parentheses": npy("{'descr': " + "(" * 1000 + ")" * 1000 + "}\n"),
    "unary chain": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "-" * 3000 + "1,)}\n"),
    "header of 5 megabytes": npy("{'descr': '<f4'" + " " * 5_000_000 + "}", version=(2, 0)),
    "header length of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"{",
    "header without a brace": npy("'descr': '<f4', 'fortran_order': False, 'shape': (1,), }\n"),
    "header without an end": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), \n"),
    "text after the header": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), } 1\n"),
    "missing key": npy("{'descr': '<f4', 'shape': (1,), }\n"),
    "extra key": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1, }\n"),
    "key twice": npy("{'descr': '<f4', 'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"),
    "order 1": described(order="1"),
    "order as text": described(order="'False'"),
    "shape as text": described(shape="'(1,)'"),
    "descr as flag": described("True"),
    "NUL bytes": npy("\0" * 100),
    "not ASCII": npy("{'descr': '<f4', 'fortran_order': False, 'shape': (\xb2,), }\n"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_one_error_and_no_memory(name: str) -> None:
    data = ATTACKS[name]
    tracemalloc.start()
    try:
        with pytest.raises(FileFormatError, match=r"expected .*; received"):
            read_npy(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200_000  # nothing of the size that the header claims


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_every_truncation_is_refused(length: int) -> None:
    with pytest.raises(FileFormatError):
        read_npy(GOOD[:length])


PIECES = [
    "{",
    "}",
    "(",
    ")",
    ",",
    ":",
    " ",
    "'descr'",
    "'fortran_order'",
    "'shape'",
    "'<f4'",
    "'|O'",
    "False",
    "1",
    "-1",
]


@given(pieces=st.lists(st.sampled_from(PIECES), max_size=20), raw=st.binary(max_size=50))
def test_any_header_gives_an_array_or_the_one_error(pieces: list[str], raw: bytes) -> None:
    with contextlib.suppress(FileFormatError):
        assert isinstance(read_npy(npy("".join(pieces) + raw.decode("latin-1"))), np.ndarray)


@pytest.mark.parametrize("dtype", [*DTYPES, "|i1", "|u1", "|b1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_values_of_every_dtype_and_order(dtype: str, order: str) -> None:
    array = np.array((np.arange(24) % 7).reshape(2, 3, 4), dtype=dtype, order=order)  # type: ignore[call-overload]
    read = read_npy(saved(array))
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype.newbyteorder("=")
    assert read.dtype.isnative
    assert read.flags.c_contiguous
    assert read.flags.aligned
    assert not read.flags.writeable


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (1,) * 8])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, np.int16)
    assert read_npy(saved(array)).shape == shape
    assert np.load(io.BytesIO(write_npy(array))).shape == shape


def test_headers_of_other_writers() -> None:
    for header in (
        '{"shape":(2,),"fortran_order":False,"descr":"<i2"}',
        "{'descr': '<i2', 'fortran_order': False, 'shape': (2L,)}   \n",
    ):
        np.testing.assert_array_equal(read_npy(npy(header, b"\1\0\2\0")), [1, 2])  # unaligned data too
        np.testing.assert_array_equal(read_npy(npy(header, b"\1\0\2\0", version=(2, 0))), [1, 2])


def test_a_byte_that_is_neither_true_nor_false_is_true() -> None:
    read = read_npy(described("'|b1'", "(3,)", b"\x00\x01\x02"))
    assert read.view(np.uint8).tolist() == [0, 1, 1]


def test_the_array_is_a_view_of_the_file() -> None:
    assert read_npy(GOOD).base is not None
    assert np.shares_memory(read_npy(GOOD), np.frombuffer(GOOD, np.uint8))


def test_limits() -> None:
    assert read_npy(GOOD, max_elements=4).size == 4
    with pytest.raises(FileFormatError, match="at most 3 elements"):
        read_npy(GOOD, max_elements=3)
    with pytest.raises(FileFormatError, match="at most 0 dimensions"):
        read_npy(GOOD, max_ndim=0)
    with pytest.raises(FileFormatError, match="at most 4 elements"):
        check_shape((0, 5), max_elements=4)
    check_shape((0, 4), max_elements=4)


@given(array=hnp.arrays(hnp.scalar_dtypes().filter(lambda d: d.kind in "fiub" and d.itemsize <= 8), hnp.array_shapes()))
def test_numpy_reads_what_is_written_and_the_reader_what_numpy_writes(array: np.ndarray) -> None:
    np.testing.assert_array_equal(np.load(io.BytesIO(write_npy(array))), array)
    np.testing.assert_array_equal(read_npy(saved(array)), array)
    np.testing.assert_array_equal(read_npy(write_npy(array)), array)


def test_nothing_is_copied_where_nothing_changes(readonly) -> None:
    array = readonly([[1.0, 2.0]], np.float32)
    head, body = npy_parts(array)
    assert np.shares_memory(np.frombuffer(body, np.uint8), array)
    assert len(head) % 64 == 0
    assert head + body == saved(array)


@pytest.mark.parametrize("dtype", [object, np.complex64, "S3", "V4", "M8[s]", [("a", "f4")]])
def test_other_arrays_are_not_written(dtype: object) -> None:
    with pytest.raises(UnsupportedError, match="dtype"):
        write_npy(np.zeros(2, dtype))  # type: ignore[call-overload]
