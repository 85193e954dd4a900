"""Running algorithms on many weights: one after the other, or in parallel, with what is done kept in a file."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qi.algorithms.problem import Problem, Solution
from qi.algorithms.registry import ALGORITHMS
from qi.core import Grid, IntGrid, LutGrid
from qi.errors import ConfigError, FileFormatError
from qi.files import DAMAGE, write_atomically
from qi.optional import require

__all__ = ["Journal", "Solved", "Task", "calls", "check_jobs", "solve", "solve_all"]

Steps = Sequence[tuple[str, Mapping[str, Any]]]
"""(name, options) of algorithms of the stages "range" and "rounding", in the order in which they run."""

_FORMAT, _VERSION = "qi.progress", 1


@dataclass(frozen=True, eq=False)
class Task:
    """A weight and what is to be done with it."""

    problem: Problem
    steps: Steps


@dataclass(frozen=True, eq=False)
class Solved:
    """What became of a weight.

    Attributes:
        solution: its codes and parameters.
        nearest: the expected squared error of the layer's outputs had the weight been rounded to nearest; NaN where the inputs
            aren't known.
        error: the same with the solution.
        power: of the outputs, likewise.
    """

    solution: Solution
    nearest: float
    error: float
    power: float


def solve(task: Task) -> Solved:
    """Runs a task.

    Raises:
        ConfigError: an algorithm of another stage, or illegal options.
        InputError: an algorithm needs moments that aren't there.

    Example:
        >>> import numpy as np
        >>> from qi.core import IntGrid
        >>> weight = np.array([[[0.4, -1.0], [0.8, 0.4]]])
        >>> problem = Problem(
        ...     weight, np.ones(1, "float32"), np.zeros(1, int), np.zeros((1, 2, 2), int), IntGrid(2),
        ...     second=np.array([[[1.0, 0.9], [0.9, 1.0]]]))
        >>> solved = solve(Task(problem, [("gptq", {})]))
        >>> solved.error <= solved.nearest
        True
    """
    start = problem = task.problem
    solution = problem.solution(problem.nearest())
    for name, options in task.steps:
        found = ALGORITHMS.get(name)
        if found.stage not in ("range", "rounding"):
            raise ConfigError(
                f"expected an algorithm that works on one weight; received {name!r} of stage {found.stage}"
            )
        if found.options.get("rounding") == "recipe" and options.get("rounding", "recipe") == "recipe":
            rounds = any(other == "gptq" for other, _ in task.steps)
            options = {**options, "rounding": "gptq" if rounds else "nearest"}
        solution = found.function(problem, **options)
        problem = problem.with_parameters(solution.scale, solution.zero_point, solution.grid)
    if start.second is None:
        return Solved(solution, np.nan, np.nan, np.nan)
    errors = [
        float(start.output_error(values).sum())
        for values in (start.values(start.nearest()), problem.values(solution.codes), np.zeros_like(start.weight))
    ]
    return Solved(solution, *errors)


def solve_all(tasks: Mapping[str, Task], *, jobs: int | None = 1) -> Iterator[tuple[str, Solved]]:
    """Runs tasks and gives each result as soon as it is there.

    Args:
        tasks: by name.
        jobs: how many at once, through joblib; 1 runs them one after the other; None leaves number and backend (loky, Ray, Dask)
            to `joblib.parallel_config`.

    Returns:
        an iterator of (name, result), in the order of the tasks where they run one after the other.

    Raises:
        ConfigError: jobs is 0 or no integer.
        MissingDependencyError: joblib isn't installed, and jobs isn't 1.
    """
    return _solve_all(tasks, check_jobs(jobs))


def check_jobs(jobs: Any) -> int | None:
    """How many weights are worked on at once, if it is that.

    Raises:
        ConfigError: 0, or no integer and not None.
    """
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs == 0):
        raise ConfigError(f"expected jobs to be an integer other than 0, or None; received jobs={jobs!r}")
    return None if jobs is None else int(jobs)


def _solve_all(tasks: Mapping[str, Task], jobs: int | None) -> Iterator[tuple[str, Solved]]:
    if jobs == 1:
        for name, task in tasks.items():
            yield name, solve(task)
        return
    joblib = require("joblib", "search", "work in parallel")
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    yield from parallel(joblib.delayed(_named)(name, task) for name, task in tasks.items())


def _named(name: str, task: Task) -> tuple[str, Solved]:
    return name, solve(task)


def calls(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], *, jobs: int | None = 1) -> list[Any]:
    """What a function gives for each of several tuples of arguments, in their order.

    Args:
        function: of arrays, without a framework.
        arguments: of each call.
        jobs: as of `solve_all`, with the same errors.

    Example:
        >>> calls(max, [(1, 2), (4, 3)])
        [2, 4]
    """
    if check_jobs(jobs) == 1:
        return [function(*given) for given in arguments]
    joblib = require("joblib", "search", "work in parallel")
    return list(joblib.Parallel(n_jobs=jobs)(joblib.delayed(function)(*given) for given in arguments))


class Journal:
    """A file of what is done, so that work that was stopped goes on where it was.

    An ``.npz`` archive of plain arrays, written anew, whole or not at all, after each weight.

    Args:
        path: of the file; None keeps nothing.
        fingerprint: tells the model, the recipe and the statistics from any others.

    Raises:
        ConfigError: the file is of other work.
        FileFormatError: it is damaged or something else.
        OSError: it can't be read, or its folder isn't there.
    """

    def __init__(self, path: str | os.PathLike[str] | None, fingerprint: str) -> None:
        self.path, self.fingerprint = None if path is None else Path(path), fingerprint
        self.done: dict[str, Solved] = {}
        if self.path is None:
            return
        if self.path.exists():
            self.done = self._read(self.path)
        elif not self.path.parent.is_dir():  # said before the work, not after the first of it
            raise FileNotFoundError(f"expected a folder to keep progress in; received {str(self.path)!r}; do create it")

    def add(self, name: str, solved: Solved) -> None:
        """Keeps one more result.

        Raises:
            OSError: the file can't be written; what it held before is still there.
        """
        self.done[name] = solved
        if self.path is None:
            return
        arrays: dict[str, np.ndarray] = {}
        entries = []
        for index, (key, one) in enumerate(self.done.items()):
            arrays |= {f"{index}.{part}": getattr(one.solution, part) for part in ("codes", "scale", "zero_point")}
            arrays[f"{index}.errors"] = np.array([one.nearest, one.error, one.power])
            entries.append({"name": key, "grid": _grid_to_json(one.solution.grid)})
        header = {"format": _FORMAT, "version": _VERSION, "fingerprint": self.fingerprint, "done": entries}
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        write_atomically(self.path, buffer.getvalue())

    def _read(self, path: Path) -> dict[str, Solved]:
        content = path.read_bytes()
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            header = json.loads(arrays["header"].tobytes())
            if header["format"] != _FORMAT or header["version"] != _VERSION:
                raise ValueError("another format or version")
            known = str(header["fingerprint"])
            found = {entry["name"]: _solved(arrays, index, entry) for index, entry in enumerate(header["done"])}
        except DAMAGE as error:
            raise FileFormatError(
                f"expected a file of kept progress; received {path}, which is damaged or something else "
                f"({type(error).__name__}: {error}); do delete it, or name another"
            ) from error
        if known != self.fingerprint:
            raise ConfigError(
                f"expected progress of this model, recipe and statistics; received {path}, which is of others; do name another "
                "file, or delete it"
            )
        return found


def _solved(arrays: Mapping[str, np.ndarray], index: int, entry: Mapping[str, Any]) -> Solved:
    codes, scale, zero_point = (arrays[f"{index}.{part}"] for part in ("codes", "scale", "zero_point"))
    return Solved(Solution(codes, scale, zero_point, _grid_of(entry["grid"])), *arrays[f"{index}.errors"].tolist())


def _grid_to_json(grid: Grid) -> dict[str, Any]:
    if isinstance(grid, LutGrid):
        return {"values": list(grid.values), "bits": grid.bits, "signed": grid.signed}
    return {"bits": grid.bits, "signed": grid.signed, "narrow": grid.narrow}


def _grid_of(record: Mapping[str, Any]) -> Grid:
    return LutGrid(**record) if "values" in record else IntGrid(**record)
