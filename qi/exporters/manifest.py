"""The manifest: what a file says of itself, as JSON: what wrote it, with which options, and its operations."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from qi._version import __version__
from qi.errors import ConfigError, FileFormatError
from qi.ir import QGraph

__all__ = ["MANIFEST", "Options", "deflate", "inflate", "manifest", "options_of"]

MANIFEST = "qi_manifest"
"""Under which name files hold the manifest."""

_KIND = "qi manifest"
_MOST = 64 * 2**20


@dataclass(frozen=True)
class Options:
    """How a file is written; the arguments of `qi.export` of these names.

    Attributes:
        integer_io: whether it takes and gives codes.
        integer_only: whether no float islands are made where there is a way in integers.
        packed: whether weights below 8 bits are packed everywhere.
        opset: of ONNX; None: the least that serves.
        dynamic: whether products of real numbers with coded weights round their activations row by row, where that is fast.
    """

    integer_io: bool = False
    integer_only: bool = False
    packed: bool = False
    opset: int | None = None
    dynamic: bool = True

    @property
    def arithmetic(self) -> dict[str, bool]:
        """Those that decide what the file computes: the arguments of `qi.ir.routing.route` of these names."""
        return {"integer_only": self.integer_only, "packed": self.packed, "dynamic": self.dynamic}

    def checked(self) -> Options:
        """The options, if each is of its type.

        Raises:
            ConfigError: one isn't.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if not _fits(field.name, value):
                raise ConfigError(f"expected {field.name} to be {_wanted(field.name)}; received {field.name}={value!r}")
        return self


def manifest(graph: QGraph, limit: int, options: Options | None = None) -> bytes:
    """What a file says of itself: JSON, as much as fits into so many bytes once deflated.

    Args:
        graph: routed.
        limit: bytes after deflating; beyond them, the operations are left out, and then everything.
        options: it is written with.
    """
    head = {"format": _KIND, "version": 1, "qi": __version__, "model": graph.name, "target": graph.target}
    how = {"options": asdict(options or Options())}
    ops = [
        {"kind": op.kind, "layer": op.source, "output": op.y.name, "integer": op.quantized}
        | ({"weight_bits": op.inputs[1].grid.bits} if len(op.inputs) > 1 and op.inputs[1].quantized else {})
        for op in graph.ops
    ]
    for record in (head | how | {"operations": ops}, head | how):
        text = json.dumps(record, separators=(",", ":")).encode()
        if len(deflate(text)) * 4 / 3 <= limit:  # base64, in ONNX files
            return text
    return b""


def deflate(text: bytes) -> bytes:
    """Fewer bytes."""
    return zlib.compress(text, 9)


def inflate(data: bytes) -> bytes:
    """The bytes that `deflate` was given.

    Raises:
        FileFormatError: something else, or more than 64 MiB.
    """
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(data, _MOST)
    except zlib.error as error:
        raise FileFormatError(f"expected a deflated manifest; received {len(data)} other bytes ({error})") from error
    if not reader.eof:
        raise FileFormatError(
            f"expected a whole manifest of at most {_MOST} bytes; received one that is cut off or larger"
        )
    return text


def options_of(text: bytes) -> Options:
    """The options in a manifest.

    Raises:
        FileFormatError: it is none.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"expected a manifest of JSON; received {text[:40]!r}") from error
    if not isinstance(record, Mapping) or record.get("format") != _KIND or record.get("version") != 1:
        raise FileFormatError(f"expected a manifest of version 1; received {text[:80]!r}")
    given = record.get("options", {})
    if not isinstance(given, Mapping):
        raise FileFormatError(f"expected the options in a manifest by name; received {given!r}")
    return Options(
        **{field.name: _checked(field.name, given.get(field.name, field.default)) for field in fields(Options)}
    )


def _checked(name: str, value: Any) -> Any:
    if not _fits(name, value):
        raise FileFormatError(f"expected {name} in a manifest to be {_wanted(name)}; received {value!r}")
    return value


def _fits(name: str, value: Any) -> bool:
    return value is None or type(value) is int if name == "opset" else type(value) is bool


def _wanted(name: str) -> str:
    return "a whole number" if name == "opset" else "true or false"
