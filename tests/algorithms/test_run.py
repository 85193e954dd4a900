"""Tests for qi.algorithms.run: one after the other or at once, stopped and taken up again."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qi.algorithms import Problem, Solution
from qi.algorithms.run import Journal, Solved, Task, calls, check_jobs, solve, solve_all
from qi.algorithms.sensitivity import relative_errors
from qi.core import IntGrid, LutGrid
from qi.errors import ConfigError, FileFormatError, InputError
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


def test_journal_keeps_what_is_done(tmp_path: Path) -> None:
    path = tmp_path / "progress.npz"
    one = Journal(path, "abc")
    assert one.done == {}
    assert not path.exists()
    given = dict(solve_all(tasks(2)))
    given["table"] = solve(Task(replace(random_problem(5), second=None), [("kmeans", {})]))
    for name, found in given.items():
        one.add(name, found)
        again = Journal(path, "abc")
        assert list(again.done) == list(one.done)
    for name, found in given.items():
        same(found, again.done[name])
    assert [entry.name for entry in tmp_path.iterdir()] == ["progress.npz"]


def test_no_path_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal(None, "abc")
    journal.add("a", solve(Task(random_problem(0), [])))
    assert list(journal.done) == ["a"]
    assert list(tmp_path.iterdir()) == []


def test_other_work(tmp_path: Path) -> None:
    path = tmp_path / "progress.npz"
    Journal(path, "abc").add("a", solve(Task(random_problem(0), [])))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="this model, recipe and statistics"):
        Journal(path, "abd")
    assert path.read_bytes() == before


def written(path: Path) -> bytes:
    Journal(path, "abc").add("a", solve(Task(random_problem(0), [])))
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_files_cut_off(tmp_path: Path, share: float) -> None:
    path = tmp_path / "progress.npz"
    content = written(path)
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FileFormatError, match="damaged or something else"):
        Journal(path, "abc")


@pytest.mark.parametrize("place", range(0, 2000, 53))
def test_flipped_bits(tmp_path: Path, place: int) -> None:
    """Found, or without an effect."""
    path = tmp_path / "progress.npz"
    content = bytearray(written(path))
    whole = Journal(path, "abc").done["a"]
    content[place % len(content)] ^= 0x10
    path.write_bytes(bytes(content))
    try:
        found = Journal(path, "abc").done
    except FileFormatError:
        return
    same(whole, found["a"])


def archive(header: Any, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    return buffer.getvalue()


GOOD = {"format": "qi.progress", "version": 1, "fingerprint": "abc", "done": []}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"something else",
        archive([]),
        archive({}),
        archive(GOOD | {"version": 2}),
        archive(GOOD | {"format": "other"}),
        archive(GOOD | {"done": 3}),
        archive(GOOD | {"done": [{"name": "a"}]}),
        archive(GOOD | {"done": [{"name": "a", "grid": {"bits": 4, "signed": True, "narrow": True}}]}),
        archive(GOOD | {"done": [{"name": "a", "grid": {"bits": 99}}]}),
    ],
    ids=range(10),
)
def test_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "progress.npz"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match="do delete it, or name another"):
        Journal(path, "abc")


def test_no_pickles(tmp_path: Path) -> None:
    path = tmp_path / "progress.npz"
    np.savez(path, header=np.array([{"format": "qi.progress"}], dtype=object))
    with pytest.raises(FileFormatError):
        Journal(path, "abc")
    with zipfile.ZipFile(path) as file:
        assert "header.npy" in file.namelist()


def test_folders_and_lacking_folders(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"directory|denied"):
        Journal(tmp_path, "abc")
    with pytest.raises(FileNotFoundError, match=r"nowhere.*do create it"):
        Journal(tmp_path / "nowhere" / "progress.npz", "abc")


def test_solutions_are_plain(tmp_path: Path) -> None:
    problem: Problem = random_problem(0, grid=IntGrid(8, narrow=True))
    path = tmp_path / "progress.npz"
    solution: Solution = problem.solution(problem.nearest())
    Journal(path, "abc").add("a/b:0 [x]", Solved(solution, 1.0, 0.5, 2.0))
    found = Journal(path, "abc").done["a/b:0 [x]"]
    same(found, Solved(solution, 1.0, 0.5, 2.0))
    assert found.solution.grid == IntGrid(8, narrow=True)


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
