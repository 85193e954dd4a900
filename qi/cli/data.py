"""Samples from ``.npz`` and ``.npy`` files, as `--data` takes them."""

from __future__ import annotations

import contextlib
import errno
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from qi.cli.options import check_input
from qi.errors import FileFormatError, InputError
from qi.files import DAMAGE

__all__ = ["CALIBRATION", "EVALUATION", "ArrayFile", "Samples", "check_samples", "labelled", "samples"]

Samples: TypeAlias = "np.ndarray | dict[str, np.ndarray]"
"""One array, or one for each input of a model by its name."""

CALIBRATION = ("x_calib", "x", "x_train", "x_test")
"""Names of samples to calibrate with, the best first."""

EVALUATION = ("x_test", "x", "x_calib")
"""Names of samples to evaluate on, the best first."""

_UNNAMED = "arr_0"  # what np.savez calls the first array that it was given without a name


class ArrayFile:
    """The arrays of a file by name, each read when it is asked for.

    That of a ``.npy`` file is called "x"; it is mapped into memory, so it may be larger than that.

    Args:
        path: a ``.npz`` or ``.npy`` file.

    Raises:
        InputError: no such file, or one of another kind.
        FileFormatError: damaged, or with Python objects, which are never unpickled.
        OSError: it can't be read.
    """

    def __init__(self, path: Path) -> None:
        check_input(path, "samples (.npz or .npy)")
        if path.suffix.lower() not in (".npz", ".npy"):
            raise InputError(f"expected a file ending in .npz or .npy; received {str(path)!r}")
        self.path = path
        self.names: tuple[str, ...] = ("x",)
        if not self._is_single:
            with self._translated(), path.open("rb") as file, zipfile.ZipFile(file) as archive:
                self.names = tuple(name.removesuffix(".npy") for name in archive.namelist())

    @property
    def _is_single(self) -> bool:
        return self.path.suffix.lower() == ".npy"

    def __getitem__(self, name: str) -> np.ndarray:
        with self._translated():
            if self._is_single:
                return np.asanyarray(np.load(self.path, mmap_mode="r", allow_pickle=False))
            # Opened here: numpy leaves a file that it opened itself open when the archive is damaged.
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return np.asarray(archive[name])

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            # An offset before the begin of the file is no fault of the disk's.
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            problem = f"is damaged or something else: {error}"
            if "pickle" in str(error).lower() or "python objects" in str(error).lower():
                problem = "holds Python objects or is no array file, and QI never unpickles"
            raise FileFormatError(
                f"expected plain arrays; {str(self.path)!r} {problem}; do write it with np.savez(path, x=array)"
            ) from error

    def __str__(self) -> str:
        return f"{', '.join(self.names) or 'no arrays'} in {str(self.path)!r}"


def samples(file: ArrayFile, names: Sequence[str], inputs: Sequence[str]) -> tuple[str, Samples]:
    """The samples of a file: an array called as one of `names`, the only one if it has no name, or one for each input.

    Args:
        file: where to look.
        names: `CALIBRATION` or `EVALUATION`.
        inputs: the names of the model's inputs.

    Returns:
        (name, samples); the name is "" where they go by the names of the inputs.

    Raises:
        InputError: neither is there, an array is empty or holds no numbers, or lengths differ.
        FileFormatError: an array can't be read.
    """
    if inputs and set(inputs) <= set(file.names):
        given = {name: file[name] for name in inputs}
        _check(given, file)
        return "", given if len(inputs) > 1 else given[inputs[0]]
    unnamed = (_UNNAMED,) if file.names == (_UNNAMED,) else ()
    name = next((name for name in (*names, *unnamed) if name in file.names), None)
    if name is None or len(inputs) > 1:
        several = f"an array for each input of the model ({', '.join(inputs)})"
        wanted = several if len(inputs) > 1 else f"an array called {', '.join(names[:-1])} or {names[-1]}"
        example = "=..., ".join(inputs) if len(inputs) > 1 else "x"
        raise InputError(f"expected {wanted}; received {file}; do write it with np.savez(path, {example}=...)")
    x = file[name]
    _check({name: x}, file)
    return name, x


def check_samples(file: ArrayFile) -> None:
    """Looks into a file before its model is loaded, which is slow: what no model could be given is refused.

    Raises:
        InputError: no arrays, or a single one without samples or numbers.
        FileFormatError: a single one that can't be read.
    """
    if not file.names:
        raise InputError(f"expected arrays of samples; received {file}; do write it with np.savez(path, x=...)")
    if len(file.names) == 1:
        _check({file.names[0]: file[file.names[0]]}, file)


def labelled(file: ArrayFile, inputs: Sequence[str]) -> tuple[Samples, np.ndarray]:
    """Samples with their true values: x_test with y_test, x with y, inputs by name with y_test or y.

    Raises:
        InputError: samples or true values are missing, empty, or of different lengths.
        FileFormatError: an array can't be read.
    """
    name, x = samples(file, EVALUATION, inputs)
    wanted = (f"y{name[1:]}",) if name.startswith("x") else ("y_test", "y")
    label = next((label for label in wanted if label in file.names), None)
    if label is None:
        beside = name or ", ".join(inputs)
        raise InputError(f"expected true values called {' or '.join(wanted)} beside {beside}; received {file}")
    y = file[label]
    _check({**(x if isinstance(x, dict) else {name or inputs[0]: x}), label: y}, file)
    return x, y


def _check(arrays: Mapping[str, np.ndarray], file: ArrayFile) -> None:
    shapes = ", ".join(f"{name} of shape {array.shape}" for name, array in arrays.items())
    if any(array.size == 0 or array.ndim == 0 for array in arrays.values()):
        raise InputError(f"expected arrays of at least one sample; received {shapes} in {str(file.path)!r}")
    if len({len(array) for array in arrays.values()}) > 1:
        raise InputError(f"expected as many samples in each array; received {shapes} in {str(file.path)!r}")
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise InputError(f"expected numbers; received {name} of dtype {array.dtype} in {str(file.path)!r}")
