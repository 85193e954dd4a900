"""A guard of bodies with small limits, around an application that says "ok"; what requests to it say."""

from __future__ import annotations

from typing import Any

from starlette.types import Message

from qi.service.admission import Admission
from qi.service.limits import BodyGuard, BodyLimits
from tests.service.asgi import ok

__all__ = ["EXPECTS", "NPY", "SMALL", "STALLED", "guard", "length"]

SMALL = BodyLimits(max_json_bytes=100, max_binary_bytes=1000, json_factor=20, binary_factor=5)
NPY = ("Content-Type", "application/x-npy")
EXPECTS = ("Expect", "100-continue")
STALLED: list[Message] = [{"type": "http.request", "body": b"x", "more_body": True}]


def length(nbytes: int) -> tuple[str, str]:
    return ("Content-Length", str(nbytes))


def guard(limits: BodyLimits = SMALL, **admission: Any) -> BodyGuard:
    return BodyGuard(ok, limits, Admission(**admission))
