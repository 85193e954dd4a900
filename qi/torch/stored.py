"""Files of torch modules: tensors and one JSON record, in ``.safetensors`` or ``.pt``, nothing pickled but plain tensors."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qi._version import __version__
from qi.errors import FileFormatError, InputError, MissingDependencyError, UnsupportedError
from qi.files import check_place, replacing
from qi.optional import require

__all__ = ["MAX_RECORD", "SUFFIXES", "check_suffix", "read", "write"]

MAX_RECORD = 64 << 20
"""The most bytes of a file's JSON record."""

_FORMAT, _VERSION = "qi.torch", 1
_KEYS = {"format": str, "version": int, "qi": str, "record": dict, "tensors": dict, "same": dict, "digest": str}
_FEATURE = "a .safetensors file"

Tensors = dict[str, torch.Tensor]


def check_suffix(path: str | os.PathLike[str]) -> str:
    """The suffix of a path, which decides the format.

    Raises:
        InputError: another one than `SUFFIXES`.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise InputError(f"expected a path ending in one of {', '.join(SUFFIXES)}; received {os.fspath(path)!r}")
    return suffix


def write(path: str | os.PathLike[str], record: Mapping[str, Any], state: Mapping[str, Any]) -> Path:
    """Writes a record and a state dict: the file is complete, or what was there before stays.

    Tensors that share their memory, and codes that are equal, are written once.

    Args:
        path: ends in one of `SUFFIXES`.
        record: JSON values.
        state: strided tensors by name.

    Returns:
        the path.

    Raises:
        InputError: another suffix, tensors without values, or of a type that the format doesn't hold.
        UnsupportedError: something in the state is no plain tensor.
        MissingDependencyError: a ``.safetensors`` file without safetensors.
        OSError: the file can't be written.
    """
    writer = _WRITERS[check_suffix(path)]
    check_place(path)
    tensors, same = _plain(state)
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "qi": __version__,
        "record": dict(record),
        "tensors": {name: _kind(tensors[same.get(name, name)]) for name in state},
        "same": same,
        "digest": _digest(record, tensors),
    }
    text = json.dumps(document, allow_nan=False)
    if len(text) > MAX_RECORD:
        raise InputError(f"expected a module whose structure takes at most {MAX_RECORD} bytes; received {len(text)}")
    with replacing(path) as scratch:
        writer(scratch, text, tensors, same)
    return Path(path)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Tensors]:
    """What `write` wrote: (record, state dict).

    Raises:
        InputError: another suffix, or no such file.
        FileFormatError: the file is damaged, truncated, foreign, or of a later version.
        MissingDependencyError: a ``.safetensors`` file without safetensors.
        OSError: it can't be opened.
    """
    reader, source = _READERS[check_suffix(path)], Path(path)
    if not source.exists():
        raise InputError(f"expected a file of a torch module; received {str(source)!r}, which doesn't exist")
    with source.open("rb"):
        pass  # what the system has to say comes as it is
    try:
        document, tensors = reader(source)
        _check_tensors(document, tensors)
    except (FileFormatError, MissingDependencyError) as error:
        if isinstance(error, MissingDependencyError):
            raise
        raise FileFormatError(f"{error}; the file is {str(source)!r}") from error
    except Exception as error:  # unpickling, zip archives and safetensors raise what they like
        raise FileFormatError(
            f"expected a file that qi.torch.save_model wrote; received {str(source)!r}, which is damaged or something else "
            f"({type(error).__name__}: {_line(error)})"
        ) from error
    record: dict[str, Any] = document["record"]
    return record, {name: tensors[document["same"].get(name, name)] for name in document["tensors"]}


# Tensors ----------------------------------------------------------------------------------------------------------------


def _plain(state: Mapping[str, Any]) -> tuple[Tensors, dict[str, str]]:
    """Tensors with memory of their own, on the CPU; and the name that holds what further names stand for."""
    tensors: Tensors = {}
    same: dict[str, str] = {}
    seen: dict[Any, str] = {}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            raise UnsupportedError(f"expected plain tensors in the state dict; received {name!r}, {_named(value)}")
        if value.is_meta:
            raise InputError(f"expected tensors with values; received {name!r} on the meta device; do load them first")
        own = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        key = _identity(value, own)
        if key in seen:
            same[name] = seen[key]
            continue
        seen[key] = name
        whole = own.untyped_storage().nbytes() == own.numel() * own.element_size()
        tensors[name] = own if whole else own.clone()  # of a slice, torch would write all of its memory
    return tensors, same


def _identity(value: torch.Tensor, own: torch.Tensor) -> Any:
    """What tensors have in common that need to be written once."""
    if value.dtype is torch.uint8:  # the codes of tied weights are packed for each wrapper
        return tuple(value.shape), hashlib.sha256(_bytes(own).data).digest()
    return (value.data_ptr(), value.dtype, tuple(value.shape), value.stride()) if value.numel() else object()


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return flat.reshape(-1).view(torch.uint8).numpy()


def _kind(tensor: torch.Tensor) -> list[Any]:
    return [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]


def _digest(record: Mapping[str, Any], tensors: Tensors) -> str:
    """What tells a damaged file: neither format looks at the bytes of its tensors."""
    found = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(_bytes(tensors[name]).data)
    return found.hexdigest()


def _check_tensors(document: Mapping[str, Any], tensors: Tensors) -> None:
    """Raises FileFormatError where tensors aren't those that the record is about."""
    wanted, same = document["tensors"], document["same"]
    own = set(wanted) - set(same)
    if missing := sorted(own - set(tensors)):
        raise FileFormatError(f"expected {len(own)} tensors; received a file without {missing[:3]}")
    if more := sorted(set(tensors) - set(wanted)):
        raise FileFormatError(f"expected the tensors of the record; received {more[:3]} besides")
    if lost := sorted(name for name, other in same.items() if name not in wanted or other not in own):
        raise FileFormatError(f"expected the tensors of the record; received {lost[:3]}, which stand for none")
    for name in own:
        tensor = tensors[name]
        if _kind(tensor) != wanted[name] or not tensor.is_contiguous():
            raise FileFormatError(f"expected {name!r} to be {wanted[name]}; received {_kind(tensor)}")
    if _digest(document["record"], {name: tensors[name] for name in own}) != document["digest"]:
        raise FileFormatError("expected tensors and structure as they were written; received others: it is damaged")


def _document(text: Any) -> dict[str, Any]:
    """The JSON text of a file, checked."""
    if not isinstance(text, str):
        raise FileFormatError(
            "expected a file that qi.torch.save_model wrote; received one without the record 'qi', which holds plain weights"
        )
    if len(text) > MAX_RECORD:
        raise FileFormatError(f"expected a record of at most {MAX_RECORD} bytes; received {len(text)}")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"expected a record in JSON; received other text ({error})") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise FileFormatError("expected a file that qi.torch.save_model wrote; received one of another format")
    version = document.get("version")
    if type(version) is not int or not 1 <= version <= _VERSION:
        raise FileFormatError(
            f"expected version {_VERSION} of the format; received version={version!r}, written by QI {document.get('qi')!r}; "
            "do update quantizers-infrastructure"
        )
    for key, kind in _KEYS.items():
        if type(document.get(key)) is not kind:
            raise FileFormatError(f"expected a record with {key!r}; received {document.get(key)!r}")
    return document


# Formats ----------------------------------------------------------------------------------------------------------------


def _write_safetensors(path: Path, text: str, tensors: Tensors, same: Mapping[str, str]) -> None:
    torch_side = require("safetensors.torch", "safetensors", _FEATURE)
    try:
        torch_side.save_file(tensors, path, metadata={"qi": text})
    except (KeyError, TypeError, ValueError) as error:
        kinds = sorted({str(tensor.dtype) for tensor in tensors.values()})
        raise InputError(f"expected types that .safetensors holds; received {kinds}; do write a .pt file") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Any], Tensors]:
    with require("safetensors", "safetensors", _FEATURE).safe_open(path, framework="pt", device="cpu") as file:
        document = _document((file.metadata() or {}).get("qi"))
        return document, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping


def _write_zip(path: Path, text: str, tensors: Tensors, same: Mapping[str, str]) -> None:
    names = [*tensors, *same]
    with path.open("xb") as file:  # by its name, torch would write that of the temporary file into the archive
        torch.save({"qi": text, "state_dict": {name: tensors[same.get(name, name)] for name in names}}, file)


def _read_zip(path: Path) -> tuple[dict[str, Any], Tensors]:
    if not zipfile.is_zipfile(path):
        raise FileFormatError(
            "expected an archive as torch.save writes it; received a truncated file or something else"
        )
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > path.stat().st_size:  # torch compresses nothing
        raise FileFormatError(f"expected an archive that isn't compressed; received one that unpacks to {size} bytes")
    held = torch.load(path, map_location="cpu", weights_only=True)
    document = _document(held.get("qi") if isinstance(held, dict) else None)
    state = held.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise FileFormatError("expected tensors in 'state_dict'; received something else")
    return document, state


_WRITERS: dict[str, Callable[[Path, str, Tensors, Mapping[str, str]], None]] = {
    ".safetensors": _write_safetensors,
    ".pt": _write_zip,
    ".pth": _write_zip,
}
_READERS: dict[str, Callable[[Path], tuple[dict[str, Any], Tensors]]] = {
    ".safetensors": _read_safetensors,
    ".pt": _read_zip,
    ".pth": _read_zip,
}
SUFFIXES = tuple(_WRITERS)


def _named(value: Any) -> str:
    return f"a tensor of layout {value.layout}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"


def _line(error: BaseException) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return first.partition(". ")[0][:200]  # torch goes on to recommend running the code in a file
