from __future__ import annotations

import io

import numpy as np
import orjson
import pytest

from qi.errors import InputError, NotCalibratedError, QiError
from qi.service.answers import STATUSES, accepted, answering, metadata_headers, respond, store_problem
from qi.service.operations import Result
from qi.service.problems import Problem
from qi.service.store import RevisionError, UnavailableError
from tests.service.asgi import sent_by

META = {"original_shape": [2], "scale": 0.5, "zero_point": 1.0, "channel_dim": None, "quantization_type": "INT8"}


@pytest.mark.parametrize("kind", list(STATUSES))
def test_errors_of_the_store_have_their_status(kind: type[QiError]) -> None:
    with pytest.raises(Problem) as caught, answering("Quantization error"):
        raise kind("told")
    assert caught.value.status_code == STATUSES[kind][0]
    assert not caught.value.fault


@pytest.mark.parametrize(("error", "status"), [(InputError("told"), 422), (NotCalibratedError("told"), 409)])
def test_errors_of_the_work_have_their_prefix(error: QiError, status: int) -> None:
    with pytest.raises(Problem, match="told") as caught, answering("Quantization error"):
        raise error
    assert (caught.value.status_code, caught.value.detail) == (status, "Quantization error: told")
    assert store_problem(error) is None


def test_a_revision_that_was_asked_for_is_a_failed_precondition() -> None:
    with pytest.raises(Problem) as caught, answering("", conditional=True):
        raise RevisionError("changed")
    assert caught.value.status_code == 412


def test_the_reason_of_an_unavailable_store_is_not_told() -> None:
    problem = store_problem(UnavailableError("a path of the machine"))
    assert problem is not None
    assert (problem.status_code, problem.headers) == (503, {"Retry-After": "1"})
    assert "machine" not in problem.detail


@pytest.mark.parametrize(
    ("array", "data"),
    [
        (np.array([[1, -2]], np.int8), [[1, -2]]),
        (np.arange(6, dtype=np.uint16).reshape(2, 3).T, [[0, 3], [1, 4], [2, 5]]),
        (np.array([0.5], np.float16), [0.5]),
        (np.array([1.5, 2], ">f4"), [1.5, 2.0]),
        (np.array(3, np.int8), 3),
        (np.array(np.nan, np.float32), None),
        (np.empty((0, 2), np.int8), []),
        (np.array([1.0, np.nan, np.inf], np.float32), [1.0, None, None]),
    ],
)
def test_json(array: np.ndarray, data: object) -> None:
    response = respond(Result(array, META), None)
    body = orjson.loads(response.body)
    assert body.pop("data") == data
    assert body == META
    missing = int((~np.isfinite(array.astype(np.float64))).sum())
    assert response.headers.get("qi-nonfinite", "0") == str(missing)
    assert response.headers["vary"] == "Accept"


def test_bytes_with_what_is_told_in_headers() -> None:
    response = respond(Result(np.array([1, 2], np.int8), META), "application/x-npy")
    assert response.headers["qi-scale"] == "0.5"
    assert response.headers["qi-original-shape"] == "[2]"
    assert "qi-channel-dim" not in response.headers
    content = b"".join(bytes(part) for part in response.parts)  # type: ignore[attr-defined]
    assert np.load(io.BytesIO(content)).tolist() == [1, 2]


def test_a_description_instead_of_the_array() -> None:
    result = Result(np.array([1, 2], np.int8), META)
    assert orjson.loads(respond(result, "*/*", told={"shape": [2]}).body) == {"shape": [2]}
    assert respond(result, "application/x-npy", told={}).media_type == "application/x-npy"


def test_nothing_acceptable_is_406() -> None:
    with pytest.raises(Problem) as caught:
        respond(Result(np.zeros(1), META), "text/html")
    assert caught.value.status_code == 406


def test_long_lists_are_no_headers() -> None:
    assert metadata_headers({"scale": [0.1] * 10_000, "num_bits": 8}) == {"QI-Num-Bits": "8"}


def test_what_a_client_accepts_can_be_asked_before_the_work() -> None:
    for accept, media_type in ((None, "application/json"), ("application/x-npy, */*;q=0.1", "application/x-npy")):
        assert accepted(accept) == media_type
        assert respond(Result(np.ones(2, np.float32), META), media_type).media_type == media_type
    with pytest.raises(Problem) as caught:
        accepted("text/html")
    assert caught.value.status_code == 406


def test_long_json_is_sent_in_pieces_too() -> None:
    array = np.zeros(1 << 20, np.int8)
    response = respond(Result(array, META), None)
    sent = [message["body"] for message in sent_by(response)[1:]]
    assert max(map(len, sent)) <= 1 << 20
    assert len(sent) > 2
    body = b"".join(sent)
    assert orjson.loads(body)["data"] == array.tolist()
    assert response.headers["content-length"] == str(len(body))
