"""Tests for qi.algorithms.run: one after the other or at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qi.algorithms.run import Solved, Task, calls, check_jobs, solve, solve_all
from qi.algorithms.sensitivity import relative_errors
from qi.core import IntGrid, LutGrid
from qi.errors import ConfigError, InputError
from tests.algorithms.problems import random_problem

STEPS: Any = [("output_range", {"steps": 4}), ("gptq", {})]


def tasks(count: int = 4) -> dict[str, Task]:
    return {f"layer{i}/kernel": Task(random_problem(i, (1, 10 + i, 4)), STEPS) for i in range(count)}


def same(one: Solved, other: Solved) -> None:
    for part in ("codes", "scale", "zero_point"):
        a, b = getattr(one.solution, part), getattr(other.solution, part)
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert one.solution.grid == other.solution.grid
    np.testing.assert_array_equal([one.nearest, one.error, one.power], [other.nearest, other.error, other.power])


def test_no_steps_round_to_nearest() -> None:
    problem = random_problem(0)
    found = solve(Task(problem, []))
    np.testing.assert_array_equal(found.solution.codes, problem.nearest())
    assert found.nearest == found.error
    assert found.power == pytest.approx(problem.output_error(np.zeros_like(problem.weight)).sum())


def test_steps_work_on_what_those_before_gave() -> None:
    problem = random_problem(0)
    ranged = solve(Task(problem, STEPS[:1]))
    both = solve(Task(problem, STEPS))
    np.testing.assert_array_equal(both.solution.scale, ranged.solution.scale)
    assert both.error < ranged.error < ranged.nearest == both.nearest
    table = solve(Task(problem, [("kmeans", {}), ("gptq", {})]))
    assert isinstance(table.solution.grid, LutGrid)
    assert table.error <= solve(Task(problem, [("kmeans", {})])).error


def test_without_moments_errors_are_unknown() -> None:
    found = solve(Task(replace(random_problem(0), second=None), [("hqq", {})]))
    assert np.isnan([found.nearest, found.error, found.power]).all()
    with pytest.raises(InputError, match="gptq"):
        solve(Task(replace(random_problem(0), second=None), [("gptq", {})]))


@pytest.mark.parametrize("name", ["equalize", "bias_correction", "reconstruct"])
def test_algorithms_of_other_stages(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        solve(Task(random_problem(0), [(name, {})]))


def test_unknown_algorithms() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'gptq'"):
        solve(Task(random_problem(0), [("gptk", {})]))


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("steps", [[("gptq", {})], [("output_range", {})], STEPS, [("kmeans", {}), ("gptq", {})]])
def test_fewer_samples_than_features(samples: int, steps: Any) -> None:
    """Moments that don't have full rank, and inputs that were never there: never NaN, never worse than the nearest."""
    problem = random_problem(1, (2, 16, 3), samples=samples)
    second = problem.second.copy()  # type: ignore[union-attr]
    second[:, :4] = second[:, :, :4] = 0
    found = solve(Task(replace(problem, second=second), steps))
    assert np.isfinite([found.nearest, found.error]).all()
    assert np.isfinite(found.solution.scale).all()
    assert found.error <= found.nearest * (1 + 1e-9)


@pytest.mark.parametrize("steps", [[("gptq", {})], [("output_range", {})], [("hqq", {})], STEPS])
def test_nothing_but_zeros(steps: Any) -> None:
    problem = random_problem(2)
    dead = replace(problem, weight=np.zeros_like(problem.weight), second=np.zeros_like(problem.second))
    found = solve(Task(dead, steps))
    np.testing.assert_array_equal(dead.with_parameters(found.solution.scale).values(found.solution.codes), 0)
    assert found.error == 0


@pytest.mark.parametrize("kind", ["1e-30", "1e30", "spread inputs", "spread columns", "float16"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 13, 3), (20, 9, 1)])
@pytest.mark.parametrize(
    "step",
    [("gptq", {}), ("descent", {}), ("adaround", {"steps": 20}), ("output_range", {"steps": 4}), ("best_range", {})],
)
def test_extremes(step: Any, shape: tuple[int, int, int], kind: str) -> None:
    """Sizes at the ends of float32, one input or output, depthwise shapes, groups that don't divide: on 2 asymmetric bits."""
    problem = random_problem(1, shape, grid=IntGrid(2, signed=False), asymmetric=True, per="group")
    second = problem.second
    assert second is not None
    if kind.startswith("1e"):
        factor = np.float32(kind)
        problem = replace(problem, weight=problem.weight * factor, scale=problem.scale * factor)
    elif kind == "spread inputs":
        sizes = np.logspace(-15, 15, shape[1])
        problem = replace(problem, second=second * sizes[:, None] * sizes)
    elif kind == "spread columns":
        problem = replace(problem, weight=problem.weight * np.logspace(-20, 18, shape[2]).astype("float32"))
    else:
        problem = replace(problem, weight=problem.weight.astype("float16"))
    found = solve(Task(problem, [step]))
    assert np.isfinite([found.nearest, found.error]).all()
    assert found.error <= found.nearest * (1 + 1e-6)
    assert found.solution.codes.dtype == np.uint8
    assert (found.solution.scale > 0).all()
    assert np.isfinite(found.solution.scale).all()


def test_asymmetric_weights() -> None:
    problem = random_problem(3, grid=IntGrid(4, signed=False), asymmetric=True)
    found = solve(Task(problem, [("gptq", {})]))
    assert found.error < found.nearest
    np.testing.assert_array_equal(found.solution.zero_point, problem.zero_point)


def test_at_once_gives_the_same_bits() -> None:
    pytest.importorskip("joblib")
    one = dict(solve_all(tasks(), jobs=1))
    assert list(one) == list(tasks())
    two = dict(solve_all(tasks(), jobs=2))
    assert sorted(two) == sorted(one)
    for name, found in one.items():
        same(found, two[name])


@pytest.mark.parametrize("jobs", [0, 1.5, "2", True])
def test_bad_jobs(jobs: Any) -> None:
    """Said at once, not with the first result."""
    with pytest.raises(ConfigError, match="jobs"):
        solve_all({}, jobs=jobs)


def test_results_come_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import qi.algorithms.run as module

    done: list[int] = []

    def counted(task: Task) -> Solved:
        done.append(1)
        return solve(task)

    monkeypatch.setattr(module, "solve", counted)
    results = solve_all(tasks(3))
    assert done == []
    next(results)
    assert len(done) == 1


def test_calls_keep_their_order_in_parallel() -> None:
    pytest.importorskip("joblib")
    arguments = [(np.full((1, 2, 1), float(i + 1)), [np.zeros((1, 2, 1)), np.ones((1, 2, 1))]) for i in range(5)]
    one, two = (calls(relative_errors, arguments, jobs=jobs) for jobs in (1, 2))
    assert [errors.tolist() for errors in two] == [errors.tolist() for errors in one]
    assert [errors[0] for errors in one] == [1.0] * 5
    assert one[0][1] == 0.0


@pytest.mark.parametrize("jobs", [0, True, 1.5, "2"])
def test_illegal_jobs(jobs: Any) -> None:
    with pytest.raises(ConfigError, match="expected jobs to be an integer"):
        check_jobs(jobs)
