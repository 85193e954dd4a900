"""Saving and loading of models, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import keras

from qi.errors import FileFormatError, InputError, QiError
from qi.keras.legacy import load_h5, who_wrote
from qi.keras.variables import check_model

__all__ = ["load_model", "save_model", "size_on_disk"]

# What reading a damaged file may raise, from zipfile, zlib, h5py, JSON and the rebuilding of layers.
_DAMAGE = (
    ArithmeticError, AttributeError, EOFError, LookupError, NotImplementedError, OSError, RuntimeError, TypeError,
    ValueError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def save_model(model: keras.Model, path: str | os.PathLike[str]) -> Path:
    """Saves a model as a compressed `.keras` file: the file is complete, or what was there before stays.

    Keras stores its archive uncompressed, which makes a small model mostly empty HDF5 blocks and JSON. It reads both.

    Args:
        model: any Keras model.
        path: ends in ``.keras``; its folder must exist. A symbolic link is followed.

    Returns:
        the path.

    Raises:
        InputError: no model, another suffix, a folder in the file's place, or one that doesn't exist around it.
        OSError: the disk is full or not writable; an older file is left as it was.

    Example:
        >>> import keras, qi, tempfile
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     reloaded = qi.load_model(qi.save_model(model, f"{folder}/model.keras"))
        >>> reloaded.name == model.name
        True
    """
    check_model(model)
    target = Path(path).resolve()
    if target.suffix != ".keras":
        raise InputError(f"expected a path ending in .keras; received {str(path)!r}")
    if not target.parent.is_dir():
        raise InputError(f"expected an existing folder; received {str(target.parent)!r}")
    if target.is_dir():
        raise InputError(f"expected the path of a file; received {str(path)!r}, which is a folder")
    plain, packed = (target.with_name(f".{target.stem}.{uuid.uuid4().hex[:12]}.keras") for _ in range(2))
    try:
        keras.saving.save_model(model, plain)
        _deflate(plain, packed)
        if target.exists():
            packed.chmod(target.stat().st_mode & 0o777)
        _flush(packed)
        packed.replace(target)
    finally:
        plain.unlink(missing_ok=True)
        packed.unlink(missing_ok=True)
    return Path(path)


def _deflate(source: Path, target: Path) -> None:
    """Copies an archive member by member, compressed; a block at a time is in memory."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            entry = zipfile.ZipInfo(member.filename, member.date_time)
            # Deflating a few bytes gains nothing; as they are, the date within them leaves the file's size alone.
            entry.compress_type = zipfile.ZIP_DEFLATED if member.file_size > 1024 else zipfile.ZIP_STORED
            entry.external_attr = member.external_attr
            with old.open(member) as reader, new.open(entry, "w", force_zip64=True) as writer:
                shutil.copyfileobj(reader, writer, 2**20)


def _flush(path: Path) -> None:
    """Has the file on the disk before it takes another's place: a power cut then leaves one of the two."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def load_model(path: str | os.PathLike[str], **kwargs: Any) -> keras.Model:
    """Loads a model that QI or Keras saved; what ``keras.models.load_model`` does once `qi.keras` is imported.

    Args:
        path: a `.keras` file, or a legacy `.h5` file of this Keras or of Keras 2.
        **kwargs: as of ``keras.models.load_model``.

    Raises:
        InputError: there is no such file.
        FileFormatError: the file is truncated, damaged, no model, or made of classes that Keras doesn't know here.
    """
    source = Path(path)
    if not source.exists():
        raise InputError(f"expected a model file; received {str(source)!r}, which doesn't exist")
    if source.is_dir():
        raise FileFormatError(
            f"expected a .keras or .h5 file; received {str(source)!r}, a folder; do save the model as .keras or .h5 where it was "
            "made. Of a SavedModel, keras.layers.TFSMLayer(path) makes a layer, which stays in float"
        )
    if source.suffix == ".keras" and source.is_file() and not zipfile.is_zipfile(source):
        raise FileFormatError(f"expected a .keras archive; received {str(source)!r}, which is truncated or no archive")
    try:
        if source.suffix in (".h5", ".hdf5"):
            return load_h5(source, keras.models.load_model, **kwargs)
        return keras.models.load_model(source, **kwargs)
    except _DAMAGE as error:
        if isinstance(error, QiError) and source.suffix != ".keras":  # it names the file
            raise
        raise FileFormatError(
            f"expected a readable Keras model; received {str(source)!r}{who_wrote(source)}: {error}"
        ) from error


def size_on_disk(model: keras.Model) -> int | None:
    """Bytes of the `.keras` file a model makes, without a compiled model's optimizer; None where it can't be saved."""
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")  # what Keras says of saving and copies: of these, nobody keeps any
            if getattr(model, "optimizer", None) is not None:
                copy = type(model).from_config(model.get_config())  # a clone would be compiled again
                copy.set_weights(model.get_weights())
                model = copy
            return save_model(model, Path(folder) / "model.keras").stat().st_size
    except (NotImplementedError, OSError, TypeError, ValueError):
        return None
