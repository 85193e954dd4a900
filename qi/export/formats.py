"""The files that a model can be exported to, by suffix, and the runtimes that run them."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qi.errors import ConfigError
from qi.ir import QGraph

__all__ = ["FORMATS", "MANIFEST", "Format", "format_of"]

MANIFEST = "qi_manifest"
"""Under which name files hold the manifest."""


@dataclass(frozen=True)
class Format:
    """A kind of file, and the runtime that runs it.

    Attributes:
        name: as in ``qi.export(..., format=...)``.
        suffix: of its files.
        target: the runtime whose arithmetic the twin has.
        write: makes the bytes of a routed graph, with a manifest.
        run: gives outputs by name from bytes and inputs.
        session: gives a function that runs inputs again and again, for timing.
    """

    name: str
    suffix: str
    target: str
    write: Callable[..., bytes]
    run: Callable[..., Mapping[str, np.ndarray]]
    session: Callable[..., Callable[[Sequence[np.ndarray]], Any]]


def _write_litert(graph: QGraph, *, integer_io: bool, packed: bool, opset: int | None, manifest: bytes) -> bytes:
    from qi.export import litert

    del packed  # the graph itself says
    if opset is not None:
        raise ConfigError(f"expected opset for ONNX files only; received opset={opset}")
    return litert.write(graph, integer_io=integer_io, metadata={MANIFEST: zlib.compress(manifest, 9)} if manifest else None)


def _run_litert(data: bytes, inputs: Sequence[np.ndarray], **options: Any) -> Mapping[str, np.ndarray]:
    from qi.export import litert

    return litert.run(data, inputs, **options)


def _litert_session(data: bytes, threads: int = 1) -> Callable[[Sequence[np.ndarray]], Any]:
    from qi.export import litert

    return litert.session(data, threads=threads)


def _write_onnx(graph: QGraph, *, integer_io: bool, packed: bool, opset: int | None, manifest: bytes) -> bytes:
    from qi.export import onnx_file

    texts = {MANIFEST: base64.b64encode(zlib.compress(manifest, 9)).decode()} if manifest else None
    int4 = "packed" if packed else "int8"
    return onnx_file.write(graph, opset=opset, integer_io=integer_io, int4=int4, metadata=texts)


def _run_onnx(data: bytes, inputs: Sequence[np.ndarray], **options: Any) -> Mapping[str, np.ndarray]:
    from qi.export import onnx_runtime

    return onnx_runtime.run(data, inputs, **options)


def _onnx_session(data: bytes, threads: int = 1) -> Callable[[Sequence[np.ndarray]], Any]:
    from qi.export import onnx_runtime

    return onnx_runtime.session(data, threads=threads)


FORMATS = {
    "litert": Format("litert", ".tflite", "litert", _write_litert, _run_litert, _litert_session),
    "onnx": Format("onnx", ".onnx", "onnxruntime", _write_onnx, _run_onnx, _onnx_session),
}


def format_of(path: Path, name: str | None = None) -> Format:
    """The format of a file to be written or read.

    Args:
        path: its suffix decides where no name is given.
        name: of `FORMATS`.

    Raises:
        ConfigError: an unknown name or suffix.
    """
    if name is not None:
        if name not in FORMATS:
            raise ConfigError(f"expected format to be one of {sorted(FORMATS)}; received format={name!r}")
        return FORMATS[name]
    for found in FORMATS.values():
        if path.suffix.lower() == found.suffix:
            return found
    suffixes = sorted(found.suffix for found in FORMATS.values())
    raise ConfigError(f"expected a path that ends in one of {suffixes}; received {str(path)!r}; do name the format")
