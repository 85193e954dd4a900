from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient

from qi.service.admission import Admission
from qi.service.bodies import documented_body, documented_json, parse_json, parsing, reading, uploaded
from qi.service.costs import parsed_bytes
from qi.service.formats import FORMATS, available
from qi.service.limits import BodyGuard, BodyLimits
from qi.service.models import CalibrationRequest, DequantizationRequest, ImportExportParams, QuantizationRequest
from qi.service.problems import handle_problems
from qi.service.service import SMALL, Service
from qi.service.settings import Settings

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture
def admission() -> Admission:
    """What the requests to the route take together."""
    return Admission(memory_budget=1_000_000)


@pytest.fixture
def post(admission: Admission) -> Callable[..., Any]:
    """A function that posts to a route which tells what it read."""
    app = FastAPI()
    app.state.service = Service(Settings())

    @app.post("/quantize")
    async def quantize(body: Annotated[QuantizationRequest, Depends(reading(QuantizationRequest, "Oops"))]) -> Any:
        return body.model_dump(mode="json", by_alias=True)

    @app.post("/dequantize")
    async def dequantize(
        body: Annotated[DequantizationRequest, Depends(reading(DequantizationRequest, "Oops"))],
    ) -> Any:
        return body.model_dump(mode="json")

    @app.post("/calibrate")
    async def calibrate(body: Annotated[CalibrationRequest, Depends(reading(CalibrationRequest, "Oops"))]) -> Any:
        return [list(array.shape) for array in body.data]

    @app.post("/parameters")
    async def parameters(body: Annotated[ImportExportParams, Depends(parsing(ImportExportParams))]) -> Any:
        return body.parameters

    @app.post("/upload")
    async def upload(request: Request) -> Any:
        name, content = await uploaded(request)
        return [name, len(content)]

    handle_problems(app)
    app.add_middleware(BodyGuard, limits=BodyLimits(), admission=admission)
    client = TestClient(app)

    def post(path: str, content: Any = None, content_type: str | None = "application/json", **more: Any) -> Any:
        headers = {} if content_type is None else {"content-type": content_type}
        return client.post(path, content=content, headers=headers, **more)

    return post


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "application/vnd.x+json"])
def test_json(kind: str, post: Callable[..., Any]) -> None:
    body = {"data": [[1, 2]], "validate": False, "layer_name": "a"}
    found = post("/quantize", json.dumps(body), kind).json()
    assert found == {**body, "channel_dim": None, "remember": None}


@pytest.mark.parametrize("kind", list(FORMATS))
def test_every_format(kind: str, post: Callable[..., Any]) -> None:
    if kind not in available():
        pytest.skip(f"{kind} needs a package that isn't there")
    content = b"".join(bytes(part) for part in FORMATS.get(kind).encode(X))
    found = post("/quantize?validate=false&channel_dim=1&layer_name=a", content, kind).json()
    assert found == {"data": X.tolist(), "validate": False, "channel_dim": 1, "layer_name": "a", "remember": None}


def test_a_form_with_a_file(post: Callable[..., Any]) -> None:
    found = post("/quantize", content_type=None, files={"file": ("a.npy", npy(X))})
    assert found.json()["data"] == X.tolist()
    missing = post("/quantize", content_type=None, files={"other": ("a.npy", npy(X))})
    assert (missing.status_code, missing.json()["code"]) == (400, "no-file")


def test_a_large_body_is_the_same(post: Callable[..., Any]) -> None:
    large = np.zeros((SMALL, 1))
    for content, kind in (
        (npy(large), "application/x-npy"),
        (json.dumps({"data": large.tolist()}), "application/json"),
    ):
        assert post("/quantize", content, kind).json()["data"] == large.tolist()


def test_options_of_the_query_go_with_json_that_has_none(post: Callable[..., Any]) -> None:
    found = post("/quantize?channel_dim=1&layer_name=q", '{"data": [[1]], "layer_name": "b"}').json()
    assert (found["channel_dim"], found["layer_name"]) == (1, "b")


def test_parameters_of_channels_in_the_query(post: Callable[..., Any]) -> None:
    path = "/dequantize?scale=[0.5,1]&zero_point=[0,1]&channel_dim=0"
    found = post(path, npy(X.astype(np.int8)), "application/x-npy").json()
    assert (found["scale"], found["zero_point"]) == ([0.5, 1.0], [0.0, 1.0])
    assert post("/dequantize?scale=0.5", npy(X), "application/x-npy").json()["scale"] == 0.5
    assert post("/dequantize?scale=[0.5", npy(X), "application/x-npy").status_code == 422


@pytest.mark.parametrize(("shape", "shapes"), [((3,), [[3]]), ((2, 3), [[2, 3]]), ((4, 2, 3), [[2, 3]] * 4)])
def test_an_array_of_three_dimensions_is_a_list_of_arrays(
    shape: tuple[int, ...], shapes: list[list[int]], post: Callable[..., Any]
) -> None:
    assert post("/calibrate", npy(np.zeros(shape)), "application/x-npy").json() == shapes
    if len(shape) == 3:
        assert post("/calibrate", json.dumps({"data": np.zeros(shape).tolist()})).json() == shapes


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"[]", "application/json", 422),
        (b"", "application/json", 422),
        (b"[" * 5000, "application/json", 422),
        (b'{"data": NaN' + b"[" * 100_000, "application/json", 422),
        (b'{"data": [[1], [1, 2]]}', "application/json", 422),
        (b'{"data": [["a"]]}', "application/json", 422),
        (b'{"data": [[1]], "dta": 1}', "application/json", 422),
        (b'{"data": [[1]], "channel_dim": "x"}', "application/json", 422),
        (b"junk", "application/x-npy", 400),
        (b'{"data": [[1]]}', "text/plain", 415),
        (b'{"data": [[1]]}', None, 415),
        (b"x", "multipart/form-data", 400),
    ],
)  # fmt: skip
def test_what_cannot_be_read(content: bytes, kind: str | None, status: int, post: Callable[..., Any]) -> None:
    response = post("/quantize", content, kind)
    assert response.status_code == status
    assert len(response.content) < 2000


def test_options_that_the_body_overrides_are_checked_all_the_same(post: Callable[..., Any]) -> None:
    body = '{"data": [[1]], "validate": false, "layer_name": "b"}'
    assert post("/quantize?validate=true&layer_name=a", body).json()["validate"] is False
    answer = post("/quantize?validate=perhaps&layer_name=a", body)
    assert answer.status_code == 422
    assert [one["loc"] for one in answer.json()["detail"]] == [["query", "validate"]]


def test_models_without_arrays(post: Callable[..., Any]) -> None:
    for parameters in ({"a": 1}, {"a": {str(i): i for i in range(SMALL)}}):
        assert post("/parameters", json.dumps({"parameters": parameters})).json() == parameters
    for wrong in (b"{", b"[]", b'{"parameters": 1}', b'{"parameters": {}, "more": 1}'):
        assert post("/parameters", wrong).status_code == 422
    (error,) = post("/parameters", b"{}").json()["detail"]
    assert error["loc"] == ["body", "parameters"]
    (content,) = documented_json(ImportExportParams)["requestBody"]["content"].values()
    assert content["schema"]["required"] == ["parameters"]


@pytest.mark.filterwarnings("ignore:Unclosed file:ResourceWarning")  # Starlette's, of a form that ends too early
def test_files_have_names_and_forms_have_files(post: Callable[..., Any]) -> None:
    assert post("/upload", content_type=None, files={"file": ("a.npy", npy(X))}).json() == ["a.npy", len(npy(X))]
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.npy"\r\n\r\nabc'
    for body in (form, b"", form.replace(b'; filename="a.npy"', b"") + b"\r\n--x--"):
        assert post("/upload", body, "multipart/form-data; boundary=x").status_code == 400


@pytest.mark.parametrize("path", ["/quantize", "/parameters"])
def test_what_json_becomes_takes_memory_too(path: str, post: Callable[..., Any], admission: Admission) -> None:
    rows = b"[" + b"[]," * 4000 + b"[]]"
    body = b'{"parameters": {"a": %s}}' % rows if path == "/parameters" else b'{"data": %s}' % rows
    assert len(body) * 3 + parsed_bytes(b"") < admission.memory_budget - 100_000 < parsed_bytes(body)
    assert post(path, body).status_code == 200
    admission.reserve(100_000)
    answer = post(path, body)
    assert (answer.status_code, answer.json()["code"]) == (503, "memory-full")
    assert answer.headers["retry-after"] == "1"
    assert post(path, b'{"parameters": {}}' if path == "/parameters" else b'{"data": []}').status_code == 200
    assert admission.memory == 100_000


def test_an_object_has_few_members(post: Callable[..., Any]) -> None:
    """Pydantic makes an error of each that it doesn't know, which takes a hundred times the body."""
    many = {str(i): 0 for i in range(1000)}
    for path, body in (("/quantize", {**many, "data": [1]}), ("/parameters", many)):
        (error,) = post(path, json.dumps(body)).json()["detail"]
        assert (error["type"], error["loc"]) == ("too_long", ["body"])
        assert error["msg"].startswith("Expected at most 64 members; received 100")


def test_an_array_holds_a_limited_number_of_arrays(post: Callable[..., Any]) -> None:
    for count, status in ((4096, 200), (4097, 422)):
        assert post("/calibrate", npy(np.zeros((count, 1, 1), np.int8)), "application/x-npy").status_code == status
    answer = post("/calibrate", npy(np.zeros((5000, 1, 1), np.int8)), "application/x-npy")
    (error,) = answer.json()["detail"]
    assert (error["loc"], error["msg"]) == (["body", "data"], "Expected at most 4096 arrays; received 5000")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/dequantize", {"data": [1], "scale": ["a"] * 20_000, "zero_point": 0}),
        ("/quantize", {"data": [1], **{str(i): 0 for i in range(20_000)}}),
        ("/calibrate", {"data": [["a"]] * 20_000}),
    ],
)
def test_refusing_takes_no_more_memory_than_reading(path: str, body: Any, post: Callable[..., Any]) -> None:
    text = json.dumps(body).encode()
    post(path, b"{}")
    tracemalloc.start()
    try:
        assert post(path, text).status_code in (422, 503)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < parsed_bytes(text)


def test_where_an_error_is(post: Callable[..., Any]) -> None:
    (error,) = post("/quantize?channel_dim=x", '{"data": [[1]]}').json()["detail"]
    assert error["loc"] == ["query", "channel_dim"]
    (error,) = post("/quantize", '{"data": [["a"]]}').json()["detail"]
    assert error["loc"] == ["body", "data"]
    assert post("/quantize", '{"data": [[1], []]}').json()["detail"].startswith("Oops: expected rows")


def test_numbers_that_json_does_not_have() -> None:
    found = parse_json(b'{"data": [NaN, -Infinity]}')
    assert np.isnan(found["data"][0])
    with pytest.raises(RequestValidationError):
        parse_json(b'{"data": [NaN, }')
    for large in (b"1e400", b"-1e400", b"1" * 400):
        with pytest.raises(RequestValidationError) as caught:
            parse_json(b'{"data": [%s]}' % large)
        assert caught.value.errors()[0]["msg"].startswith("Number too large")


def test_the_document_has_every_form_and_option() -> None:
    extra = documented_body(DequantizationRequest)
    assert set(extra["requestBody"]["content"]) == {"application/json", "multipart/form-data", *available()}
    assert [one["name"] for one in extra["parameters"]] == ["channel_dim", "layer_name", "scale", "zero_point"]
    assert extra["parameters"][0]["schema"]["type"] == "integer"
    assert extra["parameters"][2]["schema"]["anyOf"][0] == {"type": "number"}
    assert "null" not in json.dumps(extra["parameters"])
    assert "null" in json.dumps(extra["requestBody"])


@pytest.mark.parametrize("kind", ["application/json", "application/x-npy"])
def test_options_that_are_not_known_are_refused(kind: str, post: Callable[..., Any]) -> None:
    body = b'{"data": [[1]]}' if kind == "application/json" else npy(X)
    answer = post("/quantize?chanel_dim=0", body, kind)
    (error,) = answer.json()["detail"]
    assert (answer.status_code, error["loc"], error["type"]) == (422, ["query", "chanel_dim"], "extra_forbidden")
    assert "validate, channel_dim, layer_name, remember" in error["msg"]
    assert "Did you mean 'channel_dim'" in error["msg"]


@pytest.mark.parametrize("name", ["layer_name", "other"])
def test_a_form_has_a_file_alone(name: str, post: Callable[..., Any]) -> None:
    answer = post("/quantize", content_type=None, files={"file": ("a.npy", npy(X))}, data={name: "a"})
    (error,) = answer.json()["detail"]
    assert (answer.status_code, error["loc"]) == (422, ["body", name])
    assert "options go into the query string" in error["msg"]


def test_no_body_is_told_what_to_send(post: Callable[..., Any]) -> None:
    for path, name in (("/quantize", "data"), ("/parameters", "parameters")):
        (error,) = post(path, b" ").json()["detail"]
        assert error["msg"] == f'expected JSON; received an empty body; do: send {{"{name}": ...}}'


def test_broken_json_is_told_where() -> None:
    with pytest.raises(RequestValidationError) as caught:
        parse_json(b'{"data": 1,\n "b" }')
    assert caught.value.errors()[0]["msg"].startswith("JSON decode error at line 2, column 6: unexpected character")
