"""The files that a model can be exported to, by suffix."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qi.errors import ConfigError
from qi.ir import QGraph

__all__ = ["FORMATS", "Format", "format_of"]


@dataclass(frozen=True)
class Format:
    """A kind of file, and the runtime that runs it.

    Attributes:
        name: as in ``qi.export(..., format=...)``.
        suffix: of its files.
        target: the runtime whose arithmetic the twin has.
        module: gives ``write``, ``run`` and ``session``.
        options: what `write` takes besides ``integer_io``.
    """

    name: str
    suffix: str
    target: str
    module: str
    options: tuple[str, ...] = ()

    def write(self, graph: QGraph, **options: Any) -> bytes:
        """The file's bytes.

        Raises:
            UnsupportedError: an operation that the format can't hold.
            MissingDependencyError: the package that writes it isn't installed.
        """
        data: bytes = importlib.import_module(self.module).write(graph, **options)
        return data

    def run(
        self, data: bytes, inputs: Sequence[np.ndarray], *, threads: int = 1, tensors: Sequence[str] = ()
    ) -> Mapping[str, np.ndarray]:
        """What the runtime gives: outputs by name, and the tensors asked for.

        Raises:
            FileFormatError: damaged bytes.
            MissingDependencyError: the runtime isn't installed.
        """
        found: Mapping[str, np.ndarray] = importlib.import_module(self.module).run(
            data, inputs, threads=threads, tensors=tensors
        )
        return found


FORMATS = {
    "litert": Format("litert", ".tflite", "litert", "qi.export.litert"),
    "onnx": Format("onnx", ".onnx", "onnxruntime", "qi.export.onnx_file", ("opset", "int4")),
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
