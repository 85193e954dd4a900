"""Files of named arrays, read where they lie and written in one go: `.npy`, `.npz`, `.safetensors`.

A `.npy` holds one array, called "array". Arrays of `.npy` and `.safetensors` are mapped into memory, not read; a member of
an `.npz` is read when it is asked for. Nothing is unpickled. The layout of `.safetensors` is 8 bytes with the length of a JSON
header, the header (name to dtype, shape and offsets; "__metadata__" to strings), the bytes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from qi.errors import ConfigError, FileFormatError, InputError, UnsupportedError
from qi.files import DAMAGE, replacing
from qi.registry import Registry
from qi.typing import Shape

__all__ = ["READERS", "WRITERS", "Arrays", "Layout", "Sink", "open_arrays", "writing"]

_MAX_HEADER = 100 << 20
_METADATA = "qi.json"
_DTYPES = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype("uint8"),
    "I8": np.dtype("int8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class Layout(NamedTuple):
    """An array to be written."""

    dtype: np.dtype
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of a file by name, in its order, and its metadata."""

    def __init__(
        self, layout: Mapping[str, Layout], get: Callable[[str], np.ndarray], metadata: Mapping[str, Any]
    ) -> None:
        self.layout = dict(layout)
        self._get = get
        self.metadata = dict(metadata)

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.layout:
            raise KeyError(name)
        return self._get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout)

    def __len__(self) -> int:
        return len(self.layout)


class Sink:
    """Takes the bytes of announced arrays, in the order they were announced in."""

    def __init__(self, start: Callable[[str], IO[bytes]], layout: Mapping[str, Layout]) -> None:
        self._start = start
        self._left = list(layout.items())
        self._stream: IO[bytes] | None = None
        self._missing = 0

    def write(self, name: str, piece: np.ndarray) -> None:
        """Adds the next elements, in C order, of an array."""
        if not self._missing:
            self._next(name)
        data = np.ascontiguousarray(piece)
        if self._stream is None or data.nbytes > self._missing:
            raise InputError(f"expected {self._missing} more bytes of {name!r}; received {data.nbytes}")
        self._stream.write(data.reshape(-1).view(np.uint8).data)
        self._missing -= data.nbytes
        if not self._missing:
            self._finish()

    def close(self) -> None:
        """Writes announced arrays without elements.

        Raises:
            InputError: Something announced is missing.
        """
        while self._left and not self._missing and not self._left[0][1].nbytes:
            self._next(self._left[0][0])
            self._finish()
        if self._missing or self._left:
            raise InputError(
                f"expected all announced arrays; received none or a part of {self._left[:1] or 'the last'}"
            )

    def _next(self, name: str) -> None:
        while self._left:
            found, layout = self._left.pop(0)
            self._stream = self._start(found)
            self._missing = layout.nbytes
            if found == name:
                return
            if self._missing:
                raise InputError(f"expected the array {found!r}; received {name!r}")
            self._finish()
        raise InputError(f"expected an announced array; received {name!r}")

    def _finish(self) -> None:
        if self._stream is not None:
            self._stream.flush()
            self._stream = None


READERS: Registry[Callable[[Path], Arrays]] = Registry("kind of array file")
WRITERS: Registry[Any] = Registry("kind of array file")


def _path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise UnsupportedError(f"expected the path of a file; received {type(path).__name__}")
    return Path(path)


def _suffix(path: Path, registry: Registry[Any]) -> str:
    suffix = path.suffix.lower()
    if suffix not in registry:
        raise ConfigError(f"expected a file with a suffix of {list(registry.names())}; received {path.name!r}")
    return suffix


def open_arrays(path: str | Path) -> Arrays:
    """The arrays of a file.

    Raises:
        ConfigError: The suffix is of no kind that can be read.
        FileFormatError: The file isn't what its suffix says, or damaged.
        OSError: It can't be read.
    """
    path = _path(path)
    read = READERS.get(_suffix(path, READERS))
    path.open("rb").close()  # what keeps it from being read at all is no damage
    try:
        return read(path)
    except FileFormatError:
        raise
    except DAMAGE as error:
        raise _damaged(path, error) from error


@contextlib.contextmanager
def writing(path: str | Path, layout: Mapping[str, Layout], metadata: Mapping[str, Any]) -> Iterator[Sink]:
    """A file of announced arrays, which replaces `path` once all of them are written.

    Raises:
        ConfigError: The suffix is of no kind that can be written, or a dtype of none that it holds.
        OSError: It can't be written; an older file stays.
    """
    path = _path(path)
    begin = WRITERS.get(_suffix(path, WRITERS))
    with replacing(path) as scratch, begin(scratch, layout, metadata) as sink:
        yield sink
        sink.close()


def _damaged(path: Path, error: Exception) -> FileFormatError:
    return FileFormatError(f"expected a {path.suffix} file; received a damaged one, {path.name!r}: {error}")


@READERS.register(".npy")
def _read_npy(path: Path) -> Arrays:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        array = np.load(path, allow_pickle=False)  # arrays without elements can't be mapped
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError("an archive")
    return Arrays({"array": Layout(array.dtype, array.shape)}, lambda name: array, {})


@READERS.register(".npz")
def _read_npz(path: Path) -> Arrays:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        layout = {n.removesuffix(".npy"): _member_layout(archive, n, path) for n in names if n.endswith(".npy")}
        metadata = {}
        if _METADATA in names:
            if archive.getinfo(_METADATA).file_size > _MAX_HEADER:
                raise ValueError("metadata are too long")
            metadata = _object(archive.read(_METADATA))

    def get(name: str) -> np.ndarray:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
                return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
        except DAMAGE as error:
            raise _damaged(path, error) from error

    return Arrays(layout, get, metadata)


def _member_layout(archive: zipfile.ZipFile, member: str, path: Path) -> Layout:
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    if dtype.hasobject:
        raise FileFormatError(
            f"expected arrays of numbers; received {path.name!r}, whose member {member!r} holds Python objects; "
            "do: write the file without it"
        )
    return Layout(dtype, shape)


@READERS.register(".safetensors")
def _read_safetensors(path: Path) -> Arrays:
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(_MAX_HEADER, size - 8):
            raise ValueError(f"a header of {length} bytes")
        header = _object(file.read(length))
    metadata = header.pop("__metadata__", {})
    start = 8 + length
    places = {name: _place(name, entry, size - start) for name, entry in header.items()}

    def get(name: str) -> np.ndarray:
        dtype, shape, offset = places[name]
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype, "r", start + offset, shape)

    layout = {name: Layout(dtype, shape) for name, (dtype, shape, _) in places.items()}
    return Arrays(layout, get, metadata if isinstance(metadata, dict) else {})


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object was expected, received {type(value).__name__}")
    return value


def _place(name: str, entry: Any, size: int) -> tuple[np.dtype, Shape, int]:
    """Checked dtype, shape and offset of a tensor of a .safetensors file."""
    if not isinstance(entry, dict) or entry.get("dtype") not in _DTYPES:
        raise ValueError(f"tensor {name!r} has no dtype among {sorted(_DTYPES)}: {str(entry)[:80]}")
    dtype, shape, offsets = _DTYPES[entry["dtype"]], entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(shape) > 32 or len(offsets) != 2:
        raise ValueError(f"tensor {name!r} has no shape or place")
    if not all(type(n) is int and n >= 0 for n in (*shape, *offsets)):
        raise ValueError(f"tensor {name!r} has an impossible shape or place")
    begin, end = offsets
    if not begin <= end <= size or end - begin != dtype.itemsize * math.prod(shape):
        raise ValueError(f"tensor {name!r} lies outside the file, or its shape doesn't fit its bytes")
    return dtype, tuple(shape), begin


@WRITERS.register(".npy")
@contextlib.contextmanager
def _write_npy(path: Path, layout: Mapping[str, Layout], metadata: Mapping[str, Any]) -> Iterator[Sink]:
    if len(layout) != 1:
        raise ConfigError(f"expected one array for a .npy file; received {len(layout)}; do: write .npz or .safetensors")
    with path.open("xb") as file:
        yield Sink(lambda name: _header(file, layout[name]), layout)


@WRITERS.register(".npz")
@contextlib.contextmanager
def _write_npz(path: Path, layout: Mapping[str, Layout], metadata: Mapping[str, Any]) -> Iterator[Sink]:
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED, allowZip64=True) as archive, contextlib.ExitStack() as members:

        def start(name: str) -> IO[bytes]:
            members.close()
            stream = members.enter_context(archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True))
            return _header(stream, layout[name])

        if metadata:
            archive.writestr(zipfile.ZipInfo(_METADATA), json.dumps(dict(metadata)))
        yield Sink(start, layout)


@WRITERS.register(".safetensors")
@contextlib.contextmanager
def _write_safetensors(path: Path, layout: Mapping[str, Layout], metadata: Mapping[str, Any]) -> Iterator[Sink]:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape) in layout.items():
        if dtype not in _NAMES or name == "__metadata__":
            raise ConfigError(f"expected arrays that .safetensors holds; received {name!r} of dtype {dtype}")
        end = offset + layout[name].nbytes
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that tensors lie at multiples of 8
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        yield Sink(lambda name: file, layout)


def _header(file: IO[bytes], layout: Layout) -> IO[bytes]:
    if layout.dtype.isbuiltin == 2:  # defined elsewhere: numpy would write bytes without a meaning
        raise ConfigError(
            f"expected arrays of numpy's own dtypes; received {layout.dtype}; do: write a .safetensors file"
        )
    fields = {"descr": np.lib.format.dtype_to_descr(layout.dtype), "fortran_order": False, "shape": layout.shape}
    np.lib.format.write_array_header_1_0(file, fields)
    return file
