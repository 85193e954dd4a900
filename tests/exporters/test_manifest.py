from __future__ import annotations

import json
import zlib

import pytest

from qi._version import __version__
from qi.errors import FileFormatError
from qi.exporters.manifest import Options, deflate, inflate, manifest, options_of
from tests.exporters.exported import graph

OPTIONS = Options(integer_io=True, integer_only=True, packed=True, opset=21, dynamic=False)


def test_a_manifest_tells_what_wrote_the_file_and_how() -> None:
    text = manifest(graph("litert"), 10**6, OPTIONS)
    found = json.loads(text)
    assert (found["qi"], found["model"], found["target"]) == (__version__, "graph", "litert")
    assert [op["kind"] for op in found["operations"]] == ["quantize", "dense", "dense"]
    assert [op.get("weight_bits") for op in found["operations"]] == [None, 8, 8]
    assert options_of(text) == OPTIONS
    assert options_of(manifest(graph("litert"), 10**6)) == Options()


def test_a_manifest_leaves_out_what_does_not_fit() -> None:
    sizes = []
    for limit in (10**6, 250, 3):
        text = manifest(graph("litert"), limit, OPTIONS)
        sizes.append(len(deflate(text)) if text else 0)
        assert sizes[-1] <= limit
    assert sizes[0] > sizes[1] > sizes[2] == 0
    assert "operations" not in json.loads(manifest(graph("litert"), 250, OPTIONS))


def test_deflated_bytes_come_back() -> None:
    text = manifest(graph("onnxruntime"), 10**6)
    assert inflate(deflate(text)) == text


def test_what_would_fill_the_memory_is_refused() -> None:
    bomb = zlib.compress(b"\0" * (70 * 2**20), 9)
    assert len(bomb) < 100_000
    for data in (bomb, deflate(b"{}" * 99)[:-5], b"something else", b""):
        with pytest.raises(FileFormatError, match="manifest"):
            inflate(data)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff",
        b"[1]",
        b"[" * 100_000,
        b'{"format": "another", "version": 1}',
        b'{"format": "qi manifest", "version": 2}',
        b'{"format": "qi manifest", "version": 1, "options": []}',
        b'{"format": "qi manifest", "version": 1, "options": {"packed": 1}}',
        b'{"format": "qi manifest", "version": 1, "options": {"packed": null}}',
        b'{"format": "qi manifest", "version": 1, "options": {"opset": true}}',
        b'{"format": "qi manifest", "version": 1, "options": {"opset": "18"}}',
    ],
)
def test_what_is_no_manifest_is_refused(text: bytes) -> None:
    with pytest.raises(FileFormatError, match="manifest"):
        options_of(text)


def test_options_that_a_later_version_knows_are_no_matter() -> None:
    assert options_of(b'{"format": "qi manifest", "version": 1, "options": {"new": 1}}') == Options()
