"""AdaRound on moments: its gradient, where it ends, and on layers of a trained network."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qi.algorithms import Problem, adaround
from qi.core import IntGrid
from qi.errors import ConfigError, InputError
from tests.algorithms.problems import digits_problems, nearest_errors, output_errors, random_problem
from tests.algorithms.test_gptq import GRIDS, problem_on


def neighbours(problem: Problem) -> np.ndarray:
    """``[2, G, K, N]``: the values on the grid just below and above the weights."""
    grid = problem.grid
    codes = range(grid.qmin, grid.qmax + 1) if isinstance(grid, IntGrid) else range(grid.levels)
    every = np.array([problem.values(np.full(problem.weight.shape, code)) for code in codes])
    below = np.where(every <= problem.weight, every, -np.inf).max(axis=0)
    above = np.where(every >= problem.weight, every, np.inf).min(axis=0)
    return np.stack([np.where(np.isfinite(below), below, above), np.where(np.isfinite(above), above, below)])


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from(["tensor", "channel", "group"]), st.sampled_from(sorted(GRIDS)))
def test_each_weight_goes_to_a_neighbour_and_no_column_loses(seed: int, per: str, kind: str) -> None:
    problem = problem_on(kind, seed, (2, 9, 4), per)
    solution = adaround(problem, steps=60)
    low, high = neighbours(problem)
    values = problem.values(solution.codes)
    assert np.all((values == low) | (values == high))
    assert solution.codes.dtype == problem.grid.storage_dtype
    assert np.all(output_errors(problem, solution) <= nearest_errors(problem))


def test_is_near_the_best_choice_of_neighbours() -> None:
    best = found = nearest = 0.0
    for seed in range(10):
        problem = random_problem(seed, (1, 6, 3), grid=IntGrid(3))
        low, high = neighbours(problem)
        every = [np.array(up)[:, None] for up in itertools.product([False, True], repeat=6)]
        least = np.min([problem.output_error(np.where(up, high, low)) for up in every], axis=0)
        errors = output_errors(problem, adaround(problem, steps=400))
        assert np.all(least <= errors * (1 + 1e-6))
        best, found, nearest = best + least.sum(), found + errors.sum(), nearest + nearest_errors(problem).sum()
    assert found - best <= 0.4 * (nearest - best)


@pytest.mark.parametrize("seed", range(3))
def test_independent_inputs_are_rounded_to_nearest(seed: int) -> None:
    problem = random_problem(seed)
    problem = replace(problem, second=np.eye(12)[None])
    np.testing.assert_array_equal(adaround(problem, steps=300).codes, problem.nearest())


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_lowers_the_output_error_of_real_layers(bits: int) -> None:
    for problem in digits_problems(IntGrid(bits, narrow=True)):
        errors, before = output_errors(problem, adaround(problem)), nearest_errors(problem)
        assert np.all(errors <= before)
        assert errors.sum() <= 0.8 * before.sum()
        # The controls: nothing learned, and nothing to learn from.
        assert output_errors(problem, adaround(problem, steps=0)).sum() == before.sum()
        assert output_errors(problem, adaround(problem, learning_rate=1e-12, steps=50)).sum() > 0.99 * before.sum()
        blind = replace(problem, second=np.eye(problem.weight.shape[1])[None])
        assert output_errors(problem, adaround(blind, steps=200)).sum() > 0.8 * before.sum()


def test_more_steps_help() -> None:
    problem = random_problem(7, (1, 40, 20))
    few, many = (output_errors(problem, adaround(problem, steps=steps)).sum() for steps in (100, 1000))
    assert many < few < nearest_errors(problem).sum()


def test_dead_inputs_get_their_nearest_codes() -> None:
    problem = random_problem(8)
    second = problem.second.copy()
    second[:, 3] = 0
    second[:, :, 3] = 0
    codes = adaround(replace(problem, second=second), steps=300).codes
    np.testing.assert_array_equal(codes[:, 3], problem.nearest()[:, 3])
    np.testing.assert_array_equal(adaround(replace(problem, second=0 * second), steps=50).codes, problem.nearest())


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_weights_and_inputs_does_not_matter(size: float) -> None:
    problem = random_problem(4, (1, 12, 5))
    plain = adaround(problem, steps=100)
    large = replace(problem, second=problem.second * size)
    np.testing.assert_array_equal(adaround(large, steps=100).codes, plain.codes)
    power = np.float32(2.0 ** round(np.log2(size) / 3))
    scaled = replace(problem, weight=problem.weight * power, scale=problem.scale * power)
    np.testing.assert_array_equal(adaround(scaled, steps=100).codes, plain.codes)


@pytest.mark.parametrize(
    "options",
    [{"steps": -1}, {"steps": 2.5}, {"learning_rate": 0}, {"learning_rate": np.nan}, {"regularization": -1.0}],
)
def test_refuses_options(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        adaround(random_problem(0), **options)


def test_refuses_missing_moments() -> None:
    with pytest.raises(InputError, match="moments"):
        adaround(replace(random_problem(0), second=None))
