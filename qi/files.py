"""Small files: written whole or not at all, read with a limit on their size."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from qi.errors import FileFormatError


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
    scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with scratch.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise
    return Path(path)


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
