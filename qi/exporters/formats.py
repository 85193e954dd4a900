"""The files that a model can be exported to, by suffix, and the runtimes that run them."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qi.errors import ConfigError, FileFormatError
from qi.exporters.manifest import MANIFEST, Options, deflate, inflate
from qi.ir import QGraph
from qi.optional import require

__all__ = ["FORMATS", "INTEGERS", "Format", "Places", "format_of", "path_of"]

INTEGERS = "integers"
"""The format of folders, which no runtime reads."""

Places = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name of a tensor of the graph -> (its name in the file, how its axes lie there)."""


@dataclass(frozen=True)
class Format:
    """A kind of file, and the runtime that runs it.

    Attributes:
        name: as in ``qi.export(..., format=...)``.
        suffix: of its files.
        target: the runtime whose arithmetic the twin has.
        write: makes the bytes of a routed graph, with options and a manifest (b"": none).
        read: gives the manifest of a file (b"": none) and whether one of its inputs takes codes.
        places: says where the activations of a graph are in the file that was written of it with some options.
        run: gives outputs by name from bytes and inputs; with ``here=True`` in this process, whatever the bytes do to it.
        session: gives a function that runs inputs again and again, for timing.
        notes: says of a routed graph what to know when using its file.
    """

    name: str
    suffix: str
    target: str
    write: Callable[[QGraph, Options, bytes], bytes]
    read: Callable[[bytes], tuple[bytes, bool]]
    places: Callable[[bytes, QGraph, Options], Places]
    run: Callable[..., Mapping[str, np.ndarray]]
    session: Callable[..., Callable[[Sequence[np.ndarray]], Any]]
    notes: Callable[[QGraph], tuple[str, ...]] = lambda graph: ()


def _write_litert(graph: QGraph, options: Options, manifest: bytes) -> bytes:
    from qi.exporters import litert

    if options.opset is not None:
        raise ConfigError(f"expected opset for ONNX files only; received opset={options.opset}")
    metadata = {MANIFEST: deflate(manifest)} if manifest else None
    return litert.write(graph, integer_io=options.integer_io, metadata=metadata)


def _read_litert(data: bytes) -> tuple[bytes, bool]:
    from qi.exporters.litert_check import check
    from qi.exporters.litert_file import schema

    contents, fb = check(data), schema()
    start, size = contents.metadata.get(MANIFEST, (0, 0))
    graph = fb.Model.GetRootAs(data, 0).Subgraphs(0)
    types = [graph.Tensors(graph.Inputs(i)).Type() for i in range(graph.InputsLength())]
    return inflate(data[start : start + size]) if size else b"", fb.TensorType.INT8 in types


def _litert_places(data: bytes, graph: QGraph, options: Options) -> Places:
    from qi.exporters.litert_check import check

    names = check(data).names
    return {t.name: (t.name, tuple(range(len(t.shape)))) for t in graph.tensors() if not t.constant and t.name in names}


def _run_litert(data: bytes, inputs: Sequence[np.ndarray], **options: Any) -> Mapping[str, np.ndarray]:
    from qi.exporters import litert

    return litert.run(data, inputs, **options)


def _litert_session(data: bytes, threads: int = 1) -> Callable[[Sequence[np.ndarray]], Any]:
    from qi.exporters import litert

    return litert.session(data, threads=threads)


def _litert_notes(graph: QGraph) -> tuple[str, ...]:
    from qi.exporters.litert_recurrent import one_by_one

    layers = one_by_one(graph)
    told = f"LSTM layer{'s' if len(layers) > 1 else ''} {', '.join(map(repr, layers))}"
    return (f"the file takes one sample at a time: {told}",) if layers else ()


def _write_onnx(graph: QGraph, options: Options, manifest: bytes) -> bytes:
    from qi.exporters import onnx_file

    texts = {MANIFEST: base64.b64encode(deflate(manifest)).decode()} if manifest else None
    return onnx_file.write(
        graph, opset=options.opset, integer_io=options.integer_io, packed=options.packed, metadata=texts
    )


def _read_onnx(data: bytes) -> tuple[bytes, bool]:
    onnx = require("onnx", "onnx", "an ONNX file")
    try:
        model = onnx.load_from_string(data)
    except Exception as error:
        raise FileFormatError(f"expected an ONNX file; it is damaged or something else: {error}") from error
    codes = (onnx.TensorProto.UINT8, onnx.TensorProto.UINT16)
    takes_codes = any(given.type.tensor_type.elem_type in codes for given in model.graph.input)
    text = next((entry.value for entry in model.metadata_props if entry.key == MANIFEST), "")
    try:
        deflated = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FileFormatError(f"expected a manifest in base64; received {text[:40]!r}") from error
    return inflate(deflated) if deflated else b"", takes_codes


def _onnx_places(data: bytes, graph: QGraph, options: Options) -> Places:
    from qi.exporters import onnx_file

    return onnx_file.places(graph, opset=options.opset, integer_io=options.integer_io, packed=options.packed)


def _run_onnx(data: bytes, inputs: Sequence[np.ndarray], here: bool = True, **options: Any) -> Mapping[str, np.ndarray]:
    from qi.exporters import onnx_runtime

    del here  # always so
    return onnx_runtime.run(data, inputs, **options)


def _onnx_session(data: bytes, threads: int = 1) -> Callable[[Sequence[np.ndarray]], Any]:
    from qi.exporters import onnx_runtime

    return onnx_runtime.session(data, threads=threads)


FORMATS = {
    "litert": Format(
        "litert",
        ".tflite",
        "litert",
        _write_litert,
        _read_litert,
        _litert_places,
        _run_litert,
        _litert_session,
        _litert_notes,
    ),
    "onnx": Format("onnx", ".onnx", "onnxruntime", _write_onnx, _read_onnx, _onnx_places, _run_onnx, _onnx_session),
}


def path_of(path: object, format: object = None) -> Path:
    """A path as a user gave it.

    Args:
        path: text, or a path.
        format: that will be written there, if it is named.

    Raises:
        ConfigError: something else, or a suffix of another format.
    """
    if not isinstance(path, (str, Path)) and not (isinstance(path, os.PathLike) and isinstance(os.fspath(path), str)):
        raise ConfigError(f"expected a path; received path={path!r}; do give text or a pathlib.Path")
    if isinstance(format, str):
        _check_suffix(Path(path), format)
    return Path(path)


def format_of(path: Path, name: str | None = None, others: Sequence[str] = ()) -> Format:
    """The format of a file to be written or read.

    Args:
        path: its suffix decides where no name is given.
        name: of `FORMATS`.
        others: names that are known beside those, for errors.

    Raises:
        ConfigError: an unknown name or suffix.
    """
    if name is not None:
        if not isinstance(name, str) or name not in FORMATS:
            known = sorted((*FORMATS, *others))
            raise ConfigError(f"expected format to be one of {known}; received format={name!r}")
        return FORMATS[name]
    for found in FORMATS.values():
        if path.suffix.lower() == found.suffix:
            return found
    suffixes = sorted(found.suffix for found in FORMATS.values())
    raise ConfigError(f"expected a path that ends in one of {suffixes}; received {str(path)!r}; do name the format")


def _check_suffix(path: Path, name: str) -> None:
    """Refuses to write one format under the suffix of another.

    Args:
        path: to be written.
        name: of the format; unknown ones are refused elsewhere.

    Raises:
        ConfigError: the suffix is that of another format.
    """
    meant = next((found for found in FORMATS.values() if path.suffix.lower() == found.suffix), None)
    if meant is not None and meant.name != name and name in (*FORMATS, INTEGERS):
        raise ConfigError(
            f"expected a path of another suffix for format={name!r}; received {str(path)!r}, which ends as files of "
            f"{meant.name!r} do; do leave out the suffix or the format"
        )
