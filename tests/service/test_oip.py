"""The protocol's bodies: JSON and binary give the same arrays, and what isn't right is one kind of error."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from qi.errors import InputError, UnsupportedError
from qi.service.costs import parsed_bytes
from qi.service.oip import MAX_HEADER, InferRequest, decode_request, encode_response


def body(data: Any = None, tail: bytes = b"", **changes: Any) -> tuple[bytes, int | None]:
    """A request of one tensor of two numbers, changed."""
    tensor = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2] if data is None else data} | changes
    text = json.dumps({"inputs": [{k: v for k, v in tensor.items() if v is not ...}]}).encode()
    return text + tail, len(text) if tail else None


def test_json_flat_or_nested_gives_the_array() -> None:
    for data in ([1, 2.5, -3, 4], [[1, 2.5], [-3, 4]]):
        (array,) = decode_request(*body(data, shape=[2, 2])).inputs.values()
        assert array.dtype == np.float32
        assert array.tolist() == [[1, 2.5], [-3, 4]]


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BOOL", [True, False]),
        ("UINT64", [2**64 - 1, 2**63]),
        ("INT64", [-(2**63), 5]),
        ("FP16", [0.5, 2]),
        ("BF16", [1, 3]),
    ],
)
def test_json_gives_every_datatype_exactly(datatype: str, data: list[Any]) -> None:
    assert decode_request(*body(data, datatype=datatype)).inputs["x"].tolist() == data


def test_numbers_beyond_float32_are_infinite_for_the_quantizer_to_judge() -> None:
    assert decode_request(*body([1e300, 1])).inputs["x"].tolist() == [np.inf, 1]


def test_empty_tensors() -> None:
    assert decode_request(*body([], shape=[0])).inputs["x"].shape == (0,)
    assert decode_request(*body([7], shape=[])).inputs["x"].shape == ()


BINARY = {"data": ..., "parameters": {"binary_data_size": 8}}
WRONG = {
    "no json": (b"{", None),
    "a list": (b"[]", None),
    "no inputs": (b"{}", None),
    "inputs of another kind": (b'{"inputs": {}}', None),
    "too many inputs": (json.dumps({"inputs": [{"name": str(i)} for i in range(17)]}).encode(), None),
    "an input of another kind": (b'{"inputs": [1]}', None),
    "deep nesting": (b'{"inputs": ' + b"[" * 2000 + b"]" * 2000 + b"}", None),
    "a name twice": (json.dumps({"inputs": 2 * json.loads(body()[0])["inputs"]}).encode(), None),
    "id of another kind": (b'{"id": 1, "inputs": []}', None),
    "parameters of another kind": (b'{"parameters": [], "inputs": []}', None),
    "header length beyond the body": (body()[0], 1000),
    "header length negative": (body()[0], -1),
    "header too long": (b" " * (MAX_HEADER + 1), MAX_HEADER + 1),
    "no name": body(name=...),
    "shape of another kind": body(shape=2),
    "no shape": body(shape=...),
    "negative dimension": body(shape=[-1]),
    "dimension of another kind": body(shape=[2.0]),
    "dimension true": body(shape=[True, 2]),
    "too many dimensions": body(shape=[1] * 9),
    "too many numbers": body(shape=[2**14, 2**14]),
    "an endless empty dimension": body([], shape=[0, 10**18]),
    "shape of other data": body(shape=[3]),
    "data of another shape": body([[1], [2]], shape=[1, 2]),
    "no data": body(data=...),
    "data of another kind": body({"a": 1}),
    "ragged": body([[1], [2, 3]]),
    "text": body(["1", "2"]),
    "null": body([None, 1]),
    "true as a number": body([True, True]),
    "numbers as truth": body([1, 0], datatype="BOOL"),
    "fractions as codes": body([1.5, 2], datatype="INT8"),
    "codes out of range": body([1, 200], datatype="INT8"),
    "codes below range": body([-1, 2], datatype="UINT8"),
    "400 digits": (b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT64","data":[' + b"9" * 400 + b"]}]}", None),
    "binary too short": body(tail=b"1234567", **BINARY),
    "binary too long": body(tail=b"123456789", **BINARY),
    "binary and data": body(tail=b"12345678", parameters={"binary_data_size": 8}),
    "binary of another size": body(tail=b"1234", data=..., parameters={"binary_data_size": 4}),
    "size of another kind": body(tail=b"12345678", data=..., parameters={"binary_data_size": "8"}),
    "bytes that nobody asked for": body(tail=b"1"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused(case: str) -> None:
    with pytest.raises(InputError, match="expected"):
        decode_request(*WRONG[case])


def test_one_long_text_does_not_make_all_numbers_long() -> None:
    """Numpy would take the longest text's memory for every number: here 400 MB, for 100 kB of JSON."""
    text = json.dumps(["a" * 5000, *([1] * 20_000)])
    request = b'{"inputs":[{"name":"x","shape":[20001],"datatype":"FP32","data":%s}]}' % text.encode()
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="expected data of input 'x' to be of FP32"):
            decode_request(request)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < parsed_bytes(request)


def test_lists_that_are_too_deep_for_an_array() -> None:
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    with pytest.raises(InputError, match="expected data"):
        decode_request(*body(deep, shape=[1]))


def test_what_isnt_offered_is_refused_as_such() -> None:
    with pytest.raises(UnsupportedError, match="Did you mean 'FP32'"):
        decode_request(*body(datatype="FP33"))
    with pytest.raises(UnsupportedError, match="BYTES"):
        decode_request(*body(datatype="BYTES"))
    with pytest.raises(UnsupportedError, match="shared_memory_region"):
        decode_request(*body(data=..., parameters={"shared_memory_region": "r"}))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["x", "FP32", "INT8", "", "\u20ac"])
KEYS = ["inputs", "outputs", "parameters", "id", "name", "shape", "datatype", "data", "binary_data_size", "binary_data"]
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner))
TENSORS = st.fixed_dictionaries(
    {"name": st.sampled_from("xyz"), "shape": st.lists(st.integers(-1, 3), max_size=3), "datatype": st.just("INT8")},
    optional={"data": VALUES, "parameters": VALUES | st.fixed_dictionaries({"binary_data_size": st.integers(-1, 9)})},
)


@given(request=VALUES | st.fixed_dictionaries({"inputs": st.lists(TENSORS, max_size=3)}, optional={"outputs": VALUES}),
       tail=st.binary(max_size=9))  # fmt: skip
def test_nothing_that_a_client_can_send_is_a_failure_of_the_server(request: Any, tail: bytes) -> None:
    text = json.dumps(request).encode()
    try:
        found = decode_request(text + tail, len(text))
    except (InputError, UnsupportedError):
        return
    assert all(isinstance(array, np.ndarray) for array in found.inputs.values())


def test_null_stands_for_nothing() -> None:
    request = json.loads(body()[0]) | {"id": None, "parameters": None, "outputs": None}
    request["inputs"][0]["parameters"] = None
    found = decode_request(json.dumps(request).encode())
    assert (found.id, found.parameters, found.outputs) == (None, {}, None)
    request["inputs"][0] |= {"data": None, "parameters": {"binary_data_size": 8}}
    text = json.dumps(request).encode()
    assert decode_request(text + b"12345678", len(text)).inputs["x"].shape == (2,)


def test_errors_tell_nothing_of_the_data() -> None:
    for data in (["secret", 1], [1, 4711]):
        with pytest.raises(InputError) as caught:
            decode_request(*body(data, datatype="INT8"))
        assert "secret" not in str(caught.value)
        assert "4711" not in str(caught.value)


def test_limits_are_for_all_tensors_together() -> None:
    two = [{"name": name, "shape": [3], "datatype": "INT8", "data": [1, 2, 3]} for name in "ab"]
    text = json.dumps({"inputs": two}).encode()
    assert len(decode_request(text, max_elements=6).inputs) == 2
    with pytest.raises(InputError, match="from 0 to 2"):
        decode_request(text, max_elements=5)


OUTPUTS = {"q": np.int8([1, -2]), "scale": np.float32([0.1]), "half": np.float16([[0.5]])}


def test_an_answer_in_json() -> None:
    (text,), length = encode_response("m", "3", OUTPUTS, InferRequest({}, id="7"), {"bits": 8})
    assert length is None
    answer = json.loads(text)
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("m", "3", "7")
    assert answer["parameters"] == {"bits": 8}
    assert [output["data"] for output in answer["outputs"]] == [[1, -2], [float(np.float32(0.1))], [0.5]]
    assert [output["datatype"] for output in answer["outputs"]] == ["INT8", "FP32", "FP16"]


def test_each_output_comes_as_it_was_asked_for() -> None:
    asked = {"inputs": [], "outputs": [{"name": "scale"}, {"name": "q", "parameters": {"binary_data": True}}]}
    parts, length = encode_response("m", "1", OUTPUTS, decode_request(json.dumps(asked).encode()))
    answer = json.loads(b"".join(parts)[:length])
    assert [output["name"] for output in answer["outputs"]] == ["scale", "q"]
    assert answer["outputs"][1]["parameters"] == {"binary_data_size": 2}
    assert b"".join(parts)[length:] == b"\x01\xfe"


def test_binary_for_all_is_overruled_by_an_output() -> None:
    asked = {
        "inputs": [],
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "q"}, {"name": "half", "parameters": {"binary_data": False}}],
    }
    assert decode_request(json.dumps(asked).encode()).wanted(list(OUTPUTS)) == {"q": True, "half": False}


def test_an_output_that_there_isnt_is_refused() -> None:
    asked = InferRequest({}, outputs={"scales": True})
    with pytest.raises(InputError, match="Did you mean 'scale'"):
        encode_response("m", "1", OUTPUTS, asked)


def test_what_is_no_json_is_told_where() -> None:
    with pytest.raises(InputError, match=r'received an empty body; do: send \{"inputs"'):
        decode_request(b"")
    with pytest.raises(InputError, match=r"at line 2, column 2$"):
        decode_request(b'{"inputs":\n x}')
