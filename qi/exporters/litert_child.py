"""Runs a LiteRT file that somebody else wrote in a process of its own: LiteRT trusts its files, and damaged ones end the process.

``python -m qi.exporters.litert_child`` reads an npz archive from its input and writes one to its output.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from qi.errors import FileFormatError
from qi.exporters.isolated import limit_memory, run_module

__all__ = ["run_isolated"]


def run_isolated(
    data: bytes, inputs: Sequence[np.ndarray], wanted: Mapping[str, int], threads: int, reference: bool
) -> dict[str, np.ndarray]:
    """As `qi.exporters.litert.run`, on a file that may be anything.

    Args:
        data: the file.
        inputs: its inputs.
        wanted: numbers of tensors by the names under which they are wanted.
        threads: for the runtime.
        reference: with its reference kernels.

    Raises:
        FileFormatError: the runtime refuses the file, dies of it, or doesn't end.
    """
    arrays = {f"input_{i}": np.asarray(array) for i, array in enumerate(inputs)}
    numbers = np.asarray([*wanted.values()], np.int64)
    buffer = io.BytesIO()
    how = np.asarray([threads, reference], np.int64)
    np.savez(buffer, data=np.frombuffer(data, np.uint8), numbers=numbers, how=how, **arrays)  # type: ignore[arg-type]
    done = run_module("qi.exporters.litert_child", buffer.getvalue(), "LiteRT")
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise FileFormatError(
            f"expected a file that LiteRT runs; it ended with {done.returncode}: {''.join(last)[:500]}"
        )
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as found:
        return {name: found[str(number)] for name, number in wanted.items()}


def _main() -> None:
    from qi.exporters.litert import execute

    content = sys.stdin.buffer.read()
    limit_memory(len(content))
    with np.load(io.BytesIO(content), allow_pickle=False) as given:
        inputs = [given[f"input_{i}"] for i in range(sum(name.startswith("input_") for name in given.files))]
        numbers, (threads, reference) = given["numbers"].tolist(), given["how"].tolist()
        data = given["data"].tobytes()
    found = execute(data, inputs, {str(n): n for n in numbers}, threads, bool(reference))
    np.savez(sys.stdout.buffer, **found)  # type: ignore[arg-type]


if __name__ == "__main__":
    _main()
