"""Saving and loading of models, whole or not at all."""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import keras

from qi.errors import FileFormatError, InputError

__all__ = ["load_model", "save_model", "size_on_disk"]


def save_model(model: keras.Model, path: str | os.PathLike[str]) -> Path:
    """Saves a model as a `.keras` file: the file is complete, or what was there before stays.

    Args:
        model: any Keras model.
        path: ends in ``.keras``; its folder must exist.

    Returns:
        the path.

    Raises:
        InputError: another suffix, or a folder that doesn't exist.
        OSError: the disk is full or not writable; an older file is left as it was.
    """
    target = Path(path)
    if target.suffix != ".keras":
        raise InputError(f"expected a path ending in .keras; received {str(target)!r}")
    if not target.parent.is_dir():
        raise InputError(f"expected an existing folder; received {str(target.parent)!r}")
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=".keras")
    os.close(handle)
    temporary = Path(name)
    try:
        keras.saving.save_model(model, temporary)
        temporary.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load_model(path: str | os.PathLike[str], **kwargs: Any) -> keras.Model:
    """Loads a model that QI or Keras saved; what ``keras.models.load_model`` does once `qi.keras` is imported.

    Args:
        path: a `.keras` (or legacy `.h5`) file.
        **kwargs: as of ``keras.models.load_model``.

    Raises:
        InputError: there is no such file.
        FileFormatError: the file is truncated, damaged or no model.
    """
    source = Path(path)
    if not source.exists():
        raise InputError(f"expected a model file; received {str(source)!r}, which doesn't exist")
    if source.suffix == ".keras" and source.is_file() and not zipfile.is_zipfile(source):
        raise FileFormatError(f"expected a .keras archive; received {str(source)!r}, which is truncated or no archive")
    try:
        return keras.models.load_model(source, **kwargs)
    except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise FileFormatError(f"expected a readable Keras model; received {str(source)!r}: {error}") from error


def size_on_disk(model: keras.Model) -> int | None:
    """Bytes of the `.keras` file a model makes, optimizer state left out; None where it can't be saved."""
    optimizer = getattr(model, "optimizer", None)
    try:
        if optimizer is not None and optimizer.variables:
            copy = keras.models.clone_model(model)
            copy.set_weights(model.get_weights())
            model = copy
        with tempfile.TemporaryDirectory() as folder:
            return save_model(model, Path(folder) / "model.keras").stat().st_size
    except (NotImplementedError, OSError, TypeError, ValueError):
        return None
