"""Running algorithms on many weights: one after the other, or in parallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qi.algorithms.problem import Problem, Solution
from qi.algorithms.registry import ALGORITHMS
from qi.errors import ConfigError
from qi.optional import require

__all__ = ["Solved", "Task", "calls", "check_jobs", "solve", "solve_all"]

Steps = Sequence[tuple[str, Mapping[str, Any]]]
"""(name, options) of algorithms of the stages "range" and "rounding", in the order in which they run."""


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
