from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qi.errors import ConfigError
from qi.exporters.folders import check_folder, write_folder

NAMES = {"a", "b"}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def former(folder: Path) -> bool:
    return (folder / "a").read_bytes().startswith(b"ours")


def test_a_new_folder(tmp_path: Path) -> None:
    target = check_folder(tmp_path / "new", NAMES, former)
    write_folder(target, {"a": b"ours", "b": b""})
    assert contents(tmp_path / "new") == {"a": b"ours", "b": b""}
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_an_empty_folder_and_a_former_export_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    for text in (b"ours 1", b"ours 2"):
        write_folder(check_folder(f"{tmp_path}/dir/", NAMES, former), {"a": text})
    assert contents(tmp_path / "dir") == {"a": b"ours 2"}
    assert [path.name for path in tmp_path.iterdir()] == ["dir"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_folder(check_folder(tmp_path / "link", NAMES, former), {"a": b"ours"})
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real") == {"a": b"ours"}


@pytest.mark.parametrize("there", [{"notes.txt": b""}, {"a": b"theirs"}, {"a": b"ours", "kernel.c": b"mine"}])
def test_what_it_would_destroy_is_refused(tmp_path: Path, there: dict[str, bytes]) -> None:
    for name, text in there.items():
        (tmp_path / name).write_bytes(text)
    with pytest.raises(ConfigError, match="empty folder, or one that holds nothing but a former export"):
        check_folder(tmp_path, NAMES, former)
    assert contents(tmp_path) == there


def test_a_file_and_a_missing_parent_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="which is a file"):
        check_folder(tmp_path / "file", NAMES, former)
    with pytest.raises(FileNotFoundError, match="do create it"):
        check_folder(tmp_path / "missing" / "dir", NAMES, former)


def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(PermissionError):
        check_folder(tmp_path, NAMES, former)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = check_folder(tmp_path / "dir", NAMES, former)
    write_folder(target, {"a": b"ours"})
    synced = []

    def full(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 2:
            raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for where in (target, tmp_path / "other"):
        with pytest.raises(OSError, match="no space"):
            write_folder(where, {"a": b"ours, new", "b": b"ours too"})
        synced.clear()
    assert contents(target) == {"a": b"ours"}
    assert [path.name for path in tmp_path.iterdir()] == ["dir"]


@pytest.mark.parametrize("fails", [1, 2])
def test_a_failed_change_of_places_leaves_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    target = check_folder(tmp_path / "dir", NAMES, former)
    write_folder(target, {"a": b"ours"})
    rename, calls = Path.rename, []

    def failing(self: Path, to: Path) -> Path:
        calls.append(to)
        if len(calls) == fails:
            raise PermissionError(errno.EACCES, "refused")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(PermissionError):
        write_folder(target, {"a": b"ours, new"})
    assert contents(target) == {"a": b"ours"}
    assert [path.name for path in tmp_path.iterdir()] == ["dir"]


def test_an_error_names_the_folder_and_not_the_one_beside_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as found:
        write_folder(tmp_path / "missing" / "dir", {"a": b""})
    assert found.value.filename == str(tmp_path / "missing" / "dir")
    assert ".tmp" not in str(found.value)
