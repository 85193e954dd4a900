from __future__ import annotations

import struct

import pytest

from qi.errors import FileFormatError
from qi.exporters.flatbuffer import read

LAYOUT = {
    "Root": {
        0: ("number", "i"),
        1: ("text", "string"),
        2: ("values", "[i]"),
        3: ("child", "Root"),
        4: ("raw", "bytes"),
    },
}


def table(number: int, *, text: int = 0, values: int = 0, child: int = 0) -> bytes:
    """A root at 12 + its vtable of five slots; offsets are relative to the fields, 0 for none."""
    vtable = struct.pack("<7H", 14, 20, 4, 8 if text else 0, 12 if values else 0, 16 if child else 0, 0)
    head = struct.pack("<I4sI", 12 + 14 + 2, b"TEST", 0) + vtable + b"\x00\x00"
    return head + struct.pack("<iiIII", len(vtable) + 2, number, text, values, child)


def test_numbers_text_and_vectors() -> None:
    data = table(-5, text=12, values=16) + struct.pack("<I4s", 4, b"name") + struct.pack("<I2i", 2, 7, -8)
    assert read(data, LAYOUT, "Root", b"TEST") == {"number": -5, "text": "name", "values": [7, -8]}


def test_another_identifier() -> None:
    with pytest.raises(FileFormatError, match="identifier"):
        read(table(1), LAYOUT, "Root", b"ELSE")


@pytest.mark.parametrize(
    "data",
    [
        table(1, text=4000),
        table(1, text=12) + struct.pack("<I", 2**31),
        table(1, values=8) + struct.pack("<I", 2**30),
        table(1, text=12) + struct.pack("<I4s", 4, b"\xff\xfe\xfd\xfc"),
        struct.pack("<I4sI", 2**31, b"TEST", 0),
        struct.pack("<I4sI", 0, b"TEST", 0),
        table(1)[:30],
    ],
)
def test_offsets_that_lead_outside(data: bytes) -> None:
    with pytest.raises(FileFormatError):
        read(data, LAYOUT, "Root", b"TEST")


def test_a_table_within_itself() -> None:
    """Offsets lead forward only, so a circle takes an offset that wraps around; a deep tree is refused as well."""
    nested = b""
    for _ in range(40):
        nested = struct.pack("<i", 0) + nested
    data = table(1, child=2**32 - 16)
    with pytest.raises(FileFormatError):
        read(data + nested, LAYOUT, "Root", b"TEST")
