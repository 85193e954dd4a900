"""Errors: RFC 9457 for those who ask for it, `detail` for all."""

from __future__ import annotations

import json
from typing import Annotated

import pytest
from fastapi import FastAPI, Header, HTTPException
from fastapi.testclient import TestClient

from qi.errors import ConfigError, FileFormatError, InputError, MissingDependencyError, NotCalibratedError, QiError
from qi.service.problems import (
    MAX_ERRORS,
    PROBLEM_JSON,
    Problem,
    documented,
    failing,
    handle_problems,
    problem_of,
    validation_errors,
)

ERRORS = {
    "calibration": (NotCalibratedError("expected data first"), 409, "not-calibrated"),
    "file": (FileFormatError("expected a file"), 400, "bad-data"),
    "input": (InputError("expected rows"), 422, "invalid"),
    "config": (ConfigError("expected bits"), 422, "invalid"),
    "missing": (MissingDependencyError("needs pyarrow"), 415, "format-unavailable"),
    "any": (QiError("expected"), 422, "invalid"),
}


def client_of(*, legacy_errors: bool = False) -> TestClient:
    app = FastAPI()
    handle_problems(app, legacy_errors=legacy_errors)

    @app.get("/bare/{kind}")
    async def bare(kind: str) -> None:
        raise ERRORS[kind][0]

    @app.get("/prefixed/{kind}")
    async def prefixed(kind: str) -> None:
        with failing("Quantization error"):
            raise ERRORS[kind][0]

    @app.get("/teapot")
    async def teapot(number: Annotated[int, Header()] = 418) -> None:
        raise HTTPException(number, {"a": 1} if number == 400 else "gone \ud800", {"X-Kind": "tea"})

    @app.post("/rows")
    async def rows(data: list[list[float]]) -> None:
        pass

    return TestClient(app)


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_of_qi_are_the_client_s(kind: str) -> None:
    error, status, code = ERRORS[kind]
    answer = client_of().get(f"/prefixed/{kind}")
    assert answer.status_code == status
    assert answer.headers["content-type"] == PROBLEM_JSON
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "instance", "code", "request_id"}
    assert (body["status"], body["code"], body["type"]) == (status, code, "about:blank")
    assert body["detail"] == f"Quantization error: {error}"
    assert body["instance"] == f"/prefixed/{kind}"
    assert client_of().get(f"/bare/{kind}").json()["detail"] == str(error)


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("path", ["bare", "prefixed"])
def test_legacy_errors_are_500_with_the_same_detail(path: str, kind: str) -> None:
    answer = client_of(legacy_errors=True).get(f"/{path}/{kind}")
    assert answer.status_code == answer.json()["status"] == 500
    assert answer.json()["detail"] == client_of().get(f"/{path}/{kind}").json()["detail"]


@pytest.mark.parametrize("legacy", [True, False])
def test_other_errors_keep_their_status(legacy: bool) -> None:
    client = client_of(legacy_errors=legacy)
    assert client.get("/teapot").status_code == 418
    assert client.get("/nowhere").json()["code"] == "not-found"
    assert client.delete("/teapot").status_code == 405
    assert client.delete("/teapot").headers["allow"] == "GET"
    assert client.post("/rows", json=1).status_code == 422


def test_details_and_headers_of_fastapi_s_own_errors_are_kept() -> None:
    client = client_of()
    assert client.get("/teapot").json()["detail"] == "gone ?"  # half a character can't be sent
    assert client.get("/teapot").headers["x-kind"] == "tea"
    assert client.get("/teapot", headers={"number": "400"}).json()["detail"] == {"a": 1}
    assert client.get("/teapot", headers={"number": "499"}).json()["title"] == "Error"


def test_validation_errors_are_few_and_without_the_input() -> None:
    client = client_of()
    data = json.dumps([["secret"] * 5000])
    answer = client.post("/rows", content=data, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/json"
    detail = answer.json()["detail"]
    assert len(detail) == MAX_ERRORS
    assert detail[0] == {
        "type": "float_parsing",
        "loc": ["body", 0, 0],
        "msg": "Input should be a valid number, unable to parse string as a number",
    }
    assert "secret" not in answer.text
    assert len(answer.content) < 3000


def test_validation_errors_as_a_problem() -> None:
    answer = client_of().post("/rows", json=[["x"]], headers={"accept": f"{PROBLEM_JSON}, application/json"})
    assert answer.headers["content-type"] == PROBLEM_JSON
    body = answer.json()
    assert isinstance(body["detail"], str)
    assert body["detail"].startswith("body.0.0: ")
    assert body["errors"][0]["loc"] == ["body", 0, 0]
    assert body["code"] == "invalid-request"


def test_json_that_is_none() -> None:
    answer = client_of().post("/rows", content=b'[["secret', headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert "secret" not in answer.text


def test_names_of_the_client_in_errors_are_short_and_sendable() -> None:
    (error,) = validation_errors([{"type": "x", "loc": ("body", "\ud800" + "a" * 999, True), "msg": "m" * 999}])
    assert error["loc"] == ["body", "?" + "a" * 99, "True"]
    assert len(error["msg"]) == 300


def test_a_path_is_quoted() -> None:
    answer = client_of().get("/" + "%0A%00é" * 400)
    assert answer.json()["instance"].startswith("/%0A%00%C3%A9")
    assert len(answer.json()["instance"]) < 2000


def test_a_long_detail_is_cut() -> None:
    problem = problem_of(InputError("x" * 9999))
    app = FastAPI()
    handle_problems(app)

    @app.get("/")
    async def get() -> None:
        raise problem

    assert len(TestClient(app).get("/").json()["detail"]) == 2000


def test_titles_are_the_same_on_every_python() -> None:
    assert Problem(413, "").code == "content-too-large"
    assert Problem(422, "").code == "unprocessable-content"
    assert documented(413)[413]["description"] == "Content Too Large"


def test_documented_problems_have_the_members_that_are_sent() -> None:
    responses = documented(404, 422)
    schema = responses[404]["content"][PROBLEM_JSON]["schema"]
    body = client_of().get("/nowhere").json()
    assert set(schema["required"]) == set(body)
    assert set(body) <= set(schema["properties"])
    listed = responses[422]["content"]["application/json"]["schema"]
    assert listed["properties"]["detail"]["type"] == "array"
    assert schema["properties"]["detail"]["type"] == "string"
    assert "application/json" not in responses[404]["content"]


def test_only_errors_of_qi_become_the_client_s() -> None:
    with pytest.raises(ZeroDivisionError), failing("Quantization error"):
        raise ZeroDivisionError
    with pytest.raises(Problem) as caught, failing("Calibration error"):
        raise InputError("expected data")
    assert caught.value.fault
    assert isinstance(caught.value.__cause__, InputError)
