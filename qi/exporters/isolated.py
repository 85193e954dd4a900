"""Runs a file that may be anything in a process of its own: runtimes trust their files, and end or fill the machine on bad ones.

``python -m`` of this module reads an npz archive from its input and writes one to its output.
"""

from __future__ import annotations

import contextlib
import io
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

__all__ = ["limit_memory", "run_isolated", "run_module"]

_SECONDS = 300
_BYTES = 8 * 2**30  # of addresses, beside a generous multiple of what is run
_TOLD = 3  # exit code of an error that says what is wrong


def run_isolated(
    format: str, data: bytes, inputs: Sequence[np.ndarray], *, threads: int = 1, tensors: Sequence[str] = ()
) -> Mapping[str, np.ndarray]:
    """What `qi.exporters.formats.Format.run` gives, or an error: never the end of this process.

    Args:
        format: a name of `FORMATS`.
        data: the file.
        inputs: one array for each input.
        threads: for the runtime.
        tensors: names of further tensors that are wanted.

    Raises:
        FileFormatError: the runtime refuses the file, dies of it, takes too much memory or doesn't end.
        InputError, MissingDependencyError: as the runtime's `run`.
    """
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {f"input_{i}": np.asarray(array) for i, array in enumerate(inputs)}
    words = np.asarray([format, str(threads), *tensors])
    np.savez(buffer, data=np.frombuffer(data, np.uint8), words=words, **arrays)
    done = run_module(__name__, buffer.getvalue(), format)
    if done.returncode == 0:
        with np.load(io.BytesIO(done.stdout), allow_pickle=False) as found:
            return {name: found[f"array_{i}"] for i, name in enumerate(found["names"].tolist())}
    last = "".join(done.stderr.decode(errors="replace").strip().splitlines()[-1:])[:500]
    if done.returncode != _TOLD:
        raise FileFormatError(f"expected a file that {format} runs; it ended with {done.returncode}: {last}")
    name, _, text = last.partition(": ")
    kinds = {kind.__name__: kind for kind in (InputError, MissingDependencyError)}
    raise kinds.get(name, FileFormatError)(text)


def run_module(module: str, content: bytes, runtime: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a module of this very QI in a process of its own.

    Args:
        module: its name.
        content: its input.
        runtime: what runs there, for the error.

    Raises:
        FileFormatError: it doesn't end.
    """
    root = str(Path(qi.errors.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-m", module]
    try:
        return subprocess.run(
            command, input=content, capture_output=True, timeout=_SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired as error:
        raise FileFormatError(f"expected a file that {runtime} runs; it wasn't done after {_SECONDS} s") from error


def limit_memory(size: int) -> None:
    """Makes too large an allocation an error, where the system can."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_BYTES + 50 * size, resource.RLIM_INFINITY))


def _main() -> int:
    content = sys.stdin.buffer.read()
    with np.load(io.BytesIO(content), allow_pickle=False) as given:
        inputs = [given[f"input_{i}"] for i in range(sum(name.startswith("input_") for name in given.files))]
        data, (format, threads, *tensors) = given["data"].tobytes(), given["words"].tolist()
    limit_memory(len(content))
    try:
        found = FORMATS[format].run(data, inputs, threads=int(threads), tensors=tensors)
    except (QiError, MemoryError) as error:
        sys.stderr.write(f"\n{type(error).__name__}: {' '.join(str(error).split())}\n")
        return _TOLD
    arrays: dict[str, Any] = {f"array_{i}": array for i, array in enumerate(found.values())}
    np.savez(sys.stdout.buffer, names=np.asarray([*found]), **arrays)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
