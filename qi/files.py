"""Small files: written whole or not at all, read with a limit on their size."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import struct
import time
import tokenize
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from qi.errors import FileFormatError

DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError, ArithmeticError, AttributeError, EOFError, LookupError,
    MemoryError, NotImplementedError, OSError, RuntimeError, SyntaxError, TypeError, ValueError,
)  # fmt: skip
"""What damaged archives, arrays and records make of zipfile, zlib, NumPy, JSON and the classes of QI."""

_NAMED = 40  # characters of a file's name in that of the new one beside it, which has to fit into 255 bytes as well
_STALE = 3600.0  # seconds since the last write to such a file


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new file to write, which takes the place of `path` at the end of the block, or is deleted if that raises.

    The file is in the same folder. A symbolic link is followed. What killed writes of the same file left there goes with
    the next one that succeeds, an hour later or more.

    Raises:
        OSError: If the disk is full, the folder is missing or not writable, ...; the old file survives.
    """
    target = Path(path).resolve()
    scratch = target.with_name(f".{target.name[:_NAMED]}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield scratch
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        scratch.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (scratch, str(scratch)):
            # The user knows the target alone.
            raise OSError(error.errno or 0, error.strerror or str(error), os.fspath(path)) from error
        raise
    _sweep(target)


def _sweep(target: Path) -> None:
    """Deletes what writes of the same file left behind that were killed, once nobody can be at it any more."""
    ours = re.compile(rf"\.{re.escape(target.name[:_NAMED])}\.[0-9a-f]{{12}}\.tmp")
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            stale = ours.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            if stale and time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE:
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()


def write_atomically(path: str | os.PathLike[str], data: str | bytes) -> Path:
    """Write a file so that a failure leaves the old one as it was.

    The data go to a new file in the same folder, which then takes the old one's place. A path that exists and
    is no regular file (a pipe, a terminal) is written to directly.

    Args:
        path: Where to write; its folder must exist. A symbolic link is followed.
        data: Bytes, or text to be encoded as UTF-8.

    Returns:
        The path written to.

    Raises:
        OSError: If the disk is full, the folder is missing or not writable, ...; the old file survives.
    """
    target = Path(path).resolve()
    content = data.encode("utf-8") if isinstance(data, str) else data
    if target.exists() and not target.is_file():
        target.write_bytes(content)
        return Path(path)
    with replacing(path) as scratch, scratch.open("xb") as file:
        file.write(content)
    return Path(path)


def check_place(path: str | os.PathLike[str]) -> None:
    """Look whether a file can be written, before any work is done.

    Args:
        path: Where it is going to be written.

    Raises:
        OSError: If its folder is missing or can't be written, or it is a folder itself.
    """
    try:
        target = Path(path).resolve()
    except RuntimeError as error:  # as Python up to 3.12 says it
        raise OSError(errno.ELOOP, "expected a path that ends; received a loop of links", str(path)) from error
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "expected the name of a file to write; received a folder", str(path))
    if target.exists() and not target.is_file():
        return
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "expected a folder that exists; do create it first", str(target.parent))
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "expected a folder that can be written", str(target.parent))


def read_limited(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a file of at most `limit` bytes.

    Args:
        path: The file.
        limit: The most bytes it may have; no more than that (and one) is ever read.

    Raises:
        FileFormatError: If the file is larger.
        OSError: If it can't be opened or read.
    """
    with Path(path).open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise FileFormatError(f"expected a file of at most {limit} bytes; {os.fspath(path)} is larger")
    return content
