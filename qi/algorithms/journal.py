"""What is done kept in a file, result after result, so that work that was stopped goes on where it was.

The file is a magic line and records, each ``<length, CRC-32 of the payload, CRC-32 of these two> payload``. The first
record tells the format and the work that it is of; every other one holds a result, and is appended when it is there, so
writing costs what is new, and a write that is cut off costs its own record alone. A payload is a length, JSON, and arrays.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qi.algorithms.problem import Solution
from qi.algorithms.run import Solved
from qi.core import Grid, IntGrid, LutGrid
from qi.errors import ConfigError, FileFormatError, warn
from qi.files import DAMAGE, write_atomically

__all__ = ["Journal"]

_MAGIC = b"qi.progress\n"
_VERSION = 2
_HEAD, _CHECK = struct.Struct("<QI"), struct.Struct("<I")
_MOST = 2**32  # bytes of a record; none is read that the file doesn't hold, either
_PARTS = {
    "codes": ("int8", "uint8", "int16", "uint16"),
    "scale": ("float32",),
    "zero_point": ("int8", "uint8", "int16", "uint16", "int32", "int64", "float32"),
}


class Journal:
    """A file of results by name, to which each new one is appended.

    A record that a kill or a full disk cut off is dropped, with a warning: its weight is worked on again.

    Args:
        path: of the file; None keeps nothing.
        fingerprint: tells the model, the recipe and the statistics from any others.

    Attributes:
        done: the results by name.

    Raises:
        ConfigError: the file is of other work.
        FileFormatError: it is damaged or something else.
        OSError: it can't be read, or its folder isn't there.
    """

    def __init__(self, path: str | os.PathLike[str] | None, fingerprint: str) -> None:
        self.path, self.fingerprint = None if path is None else Path(path), fingerprint
        self.done: dict[str, Solved] = {}
        self._end: int | None = None  # of what is whole; None: there is no file yet
        if self.path is None:
            return
        if self.path.exists():
            self._read(self.path)
        elif not self.path.parent.is_dir():  # said before the work, not after the first of it
            raise FileNotFoundError(f"expected a folder to keep progress in; received {str(self.path)!r}; do create it")

    def add(self, name: str, solved: Solved) -> None:
        """Keeps one more result.

        Raises:
            OSError: the file can't be written; what it held before is still there.
        """
        self.done[name] = solved
        if self.path is None:
            return
        if self._end is None:
            header = {"format": "qi.progress", "version": _VERSION, "fingerprint": self.fingerprint}
            start = _MAGIC + _record(json.dumps(header).encode())
            write_atomically(self.path, start)
            self._end = len(start)
        record = _record(_packed(name, solved))
        with self.path.open("r+b") as file:
            file.seek(self._end)
            file.truncate()
            file.write(record)
            file.flush()
            os.fsync(file.fileno())
        self._end += len(record)

    def _read(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                known = self._load(file, os.fstat(file.fileno()).st_size)
        except OSError:
            raise
        except (*DAMAGE, ConfigError) as error:
            raise FileFormatError(
                f"expected a file of kept progress; received {path}, which is damaged or something else "
                f"({type(error).__name__}: {error}); do delete it, or name another"
            ) from error
        if known != self.fingerprint:
            raise ConfigError(
                f"expected progress of this model, recipe and statistics; received {path}, which is of others; do name another "
                "file, or delete it"
            )

    def _load(self, file: BinaryIO, size: int) -> str:
        """Reads what is done; gives the fingerprint, and reads no further where that isn't this work's."""
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("another format")
        records = self._records(file, size)
        header = json.loads(next(records, b"null"))
        if header["version"] != _VERSION:
            raise ValueError(f"version {header['version']!r}")
        known = str(header["fingerprint"])
        if known == self.fingerprint:
            self.done = dict(map(_unpacked, records))
            if self._end != size:
                warn(f"the last record of {self.path} was cut off when it was written: its weight is worked on again")
        return known

    def _records(self, file: BinaryIO, size: int) -> Iterator[bytes]:
        """The payloads of the records that are whole; `_end` is behind the last of them then."""
        while (place := file.tell()) < size:
            self._end = place
            head = file.read(_HEAD.size + _CHECK.size)
            if len(head) < _HEAD.size + _CHECK.size or not any(head):  # zeros are space that was never written
                return
            length, checksum = _HEAD.unpack_from(head)
            if zlib.crc32(head[: _HEAD.size]) != _CHECK.unpack_from(head, _HEAD.size)[0] or length > _MOST:
                raise ValueError("the head of a record has another checksum")
            if length > size - file.tell():
                return
            payload = file.read(length)
            if zlib.crc32(payload) != checksum:
                if file.tell() < size:
                    raise ValueError("a record has another checksum")
                return
            yield payload
            self._end = file.tell()


def _record(payload: bytes) -> bytes:
    head = _HEAD.pack(len(payload), zlib.crc32(payload))
    return head + _CHECK.pack(zlib.crc32(head)) + payload


def _packed(name: str, solved: Solved) -> bytes:
    arrays = {part: np.ascontiguousarray(getattr(solved.solution, part)) for part in _PARTS}
    about = {
        "name": name,
        "grid": _grid_to_json(solved.solution.grid),
        "errors": [solved.nearest, solved.error, solved.power],
        "arrays": {part: [array.dtype.name, list(array.shape)] for part, array in arrays.items()},
    }
    text = json.dumps(about).encode()
    return b"".join([_CHECK.pack(len(text)), text, *(array.tobytes() for array in arrays.values())])


def _unpacked(payload: bytes) -> tuple[str, Solved]:
    start = _CHECK.size + _CHECK.unpack_from(payload)[0]
    about = json.loads(payload[_CHECK.size : start])
    arrays = {}
    for part, dtypes in _PARTS.items():
        dtype, shape = about["arrays"][part]
        if dtype not in dtypes or any(type(length) is not int or length < 0 for length in shape):
            raise ValueError(f"expected {part} of a type and shape of their own")
        count = math.prod(shape)
        arrays[part] = np.frombuffer(payload, dtype, count, start).reshape(shape).copy()
        start += arrays[part].nbytes
    solution = Solution(**arrays, grid=_grid_of(about["grid"]))
    nearest, error, power = map(float, about["errors"])
    if start != len(payload) or not _is_whole(solution):
        raise ValueError("expected codes of their grid, and a scale for each zero point")
    return str(about["name"]), Solved(solution, nearest, error, power)


def _is_whole(solution: Solution) -> bool:
    grid, codes, scale = solution.grid, solution.codes, solution.scale
    least, most = (grid.qmin, grid.qmax) if isinstance(grid, IntGrid) else (0, grid.levels - 1)
    inside = not codes.size or (codes.min() >= least and codes.max() <= most)
    return bool(
        inside
        and (codes.ndim, codes.dtype, scale.ndim) == (3, grid.storage_dtype, 1)
        and scale.shape == solution.zero_point.shape
        and (np.isfinite(scale) & (scale > 0)).all()
        and np.isfinite(solution.zero_point).all()
    )


def _grid_to_json(grid: Grid) -> dict[str, Any]:
    if isinstance(grid, LutGrid):
        return {"values": list(grid.values), "bits": grid.bits, "signed": grid.signed}
    return {"bits": grid.bits, "signed": grid.signed, "narrow": grid.narrow}


def _grid_of(record: Mapping[str, Any]) -> Grid:
    return LutGrid(**record) if "values" in record else IntGrid(**record)
