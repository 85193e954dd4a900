"""Media types: which bytes are an array, and which a client wants."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from qi.errors import FileFormatError, UnsupportedError
from qi.service.formats import (
    ARROW,
    FORMATS,
    JSON,
    NPY,
    SAFETENSORS,
    ArrayResponse,
    Limits,
    available,
    format_of,
    media_type_of,
    negotiate,
)
from qi.service.problems import Problem
from tests.service.asgi import sent_by

DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]
DEFAULT = Limits()


def encoded(array: np.ndarray, name: str) -> bytes:
    return b"".join(FORMATS.get(name).encode(array))


def decoded(data: bytes, name: str, limits: Limits = DEFAULT) -> np.ndarray:
    return FORMATS.get(name).decode(data, limits)


def tensors(header: object, data: bytes = b"\0" * 4) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (5,), (2, 3, 4)])
def test_what_is_encoded_is_decoded(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=int).reshape(shape).astype(dtype)
    read = decoded(encoded(array, name), name)
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype
    assert read.shape == shape
    assert read.flags.c_contiguous
    assert not read.flags.writeable


@pytest.mark.parametrize("name", FORMATS)
def test_other_orders_of_bytes_and_axes_keep_their_values(name: str) -> None:
    array = np.asfortranarray(np.arange(6, dtype="<f4").reshape(2, 3))
    np.testing.assert_array_equal(decoded(encoded(array, name), name), array)
    np.testing.assert_array_equal(decoded(encoded(array.astype(">f4"), name), name), array)


def test_safetensors_are_those_of_the_library() -> None:
    library = pytest.importorskip("safetensors.numpy")
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(library.load(encoded(array, SAFETENSORS))["data"], array)
    np.testing.assert_array_equal(decoded(library.save({"x": array}, {"note": "y"}), SAFETENSORS), array)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\1",
        struct.pack("<Q", 0),
        struct.pack("<Q", 1 << 62) + b"{}",
        tensors({"x": tensor(), "pad": "y" * 5000}),
        tensors(b"{"),
        tensors(b"[" * 4000),
        tensors([]),
        tensors({}),
        tensors({"x": 1}),
        tensors({"x": tensor(), "y": tensor()}),
        tensors({"x": tensor("BF16")}),
        tensors({"x": tensor(["F32"])}),
        tensors({"x": tensor(shape="1")}),
        tensors({"x": tensor(shape=[True])}),
        tensors({"x": tensor(shape=[-1], offsets=[0, -4])}),
        tensors({"x": tensor(shape=[1.0])}),
        tensors({"x": tensor(offsets=[0, 8])}),
        tensors({"x": tensor(offsets=[4, 8])}, b"\0" * 8),
        tensors({"x": tensor(offsets=None)}),
        tensors({"x": tensor()}, b""),
        tensors({"x": tensor()}, b"\0" * 5),
        tensors({"x": tensor(shape=[1 << 40], offsets=[0, 4 << 40])}),
        tensors({"x": tensor(shape=[0, 1 << 60], offsets=[0, 0])}, b""),
        tensors({"x": tensor(shape=[1] * 9)}),
    ],
)
def test_damaged_safetensors_are_one_error(data: bytes) -> None:
    with pytest.raises(FileFormatError, match=r"expected .*; received"):
        decoded(data, SAFETENSORS)


def test_every_changed_byte_of_an_arrow_message_is_an_array_or_one_error() -> None:
    pytest.importorskip("pyarrow")
    data = encoded(np.arange(6, dtype=np.float32).reshape(2, 3), ARROW)
    outcomes = set()
    for index in range(len(data)):
        for value in (0x00, 0x7F, 0xFF):
            changed = data[:index] + bytes([value]) + data[index + 1 :]
            try:
                outcomes.add(decoded(changed, ARROW).ndim)
            except FileFormatError:
                outcomes.add("refused")
    assert outcomes == {2, "refused"}
    for length in range(0, len(data), 7):
        with pytest.raises(FileFormatError):
            decoded(data[:length], ARROW)


def test_an_arrow_tensor_that_repeats_its_bytes_is_refused() -> None:
    arrow = pytest.importorskip("pyarrow")
    wide = arrow.Tensor.from_numpy(np.broadcast_to(np.float32(1), (1000, 1000)))
    sink = arrow.BufferOutputStream()
    arrow.ipc.write_tensor(arrow.Tensor.from_numpy(np.zeros((2, 2), np.float32)), sink)
    strides = struct.pack("<qq", 8, 4)
    data = sink.getvalue().to_pybytes()
    assert strides in data
    assert not wide.is_contiguous
    with pytest.raises(FileFormatError, match="other strides"):
        decoded(data.replace(strides, struct.pack("<qq", 0, 0)), ARROW)


@pytest.mark.parametrize("name", FORMATS)
def test_limits_hold_for_every_format(name: str) -> None:
    data = encoded(np.zeros((2, 3), np.float32), name)
    assert decoded(data, name, Limits(6, 2)).shape == (2, 3)
    for limits in (Limits(5, 2), Limits(6, 1)):
        with pytest.raises(FileFormatError, match="at most"):
            decoded(data, name, limits)


@pytest.mark.parametrize("name", FORMATS)
def test_complex_numbers_are_not_sent(name: str) -> None:
    with pytest.raises(UnsupportedError, match="dtype=complex64"):
        encoded(np.zeros(2, np.complex64), name)


def test_the_format_of_a_body() -> None:
    assert format_of(" Application/X-NPY ; a=b").media_type == NPY
    assert media_type_of(None) == ""
    for received in (None, "", "text/csv", "application/json", "\x7f" * 300):
        with pytest.raises(Problem) as caught:
            format_of(received)
        assert caught.value.status_code == 415
        assert NPY in caught.value.detail
        assert len(caught.value.detail) < 800


def test_a_format_whose_package_is_missing_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qi.service.formats._installed", lambda module: module != "pyarrow")
    assert ARROW not in available()
    assert NPY in available()
    for ask, status in ((format_of, 415), (lambda name: negotiate(name, (JSON, *available())), 406)):
        with pytest.raises(Problem) as caught:
            ask(ARROW)
        assert caught.value.status_code == status
        assert "pip install 'quantizers-infrastructure[arrow]'" in caught.value.detail


def test_the_forms_that_there_are_are_told() -> None:
    with pytest.raises(Problem, match="multipart/form-data") as caught:
        format_of("text/plain")
    assert "pip install" not in caught.value.detail


OFFERED = [JSON, NPY, SAFETENSORS]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, JSON),
        ("", JSON),
        (" ", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        (NPY, NPY),
        (NPY.upper(), NPY),
        (f"{NPY};q=0.2, {JSON};q=0.1", NPY),
        (f"{NPY};q=0.2, */*;q=0.1", NPY),
        (f"{NPY}, */*", JSON),
        (f"{JSON};q=0, */*", NPY),
        (f"{JSON};q=0, application/*;q=0.5", NPY),
        (f"{NPY};q=1.000;v=2", NPY),
        (f"{NPY};q=7, {JSON};q=0.001", JSON),
        (f"text/html, {SAFETENSORS} ; Q=0.9", SAFETENSORS),
        (f"{JSON}, {NPY}", JSON),
    ],
)
def test_negotiation(accept: str | None, expected: str) -> None:
    assert negotiate(accept, OFFERED) == expected


@pytest.mark.parametrize(
    "accept", ["text/html", "*/json", f"{JSON};q=0", f"{JSON};q=nan", ",;,", "image/*", "x/y," * 200 + JSON]
)
def test_what_nobody_takes_is_406(accept: str) -> None:
    with pytest.raises(Problem) as caught:
        negotiate(accept, OFFERED)
    assert caught.value.status_code == 406


def test_the_response_is_the_file_in_pieces(readonly) -> None:
    array = readonly(np.arange(600_000), np.float64)
    app = FastAPI()

    @app.get("/")
    async def get() -> ArrayResponse:
        return ArrayResponse(array, NPY, {"QI-Scale": "1"})

    with TestClient(app) as client:
        answer = client.get("/")
    np.testing.assert_array_equal(np.load(io.BytesIO(answer.content)), array)
    assert answer.headers["content-type"] == NPY
    assert answer.headers["qi-scale"] == "1"
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_few_bytes_are_one_message_and_many_are_pieces() -> None:
    few, many = (sent_by(ArrayResponse(np.zeros(size, np.int8), NPY)) for size in (1000, 3 << 20))
    assert len(few) == 2
    assert np.load(io.BytesIO(few[1]["body"])).shape == (1000,)
    assert max(len(message.get("body", b"")) for message in many) == 1 << 20
