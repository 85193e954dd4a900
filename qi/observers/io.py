"""Statistics in a file: calibrate once, quantize later without the data.

The file is one NumPy ``.npz`` archive of plain arrays. ``header`` is UTF-8 JSON as uint8:
``{"format": "qi.statistics", "version": 1, "names": [...]}``, with ``"samples": 512`` and ``"model": "..."`` where they
are known; the arrays of the i-th name are ``i.histogram.counts`` and so on, as `TensorStatistics.state` gives them.
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
from qi.observers.statistics import State, TensorStatistics

__all__ = ["load_statistics", "save_statistics"]

_FORMAT = "qi.statistics"
_VERSION = 1


def save_statistics(path: str | os.PathLike[str], statistics: Mapping[str, TensorStatistics]) -> Path:
    """Write statistics by name to one ``.npz`` file, whole or not at all.

    Args:
        path: Where to write; taken as it is, no suffix is added.
        statistics: By name; any text is a name. The origin of `CalibratedStatistics` is saved with them.

    Returns:
        The path written to.

    Raises:
        InputError: If a name isn't text or a value isn't `TensorStatistics`.
        OSError: If the file can't be written; an old one survives then.
    """
    given = statistics if isinstance(statistics, CalibratedStatistics) else CalibratedStatistics(statistics)
    arrays: State = {}
    for i, stats in enumerate(given.values()):
        arrays |= {f"{i}.{key}": array for key, array in stats.state().items()}
    origin = {"samples": given.samples, "model": given.model or None}
    known = {key: value for key, value in origin.items() if value is not None}
    header = json.dumps({"format": _FORMAT, "version": _VERSION, "names": list(given), **known})
    arrays["header"] = np.frombuffer(header.encode(), np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return write_atomically(path, buffer.getvalue())


def load_statistics(path: str | os.PathLike[str]) -> CalibratedStatistics:
    """Read what `save_statistics` wrote.

    Args:
        path: The file.

    Returns:
        The statistics by name, in the order they were saved in, with their origin where the file knows it.

    Raises:
        FileFormatError: If the file is damaged, of another format or of a later version.
        OSError: If it can't be opened or read.
    """
    content = Path(path).read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays: State = {name: archive[name] for name in archive.files}
        header = json.loads(arrays.pop("header").tobytes())
        names = _names(header)
        states: list[State] = [{} for _ in names]
        for key, array in arrays.items():
            index, _, rest = key.partition(".")
            states[int(index)][rest] = array
        found = {name: TensorStatistics.from_state(state) for name, state in zip(names, states, strict=True)}
        return CalibratedStatistics(found, samples=header.get("samples"), model=header.get("model", ""))
    except FileFormatError as error:
        raise FileFormatError(f"{error}; the file is {os.fspath(path)}") from None
    except DAMAGE as error:
        raise FileFormatError(
            f"expected a file of statistics as save_statistics writes it; received {os.fspath(path)}, "
            f"which is damaged or something else ({type(error).__name__}: {error}); calibrate again"
        ) from error


def _names(header: Any) -> list[str]:
    """The names in a header of our format and version."""
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise FileFormatError("expected a file of statistics; received a file of another format")
    if header.get("version") != _VERSION:
        raise FileFormatError(
            f"expected version {_VERSION} of the statistics format; received "
            f"version={header.get('version')!r}; update quantizers-infrastructure or calibrate again"
        )
    names = header["names"]
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise FileFormatError("expected distinct names of tensors; received others")
    return list(names)
