"""The best of the selections: never worse than any of them, for the codes that the recipe rounds to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qi.algorithms import Problem, best_range, gptq, output_range
from qi.algorithms.best_range import candidates
from qi.algorithms.run import Task, solve
from qi.core import IntGrid, LutGrid, PerChannel, SymmetricRule, symmetric_scale
from qi.errors import ConfigError, InputError
from qi.observers import select_weight_threshold
from tests.algorithms.problems import digits_problems, nearest_errors, output_errors, random_problem

GRIDS = {"symmetric": (IntGrid(3, narrow=True), False), "asymmetric": (IntGrid(3, signed=False), True)}


def problem_of(kind: str, seed: int, per: str, shape: tuple[int, int, int] = (2, 20, 4)) -> Problem:
    grid, asymmetric = GRIDS[kind]
    return random_problem(seed, shape, grid=grid, per=per, asymmetric=asymmetric)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["tensor", "channel", "group"]), st.sampled_from(sorted(GRIDS)))
def test_it_is_never_worse_than_any_of_them(seed: int, per: str, kind: str) -> None:
    problem = problem_of(kind, seed, per)
    solution = best_range(problem)
    found = output_errors(problem, solution).sum()
    for scale, zero_point in candidates(problem):
        assert found <= nearest_errors(problem.with_parameters(scale, zero_point)).sum() * (1 + 1e-6)
    again = problem.with_parameters(solution.scale, solution.zero_point)
    np.testing.assert_array_equal(solution.codes, again.nearest())


@pytest.mark.parametrize("per", ["channel", "group"])
def test_each_column_gets_its_own_best(per: str) -> None:
    problem = problem_of("symmetric", 3, per)
    least = np.min([nearest_errors(problem.with_parameters(*found)) for found in candidates(problem)], axis=0)
    np.testing.assert_allclose(output_errors(problem, best_range(problem)), least, rtol=1e-5)


def test_candidates_are_those_of_the_selections() -> None:
    problem = problem_of("symmetric", 1, "channel", (1, 20, 6))
    grid, found = problem.grid, [scale for scale, _ in candidates(problem)]
    for name, options in (("mse", {"norm": 4.0}), ("entropy", {}), ("percentile", {})):
        threshold = select_weight_threshold(problem.weight[0], name, grid, PerChannel(1), SymmetricRule.QMAX, **options)
        scale = symmetric_scale(threshold.ravel(), grid)
        assert any(np.allclose(scale, one, rtol=1e-6) for one in found)
    assert len(found) == 9
    np.testing.assert_array_equal(found[0], problem.scale)


def test_groups_of_unequal_length_keep_to_themselves() -> None:
    problem = random_problem(2, (1, 11, 3), grid=IntGrid(3, narrow=True), per="group")  # of 8 and of 3
    for scale, _ in candidates(problem):
        assert np.all(np.isfinite(scale) & (scale > 0))
        assert np.all(scale <= problem.scale * 1.3)
    assert output_errors(problem, best_range(problem)).sum() < nearest_errors(problem).sum()


def test_powers_of_two_stay_powers_of_two() -> None:
    problem = problem_of("symmetric", 5, "channel")
    powers = problem.with_parameters(np.exp2(np.ceil(np.log2(problem.scale))).astype(np.float32))
    mantissas, _ = np.frexp(best_range(powers).scale)
    assert np.all(mantissas == 0.5)
    assert output_errors(powers, best_range(powers)).sum() < nearest_errors(powers).sum()


@pytest.mark.parametrize("bits", [2, 3])
def test_real_layers_lose_less_than_with_the_best_single_selection(bits: int) -> None:
    for problem in digits_problems(IntGrid(bits, narrow=True)):
        found = output_errors(problem, best_range(problem)).sum()
        assert found < 0.5 * nearest_errors(problem).sum()
        assert found <= output_errors(problem, output_range(problem)).sum() * (1 + 1e-6)


def test_the_recipe_decides_for_which_codes() -> None:
    problem = digits_problems(IntGrid(3, narrow=True))[0]
    alone, with_gptq = (solve(Task(problem, steps)) for steps in ([("best_range", {})], RANGED))
    assert not np.array_equal(alone.solution.scale, with_gptq.solution.scale)
    nearest = solve(Task(problem, [("best_range", {"rounding": "nearest"}), ("gptq", {})]))
    assert with_gptq.error < solve(Task(problem, [("gptq", {})])).error
    assert with_gptq.error < nearest.error
    asked = best_range(problem, rounding="gptq")
    np.testing.assert_array_equal(asked.scale, with_gptq.solution.scale)
    np.testing.assert_array_equal(asked.codes, gptq(problem.with_parameters(asked.scale)).codes)


RANGED = [("best_range", {}), ("gptq", {})]


def test_a_weight_of_zeros_and_inputs_that_are_never_there_are_fine() -> None:
    problem = random_problem(0, (1, 6, 3))
    for weight, second in ((np.zeros((1, 6, 3)), problem.second), (problem.weight, np.zeros((1, 6, 6)))):
        solution = best_range(Problem(weight, problem.scale, problem.zero_point, problem.sharing, problem.grid, second))
        assert np.all(solution.scale > 0)


def test_what_it_cannot_work_on_is_refused() -> None:
    problem = random_problem(0)
    with pytest.raises(ConfigError, match="rounding"):
        best_range(problem, rounding="up")
    with pytest.raises(ConfigError, match="grid of integers"):
        best_range(problem.with_parameters(problem.scale, grid=LutGrid((-1.0, 0.0, 1.0), 3)))
    with pytest.raises(InputError, match="moments"):
        best_range(Problem(problem.weight, problem.scale, problem.zero_point, problem.sharing, problem.grid))
