"""Checks that bytes are a flatbuffer of some layout, so that nothing that reads them leaves them.

A layout names each table's fields by their slots. Whatever it doesn't name is not followed, but lies inside as well.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import TypeAlias

from qi.errors import FileFormatError

__all__ = ["Layout", "Record", "read"]

Layout: TypeAlias = Mapping[str, Mapping[int, tuple[str, str]]]
"""Table -> slot -> (field's name, its type): a struct code ("i", "Q"...), "string", "[i]" (a vector of numbers), "bytes" (where
they lie: start and size), a table's name, "[Table]" of them, or "?" (a table of any kind)."""

Record: TypeAlias = dict[str, object]
"""A table as field's name -> number, str, list, or Record; fields that aren't there are left out."""

_DEPTH = 16


class _Reader:
    def __init__(self, data: bytes, layout: Layout) -> None:
        self.data, self.layout, self.tables = data, layout, 0

    def number(self, code: str, at: int) -> int | float:
        size = struct.calcsize(f"<{code}")
        if at < 0 or at + size > len(self.data):
            raise FileFormatError(f"expected a whole flatbuffer; byte {at} lies outside of it")
        value: int | float = struct.unpack_from(f"<{code}", self.data, at)[0]
        return value

    def offset(self, at: int) -> int:
        """Where an offset leads."""
        step = int(self.number("I", at))
        if step == 0 or at + step >= len(self.data):
            raise FileFormatError(f"expected a whole flatbuffer; an offset at byte {at} leads outside")
        return at + step

    def vector(self, at: int, size: int) -> tuple[int, int]:
        """(start, count) of a vector whose elements take `size` bytes."""
        count = int(self.number("I", at))
        if at + 4 + count * size > len(self.data):
            raise FileFormatError(f"expected a whole flatbuffer; a vector at byte {at} reaches outside")
        return at + 4, count

    def string(self, at: int) -> str:
        start, count = self.vector(at, 1)
        try:
            return self.data[start : start + count].decode()
        except UnicodeDecodeError as error:
            raise FileFormatError(f"expected text in a flatbuffer at byte {at}; received {error}") from error

    def table(self, name: str, at: int, depth: int = 0) -> Record:
        self.tables += 1
        if depth > _DEPTH or self.tables > max(1000, len(self.data)):
            raise FileFormatError("expected a flatbuffer whose tables make a tree; received one that repeats itself")
        places = self._places(at)
        record: Record = {}
        for slot, (field, kind) in self.layout.get(name, {}).items():
            if slot < len(places) and places[slot]:
                record[field] = self._field(kind, at + places[slot], depth)
        return record

    def _places(self, at: int) -> list[int]:
        """Where the fields of a table lie, relative to it, by slot; 0: not there."""
        vtable = at - int(self.number("i", at))
        size, inline = int(self.number("H", vtable)), int(self.number("H", vtable + 2))
        if size < 4 or size % 2 or inline < 4 or vtable + size > len(self.data) or at + inline > len(self.data):
            raise FileFormatError(f"expected a whole flatbuffer; the table at byte {at} is damaged")
        places = [int(self.number("H", vtable + i)) for i in range(4, size, 2)]
        if any(place >= inline or 0 < place < 4 for place in places):
            raise FileFormatError(f"expected a whole flatbuffer; a field of the table at byte {at} lies outside of it")
        return places

    def _field(self, kind: str, at: int, depth: int) -> object:
        if len(kind) == 1 and kind != "?":
            return self.number(kind, at)
        at = self.offset(at)
        if kind == "string":
            return self.string(at)
        if kind == "bytes":
            return list(self.vector(at, 1))
        if kind.startswith("["):
            return self._elements(kind[1:-1], at, depth)
        return self.table("" if kind == "?" else kind, at, depth + 1)

    def _elements(self, kind: str, at: int, depth: int) -> object:
        if len(kind) > 1:
            start, count = self.vector(at, 4)
            return [self.table(kind, self.offset(start + 4 * i), depth + 1) for i in range(count)]
        size = struct.calcsize(f"<{kind}")
        start, count = self.vector(at, size)
        if start % size:
            raise FileFormatError(f"expected a flatbuffer whose numbers are aligned; byte {start} isn't")
        return list(struct.unpack_from(f"<{count}{kind}", self.data, start))


def read(data: bytes, layout: Layout, root: str, identifier: bytes) -> Record:
    """The root table, with all that it holds, if the bytes are sound.

    Args:
        data: a file.
        layout: of its tables.
        root: name of the table at its root.
        identifier: the four bytes at 4.

    Raises:
        FileFormatError: damaged, cut off, or something else.
    """
    if len(data) < 12 or data[4:8] != identifier:
        raise FileFormatError(
            f"expected a flatbuffer with the identifier {identifier!r}; received {bytes(data[4:8])!r}"
        )
    reader = _Reader(data, layout)
    return reader.table(root, reader.offset(0))
