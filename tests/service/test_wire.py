"""The client's side of the protocol: what it writes is what the server reads, and what it reads is what was meant."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from qi.errors import FileFormatError, UnsupportedError
from qi.service.oip import InferRequest, decode_request, encode_response
from qi.service.wire import DATATYPES, array_of, bytes_of, datatype_of, decode_response, encode_request, padded

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


def answer(**outputs: np.ndarray) -> tuple[bytearray, int]:
    parts, length = encode_response("m", "1", outputs, InferRequest({}, binary=True), {"num_bits": 8})
    assert length is not None
    return bytearray(b"".join(parts)), length


@pytest.mark.parametrize("name", DATATYPES)
@given(shape=SHAPES)
def test_requests_and_answers_arrive_as_they_were_sent(name: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(DATATYPES[name])
    parts, length = encode_request({"a": np.ones(3), "x": array}, {"operation": "quantize"})
    request = decode_request(b"".join(parts), length)
    assert request.parameters["operation"] == "quantize"
    assert request.wanted(["q"]) == {"q": True}
    outputs, parameters = decode_response(*answer(a=np.ones(3), x=array))
    assert parameters == {"num_bits": 8}
    for arrays in (request.inputs, outputs):
        assert arrays["x"].shape == shape
        assert arrays["x"].dtype == array.dtype
        assert arrays["x"].flags.aligned
        assert arrays["x"].tobytes() == array.tobytes()


def test_order_and_byte_order_are_brought_to_the_protocols() -> None:
    array = np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3))
    parts, length = encode_request({"x": array})
    assert decode_request(b"".join(parts), length).inputs["x"].tolist() == array.tolist()


def test_an_array_in_order_isnt_copied() -> None:
    array = np.arange(4, dtype=np.float32)
    assert np.shares_memory(np.asarray(bytes_of(array)), array)
    assert np.shares_memory(array_of(bytes_of(array), array.dtype, (2, 2)), array)


def test_arrays_of_an_answer_can_be_written_to() -> None:
    outputs, _ = decode_response(*answer(q=np.int8([1, 2])))
    outputs["q"] += 1
    assert outputs["q"].tolist() == [2, 3]


def test_bytes_that_are_neither_0_nor_1_are_true() -> None:
    assert array_of(memoryview(b"\x00\x02\xff"), np.dtype("?"), (3,)).tolist() == [False, True, True]


def test_what_follows_a_header_is_aligned_and_the_header_is_still_json() -> None:
    assert len(padded(b"{}")) == 16
    assert json.loads(padded(b"{}")) == {}


@pytest.mark.parametrize("dtype", ["complex64", "U3", "O", ml_dtypes.int4])
def test_dtypes_without_a_name_are_refused(dtype: str) -> None:
    with pytest.raises(UnsupportedError, match="expected a dtype of"):
        datatype_of(np.dtype(dtype))


def test_damaged_answers_are_refused() -> None:
    body, length = answer(q=np.int8([1, 2]), s=np.ones(1))
    for damaged, end in (
        (body[:-1], length),  # too short
        (body + b"\0", length),  # too long
        (body, length - 20),  # the header ends early
        (body, 0),
        (bytearray(b"[]"), 2),
        (bytearray(b'{"outputs": [{}]}'), 17),
        (body.replace(b'"shape":[2]', b'"shape":[3]'), length),
        (body.replace(b"INT8", b"INT9"), length),
    ):
        with pytest.raises(FileFormatError, match="Open Inference Protocol"):
            decode_response(damaged, end)
