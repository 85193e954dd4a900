"""Folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from qi.errors import ConfigError

__all__ = ["check_folder", "write_folder"]


def check_folder(path: str | os.PathLike[str], names: set[str], former: Callable[[Path], bool]) -> Path:
    """Looks whether a folder may be written.

    Args:
        path: of the folder; what it lies in must exist. A symbolic link is followed.
        names: of the files that it will hold.
        former: tells of a folder of such files whether it was written by the like.

    Returns:
        the path, resolved.

    Raises:
        ConfigError: something else is there: a file, or a folder with anything that replacing it would destroy.
        OSError: the folder it lies in is missing, or something can't be written.
    """
    target = Path(path).resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"expected a folder {str(target.parent)!r} to write into; there is none; do create it")
    if not target.exists():
        return target
    if not target.is_dir():
        raise ConfigError(f"expected a folder; received {str(path)!r}, which is a file; do name another")
    found = {entry.name for entry in target.iterdir()}
    if found and not (found <= names and former(target)):
        raise ConfigError(
            f"expected an empty folder, or one that holds nothing but a former export; received {str(path)!r} with "
            f"{sorted(found - names or found)[:3]}; do name another"
        )
    if not os.access(target, os.W_OK):
        raise PermissionError(f"expected a folder that can be written; received {str(path)!r}")
    return target


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Writes a folder so that a failure leaves the old one as it was, and nothing else.

    The files go to a new folder beside it, which then takes its place.

    Args:
        target: as `check_folder` gave it.
        files: contents by name.

    Raises:
        OSError: the disk is full or can't be written.
    """
    mark = uuid.uuid4().hex[:12]
    scratch, aside = (target.with_name(f".{target.name}.{mark}.{end}") for end in ("tmp", "old"))
    try:
        scratch.mkdir()
        for name, content in files.items():
            with (scratch / name).open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _swap(scratch, target, aside)
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(error, OSError) and str(error.filename).startswith(str(scratch)):
            raise OSError(error.errno or 0, error.strerror or str(error), str(target)) from error
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _swap(scratch: Path, target: Path, aside: Path) -> None:
    """Puts a folder in the place of another, which goes aside."""
    there = target.exists()
    if there:
        target.rename(aside)
    try:
        scratch.rename(target)
    except BaseException:
        if there:
            with contextlib.suppress(OSError):
                aside.rename(target)
        raise
