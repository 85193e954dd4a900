"""The state of a training kept in a file, so that training that was stopped, or killed, goes on where it was."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from qi.errors import ConfigError, FileFormatError
from qi.files import DAMAGE, check_place, write_atomically
from qi.keras.variables import to_numpy

__all__ = ["Checkpoint"]

_FORMAT, _VERSION = "qi.training", 1
_SECONDS = 10.0  # between writes, or more where they take long
_SHARE = 20.0  # times as long as the last write took


@dataclass(frozen=True)
class _State:
    """What is known at one moment: replaced as a whole, so that Ctrl-C never leaves parts of two moments.

    Attributes:
        done: losses before and after of the blocks that are done.
        step: of the block behind them.
        arrays: what they learned, and the optimizer's, by name and number.
    """

    done: tuple[tuple[float, float], ...] = ()
    step: int = 0
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


class Checkpoint:
    """What a training has learned so far: blocks that are done, and the one that trains.

    The file is an ``.npz`` of plain arrays, replaced as a whole every ten seconds or so: no more than these are lost.

    Args:
        path: of the file; None keeps nothing.
        fingerprint: tells the model, the settings and the samples from any others.

    Raises:
        ConfigError: the file is of other work.
        FileFormatError: it is damaged or something else.
        OSError: it can't be read, or written.
    """

    def __init__(self, path: str | os.PathLike[str] | None, fingerprint: str = "") -> None:
        self.path, self.fingerprint = None if path is None else Path(path), fingerprint
        self._state = _State()
        self._written, self._wait = time.monotonic(), _SECONDS
        if self.path is None:
            return
        check_place(self.path)
        if self.path.exists():
            self._read(self.path)

    def finished(self, place: int, variables: Sequence[keras.Variable]) -> tuple[float, float] | None:
        """The losses of a block that is done, whose variables get what they learned; None of any other.

        Raises:
            FileFormatError: arrays of other shapes.
        """
        if place >= len(self._state.done):
            return None
        self._assign(f"block{place}", variables)
        return self._state.done[place]

    def restore(self, place: int, learner: keras.Model) -> int:
        """Puts the block that trained and its optimizer, which is built, where they were; gives the steps that it had done.

        Raises:
            FileFormatError: arrays of other shapes.
        """
        if place != len(self._state.done) or not self._state.step:
            return 0
        self._assign(f"block{place}", learner.trainable_variables)
        self._assign("optimizer", learner.optimizer.variables)
        return self._state.step

    def step(self, place: int, steps: int, learner: keras.Model) -> None:
        """After a step: writes the file if it is time to.

        Raises:
            OSError: it can't be written.
        """
        state = self._state
        if self.path is None or place != len(state.done) or time.monotonic() - self._written < self._wait:
            return
        taken = _taken(f"block{place}", learner.trainable_variables) | _taken("optimizer", learner.optimizer.variables)
        self._state = _State(state.done, steps, {**state.arrays, **taken})
        self.write()

    def finish(self, place: int, losses: tuple[float, float], variables: Sequence[keras.Variable], last: bool) -> None:
        """After a block, the `last` one perhaps: it needs no optimizer any more.

        Raises:
            OSError: the file can't be written.
        """
        state = self._state
        if self.path is None or place != len(state.done):
            return
        kept = {name: array for name, array in state.arrays.items() if not name.startswith("optimizer.")}
        self._state = _State((*state.done, losses), 0, kept | _taken(f"block{place}", variables))
        if last or time.monotonic() - self._written >= self._wait:
            self.write()

    def write(self) -> None:
        """Writes what is known.

        Raises:
            OSError: the file can't be written; the old one survives.
        """
        if self.path is None:
            return
        start = time.monotonic()
        state = self._state
        header = {
            "format": _FORMAT, "version": _VERSION, "fingerprint": self.fingerprint, "done": state.done, "step": state.step,
        }  # fmt: skip
        buffer = io.BytesIO()
        named: dict[str, Any] = {**state.arrays, "header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
        np.savez(buffer, allow_pickle=False, **named)
        write_atomically(self.path, buffer.getvalue())
        self._written = time.monotonic()
        self._wait = max(_SECONDS, _SHARE * (self._written - start))

    def _assign(self, name: str, variables: Sequence[keras.Variable]) -> None:
        found = [self._state.arrays.get(f"{name}.{at}") for at in range(len(variables))]
        for array, variable in zip(found, variables, strict=True):
            if array is None or array.shape != tuple(variable.shape) or not np.isfinite(array).all():
                raise FileFormatError(f"expected the state of this training; received {self.path}; do delete it")
        for array, variable in zip(found, variables, strict=True):
            variable.assign(array)

    def _read(self, path: Path) -> None:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                header = json.loads(archive["header"].tobytes())
                if (header["format"], header["version"]) != (_FORMAT, _VERSION):
                    raise ValueError("another format or version")
                known = header["fingerprint"]
                if sum(member.file_size for member in archive.zip.infolist()) > path.stat().st_size:
                    raise ValueError("compressed")  # written plain: no file makes more of itself than it is
                if known == self.fingerprint:
                    arrays = {name: archive[name] for name in archive.files if name != "header"}
                    done = tuple((float(before), float(after)) for before, after in header["done"])
                    self._state = _State(done, int(header["step"]), arrays)
        except DAMAGE as error:
            raise FileFormatError(
                f"expected the state of a training; received {path}, which is damaged or something else "
                f"({type(error).__name__}: {error}); do delete it, or name another file"
            ) from error
        if known != self.fingerprint:
            raise ConfigError(
                f"expected the state of this model's training with these samples and settings; received {path}, which is of "
                "others; do name another file, or delete it"
            )


def _taken(name: str, variables: Sequence[keras.Variable]) -> dict[str, np.ndarray]:
    return {f"{name}.{at}": to_numpy(variable).copy() for at, variable in enumerate(variables)}
