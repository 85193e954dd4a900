"""Ranges by output error: exact where parameters are independent, monotone where they aren't, live on real layers."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qi.algorithms import Problem, Solution, gptq, output_range
from qi.core import IntGrid, LutGrid
from qi.errors import ConfigError, InputError
from tests.algorithms.problems import digits_problems, nearest_errors, output_errors, put_on_grid, random_problem
from tests.algorithms.test_gptq import GRIDS, problem_on


def per_parameter(problem: Problem, errors: np.ndarray) -> np.ndarray:
    """``[G, N]`` summed over the columns of a parameter, which uses whole columns."""
    return np.bincount(problem.sharing[:, 0].ravel(), errors.ravel(), minlength=len(problem.scale))


def on_solution(problem: Problem, solution: Solution) -> Problem:
    return problem.with_parameters(solution.scale, solution.zero_point)


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.sampled_from(["tensor", "channel", "group"]), st.sampled_from(sorted(GRIDS)))
def test_is_never_worse_and_gives_the_nearest_codes(seed: int, per: str, kind: str) -> None:
    problem = problem_on(kind, seed, (2, 20, 4), per)
    solution = output_range(problem)
    errors, before = output_errors(problem, solution), nearest_errors(problem)
    if per == "group":
        assert np.all(errors <= before * (1 + 1e-6))
    else:
        assert np.all(per_parameter(problem, errors) <= per_parameter(problem, before) * (1 + 1e-6))
    np.testing.assert_array_equal(solution.codes, on_solution(problem, solution).nearest())
    assert solution.scale.dtype == np.float32
    if isinstance(problem.grid, IntGrid):
        assert np.all((solution.zero_point >= problem.grid.qmin) & (solution.zero_point <= problem.grid.qmax))


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("kind", GRIDS)
def test_finds_what_trying_every_factor_finds(kind: str, per: str) -> None:
    problem = problem_on(kind, 4, (3, 20, 5), per)
    least = np.full(len(problem.scale), np.inf)
    for factor in np.linspace(1, 0.2, 17):
        tried = problem.with_parameters(problem.scale * np.float32(factor))
        least = np.minimum(least, per_parameter(problem, nearest_errors(tried)))
    found = per_parameter(problem, output_errors(problem, output_range(problem)))
    assert np.all(found <= least * (1 + 1e-6))


def test_groups_of_a_column_are_searched_in_turns() -> None:
    problem = random_problem(6, (1, 40, 6), grid=IntGrid(3, narrow=True), per="group")
    errors = [output_errors(problem, output_range(problem, passes=passes)).sum() for passes in (1, 2, 4)]
    assert errors[2] <= errors[1] <= errors[0] < 0.8 * nearest_errors(problem).sum()


@pytest.mark.parametrize("seed", range(5))
def test_any_sharing_will_do(seed: int) -> None:
    problem = random_problem(seed, (2, 10, 4), grid=IntGrid(3, narrow=True), per="tensor")
    sharing = np.random.default_rng(seed).integers(0, 12, problem.weight.shape)  # columns use several, in no order
    problem = replace(problem, sharing=sharing, scale=np.repeat(problem.scale, 13), zero_point=np.zeros(13, "i"))
    classes = importlib.import_module("qi.algorithms.output_range")._classes(problem)
    for g, n in np.ndindex(2, 4):
        used = np.unique(sharing[g, :, n])
        assert len(np.unique(classes[used])) == len(used)  # those of one class are searched at once
    solution = output_range(problem)
    assert output_errors(problem, solution).sum() < 0.9 * nearest_errors(problem).sum()
    assert solution.scale[12] == problem.scale[12]  # which nothing uses


def test_scales_of_independent_columns_are_found_alone() -> None:
    problem = random_problem(9, (2, 16, 3), per="channel")
    whole = output_range(problem)
    for g, n in ((0, 0), (1, 2)):
        alone = Problem(
            problem.weight[[g], :, n : n + 1],
            problem.scale[[3 * g + n]],
            problem.zero_point[[3 * g + n]],
            np.zeros((1, 16, 1), int),
            problem.grid,
            problem.second[[g]],
        )
        np.testing.assert_allclose(output_range(alone).scale, whole.scale[3 * g + n], rtol=1e-6)


@pytest.mark.parametrize("per", ["tensor", "channel", "group"])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_lowers_the_output_error_of_real_layers(
    bits: int, asymmetric: bool, per: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = IntGrid(bits, signed=False) if asymmetric else IntGrid(bits, narrow=True)
    problems = digits_problems(grid, per=per, asymmetric=asymmetric)
    before = [nearest_errors(problem).sum() for problem in problems]
    after = [output_errors(problem, output_range(problem)).sum() for problem in problems]
    assert np.all(np.array(after) <= before)
    assert sum(after) <= 0.8 * sum(before)
    # The control: a search that takes no candidate.
    monkeypatch.setattr(importlib.import_module("qi.algorithms.output_range")._Search, "improve", lambda *_: None)
    assert sum(output_errors(problem, output_range(problem)).sum() for problem in problems) > 0.8 * sum(before)


def test_ends_of_asymmetric_ranges_shrink_on_their_own() -> None:
    weight = np.append(np.random.default_rng(0).uniform(-0.5, 1.0, 100), -2.0).reshape(1, 101, 1)
    second = np.eye(101)[None].copy()
    second[0, -1, -1] = 1e-6  # whose outlier hardly matters
    problem = put_on_grid(weight, IntGrid(4, signed=False), second, asymmetric=True)
    both, scale_only = output_range(problem), output_range(problem, zero_points=False)
    np.testing.assert_array_equal(scale_only.zero_point, problem.zero_point)
    assert problem.zero_point[0] == 10
    assert 4 <= both.zero_point[0] <= 6
    assert output_errors(problem, both).sum() < 0.5 * output_errors(problem, scale_only).sum()


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from(["tensor", "channel", "group"]), st.sampled_from(sorted(GRIDS)))
def test_for_gptq_it_is_never_worse_than_gptq(seed: int, per: str, kind: str) -> None:
    problem = problem_on(kind, seed, (2, 20, 3), per)
    solution = output_range(problem, rounding="gptq", steps=4)
    errors, before = output_errors(problem, solution), output_errors(problem, gptq(problem))
    if per == "tensor":
        errors, before = errors.sum(), before.sum()
    assert np.all(errors <= before * (1 + 1e-9))
    np.testing.assert_array_equal(solution.codes, gptq(on_solution(problem, solution)).codes)


@pytest.mark.parametrize("per", ["tensor", "channel", "group"])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_for_gptq_it_beats_gptq_on_real_layers(asymmetric: bool, per: str) -> None:
    grid = IntGrid(3, signed=not asymmetric, narrow=not asymmetric)
    before = after = 0.0
    for problem in digits_problems(grid, per=per, asymmetric=asymmetric):
        alone, found = (
            output_errors(problem, gptq(problem)),
            output_errors(problem, output_range(problem, rounding="gptq")),
        )
        assert found.sum() <= alone.sum()
        before, after = before + alone.sum(), after + found.sum()
    assert after <= 0.8 * before


def test_candidates_in_batches_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem(3, (2, 12, 4))
    whole = output_range(problem, rounding="gptq", steps=5)
    monkeypatch.setattr(importlib.import_module("qi.algorithms.output_range"), "_BATCH", 1)
    one_by_one = output_range(problem, rounding="gptq", steps=5)
    np.testing.assert_array_equal(whole.codes, one_by_one.codes)
    np.testing.assert_array_equal(whole.scale, one_by_one.scale)


def test_tables_and_layers_without_input() -> None:
    problem = random_problem(1, grid=IntGrid(8))
    problem = problem.with_parameters(problem.scale, grid=LutGrid([-127, -30, -8, 0, 8, 30, 127]))
    assert output_errors(problem, output_range(problem)).sum() < nearest_errors(problem).sum()
    dead = output_range(replace(problem, second=0 * problem.second))
    np.testing.assert_array_equal(dead.scale, problem.scale)


@pytest.mark.parametrize(
    "options",
    [{"rounding": "up"}, {"least": 0}, {"least": 1.0}, {"least": np.nan}, {"steps": 0}, {"steps": 2.5}, {"passes": 0}],
)
def test_refuses_options(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        output_range(random_problem(0), **options)


def test_refuses_missing_moments() -> None:
    with pytest.raises(InputError, match="moments"):
        output_range(replace(random_problem(0), second=None))
