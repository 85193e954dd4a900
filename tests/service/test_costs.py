"""Estimates of memory: above what Python measures, and not far above it where it matters."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from qi.engine import QuantizationConfig, Quantizer
from qi.service import operations
from qi.service.answers import respond
from qi.service.bodies import parse_json
from qi.service.costs import json_bytes, parsed_bytes, work_bytes
from qi.service.formats import JSON, NPY
from qi.service.models import array_from_json
from qi.service.service import Service
from qi.service.settings import Settings

MANY = 20_000
JSONS = {
    "ones": b"[" + b"1," * MANY + b"1]",
    "halves": b"[" + b"0.5," * MANY + b"1]",
    "integers": b"[" + b"30000," * MANY + b"1]",
    "rows of none": b"[" + b"[]," * MANY + b"[]]",
    "rows of one": b"[" + b"[1]," * MANY + b"[1]]",
    "deep rows": b"[" + b"[[[[]]]]," * MANY + b"[]]",
    "objects": b"[" + b"{}," * MANY + b"{}]",
    "objects of one": b"[" + b'{"a":1},' * MANY + b"{}]",
    "an object": b"{" + b",".join(b'"%x":1' % i for i in range(MANY)) + b"}",
    "texts": b"[" + b'"ab",' * MANY + b'""]',
    "a wide text": ('"' + "a" * MANY * 5 + '\U0001f600"').encode(),
    "a text of escapes": b'"' + b"a" * MANY * 5 + b'\\ud83d\\ude00"',
    "not a number": b"[" + b"NaN," * MANY + b"1]",
}


def peak(work: Callable[[], Any]) -> int:
    """Bytes that a call takes at most, its result included."""
    work()  # so that what is made once isn't counted
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = work()
        found = tracemalloc.get_traced_memory()[1] - before
        del kept
        return found
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", JSONS)
def test_json_never_takes_more_than_counted(name: str) -> None:
    body = JSONS[name]

    def read() -> Any:
        value = parse_json(body)
        try:
            return array_from_json(value)
        except ValueError as error:
            return str(error)

    assert peak(read) < parsed_bytes(body) < 100 * len(body)


def test_json_of_many_digits_is_counted_as_less_than_json_of_few() -> None:
    text = ",".join(["-0.12345678901234567"] * MANY).encode()
    assert parsed_bytes(b"[" + text + b"]") < 12 * len(text)
    assert parsed_bytes(JSONS["ones"]) > 40 * len(JSONS["ones"])


def test_json_is_counted_whatever_its_length() -> None:
    nothing = parsed_bytes(b"")
    once, often = (parsed_bytes(b'[{"a":1}],' * count) - nothing for count in (1, 300_000))
    assert 0 < nothing < 1000
    assert often == 300_000 * once
    assert parsed_bytes(b"[" + b" " * (3 << 20) + "\xe4".encode()) > 5 * parsed_bytes(b"[" + b" " * (3 << 20))
    assert parsed_bytes(memoryview(b"[1,2]")) == parsed_bytes(b"[1,2]")


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    found = Service(Settings(store="memory", max_cache_bytes=0))
    found.instances.put("channels", Quantizer(QuantizationConfig(per_channel=True, symmetric=False)))
    found.instances.put("percentiles", Quantizer(QuantizationConfig(use_percentile=True)))
    found.instances.put("again", Quantizer(QuantizationConfig(enable_requantization=True)))
    found.instances.put("int16", Quantizer(QuantizationConfig(quantization_type="int16")))
    yield found
    found.close()


CODES = {"scale": 0.0123, "zero_point": 3.0}


@pytest.mark.parametrize("media_type", [JSON, NPY])
@pytest.mark.parametrize("shape", [(200_000,), (40, 5000), (50_000, 1), (10_000, 1, 1, 1)])
@pytest.mark.parametrize(
    ("id", "operation", "dtype", "options"),
    [
        ("default", "quantize", np.int8, {}),
        ("default", "quantize", np.float32, {}),
        ("default", "quantize", np.float64, {}),
        ("percentiles", "quantize", np.float32, {}),
        ("again", "quantize", np.float32, {}),
        ("int16", "quantize", np.float32, {}),
        ("default", "quantize_dequantize", np.float32, {}),
        ("default", "quantize_dequantize", np.float64, {}),
        ("default", "dequantize", np.int8, CODES),
        ("default", "dequantize", np.int64, CODES),
        ("default", "dequantize", np.float32, CODES),
        ("default", "dequantize", np.float64, CODES),
    ],
)
def test_no_work_takes_more_than_estimated(
    service: Service, id: str, operation: str, dtype: Any, options: dict[str, Any], shape: Any, media_type: str
) -> None:
    array = np.resize(np.arange(-100, 101), shape).astype(dtype)
    instance = service.instances.get(id)
    work = operations.OPERATIONS[operation]
    taken = peak(lambda: respond(work(instance, array, **options), media_type))
    assert taken < work_bytes(operation, [array], media_type=media_type)


@pytest.mark.parametrize("media_type", [JSON, NPY])
@pytest.mark.parametrize("operation", ["quantize", "quantize_dequantize"])
def test_channels_are_counted(service: Service, operation: str, media_type: str) -> None:
    array = np.resize(np.arange(-100, 101), (20_000, 1)).astype(np.int8)
    instance = service.instances.get("channels")
    taken = peak(lambda: respond(operations.OPERATIONS[operation](instance, array, channel_dim=0), media_type))
    estimate = work_bytes(operation, [array], media_type=media_type, channels=20_000)
    assert taken < estimate < 10 * work_bytes(operation, [array], media_type=JSON, channels=1)


@pytest.mark.parametrize("arrays", [[np.ones((20_000, 1), np.int8)], [np.ones((100, 2), np.float32)] * 300])
def test_calibration_is_counted_by_channels_and_arrays(arrays: list[np.ndarray]) -> None:
    def work() -> Any:
        quantizer = Quantizer(QuantizationConfig(per_channel=True))
        quantizer.calibrate(arrays, 0)
        return quantizer, quantizer.export_parameters()

    assert peak(work) < work_bytes("calibrate", arrays, channels=len(arrays[0]))


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (5, 0), (2, 1, 1, 1)])
def test_rows_count_in_json(shape: tuple[int, ...]) -> None:
    rows = sum(math.prod(shape[:depth]) for depth in range(len(shape)))
    text = str(np.full(shape, -1.17549435e-38).tolist()).replace(" ", "")
    assert len(text) <= json_bytes(shape) == 24 * math.prod(shape) + 160 * rows
