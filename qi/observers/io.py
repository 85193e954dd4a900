"""Statistics in a file: calibrate once, quantize later without the data.

The file is one NumPy ``.npz`` archive of plain arrays. ``header`` is UTF-8 JSON as uint8: ``{"format":
"qi.statistics", "version": 2, "names": [...], "inputs": [...], "channels": [...]}``, with ``"samples": 512`` and
``"model": "..."`` where they are known. The arrays of the i-th name are ``i.histogram.counts`` and so on, as
`TensorStatistics.state` gives them; those of the i-th channels are ``channels.i.histogram.counts`` and so on; those of
the i-th inputs ``inputs.i.second`` and so on, as `Moments.state` gives them. Files of version 1, which have neither
inputs nor channels, are read too.
Nothing in it is ever executed.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qi.errors import FileFormatError
from qi.files import DAMAGE, write_atomically
from qi.observers.calibrated import CalibratedStatistics
from qi.observers.moments import Moments
from qi.observers.statistics import State, TensorStatistics

__all__ = ["load_statistics", "save_statistics"]

_FORMAT = "qi.statistics"
_VERSION = 2
_KINDS = ("names", "inputs", "channels")  # of things with names, as lists in the header


def save_statistics(path: str | os.PathLike[str], statistics: Mapping[str, TensorStatistics]) -> Path:
    """Write statistics by name to one ``.npz`` file, whole or not at all.

    Args:
        path: Where to write; taken as it is, no suffix is added.
        statistics: By name; any text is a name. The origin, inputs and channels of
            `CalibratedStatistics` are saved with them.

    Returns:
        The path written to.

    Raises:
        InputError: If a name isn't text or a value isn't `TensorStatistics`.
        OSError: If the file can't be written; an old one survives then.
    """
    given = statistics if isinstance(statistics, CalibratedStatistics) else CalibratedStatistics(statistics)
    arrays: State = {}
    parts: dict[str, Mapping[str, Any]] = {"names": given, "inputs": given.inputs, "channels": given.channels}
    for kind, found in parts.items():
        for i, seen in enumerate(found.values()):
            arrays |= {f"{_prefix(kind)}{i}.{key}": array for key, array in seen.state().items()}
    origin = {"samples": given.samples, "model": given.model or None}
    known = {key: value for key, value in origin.items() if value is not None}
    lists = {kind: list(found) for kind, found in parts.items()}
    header = json.dumps({"format": _FORMAT, "version": _VERSION, **lists, **known})
    arrays["header"] = np.frombuffer(header.encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return write_atomically(path, buffer.getvalue())


def load_statistics(path: str | os.PathLike[str]) -> CalibratedStatistics:
    """Read what `save_statistics` wrote.

    Args:
        path: The file.

    Returns:
        The statistics by name, in the order they were saved in, with their inputs and channels, and with their
        origin where the file knows it.

    Raises:
        FileFormatError: If the file is damaged, of another format or of a later version.
        OSError: If it can't be opened or read.
    """
    content = Path(path).read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays: State = {name: archive[name] for name in archive.files}
        header = json.loads(arrays.pop("header").tobytes())
        _check(header)
        origin = {"samples": header.get("samples"), "model": header.get("model", "")}
        states = {kind: [State() for _ in header.get(kind, ())] for kind in _KINDS}
        for key, array in arrays.items():
            kind, index, rest = _split(key)
            states[kind][index][rest] = array
        makers: list[Any] = [TensorStatistics, Moments, TensorStatistics]
        tensors, inputs, channels = (
            dict(zip(header.get(kind, ()), map(maker.from_state, states[kind]), strict=True))
            for kind, maker in zip(_KINDS, makers, strict=True)
        )
        return CalibratedStatistics(tensors, inputs=inputs, channels=channels, **origin)
    except FileFormatError as error:
        raise FileFormatError(f"{error}; the file is {os.fspath(path)}") from None
    except DAMAGE as error:
        raise FileFormatError(
            f"expected a file of statistics as save_statistics writes it; received {os.fspath(path)}, "
            f"which is damaged or something else ({type(error).__name__}: {error}); calibrate again"
        ) from error


def _prefix(kind: str) -> str:
    """What the names of the arrays of a kind begin with."""
    return "" if kind == "names" else f"{kind}."


def _split(key: str) -> tuple[str, int, str]:
    """The kind, the index and the rest of an array's name."""
    first, _, rest = key.partition(".")
    kind = first if first in _KINDS[1:] else "names"
    index, _, rest = (rest if kind == first else key).partition(".")
    if not index.isdecimal():
        raise FileFormatError(f"expected arrays of statistics by number; received {key!r}")
    return kind, int(index), rest


def _check(header: Any) -> None:
    """Refuse a header of another format or version, and one whose names aren't names."""
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise FileFormatError("expected a file of statistics; received a file of another format")
    version = header.get("version")
    if version not in (1, _VERSION) or isinstance(version, bool):
        raise FileFormatError(
            f"expected version 1 to {_VERSION} of the statistics format; received "
            f"version={version!r}; update quantizers-infrastructure or calibrate again"
        )
    kinds = [kind for kind in _KINDS if kind == "names" or kind in header]
    if kinds != list(_KINDS if version == _VERSION else _KINDS[:1]):
        raise FileFormatError(f"expected the lists of version {version} of the statistics format; received {kinds}")
    for names in (header[kind] for kind in kinds):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise FileFormatError(f"expected a list of names; received {type(names).__name__}")
        if len(set(names)) != len(names):
            raise FileFormatError("expected distinct names of tensors; received others")
