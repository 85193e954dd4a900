"""Runs a file that may be anything in a process of its own: runtimes trust their files, and end or fill the machine on bad ones.

``python -m`` of this module reads an npz archive from its input and writes one to its output.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qi.errors
from qi.errors import FileFormatError, InputError, MissingDependencyError, QiError
from qi.exporters.formats import FORMATS

__all__ = ["run_isolated"]

_SECONDS = 300
_BYTES = 8 * 2**30  # of addresses, beside a generous multiple of what is run
_TOLD = 3  # exit code of an error that says what is wrong


def run_isolated(format: str, data: bytes, inputs: Sequence[np.ndarray], **options: Any) -> Mapping[str, np.ndarray]:
    """What `qi.exporters.formats.Format.run` gives, or an error: never the end of this process.

    Args:
        format: a name of `FORMATS`.
        data: the file.
        inputs: one array for each input.
        options: of that function, plain JSON values: threads, tensors...

    Raises:
        FileFormatError: the runtime refuses the file, dies of it, takes too much memory or doesn't end.
        InputError, MissingDependencyError: as the runtime's `run`.
    """
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {f"input_{i}": np.asarray(array) for i, array in enumerate(inputs)}
    words = np.asarray([format, json.dumps({key: _plain(value) for key, value in options.items()})])
    np.savez(buffer, data=np.frombuffer(data, np.uint8), words=words, **arrays)
    done = _run(buffer.getvalue(), format)
    if done.returncode == 0:
        with np.load(io.BytesIO(done.stdout), allow_pickle=False) as found:
            return {name: found[f"array_{i}"] for i, name in enumerate(found["names"].tolist())}
    last = "".join(done.stderr.decode(errors="replace").strip().splitlines()[-1:])[:500]
    if done.returncode != _TOLD:
        raise FileFormatError(f"expected a file that {format} runs; it ended with {done.returncode}: {last}")
    name, _, text = last.partition(": ")
    kinds = {kind.__name__: kind for kind in (InputError, MissingDependencyError)}
    raise kinds.get(name, FileFormatError)(text)


def _plain(value: Any) -> Any:
    return [str(name) for name in value] if isinstance(value, (list, tuple)) else value


def _run(content: bytes, format: str) -> subprocess.CompletedProcess[bytes]:
    """Runs this module of this very QI in a process of its own.

    Raises:
        FileFormatError: it doesn't end.
    """
    root = str(Path(qi.errors.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-m", __name__]
    try:
        return subprocess.run(
            command, input=content, capture_output=True, timeout=_SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise FileFormatError(f"expected a file that {format} runs; it wasn't done after {_SECONDS} s") from error


def _limit_memory(size: int) -> None:
    """Makes too large an allocation an error, where the system can."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_BYTES + 50 * size, resource.RLIM_INFINITY))


def _main() -> int:
    content = sys.stdin.buffer.read()
    with np.load(io.BytesIO(content), allow_pickle=False) as given:
        inputs = [given[f"input_{i}"] for i in range(sum(name.startswith("input_") for name in given.files))]
        data, (format, options) = given["data"].tobytes(), given["words"].tolist()
    _limit_memory(len(content))
    try:
        found = FORMATS[format].run(data, inputs, here=True, **json.loads(options))
    except (QiError, MemoryError) as error:
        sys.stderr.write(f"\n{type(error).__name__}: {' '.join(str(error).split())}\n")
        return _TOLD
    arrays: dict[str, Any] = {f"array_{i}": array for i, array in enumerate(found.values())}
    np.savez(sys.stdout.buffer, names=np.asarray([*found]), **arrays)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
