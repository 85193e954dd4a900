"""Tests for qi.algorithms.journal: results kept one by one, whatever stops the work, and whatever the file is."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qi.algorithms import Solution
from qi.algorithms.journal import Journal
from qi.algorithms.run import Solved, Task, solve
from qi.core import IntGrid, LutGrid
from qi.errors import ConfigError, FileFormatError, QuantizationWarning
from tests.algorithms.problems import random_problem
from tests.algorithms.test_run import same

MAGIC = b"qi.progress\n"
HEAD = 16
HEADER = {"format": "qi.progress", "version": 2, "fingerprint": "abc"}


def results() -> dict[str, Solved]:
    """Of several grids, with and without errors."""
    asymmetric = random_problem(3, grid=IntGrid(4, signed=False), asymmetric=True)
    given = {
        "layer/kernel": solve(Task(random_problem(0), [("gptq", {})])),
        "a/b:0 [x]": solve(Task(random_problem(1, grid=IntGrid(8, narrow=True)), [])),
        "zero points": solve(Task(asymmetric, [])),
        "wide": solve(Task(random_problem(4, grid=IntGrid(12)), [])),
        "table": solve(Task(replace(random_problem(5), second=None), [("kmeans", {})])),
    }
    assert isinstance(given["table"].solution.grid, LutGrid)
    return given


def written(path: Path) -> list[int]:
    """Writes `results`; gives where each record ends, that of the header first."""
    journal, ends = Journal(path, "abc"), []
    for name, found in results().items():
        journal.add(name, found)
        ends.append(path.stat().st_size)
    content = path.read_bytes()
    header = len(MAGIC) + HEAD + struct.unpack_from("<Q", content, len(MAGIC))[0]
    return [header, *ends]


def record(payload: bytes) -> bytes:
    head = struct.pack("<QI", len(payload), zlib.crc32(payload))
    return head + struct.pack("<I", zlib.crc32(head)) + payload


def test_it_keeps_what_is_done(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    one = Journal(path, "abc")
    assert one.done == {}
    assert not path.exists()
    given = results()
    for name, found in given.items():
        one.add(name, found)
        again = Journal(path, "abc")
        assert list(again.done) == list(one.done)
    for name, found in given.items():
        same(found, again.done[name])
    assert [entry.name for entry in tmp_path.iterdir()] == ["progress"]


def test_no_path_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal(None, "abc")
    journal.add("a", solve(Task(random_problem(0), [])))
    assert list(journal.done) == ["a"]
    assert list(tmp_path.iterdir()) == []


def test_a_record_costs_its_own_bytes(tmp_path: Path) -> None:
    """Whatever was written before it, that stays as it is."""
    path, found = tmp_path / "progress", results()["layer/kernel"]
    journal, sizes, content = Journal(path, "abc"), [], b""
    for i in range(20):
        journal.add(f"{i:03}", found)
        assert path.read_bytes().startswith(content)
        content = path.read_bytes()
        sizes.append(len(content))
    assert len(set(np.diff(sizes).tolist())) == 1


def test_other_work(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    written(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="this model, recipe and statistics"):
        Journal(path, "abd")
    assert path.read_bytes() == before


def test_stopped_at_any_byte(tmp_path: Path) -> None:
    """All records that are whole survive, and those behind them can be written again."""
    path, given = tmp_path / "progress", results()
    ends = written(path)
    content = path.read_bytes()
    cuts = {end + step for end in ends for step in (0, 1, 7, 8, HEAD - 1, HEAD, HEAD + 1, -1)}
    for cut in sorted(cut for cut in cuts | {*range(ends[0], len(content), 97)} if ends[0] <= cut <= len(content)):
        path.write_bytes(content[:cut])
        whole = sum(end <= cut for end in ends[1:])
        if cut in ends:
            journal = Journal(path, "abc")
        else:
            with pytest.warns(QuantizationWarning, match="cut off"):
                journal = Journal(path, "abc")
        assert list(journal.done) == list(given)[:whole]
        for name, found in list(given.items())[whole:]:
            journal.add(name, found)
        assert path.read_bytes() == content


def test_space_that_was_never_written(tmp_path: Path) -> None:
    """As a power failure leaves it behind, or within, the last record."""
    path, given = tmp_path / "progress", results()
    *_, before, end = written(path)
    content = path.read_bytes()
    for damaged, count in (
        (content + bytes(500), 5),
        (content[: before + HEAD] + bytes(end - before - HEAD), 4),
        (content[:before] + bytes(end - before), 4),
    ):
        path.write_bytes(damaged)
        with pytest.warns(QuantizationWarning, match="cut off"):
            journal = Journal(path, "abc")
        assert len(journal.done) == count
        for name in list(given)[count:]:
            journal.add(name, given[name])
        journal.add("more", given["table"])
        assert list(Journal(path, "abc").done) == [*given, "more"]


@pytest.mark.parametrize("length", [0, 1, 11, 12, 20, 28, 60])
def test_files_without_a_whole_header(tmp_path: Path, length: int) -> None:
    """Which no kill leaves: the header is written whole or not at all."""
    path = tmp_path / "progress"
    written(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FileFormatError, match="damaged or something else"):
        Journal(path, "abc")


@pytest.mark.filterwarnings("ignore:the last record")
def test_flipped_bits(tmp_path: Path) -> None:
    """Found, but in the last record, which might have been cut off: it alone is dropped."""
    path, given = tmp_path / "progress", results()
    ends = written(path)
    content = path.read_bytes()
    for place in range(0, len(content), 53):
        broken = bytearray(content)
        broken[place] ^= 0x10
        path.write_bytes(bytes(broken))
        if place >= ends[-2] + HEAD:
            assert list(Journal(path, "abc").done) == list(given)[:-1]
        else:
            with pytest.raises(FileFormatError, match="damaged"):
                Journal(path, "abc")


def packed(**changes: Any) -> bytes:
    """A record of one weight of one value, with changes."""
    about: dict[str, Any] = {
        "name": "a",
        "grid": {"bits": 4, "signed": True, "narrow": False},
        "errors": [1.0, 0.5, 2.0],
        "arrays": {"codes": ["int8", [1, 1, 1]], "scale": ["float32", [1]], "zero_point": ["int32", [1]]},
    }
    arrays = changes.pop("bytes", b"\x03" + np.ones(1, "float32").tobytes() + bytes(4))
    about["arrays"] |= changes.pop("parts", {})
    text = json.dumps(about | changes).encode()
    return record(struct.pack("<I", len(text)) + text + arrays)


GOOD = MAGIC + record(json.dumps(HEADER).encode())


def test_the_record_that_is_changed_below(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    path.write_bytes(GOOD + packed())
    assert Journal(path, "abc").done["a"].solution.codes.tolist() == [[[3]]]


HOSTILE = {
    "empty": b"",
    "text": b"something else",
    "zip": b"PK\x03\x04" + bytes(100),
    "no header": MAGIC,
    "header is a list": MAGIC + record(b"[]"),
    "header is empty": MAGIC + record(b"{}"),
    "header isn't JSON": MAGIC + record(b"\xff{"),
    "nested": MAGIC + record(b"[" * 100_000),
    "version": MAGIC + record(json.dumps(HEADER | {"version": 3}).encode()),
    "no payload": GOOD + record(b""),
    "length of the text": GOOD + record(struct.pack("<I", 2**32 - 1) + b"{}"),
    "name only": GOOD + record(struct.pack("<I", 13) + b'{"name": "a"}'),
    "bits": GOOD + packed(grid={"bits": 99, "signed": True, "narrow": False}),
    "grid": GOOD + packed(grid={"bits": 4, "colour": "red"}),
    "table": GOOD + packed(grid={"values": [1.5], "bits": 8, "signed": True}),
    "errors": GOOD + packed(errors=[1.0]),
    "error is text": GOOD + packed(errors=["x", 0, 0]),
    "objects": GOOD + packed(parts={"codes": ["object", [1, 1, 1]]}),
    "wide codes": GOOD + packed(parts={"codes": ["int64", [1, 1, 1]]}),
    "huge": GOOD + packed(parts={"codes": ["int8", [2**40, 2**40, 2**40]]}),
    "negative": GOOD + packed(parts={"codes": ["int8", [-1, -1, 1]]}),
    "fraction": GOOD + packed(parts={"codes": ["int8", [1.0, 1, 1]]}),
    "flat": GOOD + packed(parts={"codes": ["int8", [1]]}),
    "code outside": GOOD + packed(bytes=b"\x63" + np.ones(1, "float32").tobytes() + bytes(4)),
    "scale 0": GOOD + packed(bytes=b"\x03" + bytes(8)),
    "scale NaN": GOOD + packed(bytes=b"\x03" + np.full(1, np.nan, "float32").tobytes() + bytes(4)),
    "more bytes": GOOD + packed(bytes=bytes(100)),
    "head": GOOD + b"\x01" * 16,
    "huge length": GOOD + struct.pack("<QI", 2**60, 0) + struct.pack("<I", zlib.crc32(struct.pack("<QI", 2**60, 0))),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "progress"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="do delete it, or name another"):
        Journal(path, "abc")


def test_folders_and_lacking_folders(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"directory|denied"):
        Journal(tmp_path, "abc")
    with pytest.raises(FileNotFoundError, match=r"nowhere.*do create it"):
        Journal(tmp_path / "nowhere" / "progress", "abc")


def test_a_write_that_fails_costs_nothing_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, given = tmp_path / "progress", results()
    journal = Journal(path, "abc")
    journal.add("layer/kernel", given["layer/kernel"])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("qi.algorithms.journal.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            journal.add("table", given["table"])
    journal.add("wide", given["wide"])
    assert list(Journal(path, "abc").done) == ["layer/kernel", "wide"]


def test_solutions_are_plain(tmp_path: Path) -> None:
    problem = random_problem(0, grid=IntGrid(8, narrow=True))
    solution: Solution = problem.solution(problem.nearest())
    Journal(tmp_path / "p", "abc").add("a", Solved(solution, 1.0, 0.5, 2.0))
    found = Journal(tmp_path / "p", "abc").done["a"].solution
    assert found.grid == IntGrid(8, narrow=True)
    assert found.codes.flags.writeable
