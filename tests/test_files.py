from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from qi.errors import FileFormatError
from qi.files import read_limited, write_atomically


def test_text_and_bytes_are_written_whole(tmp_path):
    path = tmp_path / "a.txt"
    assert write_atomically(path, "grün") == path
    assert path.read_bytes() == "grün".encode()
    write_atomically(str(path), b"\x00\x01")
    assert path.read_bytes() == b"\x00\x01"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_no_scratch_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    # A limit on the size of files, in a process of its own: what a full disk does to write().
    program = (
        "import resource, signal, sys\n"
        "from qi.files import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    write_atomically(sys.argv[1], b'x' * 5000)\n"
        "except OSError:\n"
        "    sys.exit(7)\n"
    )
    finished = subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=60)
    assert finished.returncode == 7
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_what_killed_writes_left_goes_with_the_next_success(tmp_path):
    stale, fresh = tmp_path / ".a.txt.0123456789ab.tmp", tmp_path / ".a.txt.ba9876543210.tmp"
    kept = [".b.txt.0123456789ab.tmp", ".a.txt.0123456789.tmp", "a.txt.0123456789ab.tmp", ".aXtxt.0123456789ab.tmp"]
    others = [tmp_path / name for name in kept]
    folder, link = tmp_path / ".a.txt.000000000000.tmp", tmp_path / ".a.txt.111111111111.tmp"
    folder.mkdir()
    link.symlink_to(others[0])
    for path in (stale, fresh, *others):
        path.write_text("half")
    for path in (stale, folder, *others):
        os.utime(path, (0, 0))
    os.utime(link, (0, 0), follow_symlinks=False)
    write_atomically(tmp_path / "a.txt", "new")
    assert not stale.exists()
    assert all(path.exists() for path in (tmp_path / "a.txt", fresh, folder, link, *others))


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "a.txt", "x")


def test_a_symbolic_link_stays_a_link(tmp_path):
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    write_atomically(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_the_new_file_has_the_permissions_of_any_new_file(tmp_path):
    path = write_atomically(tmp_path / "a.txt", "x")
    plain = tmp_path / "b.txt"
    plain.write_text("x")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_pipe_is_written_to_directly(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomically(path, b"hello")
        assert os.read(reader, 10) == b"hello"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_reading_stops_at_the_limit(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"12345")
    assert read_limited(path, 5) == b"12345"
    with pytest.raises(FileFormatError, match=r"at most 4 bytes; .*a\.bin is larger"):
        read_limited(path, 4)


def test_an_error_names_the_file_and_not_the_one_beside_it(tmp_path):
    with pytest.raises(FileNotFoundError) as found:
        write_atomically(tmp_path / "missing" / "a.txt", "text")
    assert found.value.filename == str(tmp_path / "missing" / "a.txt")
    assert ".tmp" not in str(found.value)
