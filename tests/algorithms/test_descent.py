"""Coordinate descent on codes: monotone, at a point that no single code improves, near the optimum."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qi.algorithms import descent, gptq
from qi.core import IntGrid, LutGrid
from qi.errors import ConfigError, InputError
from tests.algorithms.problems import digits_problems, nearest_errors, output_errors, random_problem
from tests.algorithms.test_gptq import GRIDS, optimum, problem_on

SEEDS = st.integers(0, 10**6)


@settings(max_examples=30)
@given(SEEDS, st.sampled_from(["tensor", "channel", "group"]), st.sampled_from(sorted(GRIDS)))
def test_no_sweep_raises_the_error_of_a_column(seed: int, per: str, kind: str) -> None:
    problem = problem_on(kind, seed, (2, 11, 4), per)
    errors = [output_errors(problem, descent(problem, sweeps=sweeps)) for sweeps in (0, 1, 2, 5)]
    assert np.all(errors[0] == output_errors(problem, gptq(problem)))
    for before, after in itertools.pairwise(errors):
        assert np.all(after <= before * (1 + 1e-12))
    assert np.all(errors[-1] <= nearest_errors(problem))


@pytest.mark.parametrize("kind", GRIDS)
def test_ends_where_no_single_code_is_better(kind: str) -> None:
    for seed in range(5):
        problem = problem_on(kind, seed, (2, 9, 3), "channel")
        grid = problem.grid
        lowest, highest = (grid.qmin, grid.qmax) if isinstance(grid, IntGrid) else (0, grid.levels - 1)
        codes = descent(problem, sweeps=100).codes
        reached = problem.output_error(problem.values(codes))
        for k in range(9):
            for code in range(lowest, highest + 1):
                other = codes.copy()
                other[:, k] = code
                assert np.all(problem.output_error(problem.values(other)) >= reached * (1 - 1e-9))


def test_lies_between_gptq_and_the_optimum_of_tiny_problems() -> None:
    best = found = start = 0.0
    for seed in range(20):
        problem = random_problem(seed, (1, 4, 3), grid=IntGrid(2))
        errors, least = output_errors(problem, descent(problem)), optimum(problem)
        assert np.all(least <= errors * (1 + 1e-9))
        best, found, start = (
            best + least.sum(),
            found + errors.sum(),
            start + output_errors(problem, gptq(problem)).sum(),
        )
    assert best <= found < start
    assert found <= 1.15 * best


@given(SEEDS)
@settings(max_examples=20)
def test_independent_inputs_are_rounded_to_nearest(seed: int) -> None:
    problem = random_problem(seed)
    sizes = np.random.default_rng(seed).uniform(0.1, 9, 12)
    problem = replace(problem, second=np.diag(sizes)[None])
    np.testing.assert_array_equal(descent(problem).codes, problem.nearest())


def test_blocks_of_rows_join() -> None:
    problem = random_problem(3, (1, 150, 6))  # more rows than gradients are kept for
    start, end = (output_errors(problem, descent(problem, sweeps=sweeps)) for sweeps in (0, 50))
    assert end.sum() < start.sum()
    codes = descent(problem, sweeps=50).codes
    error = problem.weight - problem.values(codes).astype(np.float64)
    wanted = problem.values(codes) + (problem.second @ error) / np.diagonal(problem.second, axis1=1, axis2=2)[..., None]
    there = replace(problem, weight=wanted).nearest()  # where each code would go with all others as they are
    assert np.mean(there == codes) == 1.0


def test_columns_and_matrices_are_independent() -> None:
    problem = random_problem(9, (6, 9, 4))
    whole = descent(problem).codes
    for g, n in ((0, 0), (5, 3), (2, 1)):
        alone = replace(
            problem,
            weight=problem.weight[[g], :, n : n + 1],
            sharing=problem.sharing[[g], :, n : n + 1],
            second=problem.second[[g]],
        )
        np.testing.assert_array_equal(whole[g, :, n], descent(alone).codes[0, :, 0])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_lowers_the_output_error_of_real_layers(bits: int) -> None:
    gained = 0.0
    for problem in digits_problems(IntGrid(bits, narrow=True)):
        errors, before = output_errors(problem, descent(problem)), nearest_errors(problem)
        assert np.all(errors <= before)
        assert errors.sum() <= 0.8 * before.sum()
        gained += output_errors(problem, gptq(problem)).sum() - errors.sum()
        # The control: without correlations in the moments there is nothing to descend.
        blind = replace(problem, second=np.eye(problem.weight.shape[1])[None])
        assert output_errors(problem, descent(blind)).sum() > 0.8 * before.sum()
    assert gained > 0


def test_dead_inputs_keep_their_nearest_codes() -> None:
    problem = random_problem(8)
    second = problem.second.copy()
    second[:, 3] = 0
    second[:, :, 3] = 0
    codes = descent(replace(problem, second=second)).codes
    np.testing.assert_array_equal(codes[:, 3], problem.nearest()[:, 3])
    np.testing.assert_array_equal(descent(replace(problem, second=0 * second)).codes, problem.nearest())


def test_fewer_samples_than_features() -> None:
    problem = random_problem(2, (3, 24, 5), samples=4)
    errors = output_errors(problem, descent(problem))
    assert np.all(errors <= output_errors(problem, gptq(problem)))


def test_works_on_tables() -> None:
    problem = random_problem(1, grid=IntGrid(8))
    problem = problem.with_parameters(problem.scale, grid=LutGrid([-127, -30, -8, 0, 8, 30, 127]))
    solution = descent(problem)
    assert solution.codes.max() <= 6
    assert output_errors(problem, solution).sum() < 0.8 * nearest_errors(problem).sum()


@pytest.mark.parametrize("options", [{"sweeps": -1}, {"sweeps": 1.5}, {"damping": 0}])
def test_refuses_options(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        descent(random_problem(0), **options)


def test_refuses_missing_moments() -> None:
    with pytest.raises(InputError, match="moments"):
        descent(replace(random_problem(0), second=None))
